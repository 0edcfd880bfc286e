//! Multi-head latent attention: keys and values are projected up from one latent vector per token (DeepSeek-AI 2024,
//! arXiv 2405.04434).
//!
//! The cache holds the expanded keys and values, so that every score is the same sum as in the evaluator's forward pass. The
//! rotary part of a head is moved in front of the other part, as the attention kernel expects.

use uc_model::spec::{LatentAttentionSpec, LatentSpec};

use crate::attention::{Heads, Span, columns};
use crate::error::InferError;
use crate::linear::Linear;
use crate::norm::Norm;
use crate::source::Source;

/// The weights of a latent attention block.
#[derive(Debug)]
pub(crate) struct LatentAttention {
    pub(crate) heads: Heads,
    nope_dim: usize,
    rope_dim: usize,
    interleaved: bool,
    rope: usize,
    pub(crate) q_a: Option<Latent>,
    pub(crate) q_b: Linear,
    pub(crate) kv_a: Latent,
    pub(crate) kv_b: Linear,
    pub(crate) output: Linear,
}

/// A down projection to a latent vector, and the norm of that vector.
#[derive(Debug)]
pub(crate) struct Latent {
    pub(crate) down: Linear,
    norm: Norm,
    rank: usize,
}

impl Latent {
    fn new(spec: &LatentSpec, source: &dyn Source) -> Result<Self, InferError> {
        Ok(Latent {
            down: Linear::new(&spec.down, source)?,
            norm: Norm::new(&spec.norm, source)?,
            rank: spec.norm.width,
        })
    }
}

impl LatentAttention {
    pub(crate) fn new(
        spec: &LatentAttentionSpec,
        rope: usize,
        source: &dyn Source,
    ) -> Result<Self, InferError> {
        let q_a = spec.q_a.as_ref();
        let q_a = q_a.map(|latent| Latent::new(latent, source));
        Ok(LatentAttention {
            heads: Heads {
                heads: spec.heads,
                kv_heads: spec.heads,
                width: spec.nope_dim + spec.rope.width,
                value_width: spec.v_head_dim,
                window: None,
                scale: spec.scale as f32,
                softcap: None,
            },
            nope_dim: spec.nope_dim,
            rope_dim: spec.rope.width,
            interleaved: spec.interleaved,
            rope,
            q_a: q_a.transpose()?,
            q_b: Linear::new(&spec.q_b, source)?,
            kv_a: Latent::new(&spec.kv_a, source)?,
            kv_b: Linear::new(&spec.kv_b, source)?,
            output: Linear::new(&spec.output, source)?,
        })
    }

    /// `x: [tokens, hidden]` to the same shape.
    pub(crate) fn forward(&self, x: &[f32], spans: &mut [Span<'_>]) -> Vec<f32> {
        let q = match &self.q_a {
            Some(latent) => {
                let mut q = latent.down.forward(x);
                latent.norm.apply(&mut q);
                self.q_b.forward(&q)
            }
            None => self.q_b.forward(x),
        };
        let (rank, rope_dim) = (self.kv_a.rank, self.rope_dim);
        let down = self.kv_a.down.forward(x);
        let mut compressed = columns(&down, rank + rope_dim, 0, rank);
        self.kv_a.norm.apply(&mut compressed);
        let kv = self.kv_b.forward(&compressed);

        let width = self.nope_dim + rope_dim;
        let mut queries = Vec::with_capacity(q.len());
        for head in q.chunks_exact(width) {
            let (nope, rope) = head.split_at(self.nope_dim);
            self.push_rope_first(rope, nope, &mut queries);
        }
        let value_width = self.heads.value_width;
        let (mut keys, mut values) = (Vec::with_capacity(q.len()), Vec::new());
        let kv_width = self.nope_dim + value_width;
        let tokens = kv.chunks_exact(self.heads.heads * kv_width);
        for (token, down) in tokens.zip(down.chunks_exact(rank + rope_dim)) {
            for head in token.chunks_exact(kv_width) {
                let (nope, value) = head.split_at(self.nope_dim);
                self.push_rope_first(&down[rank..], nope, &mut keys);
                values.extend_from_slice(value);
            }
        }
        let rope = Some(self.rope);
        let context = self
            .heads
            .attend(&mut queries, &mut keys, &values, rope, spans);
        self.output.forward(&context)
    }

    /// Appends the rotary part of a head, in pairs `(i, i + rope_dim/2)`, and then the other part.
    fn push_rope_first(&self, rope: &[f32], nope: &[f32], out: &mut Vec<f32>) {
        match self.interleaved {
            true => {
                out.extend(rope.iter().step_by(2));
                out.extend(rope.iter().skip(1).step_by(2));
            }
            false => out.extend(rope),
        }
        out.extend(nope);
    }
}
