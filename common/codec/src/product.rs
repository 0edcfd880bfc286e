//! Matrix products on slices, single-threaded by design.
//!
//! Parallelism is the caller's: it cuts the work into fixed pieces, so that the bits of a result do
//! not depend on the number of threads.
//!
//! Safety: `gemm` works on raw pointers; every view checks in `View::new` that its last element
//! lies inside its slice, the destination is a `&mut` slice and so overlaps neither operand.
#![allow(unsafe_code)]

use rayon::prelude::*;

/// A read-only matrix inside a slice: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// `rows` rows of `cols` contiguous values, `stride` values apart.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        let needed = if rows == 0 || cols == 0 {
            0
        } else {
            (rows - 1) * stride + cols
        };
        assert!(
            needed <= data.len(),
            "view [{rows}, {cols}] of {} values",
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

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The same values with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        View {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// `dst[i, j] (+)= sum over k of lhs[i, k] * rhs[k, j]`, f32; `dst` has rows of contiguous values,
/// `stride` apart; `add` says whether its old values count.
pub(crate) fn multiply(dst: &mut [f32], stride: usize, lhs: View<'_>, rhs: View<'_>, add: bool) {
    let (m, n, k) = (lhs.rows, rhs.cols, lhs.cols);
    assert_eq!(k, rhs.rows, "inner dimensions differ");
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * stride + n <= dst.len(), "destination too small");
    // SAFETY: all three matrices lie inside their slices (checked above and in `View::new`).
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            stride as isize,
            add,
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

/// Rows of one piece of a parallel product. Fixed: the pieces must not depend on the machine.
const PIECE_ROWS: usize = 128;

/// `lhs · rhs` as a new row-major matrix `[lhs.rows, rhs.cols]`, in parallel over fixed pieces of
/// rows.
pub(crate) fn parallel_product(lhs: View<'_>, rhs: View<'_>) -> Vec<f32> {
    let n = rhs.cols;
    let mut out = vec![0.0f32; lhs.rows * n];
    out.par_chunks_mut((PIECE_ROWS * n).max(1))
        .enumerate()
        .for_each(|(piece, dst)| {
            let first = piece * PIECE_ROWS;
            let rows = dst.len() / n;
            let part = View {
                data: &lhs.data[first * lhs.row_stride..],
                rows,
                ..lhs
            };
            multiply(dst, n, part, rhs, false);
        });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(lhs: View<'_>, rhs: View<'_>) -> Vec<f32> {
        let mut out = vec![0.0; lhs.rows * rhs.cols];
        for i in 0..lhs.rows {
            for j in 0..rhs.cols {
                out[i * rhs.cols + j] = (0..lhs.cols)
                    .map(|k| {
                        lhs.data[i * lhs.row_stride + k * lhs.col_stride]
                            * rhs.data[k * rhs.row_stride + j * rhs.col_stride]
                    })
                    .sum();
            }
        }
        out
    }

    #[test]
    fn products_of_plain_and_transposed_views_agree_with_the_definition() {
        // Small integers: f32 sums of them are exact in any order.
        let a: Vec<f32> = (0..300 * 7).map(|i| (i % 11) as f32 - 5.0).collect();
        let b: Vec<f32> = (0..300 * 9).map(|i| (i % 13) as f32 - 6.0).collect();
        let (a, b) = (View::new(&a, 300, 7, 7), View::new(&b, 300, 9, 9));
        assert_eq!(
            parallel_product(a.transposed(), b),
            plain(a.transposed(), b)
        );
        assert_eq!(
            parallel_product(b.transposed(), a),
            plain(b.transposed(), a)
        );
        let square = View::new(a.data, 7, 7, 7);
        assert_eq!(parallel_product(a, square), plain(a, square));
    }
}
