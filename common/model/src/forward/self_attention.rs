//! The attention block: QKV projections, norms of queries and keys, attention, output projection.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::attention::attention;
use super::linear::{ActivationObserver, Linear};
use super::norm::Norm;
use super::weights::Weights;
use crate::rope::Rope;
use crate::spec::{AttentionSpec, QkvSpec};

/// The weights of an attention block.
#[derive(Debug, Clone)]
pub(super) struct SelfAttention<B: Backend> {
    qkv: Vec<Linear<B>>,
    output: Linear<B>,
    /// Norms of queries and of keys.
    norms: Option<[Norm<B>; 2]>,
    rope: Option<Rope<B>>,
}

impl<B: Backend> SelfAttention<B> {
    /// Builds the block for windows of `length` tokens.
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
        observer: &mut dyn ActivationObserver<B>,
    ) -> Tensor<B, 2> {
        observer.observe_input("attn_in", &x, None);
        let mut projected: Vec<Tensor<B, 2>> = self
            .qkv
            .iter()
            .map(|linear| linear.forward(x.clone(), observer))
            .collect();
        let [q, k, v] = match spec.qkv {
            QkvSpec::Separate { .. } => projected
                .try_into()
                .unwrap_or_else(|_| unreachable!("three projections give three outputs")),
            QkvSpec::Fused(_) => split_fused(projected.remove(0), spec),
            QkvSpec::FusedPerHead(_) => split_per_head(projected.remove(0), spec),
        };
        let [q, k] = match &self.norms {
            Some([q_norm, k_norm]) => [q_norm.forward(q), k_norm.forward(k)],
            None => [q, k],
        };
        let context = attention(q, k, v, [windows, length], &spec.into(), self.rope.as_ref());
        observer.observe_input("o_in", &context, None);
        self.output.forward(context, observer)
    }
}

/// Splits columns that hold all queries, then all keys, then all values.
fn split_fused<B: Backend>(qkv: Tensor<B, 2>, spec: &AttentionSpec) -> [Tensor<B, 2>; 3] {
    let tokens = qkv.dims()[0];
    let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    [(0, q), (q, kv), (q + kv, kv)]
        .map(|(first, width)| qkv.clone().slice([0..tokens, first..first + width]))
}

/// Splits columns that hold, for each head, its query, its key and its value.
fn split_per_head<B: Backend>(qkv: Tensor<B, 2>, spec: &AttentionSpec) -> [Tensor<B, 2>; 3] {
    let tokens = qkv.dims()[0];
    let (heads, width) = (spec.heads, spec.head_dim);
    let qkv = qkv.reshape([tokens, heads, 3, width]);
    [0, 1, 2].map(|part| {
        let part = qkv.clone().slice([0..tokens, 0..heads, part..part + 1]);
        part.reshape([tokens, heads * width])
    })
}
