//! The attention block: projections, norms of queries and keys, attention, output.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::attention::attention;
use super::linear::{Linear, Tap};
use super::norm::Norm;
use super::weights::Weights;
use crate::rope::Rope;
use crate::spec::{AttentionSpec, QkvSpec};

/// The weights of an attention block.
#[derive(Debug, Clone)]
pub(super) struct SelfAttention<B: Backend> {
    qkv: Vec<Linear<B>>,
    output: Linear<B>,
    /// Of queries and of keys.
    norms: Option<[Norm<B>; 2]>,
    rope: Option<Rope<B>>,
}

impl<B: Backend> SelfAttention<B> {
    /// For windows of `length` tokens.
    pub(super) fn new<W: Weights<B>>(
        spec: &AttentionSpec,
        length: usize,
        weights: &W,
        device: &B::Device,
    ) -> Result<Self, W::Error> {
        let projections = spec.qkv.projections();
        let qkv = projections
            .into_iter()
            .map(|projection| Linear::new(projection, weights))
            .collect::<Result<_, _>>()?;
        let norms = match &spec.qk_norm {
            Some(norms) => Some([Norm::new(&norms.q, weights)?, Norm::new(&norms.k, weights)?]),
            None => None,
        };
        let rope = spec.rope.as_ref();
        Ok(SelfAttention {
            qkv,
            output: Linear::new(&spec.output, weights)?,
            norms,
            rope: rope.map(|rope| Rope::new(rope, length, device)),
        })
    }

    /// `x: [windows · length, hidden]` to the same shape.
    pub(super) fn forward(
        &self,
        spec: &AttentionSpec,
        x: Tensor<B, 2>,
        [windows, length]: [usize; 2],
        tap: &mut dyn Tap<B>,
    ) -> Tensor<B, 2> {
        tap.input("attn_in", &x, None);
        let mut projected: Vec<Tensor<B, 2>> = self
            .qkv
            .iter()
            .map(|linear| linear.forward(x.clone(), tap))
            .collect();
        let [q, k, v] = match spec.qkv {
            QkvSpec::Separate { .. } => projected
                .try_into()
                .unwrap_or_else(|_| unreachable!("queries, keys and values have a matrix each")),
            QkvSpec::Stacked(_) => stacked(projected.remove(0), spec),
            QkvSpec::PerHead(_) => per_head(projected.remove(0), spec),
        };
        let [q, k] = match &self.norms {
            Some([of_q, of_k]) => [of_q.forward(q), of_k.forward(k)],
            None => [q, k],
        };
        let mixed = attention(q, k, v, [windows, length], &spec.into(), self.rope.as_ref());
        tap.input("o_in", &mixed, None);
        self.output.forward(mixed, tap)
    }
}

/// All queries, then all keys, then all values.
fn stacked<B: Backend>(all: Tensor<B, 2>, spec: &AttentionSpec) -> [Tensor<B, 2>; 3] {
    let tokens = all.dims()[0];
    let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    [(0, q), (q, kv), (q + kv, kv)]
        .map(|(first, width)| all.clone().slice([0..tokens, first..first + width]))
}

/// For each head its query, its key and its value.
fn per_head<B: Backend>(all: Tensor<B, 2>, spec: &AttentionSpec) -> [Tensor<B, 2>; 3] {
    let tokens = all.dims()[0];
    let (heads, width) = (spec.heads, spec.head_dim);
    let all = all.reshape([tokens, heads, 3, width]);
    [0, 1, 2].map(|part| {
        let part = all.clone().slice([0..tokens, 0..heads, part..part + 1]);
        part.reshape([tokens, heads * width])
    })
}
