//! GPT-NeoX and Pythia: attention and MLP in parallel, rotary positions in the first part of a head.

use super::decoder::{DecoderDims, TieDefault, norm};
use super::keys::Keys;
use super::rope::RopeDefaults;
use crate::config::{ConfigError, ModelConfig};
use crate::rope::RopeSpec;
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

/// The rotary embedding. Older files have names of this family (`rotary_pct`, `rotary_emb_base`), files of transformers 4
/// both these and the usual names, and files of transformers 5 an object `rope_parameters`.
fn rope(keys: &Keys<'_>, dims: &DecoderDims) -> Result<RopeSpec, ConfigError> {
    let theta = keys.same_number_above(["rope_theta", "rotary_emb_base"], 1.0)?;
    let fraction = keys.same_number_above(["partial_rotary_factor", "rotary_pct"], 0.0)?;
    dims.rope_with(
        keys,
        RopeDefaults {
            theta,
            fraction,
            default_fraction: 0.25,
        },
    )
}
