//! The backward pass of a layer, block by block and expert by expert.
//!
//! The graph of a whole layer would hold the weights of every expert that a token of the batch is routed to.
//! Therefore the inputs of the blocks are computed first, without a graph. Then, from the last block to the first,
//! each block is computed again with its graph, which is dropped after its backward pass (gradient
//! checkpointing: Chen et al. 2016, "Training deep nets with sublinear memory cost"). In a mixture of experts
//! each expert has a graph of its own.

use std::collections::BTreeMap;

use burn::backend::Autodiff;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{IndexingUpdateOp, Tensor};

use super::experts::Experts;
use super::layer::{Block, Layer, MixerWeights};
use super::linear::{ActivationObserver, NoObserver};
use super::mlp::Mlp;
use super::norm::Norm;
use super::routing::index_tensor;
use super::weights::Weights;
use crate::spec::{BlockSpec, ExpertsSpec, Mixer};

/// The inputs of the linears in one part of a layer and the gradients at their outputs. A part is a block
/// without its routed experts, or one expert.
#[derive(Debug)]
pub struct PartTrace<B: Backend> {
    /// The inputs of the linears, by their name in the layer's plan.
    pub inputs: BTreeMap<String, ObservedInput<B>>,
    /// The gradient at the output of each linear, `[tokens, rows]`, by the name of its weight.
    pub output_gradients: BTreeMap<String, Tensor<B, 2>>,
}

/// An input `[tokens, width]` and, if only some tokens of the batch are in it, their indices.
pub type ObservedInput<B> = (Tensor<B, 2>, Option<Vec<usize>>);

/// Callback that receives the trace of every part of a layer.
pub type OnPartTrace<'a, B, E> = &'a mut dyn FnMut(PartTrace<B>) -> Result<(), E>;

impl<B: Backend, W: Weights<Autodiff<B>>> Layer<'_, Autodiff<B>, W> {
    /// The gradient with respect to `hidden`, given `grad_output`, the gradient at the layer's output. All
    /// three are `[windows, length, hidden]`. `on_trace` receives the trace of each part as soon as it is
    /// complete, from the last block to the first.
    ///
    /// # Errors
    /// What the weights return for an expert, and what `on_trace` returns.
    ///
    /// # Panics
    /// If `hidden` has another length or width than the layer, or `grad_output` another shape than `hidden`.
    pub fn gradient(
        &self,
        hidden: Tensor<B, 3>,
        grad_output: Tensor<B, 3>,
        on_trace: OnPartTrace<'_, B, W::Error>,
    ) -> Result<Tensor<B, 3>, W::Error> {
        let [windows, length, width] = hidden.dims();
        assert_eq!(length, self.length, "tokens of a window");
        let dims = [windows, length];
        let rows = |x: Tensor<B, 3>| x.reshape([windows * length, width]);
        let (input, grad_output) = (rows(hidden), rows(grad_output));
        let blocks = self.spec.blocks.iter().zip(&self.blocks);

        let mut inputs = vec![input];
        if !self.spec.parallel {
            for (spec, block) in blocks.clone().take(self.blocks.len().saturating_sub(1)) {
                let x = inputs[inputs.len() - 1].clone();
                let untracked = Tensor::from_inner(x.clone());
                let output = block.forward(spec, untracked, dims, self.weights, &mut NoObserver)?;
                inputs.push(spec.add(output.inner(), x));
            }
        }
        let mut gradient = grad_output.clone();
        for (index, (spec, block)) in blocks.enumerate().rev() {
            let (x, grad_block) = match self.spec.parallel {
                true => (&inputs[0], &grad_output),
                false => (&inputs[index], &gradient),
            };
            let grad_block = spec.scaled(grad_block.clone());
            let grad_x =
                block.gradient(spec, x.clone(), grad_block, dims, self.weights, on_trace)?;
            gradient = gradient + grad_x;
        }
        Ok(gradient.reshape([windows, length, width]))
    }
}

impl<B: Backend> Block<Autodiff<B>> {
    /// The gradient with respect to `x`, given `grad_output`, the gradient at the block's output; all
    /// `[tokens, hidden]`.
    fn gradient<W: Weights<Autodiff<B>>>(
        &self,
        spec: &BlockSpec,
        x: Tensor<B, 2>,
        grad_output: Tensor<B, 2>,
        dims: [usize; 2],
        weights: &W,
        on_trace: OnPartTrace<'_, B, W::Error>,
    ) -> Result<Tensor<B, 2>, W::Error> {
        let x = Tensor::from_inner(x).require_grad();
        let mut recorder = TraceRecorder::default();
        let surrogate = match (&self.mixer, &spec.mixer) {
            (MixerWeights::Experts(experts), Mixer::Experts(spec)) => {
                let normed = Norm::apply_optional(&self.pre_norm, x.clone());
                let grad_experts = match &self.post_norm {
                    None => grad_output,
                    Some(norm) => {
                        let untracked = Tensor::from_inner(normed.clone().inner());
                        let y = experts.forward(spec, untracked, weights, &mut NoObserver)?;
                        let y = Tensor::from_inner(y.inner()).require_grad();
                        let gradients = dot(norm.forward(y.clone()), grad_output).backward();
                        gradient_at(&y, &gradients)
                    }
                };
                experts.backward(spec, normed, grad_experts, weights, &mut recorder, on_trace)?
            }
            _ => dot(
                self.forward(spec, x.clone(), dims, weights, &mut recorder)?,
                grad_output,
            ),
        };
        let gradients = surrogate.backward();
        on_trace(recorder.finish(&gradients))?;
        Ok(gradient_at(&x, &gradients))
    }
}

