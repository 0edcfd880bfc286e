//! Mamba: every layer is one selective state space block.

use super::decoder::{TieDefault, norm};
use super::keys::Keys;
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{
    BlockSpec, ConvSpec, EmbeddingSpec, HeadSpec, LayerSpec, MambaSpec, Mixer, NormKind, Projection,
};

/// Context length. A state space has no limit, but the pipeline needs one.
const CONTEXT: usize = 1 << 20;

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let hidden = keys.size("hidden_size")?;
    let expand = keys.optional_size("expand")?.unwrap_or(2);
    let inner = keys
        .optional_size("intermediate_size")?
        .unwrap_or(keys.product("expand · hidden_size", [expand, hidden])?);
    let state = keys.optional_size("state_size")?.unwrap_or(16);
    let dt_rank = match keys.optional_string("time_step_rank") {
        Ok(None | Some("auto")) => hidden.div_ceil(16),
        _ => keys.size("time_step_rank")?,
    };
    let eps = keys
        .optional_number_above("layer_norm_epsilon", 0.0)?
        .unwrap_or(1e-5);
    let bias = keys.flag("use_bias")?;
    let layers = keys.layers("num_hidden_layers")?;
    keys.ignore(&["n_layer", "use_mambapy", "d_inner", "d_model", "ssm_cfg"]);
    let mixer = Mixer::Mamba(MambaSpec {
        inner,
        state,
        dt_rank,
        conv: conv(keys, inner)?,
        in_proj: Projection::new("mixer.in_proj", 2 * inner, hidden, bias),
        x_proj: Projection::new("mixer.x_proj", dt_rank + 2 * state, inner, false),
        dt_proj: Projection::new("mixer.dt_proj", inner, dt_rank, true),
        out_proj: Projection::new("mixer.out_proj", hidden, inner, bias),
        activation: keys.activation("hidden_act")?,
    });
    model(keys, [hidden, layers], eps, TieDefault::Tied, &mixer)
}

/// The convolution over `channels` channels.
pub(super) fn conv(keys: &Keys<'_>, channels: usize) -> Result<ConvSpec, ConfigError> {
    Ok(ConvSpec {
        name: "mixer.conv1d".into(),
        channels,
        kernel: keys.optional_size("conv_kernel")?.unwrap_or(4),
        bias: keys.optional_flag("use_conv_bias")?.unwrap_or(true),
    })
}

/// The model whose layers `backbone.layers.N.` consist of one block with this mixer each.
pub(super) fn model(
    keys: &Keys<'_>,
    [hidden, layers]: [usize; 2],
    eps: f64,
    tied: TieDefault,
    mixer: &Mixer,
) -> Result<ModelConfig, ConfigError> {
    keys.supports_only("rms_norm", true)?;
    keys.ignore(&[
        "residual_in_fp32",
        "fused_add_norm",
        "time_step_init_scheme",
    ]);
    let rms = |name: &str| norm(name, NormKind::Rms, hidden, eps);
    let layers = (0..layers).map(|index| LayerSpec {
        prefix: format!("backbone.layers.{index}."),
        blocks: vec![BlockSpec::new(rms("norm"), mixer.clone())],
        parallel: false,
    });
    // Checkpoints use one name or the other.
    let embedding = match keys.has_tensor_containing("backbone.embedding.") {
        true => "backbone.embedding.weight",
        false => "backbone.embeddings.weight",
    };
    let tied = tied.read(keys)?;
    Ok(ModelConfig {
        family: keys
            .optional_string("model_type")?
            .unwrap_or_default()
            .to_owned(),
        hidden,
        vocab: keys.size("vocab_size")?,
        context: CONTEXT,
        embedding: EmbeddingSpec {
            weight: embedding.into(),
            scale: 1.0,
            positions: None,
        },
        layers: layers.collect(),
        head: HeadSpec {
            norm: rms("backbone.norm_f"),
            weight: if tied { embedding } else { "lm_head.weight" }.into(),
            tied,
            bias: None,
            scale: 1.0,
            softcap: None,
        },
        ignored_prefixes: Vec::new(),
    })
}
