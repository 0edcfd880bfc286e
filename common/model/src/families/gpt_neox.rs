//! GPT-NeoX and Pythia: attention and MLP side by side, rotary positions in part of a head.

use super::Keys;
use super::decoder::{Tied, Widths, norm};
use crate::config::{ConfigError, ModelConfig};
use crate::rope::{RopeScaling, RopeSpec};
use crate::spec::{
    AttentionSpec, BlockSpec, EmbeddingSpec, HeadSpec, LayerSpec, Mixer, MlpSpec, NormKind,
    Projection, QkvSpec, Widening,
};

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let widths = Widths::read(keys)?;
    let Widths { hidden, ffn, .. } = widths;
    let eps = keys.number_if_any("layer_norm_eps", 0.0)?.unwrap_or(1e-5);
    let bias = keys.flag_if_any("attention_bias")?.unwrap_or(true);
    let rope = rope(keys, &widths)?;
    let qkv = Projection::new("attention.query_key_value", 3 * hidden, hidden, bias);
    let attention = AttentionSpec {
        qkv: QkvSpec::PerHead(qkv),
        output: Projection::new("attention.dense", hidden, hidden, bias),
        ..widths.attention([bias; 2], rope)
    };
    let mlp = MlpSpec {
        widening: Widening::Plain(Projection::new("mlp.dense_h_to_4h", ffn, hidden, true)),
        down: Projection::new("mlp.dense_4h_to_h", hidden, ffn, true),
        ..widths.gated_mlp(keys.activation("hidden_act")?, true)
    };
    let layer_norm = |name: &str| norm(name, NormKind::Layer, hidden, eps);
    let parallel = keys.flag_if_any("use_parallel_residual")?.unwrap_or(true);
    let layers = (0..widths.layers).map(|index| LayerSpec {
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
    let tied = Tied::Rarely.read(keys)?;
    Ok(ModelConfig {
        family: "gpt_neox".into(),
        hidden,
        vocab: widths.vocab,
        context: widths.context,
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
        beside: Vec::new(),
    })
}

/// Rotary positions under this family's own keys, or under those of transformers 5.
fn rope(keys: &Keys<'_>, widths: &Widths) -> Result<RopeSpec, ConfigError> {
    let share = keys.number_if_any("rotary_pct", 0.0)?;
    let theta = keys.number_if_any("rotary_emb_base", 1.0)?;
    keys.only("rope_scaling", serde_json::Value::Null)?;
    match keys.object_if_any("rope_parameters")? {
        Some(settings) => widths.rope_of(keys, Some(settings), theta),
        None => Ok(RopeSpec {
            width: (widths.head_dim as f64 * share.unwrap_or(0.25)) as usize / 2 * 2,
            theta: theta.unwrap_or(1e4),
            scaling: RopeScaling::Default,
        }),
    }
}
