//! Single-threaded matrix products on slices, for the CPU kernels.
//!
//! Parallelism is the caller's, over fixed pieces of work, so that no bit of a result depends on
//! the number of threads.
//!
//! Safety: `gemm` works on raw pointers. [`View::new`] checks that the last element of a matrix
//! lies inside its slice; the destination is a `&mut` slice and so overlaps neither operand.
#![allow(unsafe_code)]

/// A read-only matrix of `f32` inside a slice.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// `rows` rows of `cols` contiguous values, `stride` values apart.
    pub(super) fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(rows > 0 && cols > 0, "empty matrix");
        assert!(
            (rows - 1) * stride + cols <= data.len(),
            "[{rows}, {cols}] with stride {stride} in {} values",
            data.len()
        );
        View {
            data,
            rows,
            cols,
            row_stride: stride,
            col_stride: 1,
        }
    }

    /// The same values with rows and columns exchanged.
    pub(super) fn transposed(self) -> Self {
        View {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// `out[i, j] = sum over k of left[i, k] * right[k, j]`; `out` is overwritten, rows contiguous.
pub(super) fn multiply(out: &mut [f32], left: View<'_>, right: View<'_>) {
    let (m, k, n) = (left.rows, left.cols, right.cols);
    assert_eq!(k, right.rows, "inner dimensions differ");
    assert_eq!(out.len(), m * n, "destination of [{m}, {n}]");
    // SAFETY: operands and destination lie inside their slices, as checked above and in `View::new`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            false,
            left.data.as_ptr(),
            left.col_stride as isize,
            left.row_stride as isize,
            right.data.as_ptr(),
            right.col_stride as isize,
            right.row_stride as isize,
            0.0_f32,
            1.0_f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_equals_its_definition_for_strided_and_transposed_operands() {
        let (m, k, n, stride) = (5, 7, 3, 11);
        let value = |i: usize| ((i * 37 % 19) as f32 - 9.0) / 4.0;
        let left: Vec<f32> = (0..m * k).map(value).collect();
        let right: Vec<f32> = (0..n * stride).map(value).collect();
        let mut out = vec![f32::NAN; m * n];
        let transposed = View::new(&right, n, k, stride).transposed();
        multiply(&mut out, View::new(&left, m, k, k), transposed);
        for i in 0..m {
            for j in 0..n {
                let terms = (0..k).map(|l| left[i * k + l] * right[j * stride + l]);
                assert_eq!(out[i * n + j], terms.sum::<f32>(), "[{i}, {j}]");
            }
        }
    }

    #[test]
    #[should_panic(expected = "in 10 values")]
    fn a_matrix_larger_than_its_slice_is_refused() {
        View::new(&[0.0; 10], 3, 4, 4);
    }
}
