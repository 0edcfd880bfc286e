//! Gemma 2 and the text model of Gemma 3: norms before and after every block, sliding windows in many layers.

use super::decoder::{DecoderDims, TieDefault, norm};
use super::keys::Keys;
use super::rope::RopeDefaults;
use crate::config::{ConfigError, ModelConfig};
use crate::rope::RopeSpec;
use crate::spec::{AttentionSpec, BlockSpec, Mixer, NormKind, QkNorm};

pub(super) fn gemma2(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let dims = DecoderDims::read(keys)?;
    let attention = AttentionSpec {
        softcap: keys.optional_number_above("attn_logit_softcapping", 0.0)?,
        ..dims.attention([keys.flag("attention_bias")?; 2], dims.rope(keys)?)
    };
    let windows = dims.windows(keys, |layer| layer.is_multiple_of(2))?;
    let mut model = describe(keys, &dims, |layer| AttentionSpec {
        window: windows[layer],
        ..attention.clone()
    })?;
    model.head.softcap = keys.optional_number_above("final_logit_softcapping", 0.0)?;
    Ok(model)
}

pub(super) fn gemma3_text(keys: &Keys<'_>) -> Result<ModelConfig, ConfigError> {
    let dims = DecoderDims::read(keys)?;
    let [global, local] = ropes(keys, &dims)?;
    let head_norm = |name| norm(name, NormKind::RmsOnePlus, dims.head_dim, dims.eps);
    let attention = AttentionSpec {
        qk_norm: Some(QkNorm {
            q: head_norm("self_attn.q_norm"),
            k: head_norm("self_attn.k_norm"),
        }),
        softcap: keys.optional_number_above("attn_logit_softcapping", 0.0)?,
        ..dims.attention([keys.flag("attention_bias")?; 2], global)
    };
    keys.supports_only("use_bidirectional_attention", false)?;
    let pattern = keys.optional_size("sliding_window_pattern")?;
    let pattern = pattern
        .or(keys.optional_size("_sliding_window_pattern")?)
        .unwrap_or(6);
    let windows = dims.windows(keys, |layer| !(layer + 1).is_multiple_of(pattern))?;
    let mut model = describe(keys, &dims, |layer| AttentionSpec {
        window: windows[layer],
        rope: match windows[layer] {
            Some(_) => Some(local.clone()),
            None => attention.rope.clone(),
        },
        ..attention.clone()
    })?;
    model.head.softcap = keys.optional_number_above("final_logit_softcapping", 0.0)?;
    Ok(model)
}

/// The rotary embeddings of layers with full attention and of layers with a sliding window. Files of transformers 5 have
/// one object for each of the two.
fn ropes(keys: &Keys<'_>, dims: &DecoderDims) -> Result<[RopeSpec; 2], ConfigError> {
    let defaults = |theta| RopeDefaults {
        theta,
        fraction: None,
        default_fraction: 1.0,
    };
    let theta = keys.optional_number_above("rope_theta", 1.0)?;
    let local = keys.optional_number_above("rope_local_base_freq", 1.0)?;
    if let Some(by_type) = keys.optional_object("rope_parameters")? {
        let rope_of_type = |kind, theta| {
            let settings = by_type.optional_object(kind)?;
            dims.rope_from(keys, settings.as_ref(), defaults(theta))
        };
        let ropes = [
            rope_of_type("full_attention", theta)?,
            rope_of_type("sliding_attention", local)?,
        ];
        by_type.refuse_unread()?;
        return Ok(ropes);
    }
    let scaling = keys.optional_object("rope_scaling")?;
    Ok([
        dims.rope_from(keys, scaling.as_ref(), defaults(theta.or(Some(1e6))))?,
        dims.rope_from(keys, None, defaults(local.or(Some(1e4))))?,
    ])
}

fn describe(
    keys: &Keys<'_>,
    dims: &DecoderDims,
    attention: impl Fn(usize) -> AttentionSpec,
) -> Result<ModelConfig, ConfigError> {
    keys.ignore(&["hidden_act", "cache_implementation"]); // `hidden_act` names the wrong activation
    let mlp = dims.gated_mlp(keys.activation("hidden_activation")?, false);
    let one_plus = |name| norm(name, NormKind::RmsOnePlus, dims.hidden, dims.eps);
    let block = |pre_norm, mixer, post_norm| BlockSpec {
        pre_norm: Some(one_plus(pre_norm)),
        mixer,
        post_norm: Some(one_plus(post_norm)),
        scale: 1.0,
    };
    let scale = keys
        .number_above("query_pre_attn_scalar", 0.0)?
        .sqrt()
        .recip();
    let mut model = dims.model(keys, TieDefault::Tied, |layer| {
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
    model.embedding.scale = (dims.hidden as f64).sqrt();
    Ok(model)
}
