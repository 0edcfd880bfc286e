//! The matrix product, at the precision of f32 on every device.
//!
//! burn's product of f32 tensors on CUDA rounds its operands to TF32 (10 bits of mantissa) where the
//! GPU has tensor cores, and has no switch for it. Hidden states and moments computed so would differ
//! from those of the CPU in the fourth digit, so on CUDA the product is cubek's kernel without tensor
//! cores, on both sides of the graph.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// `left right`, of matrices or of equally many matrices side by side: `[.., m, k]` and `[.., k, n]`
/// give `[.., m, n]`. Differentiable on `Autodiff`.
///
/// # Panics
/// If the shapes do not belong together.
pub(crate) fn matmul<B: Backend, const D: usize>(
    left: Tensor<B, D>,
    right: Tensor<B, D>,
) -> Tensor<B, D> {
    #[cfg(feature = "cuda")]
    {
        use crate::device::{Cuda, cast, is};
        type Graph = burn::backend::Autodiff<Cuda>;
        if is::<B, Cuda>() {
            return cast(cuda::plain::<D>(cast(left), cast(right)));
        }
        if is::<B, Graph>() {
            return cast(cuda::recorded::<D>(cast(left), cast(right)));
        }
    }
    left.matmul(right)
}

#[cfg(feature = "cuda")]
mod cuda {
    use burn::backend::Autodiff;
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::tensor::Tensor;
    use burn::tensor::ops::FloatTensor;
    use burn_cubecl::CubeRuntime;
    use burn_cubecl::kernel::matmul::init_matmul_output;
    use burn_cubecl::tensor::CubeTensor;
    use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
    use cubek::matmul::launch::{Strategy, launch_ref};
    use cubek::std::InputBinding;

    use crate::device::{Cuda, tensor};

    type Primitive = FloatTensor<Cuda>;

    /// The product without a graph.
    pub(super) fn plain<const D: usize>(
        left: Tensor<Cuda, D>,
        right: Tensor<Cuda, D>,
    ) -> Tensor<Cuda, D> {
        let [left, right] = [left, right].map(|side| side.into_primitive().tensor());
        tensor(multiply(left, right))
    }

    /// The product as one operation of the graph.
    pub(super) fn recorded<const D: usize>(
        left: Tensor<Autodiff<Cuda>, D>,
        right: Tensor<Autodiff<Cuda>, D>,
    ) -> Tensor<Autodiff<Cuda>, D> {
        let sides = [left, right].map(|side| side.into_primitive().tensor());
        let nodes = sides.each_ref().map(|side| side.node.clone());
        let sides = sides.map(|side| side.primitive);
        let product = multiply(sides[0].clone(), sides[1].clone());
        let operation = Product::<D>.prepare::<NoCheckpointing>(nodes);
        tensor(match operation.compute_bound().stateful() {
            OpsKind::Tracked(tracked) => tracked.finish(sides, product),
            OpsKind::UnTracked(untracked) => untracked.finish(product),
        })
    }

    /// The way back through a product, whose state in the graph is its two sides.
    #[derive(Debug)]
    struct Product<const D: usize>;

    impl<const D: usize> Backward<Cuda, 2> for Product<D> {
        type State = [Primitive; 2];

        fn backward(
            self,
            ops: Ops<[Primitive; 2], 2>,
            gradients: &mut Gradients,
            _checkpointer: &mut Checkpointer,
        ) {
            let above = gradients.consume::<Cuda>(&ops.node);
            let [left, right] = ops.state;
            let [to_left, to_right] = ops.parents;
            if let Some(parent) = to_left {
                let found = multiply(above.clone(), transposed::<D>(right));
                gradients.register::<Cuda>(parent.id, found);
            }
            if let Some(parent) = to_right {
                let found = multiply(transposed::<D>(left), above);
                gradients.register::<Cuda>(parent.id, found);
            }
        }
    }

    fn transposed<const D: usize>(matrix: Primitive) -> Primitive {
        let matrix: Tensor<Cuda, D> = tensor(matrix);
        matrix.transpose().into_primitive().tensor()
    }

    /// Launches the kernel.
    fn multiply<R: CubeRuntime>(left: CubeTensor<R>, right: CubeTensor<R>) -> CubeTensor<R> {
        let element = left.dtype;
        let client = left.client.clone();
        let out = init_matmul_output(&left, &right, element);
        let mut elements = MatmulElems::from_globals(&MatmulGlobalElems {
            lhs: element.into(),
            rhs: element.into(),
            out: element.into(),
        });
        let side = |tensor: CubeTensor<R>| InputBinding::new(tensor.binding(), element.into());
        let (left, right, into) = (side(left), side(right), out.clone().binding());
        let strategy = Strategy::SimpleUnit(Default::default());
        launch_ref(&strategy, &client, left, right, into, &mut elements)
            .expect("the kernel without tensor cores takes every shape");
        out
    }
}
