//! The block of multi-head latent attention (DeepSeek-AI 2024, arXiv 2405.04434): keys and values, and in large
//! models queries, are made from a narrow vector per token.
//!
//! Here all keys and values are made at once and the ordinary kernel mixes them, with one key head per query
//! head: the narrow vectors spare a cache, and there is none. A score is a sum over the elements of a head
//! in any order, so the turned part of queries and keys is moved before the other one, where the kernel looks for
//! it.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::attention::attention;
use super::linear::{Linear, Tap};
use super::norm::Norm;
use super::weights::Weights;
use crate::rope::Rope;
use crate::spec::{LatentAttentionSpec, LatentSpec};

/// The weights of a latent attention block.
#[derive(Debug, Clone)]
pub(super) struct LatentAttention<B: Backend> {
    query_latent: Option<Latent<B>>,
    query: Linear<B>,
    latent: Latent<B>,
    key_value: Linear<B>,
    output: Linear<B>,
    rope: Rope<B>,
}

/// The way into a narrow vector.
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
    /// For windows of `length` tokens.
    pub(super) fn new<W: Weights<B>>(
        spec: &LatentAttentionSpec,
        length: usize,
        weights: &W,
        device: &B::Device,
    ) -> Result<Self, W::Error> {
        let query_latent = spec.query_latent.as_ref();
        let query_latent = query_latent.map(|latent| Latent::new(latent, weights));
        Ok(LatentAttention {
            query_latent: query_latent.transpose()?,
            query: Linear::new(&spec.query, weights)?,
            latent: Latent::new(&spec.latent, weights)?,
            key_value: Linear::new(&spec.key_value, weights)?,
            output: Linear::new(&spec.output, weights)?,
            rope: Rope::new(&spec.rope, length, device),
        })
    }

    /// `x: [windows · length, hidden]` to the same shape.
    pub(super) fn forward(
        &self,
        spec: &LatentAttentionSpec,
        x: Tensor<B, 2>,
        sides: [usize; 2],
        tap: &mut dyn Tap<B>,
    ) -> Tensor<B, 2> {
        let &LatentAttentionSpec {
            heads,
            plain,
            value,
            ..
        } = spec;
        let tokens = x.dims()[0];
        let (turned, rank) = (spec.rope.width, spec.latent.norm.width);
        tap.input("attn_in", &x, None);
        let query = match &self.query_latent {
            Some(latent) => latent.down.forward(x.clone(), tap),
            None => self.query.forward(x.clone(), tap),
        };
        let narrow = self.latent.down.forward(x, tap);
        let query = match &self.query_latent {
            Some(latent) => {
                let query = latent.norm.forward(query);
                tap.input("q_b_in", &query, None);
                self.query.forward(query, tap)
            }
            None => query,
        };
        let shared_key = narrow.clone().slice([0..tokens, rank..rank + turned]);
        let narrow = self.latent.norm.forward(narrow.slice([0..tokens, 0..rank]));
        tap.input("kv_b_in", &narrow, None);
        let key_value = self.key_value.forward(narrow, tap);

        let query = query.reshape([tokens, heads, plain + turned]);
        let [plain_query, turned_query] = split(query, plain);
        let key_value = key_value.reshape([tokens, heads, plain + value]);
        let [plain_key, v] = split(key_value, plain);
        let shared_key = shared_key.reshape([tokens, 1, turned]).repeat_dim(1, heads);
        let joined = |turned, plain| {
            let turned = if spec.neighbours {
                halves(turned)
            } else {
                turned
            };
            let both = Tensor::cat(vec![turned, plain], 2);
            both.reshape([tokens, heads * (spec.plain + spec.rope.width)])
        };
        let q = joined(turned_query, plain_query);
        let k = joined(shared_key, plain_key);
        let v = v.reshape([tokens, heads * value]);
        let mixed = attention(q, k, v, sides, &spec.into(), Some(&self.rope));
        tap.input("o_in", &mixed, None);
        self.output.forward(mixed, tap)
    }
}

/// The first `width` values of every head of `x: [tokens, heads, all]`, and the others.
fn split<B: Backend>(x: Tensor<B, 3>, width: usize) -> [Tensor<B, 3>; 2] {
    let all = x.dims()[2];
    [(0, width), (width, all - width)].map(|(first, width)| x.clone().narrow(2, first, width))
}

/// Pairs of neighbours `(2i, 2i + 1)` of `x: [tokens, heads, width]` as pairs `(i, i + width/2)`.
fn halves<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    let [tokens, heads, width] = x.dims();
    let pairs = x.reshape([tokens, heads, width / 2, 2]);
    pairs.swap_dims(2, 3).reshape([tokens, heads, width])
}
