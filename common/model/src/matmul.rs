//! Matrix products of tensors in full f32 precision on every device.
//!
//! On GPUs with tensor cores, burn's product of f32 tensors rounds its operands to TF32 (10 bits of mantissa) and has no
//! option to disable this. Hidden states and moments would then differ from those of the CPU in the fourth digit. On CUDA the
//! product is therefore cubek's kernel without tensor cores, in the forward and in the backward pass.
//!
//! The CPU kernels use the products on slices in `uc_simd`.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rayon::prelude::*;
use uc_simd::{MatrixView, multiply_uninit};

use crate::device::{Cpu, cast, is};
use crate::forward::{Values, matrix};
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
        use crate::device::Cuda;
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
    work::counted(kind, Amount::product(m, k, n), || match rows_per_piece(m) {
        Some(piece) if is::<B, Cpu>() => cast(cpu_product(cast(left), cast(right), piece)),
        _ => matmul(left, right),
    })
}

/// Most rows of a piece of a product: its part of the right operand's blocks stays in the caches.
const PIECE_ROWS: usize = 512;
/// Fewest rows of a piece. With fewer, packing the right operand for each piece takes too long beside the products; the tensor library
/// packs it once for all threads, but needs a result filled with zeros.
const SMALLEST_PIECE_ROWS: usize = 256;

/// Rows of the pieces of a product with so many; none if it has too few for the threads.
pub(crate) fn rows_per_piece(rows: usize) -> Option<usize> {
    let piece = rows.div_ceil(2 * rayon::current_num_threads());
    (piece >= SMALLEST_PIECE_ROWS).then_some(piece.min(PIECE_ROWS))
}

/// The product on the CPU, in pieces of so many rows. How many there are depends on the number of threads, the bits do not: the order of
/// the sums of an element follows from the inner dimension alone.
fn cpu_product(left: Tensor<Cpu, 2>, right: Tensor<Cpu, 2>, piece: usize) -> Tensor<Cpu, 2> {
    let ([rows, _], [_, cols]) = (left.dims(), right.dims());
    let (left, right) = (Operand::new(left), Operand::new(right));
    let out = uninitialized::filled(rows * cols, |out| {
        let pieces = out.par_chunks_mut((piece * cols).max(1)).enumerate();
        pieces.for_each(|(index, out)| {
            let left = left.view().row_range(index * piece, out.len() / cols);
            multiply_uninit(out, cols, left, right.view());
        });
    });
    matrix(out, [rows, cols])
}

/// Results that are written once, and not filled with zeros first.
pub(crate) mod uninitialized {
    #![allow(unsafe_code)]

    use std::mem::MaybeUninit;

    /// So many values, all of which `fill` must write.
    pub(crate) fn filled(count: usize, fill: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
        let mut values = Vec::with_capacity(count);
        fill(&mut values.spare_capacity_mut()[..count]);
        // SAFETY: the callers, `cpu_product` and the products with stored weights, split the values into pieces of whole rows without a
        // rest, and these into blocks of columns without a rest; `multiply_uninit` and `Left::products_uninit` write every value of a block
        // or panic.
        unsafe { values.set_len(count) };
        values
    }
}

/// A matrix, or the transpose of one, with contiguous rows.
struct Operand {
    values: Values,
    dims: [usize; 2],
    is_transposed: bool,
}

impl Operand {
    fn new(tensor: Tensor<Cpu, 2>) -> Self {
        let dims = tensor.dims();
        let strides = tensor
            .clone()
            .into_primitive()
            .tensor()
            .layout()
            .strides()
            .to_vec();
        let is_transposed = strides == [1, dims[0] as isize] && dims[1] > 1;
        let stored = if is_transposed {
            tensor.transpose()
        } else {
            tensor
        };
        Operand {
            values: Values::new(&stored),
            dims,
            is_transposed,
        }
    }

    fn view(&self) -> MatrixView<'_> {
        let [rows, cols] = self.dims;
        match self.is_transposed {
            true => MatrixView::new(&self.values, cols, rows, rows).transposed(),
            false => MatrixView::new(&self.values, rows, cols, cols),
        }
    }
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

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;

    fn numbers(shape: [usize; 2], step: usize) -> Tensor<Cpu, 2> {
        let number = |i: usize| (i * step % 1009) as f32 / 504.5 - 1.0;
        let values: Vec<f32> = (0..shape[0] * shape[1]).map(number).collect();
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    }

    fn values(tensor: Tensor<Cpu, 2>) -> Vec<f32> {
        tensor.into_data().into_vec().unwrap()
    }

    #[test]
    fn products_of_views_are_those_of_the_tensor_library_whatever_the_number_of_threads() {
        let (x, weight) = (numbers([700, 90], 7919), numbers([130, 90], 6421));
        let columns = weight.clone().transpose().slice([0..90, 7..107]);
        for right in [weight.transpose(), columns] {
            let expected = values(matmul(x.clone(), right.clone()));
            let found = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                let product = || product(Kind::Linears, x.clone(), right.clone());
                values(pool.unwrap().install(product))
            };
            for (found, expected) in found(1).iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-4, "{found} {expected}");
            }
            assert_eq!(found(1), found(3));
        }
    }
}
