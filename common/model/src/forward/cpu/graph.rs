//! Kernels as operations of the autodiff graph.

use std::fmt::Debug;
use std::marker::PhantomData;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::Tensor;

use crate::device::{Cpu, tensor};

/// What the graph keeps of an operation with `N` inputs: enough to compute its gradient.
pub(super) trait Recorded<const N: usize>: Clone + Debug + Send + 'static {
    /// The gradients with respect to the inputs, given the one at the output.
    fn gradient(self, grad_output: Tensor<Cpu, 2>) -> [Tensor<Cpu, 2>; N];
}

/// Runs `forward`, which gives the output and what its gradient needs, as one operation of the graph.
pub(super) fn record<R: Recorded<N>, const N: usize>(
    inputs: [Tensor<Autodiff<Cpu>, 2>; N],
    forward: impl FnOnce([Tensor<Cpu, 2>; N]) -> (Tensor<Cpu, 2>, R),
) -> Tensor<Autodiff<Cpu>, 2> {
    let inputs = inputs.map(|input| input.into_primitive().tensor());
    let nodes = inputs.each_ref().map(|input| input.node.clone());
    let (output, recorded) = forward(inputs.map(|input| tensor(input.primitive)));
    let output = output.into_primitive().tensor();
    let operation = Operation::<R>(PhantomData).prepare::<NoCheckpointing>(nodes);
    tensor(match operation.compute_bound().stateful() {
        OpsKind::Tracked(tracked) => tracked.finish(recorded, output),
        OpsKind::UnTracked(untracked) => untracked.finish(output),
    })
}

/// The backward operation of a kernel.
#[derive(Debug)]
struct Operation<R>(PhantomData<R>);

impl<R: Recorded<N>, const N: usize> Backward<Cpu, N> for Operation<R> {
    type State = R;

    fn backward(self, ops: Ops<R, N>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let grad_output = tensor(gradients.consume::<Cpu>(&ops.node));
        let found = ops.state.gradient(grad_output);
        for (parent, found) in ops.parents.iter().zip(found) {
            if let Some(parent) = parent {
                gradients.register::<Cpu>(parent.id, found.into_primitive().tensor());
            }
        }
    }
}
