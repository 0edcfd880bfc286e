//! The backward pass of a layer, block by block and expert by expert.
//!
//! Each block has a graph of its own, recorded in one forward pass and dropped after its backward pass. The routed experts of a block
//! are not part of it: together they would hold the weights of every expert that a token of the batch reaches. Each is computed again
//! with its graph when the backward pass arrives at it (gradient checkpointing: Chen et al. 2016, "Training deep nets with sublinear
//! memory cost").

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

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
        let mut graphs = Vec::new();
        for (index, (spec, block)) in blocks.clone().enumerate() {
            let x = inputs[inputs.len() - 1].clone();
            let is_last = self.spec.parallel || index + 1 == self.blocks.len();
            if block.has_experts() {
                graphs.push(None);
                if !is_last {
                    let untracked = Tensor::from_inner(x.clone());
                    let output =
                        block.forward(spec, untracked, dims, self.weights, &mut NoObserver)?;
                    inputs.push(spec.add(output.inner(), x));
                }
                continue;
            }
            let graph = block.graph(spec, x.clone(), dims, self.weights)?;
            if !is_last {
                inputs.push(spec.add(graph.output.clone().inner(), x));
            }
            graphs.push(Some(graph));
        }
        let mut gradient = grad_output.clone();
        for (index, ((spec, block), graph)) in blocks.zip(graphs).enumerate().rev() {
            let (x, grad_block) = match self.spec.parallel {
                true => (&inputs[0], &grad_output),
                false => (&inputs[index], &gradient),
            };
            let grad_block = spec.scaled(grad_block.clone());
            let grad_x = match graph {
                Some(graph) => graph.gradient(grad_block, on_trace)?,
                None => block.gradient_of_experts(
                    spec,
                    x.clone(),
                    grad_block,
                    self.weights,
                    on_trace,
                )?,
            };
            gradient = gradient + grad_x;
        }
        Ok(gradient.reshape([windows, length, width]))
    }
}

/// The graph of a block without experts.
struct BlockGraph<B: Backend> {
    x: Tensor<Autodiff<B>, 2>,
    output: Tensor<Autodiff<B>, 2>,
    recorder: TraceRecorder<B>,
}

impl<B: Backend> BlockGraph<B> {
    /// The gradient with respect to the block's input, given the one at its output.
    fn gradient<E>(
        self,
        grad_output: Tensor<B, 2>,
        on_trace: OnPartTrace<'_, B, E>,
    ) -> Result<Tensor<B, 2>, E> {
        let gradients = surrogate(self.output, grad_output).backward();
        on_trace(self.recorder.finish())?;
        Ok(gradient_at(&self.x, &gradients))
    }
}

impl<B: Backend> Block<Autodiff<B>> {
    fn has_experts(&self) -> bool {
        matches!(self.mixer, MixerWeights::Experts(_))
    }

    /// Runs the block on `x: [tokens, hidden]` and records its graph.
    fn graph<W: Weights<Autodiff<B>>>(
        &self,
        spec: &BlockSpec,
        x: Tensor<B, 2>,
        dims: [usize; 2],
        weights: &W,
    ) -> Result<BlockGraph<B>, W::Error> {
        let x = Tensor::from_inner(x).require_grad();
        let mut recorder = TraceRecorder::default();
        let output = self.forward(spec, x.clone(), dims, weights, &mut recorder)?;
        Ok(BlockGraph {
            x,
            output,
            recorder,
        })
    }

