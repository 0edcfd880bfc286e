//! Multi-head latent attention (DeepSeek-AI 2024, arXiv 2405.04434): keys and values, and in large models
//! queries, are projected up from a low-rank latent vector per token.
//!
//! The latent vectors exist to make the key-value cache small, and there is no cache here. So all keys and
//! values are expanded and passed to the ordinary attention kernel, with one key head per query head. The
//! kernel expects the rotary part of a head first. A score is a sum over the elements of a head in any order,
//! so the rotary part of queries and keys is moved in front of the other part.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::attention::attention;
use super::linear::{ActivationObserver, Linear};
use super::norm::Norm;
use super::weights::Weights;
use crate::rope::Rope;
use crate::spec::{LatentAttentionSpec, LatentSpec};

/// The weights of a latent attention block.
#[derive(Debug, Clone)]
pub(super) struct LatentAttention<B: Backend> {
    q_a: Option<Latent<B>>,
    q_b: Linear<B>,
    kv_a: Latent<B>,
    kv_b: Linear<B>,
    output: Linear<B>,
    rope: Rope<B>,
}

/// A down projection to a latent vector, and the norm of that vector.
#[derive(Debug, Clone)]
struct Latent<B: Backend> {
    down: Linear<B>,
    norm: Norm<B>,
}

impl<B: Backend> Latent<B> {
    fn new<W: Weights<B>>(spec: &LatentSpec, weights: &W) -> Result<Self, W::Error> {
        Ok(Latent {
            down: Linear::new(&spec.down, weights)?,
            norm: Norm::new(&spec.norm, weights)?,
        })
    }
}

impl<B: Backend> LatentAttention<B> {
    /// Builds the block for windows of `length` tokens.
    pub(super) fn new<W: Weights<B>>(
        spec: &LatentAttentionSpec,
        length: usize,
        weights: &W,
        device: &B::Device,
    ) -> Result<Self, W::Error> {
        let q_a = spec.q_a.as_ref();
        let q_a = q_a.map(|latent| Latent::new(latent, weights));
        Ok(LatentAttention {
            q_a: q_a.transpose()?,
            q_b: Linear::new(&spec.q_b, weights)?,
            kv_a: Latent::new(&spec.kv_a, weights)?,
            kv_b: Linear::new(&spec.kv_b, weights)?,
            output: Linear::new(&spec.output, weights)?,
            rope: Rope::new(&spec.rope, length, device),
        })
    }

    /// `x: [windows · length, hidden]` to the same shape.
    pub(super) fn forward(
        &self,
        spec: &LatentAttentionSpec,
        x: Tensor<B, 2>,
        dims: [usize; 2],
        observer: &mut dyn ActivationObserver<B>,
    ) -> Tensor<B, 2> {
        let &LatentAttentionSpec {
            heads,
            nope_dim,
            v_head_dim,
            ..
        } = spec;
        let tokens = x.dims()[0];
        let (rope_dim, rank) = (spec.rope.width, spec.kv_a.norm.width);
        observer.observe_input("attn_in", &x, None);
        let q = match &self.q_a {
            Some(latent) => latent.down.forward(x.clone(), observer),
            None => self.q_b.forward(x.clone(), observer),
        };
        let compressed = self.kv_a.down.forward(x, observer);
        let q = match &self.q_a {
            Some(latent) => {
                let q = latent.norm.forward(q);
                observer.observe_input("q_b_in", &q, None);
                self.q_b.forward(q, observer)
            }
            None => q,
        };
        let k_rope = compressed.clone().slice([0..tokens, rank..rank + rope_dim]);
        let compressed = self
            .kv_a
            .norm
            .forward(compressed.slice([0..tokens, 0..rank]));
        observer.observe_input("kv_b_in", &compressed, None);
        let kv = self.kv_b.forward(compressed, observer);

        let q = q.reshape([tokens, heads, nope_dim + rope_dim]);
        let [q_nope, q_rope] = split(q, nope_dim);
        let kv = kv.reshape([tokens, heads, nope_dim + v_head_dim]);
        let [k_nope, v] = split(kv, nope_dim);
        let k_rope = k_rope.reshape([tokens, 1, rope_dim]).repeat_dim(1, heads);
        let rope_first = |rope, nope| {
            let rope = if spec.interleaved {
                deinterleave(rope)
            } else {
                rope
            };
            let joined = Tensor::cat(vec![rope, nope], 2);
            joined.reshape([tokens, heads * (spec.nope_dim + spec.rope.width)])
        };
        let q = rope_first(q_rope, q_nope);
        let k = rope_first(k_rope, k_nope);
        let v = v.reshape([tokens, heads * v_head_dim]);
        let context = attention(q, k, v, dims, &spec.into(), Some(&self.rope));
        observer.observe_input("o_in", &context, None);
        self.output.forward(context, observer)
    }
}

/// Splits every head of `x: [tokens, heads, head_dim]` into its first `width` elements and the rest.
fn split<B: Backend>(x: Tensor<B, 3>, width: usize) -> [Tensor<B, 3>; 2] {
    let head_dim = x.dims()[2];
    [(0, width), (width, head_dim - width)].map(|(first, width)| x.clone().narrow(2, first, width))
}

/// Reorders `x: [tokens, heads, width]` from adjacent pairs `(2i, 2i + 1)` to pairs `(i, i + width/2)`.
fn deinterleave<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    let [tokens, heads, width] = x.dims();
    let pairs = x.reshape([tokens, heads, width / 2, 2]);
    pairs.swap_dims(2, 3).reshape([tokens, heads, width])
}
