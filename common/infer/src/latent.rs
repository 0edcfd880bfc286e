//! Multi-head latent attention: keys and values are projected up from one latent vector per token (DeepSeek-AI 2024,
//! arXiv 2405.04434).
//!
//! The cache holds the latent vectors, not keys and values. A score `<q, W_k c>` is `<W_kᵀ q, c>`, and a weighted sum of values
//! `W_v c` is `W_v` times the weighted sum of the latent vectors `c`. So each head has its query in the space of the latent
//! vectors, which are the keys and the values of all heads. The rotary part of a key is its first, as rotations expect.

use rayon::prelude::*;
use uc_model::spec::{LatentAttentionSpec, LatentSpec};

use crate::attend::{Heads, dots, weighted_sums};
use crate::attention::{Span, columns};
use crate::cache::Layout;
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
    value_dim: usize,
    interleaved: bool,
    pub(crate) q_a: Option<Latent>,
    pub(crate) q_b: Linear,
    pub(crate) kv_a: Latent,
    /// For every head the rows of its keys, `[nope_dim, rank]`, then those of its values, `[value_dim, rank]`.
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
        let kv_a = Latent::new(&spec.kv_a, source)?;
        Ok(LatentAttention {
            heads: Heads {
                count: spec.heads,
                layout: Layout::Latent {
                    key: spec.rope.width + kv_a.rank,
                    first: spec.rope.width,
                },
                rope: Some(rope),
                window: None,
                scale: spec.scale as f32,
                softcap: None,
            },
            nope_dim: spec.nope_dim,
            rope_dim: spec.rope.width,
            value_dim: spec.v_head_dim,
            interleaved: spec.interleaved,
            q_a: q_a.transpose()?,
            q_b: Linear::new(&spec.q_b, source)?,
            kv_a,
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
        let mut latent = columns(&down, rank + rope_dim, 0, rank);
        self.kv_a.norm.apply(&mut latent);
        let mut keys = Vec::with_capacity(down.len());
        for (down, latent) in down
            .chunks_exact(rank + rope_dim)
            .zip(latent.chunks_exact(rank))
        {
            self.push_rope(&down[rank..], &mut keys);
            keys.extend(latent);
        }
        let queries = self.absorbed(&q);
        let context = self.heads.attend(&queries, &mut keys, &[], spans);
        self.output.forward(&self.values(&context))
    }

    /// The queries `[tokens, heads · (nope_dim + rope_dim)]` in the space of the latent vectors,
    /// `[tokens, heads · (rope_dim + rank)]`.
    fn absorbed(&self, q: &[f32]) -> Vec<f32> {
        let (rank, width) = (self.kv_a.rank, self.nope_dim + self.rope_dim);
        let of_head = |head: usize| {
            let rows = q.chunks_exact(width).skip(head).step_by(self.heads.count);
            let nope: Vec<f32> = rows.flat_map(|q| &q[..self.nope_dim]).copied().collect();
            let mut weights = vec![0.0; self.nope_dim * rank];
            let first = head * (self.nope_dim + self.value_dim);
            self.kv_b.matrix.rows_into(first, &mut weights);
            weighted_sums(&nope, &weights, rank)
        };
        let heads: Vec<Vec<f32>> = (0..self.heads.count).into_par_iter().map(of_head).collect();
        let mut queries = Vec::with_capacity(q.len() / width * (self.rope_dim + rank));
        for (index, q) in q.chunks_exact(width).enumerate() {
            let (token, head) = (index / self.heads.count, index % self.heads.count);
            self.push_rope(&q[self.nope_dim..], &mut queries);
            queries.extend(&heads[head][token * rank..(token + 1) * rank]);
        }
        queries
    }

    /// The values `[tokens, heads · value_dim]` of the weighted latent vectors `[tokens, heads · rank]`.
    fn values(&self, context: &[f32]) -> Vec<f32> {
        let (rank, width) = (self.kv_a.rank, self.value_dim);
        let of_head = |head: usize| {
            let rows = context
                .chunks_exact(rank)
                .skip(head)
                .step_by(self.heads.count);
            let latent: Vec<f32> = rows.flatten().copied().collect();
            let mut weights = vec![0.0; width * rank];
            let first = head * (self.nope_dim + width) + self.nope_dim;
            self.kv_b.matrix.rows_into(first, &mut weights);
            dots(&latent, &weights, rank)
        };
        let heads: Vec<Vec<f32>> = (0..self.heads.count).into_par_iter().map(of_head).collect();
        let tokens = context.len() / (self.heads.count * rank);
        let rows = (0..tokens).flat_map(|token| {
            let part = move |head: &Vec<f32>| head[token * width..(token + 1) * width].to_vec();
            heads.iter().flat_map(part)
        });
        rows.collect()
    }

    /// Appends the rotary part of a head, in pairs `(i, i + rope_dim/2)`.
    fn push_rope(&self, rope: &[f32], out: &mut Vec<f32>) {
        match self.interleaved {
            true => {
                out.extend(rope.iter().step_by(2));
                out.extend(rope.iter().skip(1).step_by(2));
            }
            false => out.extend(rope),
        }
    }
}