    /// For a block with experts, the gradient with respect to `x`, given `grad_output`, the gradient at the block's output; all
    /// `[tokens, hidden]`.
    fn gradient_of_experts<W: Weights<Autodiff<B>>>(
        &self,
        spec: &BlockSpec,
        x: Tensor<B, 2>,
        grad_output: Tensor<B, 2>,
        weights: &W,
        on_trace: OnPartTrace<'_, B, W::Error>,
    ) -> Result<Tensor<B, 2>, W::Error> {
        let (MixerWeights::Experts(experts), Mixer::Experts(spec)) = (&self.mixer, &spec.mixer)
        else {
            unreachable!("called for blocks with experts only");
        };
        let x = Tensor::from_inner(x).require_grad();
        let mut recorder = TraceRecorder::default();
        let normed = Norm::apply_optional(&self.pre_norm, x.clone());
        let grad_experts = match &self.post_norm {
            None => grad_output,
            Some(norm) => {
                let untracked = Tensor::from_inner(normed.clone().inner());
                let y = experts.forward(spec, untracked, weights, &mut NoObserver)?;
                let y = Tensor::from_inner(y.inner()).require_grad();
                let gradients = surrogate(norm.forward(y.clone()), grad_output).backward();
                gradient_at(&y, &gradients)
            }
        };
        let sum = experts.backward(spec, normed, grad_experts, weights, &mut recorder, on_trace)?;
        let gradients = sum.backward();
        on_trace(recorder.finish())?;
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
        recorder: &mut TraceRecorder<B>,
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
            let gradients = surrogate(out, grad_rows * factor).backward();
            on_trace(recorder.finish())?;
            let grad_input = gradient_at(&input, &gradients);
            grad_x = grad_x.select_assign(0, rows, grad_input, IndexingUpdateOp::Add);
            grad_factors = grad_factors.select_assign(0, slots, grad_factor, IndexingUpdateOp::Add);
        }
        let mut sum = surrogate(factors, grad_factors) + surrogate(x.clone(), grad_x);
        if let (Some(shared), Some(spec)) = (&self.shared, &spec.shared) {
            sum = sum + surrogate(shared.forward(spec, x, None, recorder), grad_output);
        }
        Ok(sum)
    }
}

/// Records the inputs of the linears and the gradients that reach their outputs.
struct TraceRecorder<B: Backend> {
    inputs: BTreeMap<String, ObservedInput<B>>,
    outputs: BTreeMap<String, Output<B>>,
}

/// Where the gradient at an output arrives, and its shape.
struct Output<B: Backend> {
    shape: [usize; 2],
    device: B::Device,
    gradient: Arrival<B>,
}

/// The gradient at a tensor, once the backward pass has reached it.
type Arrival<B> = Arc<Mutex<Option<Tensor<B, 2>>>>;

impl<B: Backend> Default for TraceRecorder<B> {
    fn default() -> Self {
        TraceRecorder {
            inputs: BTreeMap::new(),
            outputs: BTreeMap::new(),
        }
    }
}

impl<B: Backend> ActivationObserver<Autodiff<B>> for TraceRecorder<B> {
    fn observe_input(&mut self, name: &str, x: &Tensor<Autodiff<B>, 2>, tokens: Option<&[usize]>) {
        let tokens = tokens.map(<[usize]>::to_vec);
        self.inputs
            .insert(name.to_owned(), (x.clone().inner(), tokens));
    }

    fn observe_output(
        &mut self,
        weight: &str,
        y: Tensor<Autodiff<B>, 2>,
    ) -> Tensor<Autodiff<B>, 2> {
        let output = Output {
            shape: y.dims(),
            device: y.device(),
            gradient: Arrival::default(),
        };
        let gradient = output.gradient.clone();
        self.outputs.insert(weight.to_owned(), output);
        operation::tapped(y, gradient)
    }
}

impl<B: Backend> TraceRecorder<B> {
    /// The trace, once the backward pass has run. The gradient at an output on which the loss does not depend is 0.
    fn finish(self) -> PartTrace<B> {
        let gradient = |output: Output<B>| {
            let arrived = output
                .gradient
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let zeros = || Tensor::zeros(output.shape, &output.device);
            arrived.clone().unwrap_or_else(zeros)
        };
        let outputs = self.outputs.into_iter();
        PartTrace {
            inputs: self.inputs,
            output_gradients: outputs
                .map(|(name, output)| (name, gradient(output)))
                .collect(),
        }
    }
}

/// The gradient with respect to a tensor; zero if the loss does not depend on it.
fn gradient_at<B: AutodiffBackend>(
    tensor: &Tensor<B, 2>,
    gradients: &B::Gradients,
) -> Tensor<B::InnerBackend, 2> {
    let gradient = tensor.grad(gradients);
    gradient.unwrap_or_else(|| tensor.clone().inner().zeros_like())
}

