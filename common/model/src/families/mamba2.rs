//! Mamba-2: layers of one selective state space block of heads.

use super::Keys;
use super::decoder::{Tied, norm};
use super::mamba::{conv, model};
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{Mamba2Spec, Mixer, NormKind, Projection};

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let hidden = keys.size("hidden_size")?;
    let (heads, head_dim) = (keys.size("num_heads")?, keys.size("head_dim")?);
    let groups = keys.size("n_groups")?;
    let state = keys.size("state_size")?;
    let inner = heads * head_dim;
    for (key, found) in [
        ("expand", keys.size_if_any("expand")?.unwrap_or(2) * hidden),
        (
            "intermediate_size",
            keys.size_if_any("intermediate_size")?.unwrap_or(inner),
        ),
    ] {
        if found != inner {
            let expected = format!("num_heads · head_dim, {inner}, as the inner width");
            return Err(keys.refuse(key, format!("{found} as the inner width"), expected));
        }
    }
    if !heads.is_multiple_of(groups) {
        return Err(keys.refuse(
            "n_groups",
            groups,
            format!("a divisor of num_heads, {heads}"),
        ));
    }
    let eps = keys
        .number_if_any("layer_norm_epsilon", 0.0)?
        .unwrap_or(1e-5);
    let bias = keys.flag("use_bias")?;
    let layers = keys.layers("num_hidden_layers")?;
    let channels = inner + 2 * groups * state;
    // How the scan is cut into pieces and how steps were drawn at first; the gate is before the norm either way.
    keys.ignore(&["chunk_size", "time_step_rank", "norm_before_gate"]);
    let mixer = Mixer::Mamba2(Mamba2Spec {
        heads,
        head_dim,
        groups,
        state,
        conv: conv(keys, channels)?,
        input: Projection::new("mixer.in_proj", inner + channels + heads, hidden, bias),
        step_limits: keys
            .range_if_any("time_step_limit")?
            .unwrap_or([0.0, f64::INFINITY]),
        norm: norm("mixer.norm", NormKind::Rms, inner, eps),
        output: Projection::new("mixer.out_proj", hidden, inner, bias),
        activation: keys.activation("hidden_act")?,
    });
    model(keys, [hidden, layers], eps, Tied::Rarely, &mixer)
}