impl<B: Backend> Experts<Autodiff<B>> {
    /// A scalar whose gradient with respect to everything that `x` depends on equals that of
    /// `sum(experts(x) · grad_output)`, where `x: [tokens, hidden]`. The backward pass of every routed expert
    /// runs here, one expert after the other.
    fn backward<W: Weights<Autodiff<B>>>(
        &self,
        spec: &ExpertsSpec,
        x: Tensor<Autodiff<B>, 2>,
        grad_output: Tensor<B, 2>,
        weights: &W,
        recorder: &mut TraceRecorder<Autodiff<B>>,
        on_trace: OnPartTrace<'_, B, W::Error>,
    ) -> Result<Tensor<Autodiff<B>, 1>, W::Error> {
        let untracked_x = x.clone().inner();
        let device = untracked_x.device();
        let (slots, factors) = self.route(spec, x.clone());
        let untracked_factors = factors.clone().inner();
        let mut grad_x = untracked_x.zeros_like();
        let mut grad_factors = untracked_factors.zeros_like();
        for (expert, slots) in spec.experts.iter().zip(slots) {
            if slots.is_empty() {
                continue;
            }
            let tokens: Vec<usize> = slots.iter().map(|slot| slot / spec.top_k).collect();
            let rows = index_tensor::<B>(&tokens, &device);
            let slots = index_tensor::<B>(&slots, &device);
            let mlp = Mlp::new(expert, weights)?;
            let input = untracked_x.clone().select(0, rows.clone());
            let input = Tensor::from_inner(input).require_grad();
            let grad_rows = grad_output.clone().select(0, rows.clone());
            let factor = untracked_factors.clone().select(0, slots.clone());
            let mut recorder = TraceRecorder::default();
            let out = mlp.forward(expert, input.clone(), Some(&tokens), &mut recorder);
            let grad_factor = (out.clone().inner() * grad_rows.clone()).sum_dim(1);
            let gradients = dot(out, grad_rows * factor).backward();
            on_trace(recorder.finish(&gradients))?;
            let grad_input = gradient_at(&input, &gradients);
            grad_x = grad_x.select_assign(0, rows, grad_input, IndexingUpdateOp::Add);
            grad_factors = grad_factors.select_assign(0, slots, grad_factor, IndexingUpdateOp::Add);
        }
        let mut sum = dot(factors, grad_factors) + dot(x.clone(), grad_x);
        if let (Some(shared), Some(spec)) = (&self.shared, &spec.shared) {
            sum = sum + dot(shared.forward(spec, x, None, recorder), grad_output);
        }
        Ok(sum)
    }
}

/// Records the inputs of the linears, and adds a zero to each of their outputs: the gradient with respect to
/// that zero is the gradient at the output.
struct TraceRecorder<B: AutodiffBackend> {
    inputs: BTreeMap<String, ObservedInput<B::InnerBackend>>,
    zeros: BTreeMap<String, Tensor<B, 2>>,
}

impl<B: AutodiffBackend> Default for TraceRecorder<B> {
    fn default() -> Self {
        TraceRecorder {
            inputs: BTreeMap::new(),
            zeros: BTreeMap::new(),
        }
    }
}

impl<B: AutodiffBackend> ActivationObserver<B> for TraceRecorder<B> {
    fn observe_input(&mut self, name: &str, x: &Tensor<B, 2>, tokens: Option<&[usize]>) {
        let tokens = tokens.map(<[usize]>::to_vec);
        self.inputs
            .insert(name.to_owned(), (x.clone().inner(), tokens));
    }

    fn observe_output(&mut self, weight: &str, y: Tensor<B, 2>) -> Tensor<B, 2> {
        let zero = Tensor::zeros(y.dims(), &y.device()).require_grad();
        self.zeros.insert(weight.to_owned(), zero.clone());
        y + zero
    }
}

impl<B: AutodiffBackend> TraceRecorder<B> {
    fn finish(self, gradients: &B::Gradients) -> PartTrace<B::InnerBackend> {
        let zeros = self.zeros.into_iter();
        PartTrace {
            inputs: self.inputs,
            output_gradients: zeros
                .map(|(name, zero)| (name, gradient_at(&zero, gradients)))
                .collect(),
        }
    }
}

/// `sum(y · grad_y)`.
fn dot<B: Backend>(y: Tensor<Autodiff<B>, 2>, grad_y: Tensor<B, 2>) -> Tensor<Autodiff<B>, 1> {
    (y * Tensor::from_inner(grad_y)).sum()
}

/// The gradient with respect to a tensor; zero if the loss does not depend on it.
fn gradient_at<B: AutodiffBackend>(
    tensor: &Tensor<B, 2>,
    gradients: &B::Gradients,
) -> Tensor<B::InnerBackend, 2> {
    let gradient = tensor.grad(gradients);
    gradient.unwrap_or_else(|| tensor.clone().inner().zeros_like())
}
