//! Tests which `config.json` files are refused and which key the error names, which tensors are ignored in addition to
//! a model's own, and that published configurations give the published numbers of parameters.
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

/// The configuration of a golden case with one key changed; `a.b` is key `b` of the object `a`.
fn changed(case: &str, key: &str, value: Value) -> Value {
    let mut config = config_of(case);
    let (mut object, mut rest) = (&mut config, key);
    while let Some((outer, inner)) = rest.split_once('.') {
        object = &mut object[outer];
        rest = inner;
    }
    object[rest] = value;
    config
}

/// A golden case, a key, an unsupported value of it, and the key that the error names.
type Refused = (&'static str, &'static str, Value, &'static str);

/// An unsupported value whose error names the key itself.
fn refused(case: &'static str, key: &'static str, value: Value) -> Refused {
    (case, key, value, key)
}

/// Asserts that every value is refused and that the error names the right key.
fn assert_refused(cases: impl IntoIterator<Item = Refused>) {
    let mut failures = Vec::new();
    for (case, key, value, refused) in cases {
        let what = format!("{case}, {key} {value}");
        match parsed(&changed(case, key, value).to_string()) {
            Err(ConfigError::Value { key, .. }) if key == refused => {}
            Err(error) => failures.push(format!("{what}: {error}")),
            Ok(_) => failures.push(format!("{what}: accepted")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A rotary scaling that is not supported.
fn unknown_rope() -> Value {
    json!({"type": "proportional", "factor": 2.0})
}

#[test]
fn unsupported_values_are_refused_by_their_key() {
    let rope_type = "rope_scaling.rope_type";
    assert_refused([
        ("llama-yarn", "rope_scaling", unknown_rope(), rope_type),
        refused("llama-plain", "rope_interleaved", json!(true)),
        refused("llama-plain", "hidden_act", json!("tanh")),
        refused("llama-plain", "clip_qkv", json!(8.0)),
        refused("llama-plain", "num_key_value_heads", json!(4)),
        refused("llama-plain", "quantization_config", json!({"bits": 4})),
        refused("llama-yarn", "rope_scaling.mscale_all_dims", json!(1.0)),
        refused("qwen3_moe-plain", "num_experts_per_tok", json!(99)),
        refused("phimoe-plain", "num_experts_per_tok", json!(3)),
    ]);
}

#[test]
fn unsupported_values_of_latent_attention_and_group_limited_routing_are_refused_by_their_key() {
    let case = "deepseek_v3-plain";
    let rope_type = "rope_scaling.rope_type";
    let rope_dim = "head_dim · partial_rotary_factor";
    assert_refused([
        refused(case, "quantization_config", json!({"quant_method": "fp8"})),
        refused(case, "n_shared_experts", json!(1_u64 << 59)),
        refused(case, "n_routed_experts", json!(1 << 20)),
        refused(case, "n_group", json!(3)),
        refused(case, "n_group", json!(8)),
        refused(case, "topk_group", json!(5)),
        refused(case, "num_experts_per_tok", json!(5)),
        refused(case, "scoring_func", json!("softmax")),
        refused(case, "topk_method", json!("group_limited_greedy")),
        refused(case, "moe_layer_freq", json!(2)),
        refused(case, "num_key_value_heads", json!(2)),
        (case, "qk_rope_head_dim", json!(7), rope_dim),
        refused(case, "qk_head_dim", json!(15)),
        refused(case, "partial_rotary_factor", json!(0.5)),
        (case, "rope_scaling", unknown_rope(), rope_type),
        refused(case, "rope_scaling.mscale_all_dim", json!(-1)),
        refused(case, "num_nextn_predict_layers", json!(1_000_000)),
    ]);
}

#[test]
fn unsupported_values_of_state_space_models_are_refused_by_their_key() {
    assert_refused([
        refused("mamba-plain", "rms_norm", json!(false)),
        refused("mamba2-plain", "rms_norm", json!(false)),
        refused("mamba2-plain", "expand", json!(3)),
        refused("mamba2-plain", "intermediate_size", json!(40)),
        refused("mamba2-plain", "n_groups", json!(4)),
        refused("mamba2-plain", "time_step_limit", json!([0.3, 0.1])),
        refused("mamba2-plain", "time_step_limit", json!([-1.0, 0.1])),
        refused("mamba2-plain", "time_step_limit", json!([0.0])),
    ]);
}

#[test]
fn a_whole_number_that_is_far_too_large_is_refused_or_changes_nothing() {
    let root = golden("");
    let mut failures = Vec::new();
    let mut count = 0;
    for entry in std::fs::read_dir(root).unwrap() {
        let case = entry.unwrap().file_name().into_string().unwrap();
        let config = config_of(&case);
        let expected = parsed(&config.to_string()).unwrap();
        for (key, value) in config.as_object().unwrap() {
            // Bases and factors are numbers that are not counted with.
            if !value.is_u64()
                || ["theta", "factor", "base", "scalar"]
                    .iter()
                    .any(|part| key.contains(part))
            {
                continue;
            }
            for large in [
                json!(1_u64 << 33),
                json!(1_u64 << 59),
                json!(u64::MAX),
                json!(1e18),
                json!(-1),
            ] {
                let what = format!("{case}, {key} {large}");
                let mut changed = config.clone();
                changed[key] = large;
                match parsed(&changed.to_string()) {
                    Err(ConfigError::Value { .. }) => count += 1,
                    Ok(found) if found == expected => {}
                    Ok(_) => failures.push(format!("{what}: accepted")),
                    Err(error) => failures.push(format!("{what}: {error}")),
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(count > 1000, "{count}");
}

#[test]
fn products_of_numbers_are_limited() {
    assert_refused([
        refused("mixtral-plain", "num_hidden_layers", json!(1001)),
        ("gpt2-plain", "n_embd", json!(1 << 17), "4 · n_embd"),
        (
            "mamba-plain",
            "expand",
            json!(1 << 17),
            "expand · hidden_size",
        ),
    ]);
    let mut config = config_of("qwen3_moe-plain");
    config["num_hidden_layers"] = 1000.into();
    config["num_experts"] = 4096.into();
    let error = parsed(&config.to_string()).unwrap_err().to_string();
    assert!(error.contains("num_experts: found 4096"), "{error}");
}

#[test]
fn rotary_settings_that_say_the_same_twice_are_accepted_and_contradictions_refused() {
    let with = |changes: Value| {
        let mut config = config_of("llama-yarn");
        let yarn = config["rope_scaling"].clone();
        let mut parameters = yarn.clone();
        parameters["rope_theta"] = config["rope_theta"].clone();
        config["rope_parameters"] = parameters;
        for (key, value) in changes.as_object().unwrap() {
            let path = key.split('.');
            let slot = path.fold(&mut config, |object, part| &mut object[part]);
            *slot = value.clone();
        }
        parsed(&config.to_string())
    };
    let expected = parsed(&config_of("llama-yarn").to_string()).unwrap();
    assert_eq!(with(json!({})).unwrap(), expected);
    for (change, refused) in [
        (json!({"rope_parameters.factor": 3.5}), "rope_scaling"),
        (
            json!({"rope_parameters.rope_theta": 77.0}),
            "rope_parameters.rope_theta",
        ),
        (json!({"rope_scaling.beta_fast": 31.0}), "rope_scaling"),
        (
            json!({"rope_scaling": {"rope_type": "linear", "type": "yarn"}}),
            "rope_scaling.rope_type",
        ),
    ] {
        match with(change.clone()) {
            Err(ConfigError::Value { key, .. }) if key == refused => {}
            other => panic!("{change}: {other:?}"),
        }
    }
}

#[test]
fn attention_in_both_directions_and_weights_that_are_quantized_are_refused() {
    for case in [
        "llama-plain",
        "gpt2-plain",
        "mamba-plain",
        "qwen3_moe-plain",
        "gemma3_text-plain",
    ] {
        let quantized = json!({"quant_method": "gptq", "bits": 4});
        assert_refused([
            refused(case, "is_causal", json!(false)),
            refused(case, "causal", json!(false)),
            refused(case, "is_encoder_decoder", json!(true)),
            refused(case, "use_bidirectional_attention", json!(true)),
            refused(case, "quantization_config", quantized),
        ]);
        parsed(&changed(case, "is_causal", json!(true)).to_string()).unwrap();
    }
}

#[test]
fn two_names_of_one_key_must_agree() {
    let case = "qwen3_moe-plain";
    let experts = config_of(case)["num_experts"].clone();
    let same = changed(case, "num_local_experts", experts);
    let expected = parsed(&config_of(case).to_string()).unwrap();
    assert_eq!(parsed(&same.to_string()).unwrap(), expected);
    let error = parsed(&changed(case, "num_local_experts", json!(3)).to_string()).unwrap_err();
    assert!(error.to_string().contains("num_local_experts"), "{error}");
    let mut renamed = config_of(case);
    let experts = renamed
        .as_object_mut()
        .unwrap()
        .remove("num_experts")
        .unwrap();
    renamed["num_local_experts"] = experts;
    assert_eq!(parsed(&renamed.to_string()).unwrap(), expected);
}

#[test]
fn redundant_keys_with_consistent_values_are_accepted() {
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
fn a_yarn_mscale_of_zero_counts_as_absent() {
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
fn an_infinite_limit_is_accepted_in_both_spellings() {
    let with = |limit: &str| {
        let template = changed("mamba2-plain", "time_step_limit", json!("placeholder"));
        parsed(&template.to_string().replace("\"placeholder\"", limit))
    };
    let literal = with("[0.0, Infinity]").unwrap();
    assert_eq!(
        with(r#"[0.0, {"__float__": "Infinity"}]"#).unwrap(),
        literal
    );
    assert_eq!(with("null").unwrap(), literal);
    assert_ne!(with("[0.0, 1.0]").unwrap(), literal);
    for limit in ["[0.0, NaN]", "[Infinity, Infinity]", "[0.0, -Infinity]"] {
        let found = with(limit);
        assert!(
            matches!(found, Err(ConfigError::Value { .. })),
            "{limit} {found:?}"
        );
    }
    assert!(matches!(with("[0.0, Inf]"), Err(ConfigError::Json { .. })));
}

/// 671B and 7,285,403,648, as their authors state.
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
fn layers_for_multi_token_prediction_are_ignored_if_the_configuration_has_them() {
    let case = golden("deepseek_v3-plain");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mtp-layers");
    std::fs::create_dir_all(&folder).unwrap();
    let bytes = std::fs::read(case.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: BTreeMap<String, TensorView<'_>> = file.tensors().into_iter().collect();
    for name in ["eh_proj.weight", "mlp.experts.0.up_proj.weight"] {
        let tensor = tensors["model.norm.weight"].clone();
        tensors.insert(format!("model.layers.2.{name}"), tensor);
    }
    let weights = folder.join("model.safetensors");
    safetensors::serialize_to_file(&tensors, None, &weights).unwrap();
    let source = SourceFolder::open(&folder).unwrap();
    let check = |mtp_layers: usize| {
        let config = changed(
            "deepseek_v3-plain",
            "num_nextn_predict_layers",
            json!(mtp_layers),
        );
        source.check(&parsed(&config.to_string()).unwrap())
    };
    check(1).unwrap();
    let error = check(0).unwrap_err().to_string();
    assert_eq!(error.matches("unexpected tensor").count(), 2, "{error}");
}

#[test]
fn a_folder_opens_with_headers_only_and_reads_tensors_once_their_shard_exists() {
    let case = golden("llama-plain");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("headers-only");
    std::fs::create_dir_all(&folder).unwrap();
    let (shard, bytes) = (
        folder.join("model.safetensors"),
        std::fs::read(case.join("model.safetensors")).unwrap(),
    );
    let _ = std::fs::remove_file(&shard);
    let header = uc_model::source::header_path(&shard);
    let length = uc_model::source::header_length(*bytes.first_chunk().unwrap(), &shard).unwrap();
    std::fs::write(&header, &bytes[..length as usize]).unwrap();
    let complete = SourceFolder::open(&case).unwrap();
    let source = SourceFolder::open(&folder).unwrap();
    assert!(source.tensors().eq(complete.tensors()));
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
        complete.read(name).unwrap().bytes
    );
    // A truncated header, and a header followed by more bytes.
    for wrong in [
        &bytes[..length as usize - 1],
        &bytes[..length as usize + 1],
        &bytes[..4],
    ] {
        std::fs::write(&header, wrong).unwrap();
        std::fs::write(&shard, &bytes).unwrap();
        let source = SourceFolder::open(&folder).unwrap();
        assert!(
            source.tensors().eq(complete.tensors()),
            "the shard's own header counts"
        );
        std::fs::remove_file(&shard).unwrap();
        SourceFolder::open(&folder).unwrap_err();
    }
}
