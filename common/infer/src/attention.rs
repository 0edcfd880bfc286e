//! An attention block: queries, keys and values, their attention, the output projection.

use uc_model::spec::{AttentionSpec, QkvSpec};

use crate::attend::Heads;
use crate::cache::Layout;
use crate::error::InferError;
use crate::linear::{Linear, forward_all};
use crate::norm::Norm;
use crate::rotary::Tables;
use crate::sequence::State;
use crate::source::Source;

/// The part of a batch that belongs to one sequence.
pub(crate) struct Span<'a> {
    /// Index of its first token in the batch.
    pub(crate) first: usize,
    /// Number of its tokens.
    pub(crate) count: usize,
    /// Position of its first token in the sequence.
    pub(crate) position: usize,
    /// Cosines and sines of its positions, for each rotary embedding of the model.
    pub(crate) tables: &'a [Tables],
    /// The state of the block for this sequence.
    pub(crate) state: &'a mut State,
}

/// The weights of an attention block.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) heads: Heads,
    pub(crate) qkv: Vec<Linear>,
    per_head: bool,
    pub(crate) output: Linear,
    /// Norms of queries and of keys.
    norms: Option<[Norm; 2]>,
}

impl Attention {
    pub(crate) fn new(
        spec: &AttentionSpec,
        rope: Option<usize>,
        source: &dyn Source,
    ) -> Result<Self, InferError> {
        let projections = spec.qkv.projections().into_iter();
        let norms = match &spec.qk_norm {
            Some(norms) => Some([Norm::new(&norms.q, source)?, Norm::new(&norms.k, source)?]),
            None => None,
        };
        Ok(Attention {
            heads: Heads {
                count: spec.heads,
                layout: Layout::Heads {
                    count: spec.kv_heads,
                    key: spec.head_dim,
                    value: spec.head_dim,
                },
                rope,
                window: spec.window,
                scale: spec.scale as f32,
                softcap: spec.softcap,
            },
            qkv: projections
                .map(|projection| Linear::new(projection, source))
                .collect::<Result<_, _>>()?,
            per_head: matches!(spec.qkv, QkvSpec::FusedPerHead(_)),
            output: Linear::new(&spec.output, source)?,
            norms,
        })
    }

    /// `x: [tokens, hidden]` to the same shape.
    pub(crate) fn forward(&self, x: &[f32], spans: &mut [Span<'_>]) -> Vec<f32> {
        let [mut q, mut k, v] = self.project(x);
        if let Some([q_norm, k_norm]) = &self.norms {
            q_norm.apply(&mut q);
            k_norm.apply(&mut k);
        }
        let context = self.heads.attend(&q, &mut k, &v, spans);
        self.output.forward(&context)
    }

    /// Queries, keys and values, each `[tokens, heads · width]`.
    fn project(&self, x: &[f32]) -> [Vec<f32>; 3] {
        let fused = match <[Vec<f32>; 3]>::try_from(forward_all(&self.qkv, x)) {
            Ok(three) => return three,
            Err(mut one) => one.remove(0),
        };
        let width = self.heads.layout.key();
        let (q, kv) = (self.heads.count * width, self.heads.layout.heads() * width);
        if self.per_head {
            return [0, 1, 2].map(|part| columns(&fused, 3 * width, part * width, width));
        }
        [(0, q), (q, kv), (q + kv, kv)]
            .map(|(first, count)| columns(&fused, q + 2 * kv, first, count))
    }
}

/// The columns `first..first + count` of `values: [rows, width]`.
pub(crate) fn columns(values: &[f32], width: usize, first: usize, count: usize) -> Vec<f32> {
    let rows = values.chunks_exact(width);
    rows.flat_map(|row| &row[first..first + count])
        .copied()
        .collect()
}
