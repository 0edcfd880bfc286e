//! Which `config.json` is refused, by which key, and what is tolerated beside a model's tensors. Published
//! configurations give the published numbers of parameters.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use uc_model::config::ConfigError;
use uc_model::{ModelConfig, SourceFolder};

fn golden(case: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    root.join(case)
}

fn config_of(case: &str) -> Value {
    let text = std::fs::read(golden(case).join("config.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn parsed(text: &str) -> Result<ModelConfig, ConfigError> {
    ModelConfig::from_json(text.as_bytes(), Path::new("config.json"), &|_| false)
}

/// The configuration of a golden case with one key set, `a.b` being key b of the object a.
fn changed(case: &str, key: &str, value: Value) -> Value {
    let mut config = config_of(case);
    let (mut place, mut rest) = (&mut config, key);
    while let Some((outer, inner)) = rest.split_once('.') {
        place = &mut place[outer];
        rest = inner;
    }
    place[rest] = value;
    config
}

#[test]
fn a_value_that_is_not_computed_is_refused_by_its_key() {
    let deepseek = "deepseek_v3-plain";
    let dynamic = || json!({"type": "dynamic", "factor": 2.0});
    let cases = [
        (
            "llama-yarn",
            "rope_scaling",
            dynamic(),
            "rope_scaling.rope_type",
        ),
        (
            "llama-plain",
            "rope_interleaved",
            json!(true),
            "rope_interleaved",
        ),
        ("llama-plain", "hidden_act", json!("tanh"), "hidden_act"),
        ("llama-plain", "clip_qkv", json!(8.0), "clip_qkv"),
        (
            "llama-plain",
            "num_key_value_heads",
            json!(4),
            "num_key_value_heads",
        ),
        (
            "llama-plain",
            "quantization_config",
            json!({"bits": 4}),
            "quantization_config",
        ),
        (
            "llama-yarn",
            "rope_scaling.mscale_all_dims",
            json!(1.0),
            "rope_scaling.mscale_all_dims",
        ),
        (
            "qwen3_moe-plain",
            "num_experts_per_tok",
            json!(99),
            "num_experts_per_tok",
        ),
        (
            "phimoe-plain",
            "num_experts_per_tok",
            json!(3),
            "num_experts_per_tok",
        ),
        (
            deepseek,
            "quantization_config",
            json!({"quant_method": "fp8"}),
            "quantization_config",
        ),
        (deepseek, "n_group", json!(3), "n_group"),
        (deepseek, "n_group", json!(8), "n_group"),
        (deepseek, "topk_group", json!(5), "topk_group"),
        (
            deepseek,
            "num_experts_per_tok",
            json!(5),
            "num_experts_per_tok",
        ),
        (deepseek, "scoring_func", json!("softmax"), "scoring_func"),
        (
            deepseek,
            "topk_method",
            json!("group_limited_greedy"),
            "topk_method",
        ),
        (deepseek, "moe_layer_freq", json!(2), "moe_layer_freq"),
        (
            deepseek,
            "num_key_value_heads",
            json!(2),
            "num_key_value_heads",
        ),
        (
            deepseek,
            "qk_rope_head_dim",
            json!(7),
            "head_dim · partial_rotary_factor",
        ),
        (deepseek, "qk_head_dim", json!(15), "qk_head_dim"),
        (
            deepseek,
            "partial_rotary_factor",
            json!(0.5),
            "partial_rotary_factor",
        ),
        (
            deepseek,
            "rope_scaling",
            dynamic(),
            "rope_scaling.rope_type",
        ),
        (
            deepseek,
            "rope_scaling.mscale_all_dim",
            json!(-1),
            "rope_scaling.mscale_all_dim",
        ),
        (
            deepseek,
            "num_nextn_predict_layers",
            json!(1_000_000),
            "num_nextn_predict_layers",
        ),
        ("mamba-plain", "rms_norm", json!(false), "rms_norm"),
        ("mamba2-plain", "rms_norm", json!(false), "rms_norm"),
        ("mamba2-plain", "expand", json!(3), "expand"),
        (
            "mamba2-plain",
            "intermediate_size",
            json!(40),
            "intermediate_size",
        ),
        ("mamba2-plain", "n_groups", json!(4), "n_groups"),
        (
            "mamba2-plain",
            "time_step_limit",
            json!([0.3, 0.1]),
            "time_step_limit",
        ),
        (
            "mamba2-plain",
            "time_step_limit",
            json!([-1.0, 0.1]),
            "time_step_limit",
        ),
        (
            "mamba2-plain",
            "time_step_limit",
            json!([0.0]),
            "time_step_limit",
        ),
    ];
    let mut others = Vec::new();
    for (case, key, value, refused) in cases {
        let what = format!("{case}, {key} {value}");
        match parsed(&changed(case, key, value).to_string()) {
            Err(ConfigError::Value { key, .. }) if key == refused => {}
            Err(error) => others.push(format!("{what}: {error}")),
            Ok(_) => others.push(format!("{what}: accepted")),
        }
    }
    assert!(others.is_empty(), "{}", others.join("\n"));
}

#[test]
fn a_value_that_means_the_same_is_accepted() {
    let cases = [
        ("deepseek_v3-plain", "qk_head_dim", json!(14)),
        ("deepseek_v3-plain", "head_dim", json!(8)),
        ("deepseek_v3-plain", "rope_interleave", json!(true)),
        ("mamba2-plain", "intermediate_size", json!(48)),
        ("mamba2-plain", "time_step_rank", json!(2)),
        ("mamba2-plain", "chunk_size", json!(256)),
    ];
    for (case, key, value) in cases {
        let found = parsed(&changed(case, key, value).to_string()).unwrap();
        assert_eq!(
            found,
            parsed(&config_of(case).to_string()).unwrap(),
            "{case}"
        );
    }
}

#[test]
fn yarn_takes_no_share_for_a_share_of_nothing() {
    let absent = changed(
        "deepseek_v3-plain",
        "rope_scaling.mscale_all_dim",
        Value::Null,
    );
    let zero = changed("deepseek_v3-plain", "rope_scaling.mscale_all_dim", json!(0));
    let absent = parsed(&absent.to_string()).unwrap();
    assert_eq!(parsed(&zero.to_string()).unwrap(), absent);
    assert_ne!(
        parsed(&config_of("deepseek_v3-plain").to_string()).unwrap(),
        absent
    );
}

#[test]
fn an_infinite_limit_may_be_written_in_either_way() {
    let with = |limit: &str| {
        let marked = changed("mamba2-plain", "time_step_limit", json!("here"));
        parsed(&marked.to_string().replace("\"here\"", limit))
    };
    let bare = with("[0.0, Infinity]").unwrap();
    assert_eq!(with(r#"[0.0, {"__float__": "Infinity"}]"#).unwrap(), bare);
    assert_eq!(with("null").unwrap(), bare);
    assert_ne!(with("[0.0, 1.0]").unwrap(), bare);
    for limit in ["[0.0, NaN]", "[Infinity, Infinity]", "[0.0, -Infinity]"] {
        let found = with(limit);
        assert!(
            matches!(found, Err(ConfigError::Value { .. })),
            "{limit} {found:?}"
        );
    }
    assert!(matches!(with("[0.0, Inf]"), Err(ConfigError::Json { .. })));
}

/// 671B and 7,285,403,648 as their makers say.
#[test]
fn published_models_have_their_published_numbers_of_parameters() {
    let deepseek = json!({
        "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false, "aux_loss_alpha": 0.001, "ep_size": 1,
        "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168, "intermediate_size": 18432,
        "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v3",
        "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256,
        "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "pretraining_tp": 1,
        "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6,
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096, "type": "yarn"},
        "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "seq_aux": true,
        "tie_word_embeddings": false, "topk_group": 4, "topk_method": "noaux_tc", "v_head_dim": 128,
        "vocab_size": 129280,
    });
    let codestral = json!({
        "architectures": ["Mamba2ForCausalLM"], "chunk_size": 256, "conv_kernel": 4, "expand": 2, "head_dim": 64,
        "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 8192, "layer_norm_epsilon": 1e-5,
        "model_type": "mamba2", "n_groups": 8, "norm_before_gate": true, "num_heads": 128, "num_hidden_layers": 64,
        "rescale_prenorm_residual": false, "residual_in_fp32": true, "rms_norm": true, "state_size": 128,
        "tie_word_embeddings": false, "time_step_floor": 0.0001, "time_step_limit": [0.0, "Infinity"],
        "time_step_max": 0.1, "time_step_min": 0.001, "time_step_rank": 256, "use_bias": false,
        "use_conv_bias": true, "vocab_size": 32768,
    });
    for (config, parameters) in [(deepseek, 671_026_419_200), (codestral, 7_285_403_648)] {
        let text = config.to_string().replace("\"Infinity\"", "Infinity");
        let config = parsed(&text).unwrap();
        assert_eq!(config.total_parameters(), parameters, "{}", config.family);
    }
}

#[test]
fn layers_that_predict_further_tokens_are_skipped_where_the_configuration_has_them() {
    let case = golden("deepseek_v3-plain");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("further-layers");
    std::fs::create_dir_all(&folder).unwrap();
    let bytes = std::fs::read(case.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: BTreeMap<String, TensorView<'_>> = file.tensors().into_iter().collect();
    for name in ["eh_proj.weight", "mlp.experts.0.up_proj.weight"] {
        let any = tensors["model.norm.weight"].clone();
        tensors.insert(format!("model.layers.2.{name}"), any);
    }
    let weights = folder.join("model.safetensors");
    safetensors::serialize_to_file(&tensors, None, &weights).unwrap();
    let source = SourceFolder::open(&folder).unwrap();
    let check = |further: usize| {
        let config = changed(
            "deepseek_v3-plain",
            "num_nextn_predict_layers",
            json!(further),
        );
        source.check(&parsed(&config.to_string()).unwrap())
    };
    check(1).unwrap();
    let refused = check(0).unwrap_err().to_string();
    assert_eq!(refused.matches("left over").count(), 2, "{refused}");
}

#[test]
fn a_folder_opens_by_headers_alone_and_reads_a_tensor_once_its_shard_is_there() {
    let case = golden("llama-plain");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("headers-alone");
    std::fs::create_dir_all(&folder).unwrap();
    let (shard, bytes) = (
        folder.join("model.safetensors"),
        std::fs::read(case.join("model.safetensors")).unwrap(),
    );
    let _ = std::fs::remove_file(&shard);
    let header = uc_model::source::header_path(&shard);
    let length = uc_model::source::header_length(*bytes.first_chunk().unwrap(), &shard).unwrap();
    std::fs::write(&header, &bytes[..length as usize]).unwrap();
    let whole = SourceFolder::open(&case).unwrap();
    let source = SourceFolder::open(&folder).unwrap();
    assert!(source.tensors().eq(whole.tensors()));
    source
        .check(&parsed(&config_of("llama-plain").to_string()).unwrap())
        .unwrap();
    let name = "model.norm.weight";
    let absent = source.read(name).unwrap_err().to_string();
    assert!(absent.contains("model.safetensors"), "{absent}");
    assert!(!source.file_of(source.tensor(name).unwrap()).1);
    std::fs::write(&shard, &bytes).unwrap();
    assert_eq!(
        source.read(name).unwrap().bytes,
        whole.read(name).unwrap().bytes
    );
    // A header that is cut, or followed by more.
    for wrong in [
        &bytes[..length as usize - 1],
        &bytes[..length as usize + 1],
        &bytes[..4],
    ] {
        std::fs::write(&header, wrong).unwrap();
        SourceFolder::open(&folder).unwrap_err();
    }
}
