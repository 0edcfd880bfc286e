//! Mamba: layers of one selective state space block.

use super::Keys;
use super::decoder::{Tied, norm};
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{
    BlockSpec, ConvSpec, EmbeddingSpec, HeadSpec, LayerSpec, MambaSpec, Mixer, NormKind, Projection,
};

/// Longest window: the state has no limit, the pipeline wants one.
const CONTEXT: usize = 1 << 20;

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let hidden = keys.size("hidden_size")?;
    let expand = keys.size_if_any("expand")?.unwrap_or(2);
    let inner = keys
        .size_if_any("intermediate_size")?
        .unwrap_or(expand * hidden);
    let state = keys.size_if_any("state_size")?.unwrap_or(16);
    let rank = match keys.text("time_step_rank") {
        Ok(None | Some("auto")) => hidden.div_ceil(16),
        _ => keys.size("time_step_rank")?,
    };
    let eps = keys
        .number_if_any("layer_norm_epsilon", 0.0)?
        .unwrap_or(1e-5);
    let bias = keys.flag("use_bias")?;
    let layers = keys.layers("num_hidden_layers")?;
    keys.ignore(&["n_layer", "use_mambapy", "d_inner", "d_model", "ssm_cfg"]);
    let mixer = Mixer::Mamba(MambaSpec {
        inner,
        state,
        rank,
        conv: conv(keys, inner)?,
        input: Projection::new("mixer.in_proj", 2 * inner, hidden, bias),
        selection: Projection::new("mixer.x_proj", rank + 2 * state, inner, false),
        step: Projection::new("mixer.dt_proj", inner, rank, true),
        output: Projection::new("mixer.out_proj", hidden, inner, bias),
        activation: keys.activation("hidden_act")?,
    });
    model(keys, [hidden, layers], eps, Tied::Usually, &mixer)
}

/// The convolution of `channels` channels.
pub(super) fn conv(keys: &Keys<'_>, channels: usize) -> Result<ConvSpec, ConfigError> {
    Ok(ConvSpec {
        name: "mixer.conv1d".into(),
        channels,
        kernel: keys.size_if_any("conv_kernel")?.unwrap_or(4),
        bias: keys.flag_if_any("use_conv_bias")?.unwrap_or(true),
    })
}

/// A model of layers `backbone.layers.N.` of one block each.
pub(super) fn model(
    keys: &Keys<'_>,
    [hidden, layers]: [usize; 2],
    eps: f64,
    tied: Tied,
    mixer: &Mixer,
) -> Result<ModelConfig, ConfigError> {
    keys.only("rms_norm", true)?;
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
    // Checkpoints have either name.
    let embedding = match keys.tensors_contain("backbone.embedding.") {
        true => "backbone.embedding.weight",
        false => "backbone.embeddings.weight",
    };
    let tied = tied.read(keys)?;
    Ok(ModelConfig {
        family: keys.text("model_type")?.unwrap_or_default().to_owned(),
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
        beside: Vec::new(),
    })
}
