//! GPT-NeoX and Pythia: attention and MLP in parallel, rotary positions in the first part of a head.

use super::decoder::{DecoderDims, TieDefault, norm};
use super::keys::Keys;
use crate::config::{ConfigError, ModelConfig};
use crate::rope::{RopeScaling, RopeSpec};
use crate::spec::{
    AttentionSpec, BlockSpec, EmbeddingSpec, HeadSpec, LayerSpec, Mixer, MlpInput, MlpSpec,
    NormKind, Projection, QkvSpec,
};

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let dims = DecoderDims::read(keys)?;
    let DecoderDims { hidden, ffn, .. } = dims;
    let eps = keys
        .optional_number_above("layer_norm_eps", 0.0)?
        .unwrap_or(1e-5);
    let bias = keys.optional_flag("attention_bias")?.unwrap_or(true);
    let rope = rope(keys, &dims)?;
    let qkv = Projection::new("attention.query_key_value", 3 * hidden, hidden, bias);
    let attention = AttentionSpec {
        qkv: QkvSpec::FusedPerHead(qkv),
        output: Projection::new("attention.dense", hidden, hidden, bias),
        ..dims.attention([bias; 2], rope)
    };
    let mlp = MlpSpec {
        input: MlpInput::Ungated(Projection::new("mlp.dense_h_to_4h", ffn, hidden, true)),
        down: Projection::new("mlp.dense_4h_to_h", hidden, ffn, true),
        ..dims.gated_mlp(keys.activation("hidden_act")?, true)
    };
    let layer_norm = |name: &str| norm(name, NormKind::Layer, hidden, eps);
    let parallel = keys.optional_flag("use_parallel_residual")?.unwrap_or(true);
    let layers = (0..dims.layers).map(|index| LayerSpec {
        prefix: format!("gpt_neox.layers.{index}."),
        blocks: vec![
            BlockSpec::new(
                layer_norm("input_layernorm"),
                Mixer::Attention(attention.clone()),
            ),
            BlockSpec::new(
                layer_norm("post_attention_layernorm"),
                Mixer::Mlp(mlp.clone()),
            ),
        ],
        parallel,
    });
    let embedding = "gpt_neox.embed_in.weight";
    let tied = TieDefault::Untied.read(keys)?;
    Ok(ModelConfig {
        family: "gpt_neox".into(),
        hidden,
        vocab: dims.vocab,
        context: dims.context,
        embedding: EmbeddingSpec {
            weight: embedding.into(),
            scale: 1.0,
            positions: None,
        },
        layers: layers.collect(),
        head: HeadSpec {
            norm: layer_norm("gpt_neox.final_layer_norm"),
            weight: if tied { embedding } else { "embed_out.weight" }.into(),
            tied,
            bias: None,
            scale: 1.0,
            softcap: None,
        },
        ignored_prefixes: Vec::new(),
    })
}

/// The rotary embedding from the keys of this family, or from those of transformers 5.
fn rope(keys: &Keys<'_>, dims: &DecoderDims) -> Result<RopeSpec, ConfigError> {
    let fraction = keys.optional_number_above("rotary_pct", 0.0)?;
    let theta = keys.optional_number_above("rotary_emb_base", 1.0)?;
    keys.supports_only("rope_scaling", serde_json::Value::Null)?;
    match keys.optional_object("rope_parameters")? {
        Some(settings) => dims.rope_from(keys, Some(settings), theta),
        None => Ok(RopeSpec {
            width: (dims.head_dim as f64 * fraction.unwrap_or(0.25)) as usize / 2 * 2,
            theta: theta.unwrap_or(1e4),
            scaling: RopeScaling::Default,
        }),
    }
}