/// As [`surrogate_of_values`] with the gradient `grad_y`.
fn surrogate<B: Backend>(
    y: Tensor<Autodiff<B>, 2>,
    grad_y: Tensor<B, 2>,
) -> Tensor<Autodiff<B>, 1> {
    let Ok(scalar) = surrogate_of_values(y, |_| Ok::<_, Infallible>(grad_y));
    scalar
}

/// A scalar whose gradient with respect to `y` is what `gradient` returns for the values of `y`, as that of `sum(y · grad_y)`. Its value is
/// 0, and only a backward pass from it or from a sum of such scalars gives that gradient. The values are moved into `gradient`, which can
/// change them where they lie, unless the graph holds them too.
///
/// # Errors
/// What `gradient` returns.
pub fn surrogate_of_values<B: Backend, E>(
    y: Tensor<Autodiff<B>, 2>,
    gradient: impl FnOnce(Tensor<B, 2>) -> Result<Tensor<B, 2>, E>,
) -> Result<Tensor<Autodiff<B>, 1>, E> {
    operation::surrogate(y, gradient)
}

/// The two operations of the graph that begin a backward pass and observe it.
mod operation {
    use burn::backend::Autodiff;
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::tensor::Tensor;
    use burn::tensor::backend::Backend;

    use super::{Arrival, PoisonError};
    use crate::device::tensor;

    /// `y` itself; the gradient that reaches it is also left in `arrival`.
    pub(super) fn tapped<B: Backend>(
        y: Tensor<Autodiff<B>, 2>,
        arrival: Arrival<B>,
    ) -> Tensor<Autodiff<B>, 2> {
        let y = y.into_primitive().tensor();
        let operation = Tap.prepare::<NoCheckpointing>([y.node.clone()]);
        tensor(match operation.compute_bound().stateful() {
            OpsKind::Tracked(tracked) => tracked.finish(arrival, y.primitive),
            OpsKind::UnTracked(untracked) => untracked.finish(y.primitive),
        })
    }

    #[derive(Debug)]
    struct Tap;

    impl<B: Backend> Backward<B, 1> for Tap {
        type State = Arrival<B>;

        fn backward(
            self,
            ops: Ops<Arrival<B>, 1>,
            gradients: &mut Gradients,
            _checkpointer: &mut Checkpointer,
        ) {
            let gradient = gradients.consume::<B>(&ops.node);
            let mut arrival = ops.state.lock().unwrap_or_else(PoisonError::into_inner);
            *arrival = Some(tensor(gradient.clone()));
            if let [Some(parent)] = ops.parents {
                gradients.register::<B>(parent.id, gradient);
            }
        }
    }

    pub(super) fn surrogate<B: Backend, E>(
        y: Tensor<Autodiff<B>, 2>,
        gradient: impl FnOnce(Tensor<B, 2>) -> Result<Tensor<B, 2>, E>,
    ) -> Result<Tensor<Autodiff<B>, 1>, E> {
        let y = y.into_primitive().tensor();
        let gradient = gradient(tensor(y.primitive))?;
        let zero = Tensor::<B, 1>::zeros([1], &gradient.device());
        let operation = Surrogate.prepare::<NoCheckpointing>([y.node.clone()]);
        let zero = zero.into_primitive().tensor();
        Ok(tensor(match operation.compute_bound().stateful() {
            OpsKind::Tracked(tracked) => tracked.finish(gradient, zero),
            OpsKind::UnTracked(untracked) => untracked.finish(zero),
        }))
    }

    #[derive(Debug)]
    struct Surrogate;

    impl<B: Backend> Backward<B, 1> for Surrogate {
        type State = Tensor<B, 2>;

        fn backward(
            self,
            ops: Ops<Tensor<B, 2>, 1>,
            gradients: &mut Gradients,
            _checkpointer: &mut Checkpointer,
        ) {
            gradients.consume::<B>(&ops.node);
            if let [Some(parent)] = ops.parents {
                gradients.register::<B>(parent.id, ops.state.into_primitive().tensor());
            }
        }
    }
}
