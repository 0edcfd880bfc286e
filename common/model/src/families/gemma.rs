//! Gemma 2 and the text part of Gemma 3: norms around every block, sliding windows in most layers.

use super::Keys;
use super::decoder::{Tied, Widths, norm};
use crate::config::{ConfigError, ModelConfig};
use crate::rope::RopeSpec;
use crate::spec::{AttentionSpec, BlockSpec, Mixer, NormKind, QkNorm};

pub(super) fn gemma2(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let widths = Widths::read(keys)?;
    let attention = AttentionSpec {
        softcap: keys.number_if_any("attn_logit_softcapping", 0.0)?,
        ..widths.attention([keys.flag("attention_bias")?; 2], widths.rope(keys)?)
    };
    let windows = widths.windows(keys, |layer| layer.is_multiple_of(2))?;
    let mut model = describe(keys, &widths, |layer| AttentionSpec {
        window: windows[layer],
        ..attention.clone()
    })?;
    model.head.softcap = keys.number_if_any("final_logit_softcapping", 0.0)?;
    Ok(model)
}

pub(super) fn gemma3_text(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let widths = Widths::read(keys)?;
    let [global, local] = ropes(keys, &widths)?;
    let of_head = |name| norm(name, NormKind::RmsOnePlus, widths.head_dim, widths.eps);
    let attention = AttentionSpec {
        qk_norm: Some(QkNorm {
            q: of_head("self_attn.q_norm"),
            k: of_head("self_attn.k_norm"),
        }),
        softcap: keys.number_if_any("attn_logit_softcapping", 0.0)?,
        ..widths.attention([keys.flag("attention_bias")?; 2], global)
    };
    keys.only("use_bidirectional_attention", false)?;
    let pattern = keys.size_if_any("sliding_window_pattern")?;
    let pattern = pattern
        .or(keys.size_if_any("_sliding_window_pattern")?)
        .unwrap_or(6);
    let windows = widths.windows(keys, |layer| !(layer + 1).is_multiple_of(pattern))?;
    let mut model = describe(keys, &widths, |layer| AttentionSpec {
        window: windows[layer],
        rope: match windows[layer] {
            Some(_) => Some(local.clone()),
            None => attention.rope.clone(),
        },
        ..attention.clone()
    })?;
    model.head.softcap = keys.number_if_any("final_logit_softcapping", 0.0)?;
    Ok(model)
}

/// Rotary positions of layers that see everything and of those that slide.
fn ropes(keys: &Keys<'_>, widths: &Widths) -> Result<[RopeSpec; 2], ConfigError> {
    if let Some(kinds) = keys.object_if_any("rope_parameters")? {
        let of = |kind| widths.rope_of(keys, kinds.object_if_any(kind)?, None);
        let ropes = [of("full_attention")?, of("sliding_attention")?];
        kinds.refuse_others()?;
        return Ok(ropes);
    }
    let theta = keys.number_if_any("rope_theta", 1.0)?.unwrap_or(1e6);
    let local = keys
        .number_if_any("rope_local_base_freq", 1.0)?
        .unwrap_or(1e4);
    Ok([
        widths.rope_of(keys, keys.object_if_any("rope_scaling")?, Some(theta))?,
        widths.rope_of(keys, None, Some(local))?,
    ])
}

fn describe(
    keys: &Keys<'_>,
    widths: &Widths,
    attention: impl Fn(usize) -> AttentionSpec,
) -> Result<ModelConfig, ConfigError> {
    keys.ignore(&["hidden_act", "cache_implementation"]); // files name the wrong activation there
    let mlp = widths.gated_mlp(keys.activation("hidden_activation")?, false);
    let one_plus = |name| norm(name, NormKind::RmsOnePlus, widths.hidden, widths.eps);
    let block = |before, mixer, after| BlockSpec {
        before: Some(one_plus(before)),
        mixer,
        after: Some(one_plus(after)),
        scale: 1.0,
    };
    let scale = keys.number("query_pre_attn_scalar", 0.0)?.sqrt().recip();
    let mut model = widths.model(keys, Tied::Usually, |layer| {
        let attention = AttentionSpec {
            scale,
            ..attention(layer)
        };
        let mlp = Mixer::Mlp(mlp.clone());
        vec![
            block(
                "input_layernorm",
                Mixer::Attention(attention),
                "post_attention_layernorm",
            ),
            block(
                "pre_feedforward_layernorm",
                mlp,
                "post_feedforward_layernorm",
            ),
        ]
    })?;
    model.head.norm = one_plus("model.norm");
    model.embedding.scale = (widths.hidden as f64).sqrt();
    Ok(model)
}
