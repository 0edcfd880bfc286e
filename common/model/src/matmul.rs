//! Matrix products of tensors in full f32 precision on every device.
//!
//! On GPUs with tensor cores, burn's product of f32 tensors rounds its operands to TF32 (10 bits of mantissa) and has no
//! option to disable this. Hidden states and moments would then differ from those of the CPU in the fourth digit. On CUDA the
//! product is therefore cubek's kernel without tensor cores, in the forward and in the backward pass.
//!
//! The CPU kernels use the products on slices in `uc_simd`.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::work::{self, Amount, Kind};

/// The product `left · right` of matrices or of batches of matrices: `[.., m, k]` and `[.., k, n]` give `[.., m, n]`.
/// Differentiable on `Autodiff`.
///
/// # Panics
/// If the shapes do not match.
pub(crate) fn matmul<B: Backend, const D: usize>(
    left: Tensor<B, D>,
    right: Tensor<B, D>,
) -> Tensor<B, D> {
    #[cfg(feature = "cuda")]
    {
        use crate::device::{Cuda, cast, is};
        type Graph = burn::backend::Autodiff<Cuda>;
        if is::<B, Cuda>() {
            return cast(cuda::product::<D>(cast(left), cast(right)));
        }
        if is::<B, Graph>() {
            return cast(cuda::tracked_product::<D>(cast(left), cast(right)));
        }
    }
    left.matmul(right)
}

/// The product `left · right` of two matrices, counted as work of this kind.
pub(crate) fn product<B: Backend>(
    kind: Kind,
    left: Tensor<B, 2>,
    right: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let ([m, k], [_, n]) = (left.dims(), right.dims());
    work::counted(kind, Amount::product(m, k, n), || matmul(left, right))
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

    /// The product without autodiff.
    pub(super) fn product<const D: usize>(
        left: Tensor<Cuda, D>,
        right: Tensor<Cuda, D>,
    ) -> Tensor<Cuda, D> {
        let [left, right] = [left, right].map(|operand| operand.into_primitive().tensor());
        tensor(multiply(left, right))
    }

    /// The product as one operation of the autodiff graph.
    pub(super) fn tracked_product<const D: usize>(
        left: Tensor<Autodiff<Cuda>, D>,
        right: Tensor<Autodiff<Cuda>, D>,
    ) -> Tensor<Autodiff<Cuda>, D> {
        let operands = [left, right].map(|operand| operand.into_primitive().tensor());
        let nodes = operands.each_ref().map(|operand| operand.node.clone());
        let operands = operands.map(|operand| operand.primitive);
        let product = multiply(operands[0].clone(), operands[1].clone());
        let operation = Product::<D>.prepare::<NoCheckpointing>(nodes);
        tensor(match operation.compute_bound().stateful() {
            OpsKind::Tracked(tracked) => tracked.finish(operands, product),
            OpsKind::UnTracked(untracked) => untracked.finish(product),
        })
    }

    /// The backward pass of a product. Its state in the graph is the two operands.
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
            let gradient = gradients.consume::<Cuda>(&ops.node);
            let [left, right] = ops.state;
            let [left_parent, right_parent] = ops.parents;
            if let Some(parent) = left_parent {
                let left_gradient = multiply(gradient.clone(), transposed::<D>(right));
                gradients.register::<Cuda>(parent.id, left_gradient);
            }
            if let Some(parent) = right_parent {
                let right_gradient = multiply(transposed::<D>(left), gradient);
                gradients.register::<Cuda>(parent.id, right_gradient);
            }
        }
    }

    fn transposed<const D: usize>(matrix: Primitive) -> Primitive {
        let matrix: Tensor<Cuda, D> = tensor(matrix);
        matrix.transpose().into_primitive().tensor()
    }

    /// Launches the kernel without tensor cores.
    fn multiply<R: CubeRuntime>(left: CubeTensor<R>, right: CubeTensor<R>) -> CubeTensor<R> {
        let element = left.dtype;
        let client = left.client.clone();
        let out = init_matmul_output(&left, &right, element);
        let mut elements = MatmulElems::from_globals(&MatmulGlobalElems {
            lhs: element.into(),
            rhs: element.into(),
            out: element.into(),
        });
        let input = |tensor: CubeTensor<R>| InputBinding::new(tensor.binding(), element.into());
        let (left, right, into) = (input(left), input(right), out.clone().binding());
        let strategy = Strategy::SimpleUnit(Default::default());
        launch_ref(&strategy, &client, left, right, into, &mut elements)
            .expect("the kernel without tensor cores takes every shape");
        out
    }
}
