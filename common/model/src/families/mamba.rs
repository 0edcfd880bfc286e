//! Mamba: layers of one selective state space block.

use super::Keys;
use super::decoder::{Tied, norm};
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{
    BlockSpec, EmbeddingSpec, HeadSpec, LayerSpec, MambaSpec, Mixer, NormKind, Projection,
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
    keys.only("rms_norm", true)?;
    keys.ignore(&[
        "residual_in_fp32",
        "n_layer",
        "use_mambapy",
        "d_inner",
        "d_model",
    ]);
    keys.ignore(&["fused_add_norm", "time_step_init_scheme", "ssm_cfg"]);
    let mixer = Mixer::Mamba(MambaSpec {
        inner,
        state,
        rank,
        kernel: keys.size_if_any("conv_kernel")?.unwrap_or(4),
        conv_bias: keys.flag_if_any("use_conv_bias")?.unwrap_or(true),
        input: Projection::new("mixer.in_proj", 2 * inner, hidden, bias),
        selection: Projection::new("mixer.x_proj", rank + 2 * state, inner, false),
        step: Projection::new("mixer.dt_proj", inner, rank, true),
        output: Projection::new("mixer.out_proj", hidden, inner, bias),
        activation: keys.activation("hidden_act")?,
    });
    let rms = |name: &str| norm(name, NormKind::Rms, hidden, eps);
    let layers = (0..keys.layers("num_hidden_layers")?).map(|index| LayerSpec {
        prefix: format!("backbone.layers.{index}."),
        blocks: vec![BlockSpec::new(rms("norm"), mixer.clone())],
        parallel: false,
    });
    // Checkpoints have either name.
    let embedding = match keys.tensors_contain("backbone.embedding.") {
        true => "backbone.embedding.weight",
        false => "backbone.embeddings.weight",
    };
    let tied = Tied::Usually.read(keys)?;
    Ok(ModelConfig {
        family: "mamba".into(),
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
    })
}
