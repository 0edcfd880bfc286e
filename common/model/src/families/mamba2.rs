//! Mamba-2: every layer is one selective state space block with heads.

use super::decoder::{TieDefault, norm};
use super::keys::Keys;
use super::mamba::{conv, model};
use crate::config::{ConfigError, ModelConfig};
use crate::spec::{Mamba2Spec, Mixer, NormKind, Projection};

pub(super) fn describe(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let hidden = keys.size("hidden_size")?;
    let (heads, head_dim) = (keys.size("num_heads")?, keys.size("head_dim")?);
    let groups = keys.size("n_groups")?;
    let state = keys.size("state_size")?;
    let inner = keys.product("num_heads · head_dim", [heads, head_dim])?;
    keys.product("n_groups · state_size", [groups, state])?;
    for (key, found) in [
        (
            "expand",
            keys.product(
                "expand · hidden_size",
                [keys.optional_size("expand")?.unwrap_or(2), hidden],
            )?,
        ),
        (
            "intermediate_size",
            keys.optional_size("intermediate_size")?.unwrap_or(inner),
        ),
    ] {
        if found != inner {
            let expected = format!("an inner dimension of num_heads · head_dim, {inner}");
            return Err(keys.invalid(key, format!("an inner dimension of {found}"), expected));
        }
    }
    if !heads.is_multiple_of(groups) {
        return Err(keys.invalid(
            "n_groups",
            groups,
            format!("a divisor of num_heads, {heads}"),
        ));
    }
    let eps = keys
        .optional_number_above("layer_norm_epsilon", 0.0)?
        .unwrap_or(1e-5);
    let bias = keys.flag("use_bias")?;
    let layers = keys.layers("num_hidden_layers")?;
    let channels = inner + 2 * groups * state;
    // `chunk_size` only affects the speed of the scan, and `time_step_rank` only the initialization. The gate is
    // applied before the norm whatever `norm_before_gate` says.
    keys.ignore(&["chunk_size", "time_step_rank", "norm_before_gate"]);
    let mixer = Mixer::Mamba2(Mamba2Spec {
        heads,
        head_dim,
        groups,
        state,
        conv: conv(keys, channels)?,
        in_proj: Projection::new("mixer.in_proj", inner + channels + heads, hidden, bias),
        dt_limits: keys
            .optional_range("time_step_limit")?
            .unwrap_or([0.0, f64::INFINITY]),
        norm: norm("mixer.norm", NormKind::Rms, inner, eps),
        out_proj: Projection::new("mixer.out_proj", hidden, inner, bias),
        activation: keys.activation("hidden_act")?,
    });
    model(keys, [hidden, layers], eps, TieDefault::Untied, &mixer)
}
