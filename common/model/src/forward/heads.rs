//! The parameters that the attention kernels share, taken from either kind of attention block.

use crate::spec::{AttentionSpec, LatentAttentionSpec};

/// The parameters of an attention block that the kernels need.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    /// Query heads, a multiple of `kv_heads`.
    pub(super) heads: usize,
    /// Key and value heads.
    pub(super) kv_heads: usize,
    /// Dimension of a query or key head. Its first elements are rotated.
    pub(super) width: usize,
    /// Dimension of a value head.
    pub(super) value_width: usize,
    /// Number of tokens that a token attends to, itself included; `None` attends to all earlier tokens.
    pub(super) window: Option<usize>,
    /// Factor of the scores.
    pub(super) scale: f64,
    /// Scores become `cap · tanh(score / cap)`.
    pub(super) softcap: Option<f64>,
}

impl From<&AttentionSpec> for Heads {
    fn from(spec: &AttentionSpec) -> Self {
        Heads {
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            width: spec.head_dim,
            value_width: spec.head_dim,
            window: spec.window,
            scale: spec.scale,
            softcap: spec.softcap,
        }
    }
}

impl From<&LatentAttentionSpec> for Heads {
    fn from(spec: &LatentAttentionSpec) -> Self {
        Heads {
            heads: spec.heads,
            kv_heads: spec.heads,
            width: spec.nope_dim + spec.rope.width,
            value_width: spec.v_head_dim,
            window: None,
            scale: spec.scale,
            softcap: None,
        }
    }
}
