//! GPT-2: learned positions, layer norms, transposed weight matrices (`Conv1D`).

use super::decoder::{TieDefault, norm};
use super::keys::Keys;
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{
    AttentionSpec, BlockSpec, EmbeddingSpec, HeadSpec, LayerSpec, Mixer, MlpInput, MlpSpec,
    NormKind, Projection, QkvSpec, Stored,
};

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let (hidden, heads) = (keys.size("n_embd")?, keys.size("n_head")?);
    if !hidden.is_multiple_of(heads) {
        return Err(keys.invalid("n_embd", hidden, format!("a multiple of n_head, {heads}")));
    }
    let default_ffn = keys.product("4 · n_embd", [4, hidden])?;
    let ffn = keys.optional_size("n_inner")?.unwrap_or(default_ffn);
    let eps = keys
        .optional_number_above("layer_norm_epsilon", 0.0)?
        .unwrap_or(1e-5);
    keys.supports_only("scale_attn_weights", true)?;
    keys.supports_only("scale_attn_by_inverse_layer_idx", false)?;
    keys.ignore(&["reorder_and_upcast_attn"]);
    let linear = |name: &str, rows, cols| Projection {
        stored: Stored::Transposed,
        ..Projection::new(name, rows, cols, true)
    };
    let attention = AttentionSpec {
        heads,
        kv_heads: heads,
        head_dim: hidden / heads,
        qkv: QkvSpec::Fused(linear("attn.c_attn", 3 * hidden, hidden)),
        output: linear("attn.c_proj", hidden, hidden),
        qk_norm: None,
        rope: None,
        window: None,
        scale: ((hidden / heads) as f64).sqrt().recip(),
        softcap: None,
    };
    let mlp = MlpSpec {
        input: MlpInput::Ungated(linear("mlp.c_fc", ffn, hidden)),
        down: linear("mlp.c_proj", hidden, ffn),
        ffn,
        activation: keys.activation("activation_function")?,
        input_name: "mlp_in".into(),
        down_input_name: "down_in".into(),
    };
    let layer_norm = |name: &str| norm(name, NormKind::Layer, hidden, eps);
    // The oldest checkpoints have no common prefix.
    let prefix = match keys.has_tensor_containing("transformer.")
        || !keys.has_tensor_containing("wte.weight")
    {
        true => "transformer.",
        false => "",
    };
    let layers = (0..keys.layers("n_layer")?).map(|index| LayerSpec {
        prefix: format!("{prefix}h.{index}."),
        blocks: vec![
            BlockSpec::new(layer_norm("ln_1"), Mixer::Attention(attention.clone())),
            BlockSpec::new(layer_norm("ln_2"), Mixer::Mlp(mlp.clone())),
        ],
        parallel: false,
    });
    let embedding = format!("{prefix}wte.weight");
    let tied = TieDefault::Tied.read(keys)?;
    Ok(ModelConfig {
        family: "gpt2".into(),
        hidden,
        vocab: keys.size("vocab_size")?,
        context: keys.size("n_positions")?,
        layers: layers.collect(),
        head: HeadSpec {
            norm: layer_norm(&format!("{prefix}ln_f")),
            weight: match tied {
                true => embedding.clone(),
                false => "lm_head.weight".into(),
            },
            tied,
            bias: None,
            scale: 1.0,
            softcap: None,
        },
        ignored_prefixes: Vec::new(),
        embedding: EmbeddingSpec {
            weight: embedding,
            scale: 1.0,
            positions: Some(format!("{prefix}wpe.weight")),
        },
    })
}
