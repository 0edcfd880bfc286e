//! Single-threaded f32 matrix products on slices.
//!
//! The caller owns parallelism: it splits the work into pieces of fixed size, so that the bits of a result do not depend on
//! the number of threads.
//!
//! Safety: `gemm` works on raw pointers. [`MatrixView::new`] and [`MatrixView::row_range`] check that the last element of a
//! matrix lies inside its slice. The destination is a `&mut` slice and therefore overlaps neither operand.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

/// A read-only matrix of `f32` inside a slice: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub struct MatrixView<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> MatrixView<'a> {
    /// `rows` rows of `cols` contiguous values; the rows begin `stride` values apart.
    ///
    /// # Panics
    /// If the matrix does not fit into `data`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        let needed = if rows == 0 || cols == 0 {
            0
        } else {
            (rows - 1).saturating_mul(stride).saturating_add(cols)
        };
        assert!(
            needed <= data.len(),
            "[{rows}, {cols}] with stride {stride} in {} values",
            data.len()
        );
        MatrixView {
            data,
            rows,
            cols,
            row_stride: stride,
            col_stride: 1,
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The same values with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        MatrixView {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// The `count` rows that begin with row `first`.
    ///
    /// # Panics
    /// If the matrix has fewer rows.
    pub fn row_range(self, first: usize, count: usize) -> Self {
        assert!(
            count <= self.rows && first <= self.rows - count,
            "rows {first}.. ({count}) of {}",
            self.rows
        );
        MatrixView {
            data: self.data.get(first * self.row_stride..).unwrap_or(&[]),
            rows: count,
            ..self
        }
    }
}

/// `dst[i, j] = sum over k of lhs[i, k] * rhs[k, j]`. `dst` has rows of contiguous values that begin `stride` values apart.
///
/// # Panics
/// If the inner dimensions differ or `dst` is too small.
pub fn multiply(dst: &mut [f32], stride: usize, lhs: MatrixView<'_>, rhs: MatrixView<'_>) {
    gemm_into(dst, stride, lhs, rhs, false);
}

/// As [`multiply`], but adds the product to the values in `dst`.
///
/// # Panics
/// If the inner dimensions differ or `dst` is too small.
pub fn multiply_add(dst: &mut [f32], stride: usize, lhs: MatrixView<'_>, rhs: MatrixView<'_>) {
    gemm_into(dst, stride, lhs, rhs, true);
}

/// As [`multiply`], into values that need not be initialized. Writes all values of the product.
///
/// # Panics
/// If the inner dimensions differ or `dst` is too small.
pub fn multiply_uninit(
    dst: &mut [MaybeUninit<f32>],
    stride: usize,
    lhs: MatrixView<'_>,
    rhs: MatrixView<'_>,
) {
    gemm_into_memory(dst, stride, lhs, rhs, false);
}

fn gemm_into(
    dst: &mut [f32],
    stride: usize,
    lhs: MatrixView<'_>,
    rhs: MatrixView<'_>,
    accumulate: bool,
) {
    // SAFETY: the values are initialized and stay so, because the product writes numbers only.
    let dst = unsafe { &mut *(std::ptr::from_mut(dst) as *mut [MaybeUninit<f32>]) };
    gemm_into_memory(dst, stride, lhs, rhs, accumulate);
}

/// The values of `dst` must be initialized if the product is accumulated.
fn gemm_into_memory(
    dst: &mut [MaybeUninit<f32>],
    stride: usize,
    lhs: MatrixView<'_>,
    rhs: MatrixView<'_>,
    accumulate: bool,
) {
    let (m, n, k) = (lhs.rows, rhs.cols, lhs.cols);
    assert_eq!(k, rhs.rows, "inner dimensions differ");
    if m == 0 || n == 0 {
        return;
    }
    assert!(
        n <= stride && (m - 1).saturating_mul(stride).saturating_add(n) <= dst.len(),
        "destination too small"
    );
    // SAFETY: all three matrices lie inside their slices: the destination by the assertion above, the operands by those of
    // `MatrixView`. Rows of the destination do not overlap, as the stride is at least their length. Without `accumulate`, values of
    // the destination are written and not read.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr().cast::<f32>(),
            1,
            stride as isize,
            accumulate,
            lhs.data.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            1.0f32,
            1.0f32,
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
        let lhs: Vec<f32> = (0..m * k).map(value).collect();
        let rhs: Vec<f32> = (0..n * stride).map(value).collect();
        let mut product = vec![f32::NAN; m * n];
        let transposed = MatrixView::new(&rhs, n, k, stride).transposed();
        let lhs_view = MatrixView::new(&lhs, m, k, k);
        multiply(&mut product, n, lhs_view, transposed);
        let mut sum = vec![1.0; m * n];
        multiply_add(&mut sum, n, lhs_view, transposed);
        for i in 0..m {
            for j in 0..n {
                let terms = (0..k).map(|l| lhs[i * k + l] * rhs[j * stride + l]);
                let expected = terms.sum::<f32>();
                assert_eq!(product[i * n + j], expected, "[{i}, {j}]");
                assert_eq!(sum[i * n + j], 1.0 + expected, "[{i}, {j}]");
            }
        }
    }

    #[test]
    fn a_product_writes_every_value_of_memory_that_is_not_initialized() {
        for inner in [0, 3] {
            let values = vec![2.0; 15];
            let lhs = MatrixView::new(&values, 5, inner, inner);
            let rhs = MatrixView::new(&values, inner, 4, 4);
            let mut memory = [MaybeUninit::new(f32::NAN); 20];
            multiply_uninit(&mut memory, 4, lhs, rhs);
            let mut expected = vec![f32::NAN; 20];
            multiply(&mut expected, 4, lhs, rhs);
            // SAFETY: they were initialized as NaN.
            let found = memory.map(|value| unsafe { value.assume_init() });
            assert_eq!(found, expected[..]);
            assert_eq!(found, [4.0 * inner as f32; 20]);
        }
    }

    #[test]
    fn a_range_of_rows_gives_these_rows_of_the_product() {
        let values: Vec<f32> = (0..24).map(|i| (i * 5 % 7) as f32).collect();
        for matrix in [
            MatrixView::new(&values, 6, 4, 4),
            MatrixView::new(&values, 4, 6, 6).transposed(),
        ] {
            let rhs = MatrixView::new(&values, 4, 3, 3);
            let (mut whole, mut part) = (vec![0.0; 18], vec![0.0; 6]);
            multiply(&mut whole, 3, matrix, rhs);
            multiply(&mut part, 3, matrix.row_range(3, 2), rhs);
            assert_eq!(part, whole[9..15]);
        }
    }

    #[test]
    fn empty_matrices_have_empty_products() {
        let empty = MatrixView::new(&[], 0, 5, 5);
        multiply(&mut [], 5, empty, MatrixView::new(&[0.0; 25], 5, 5, 5));
    }

    #[test]
    #[should_panic(expected = "in 10 values")]
    fn a_matrix_larger_than_its_slice_is_refused() {
        MatrixView::new(&[0.0; 10], 3, 4, 4);
    }

    #[test]
    #[should_panic(expected = "destination too small")]
    fn a_destination_that_is_too_small_is_refused() {
        let matrix = MatrixView::new(&[0.0; 4], 2, 2, 2);
        multiply(&mut [0.0; 3], 2, matrix, matrix);
    }
}
