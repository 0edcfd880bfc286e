//! Matrix products in parallel over fixed pieces of rows.

use rayon::prelude::*;
use uc_simd::{MatrixView, multiply};

/// Rows of one piece. Fixed: the pieces must not depend on the machine.
const PIECE_ROWS: usize = 128;

/// `lhs · rhs` as a new row-major matrix [lhs.rows, rhs.cols]; the bits do not depend on the number of threads.
pub(crate) fn parallel_product(lhs: MatrixView<'_>, rhs: MatrixView<'_>) -> Vec<f32> {
    let n = rhs.cols();
    let mut out = vec![0.0f32; lhs.rows() * n];
    out.par_chunks_mut((PIECE_ROWS * n).max(1))
        .enumerate()
        .for_each(|(piece, dst)| {
            let rows = lhs.row_range(piece * PIECE_ROWS, dst.len() / n);
            multiply(dst, n, rows, rhs);
        });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of a small integer matrix [rows, cols], by element.
    type Element = fn(usize, usize) -> f32;

    fn row_major(rows: usize, cols: usize, element: Element) -> Vec<f32> {
        (0..rows * cols)
            .map(|e| element(e / cols, e % cols))
            .collect()
    }

    /// `Xᵀ·Y` [x_cols, y_cols] by the definition, for matrices of `rows` rows.
    fn transposed_product(
        (x, x_cols): (&[f32], usize),
        (y, y_cols): (&[f32], usize),
        rows: usize,
    ) -> Vec<f32> {
        let dot = |i: usize, j: usize| -> f32 {
            (0..rows)
                .map(|k| x[k * x_cols + i] * y[k * y_cols + j])
                .sum()
        };
        (0..x_cols * y_cols)
            .map(|e| dot(e / y_cols, e % y_cols))
            .collect()
    }

    #[test]
    fn products_of_row_major_and_transposed_views_agree_with_the_definition() {
        // Small integers: f32 sums of them are exact in any order.
        let a = row_major(300, 7, |i, j| ((7 * i + j) % 11) as f32 - 5.0);
        let b = row_major(300, 9, |i, j| ((9 * i + j) % 13) as f32 - 6.0);
        let (a_view, b_view) = (
            MatrixView::new(&a, 300, 7, 7),
            MatrixView::new(&b, 300, 9, 9),
        );
        assert_eq!(
            parallel_product(a_view.transposed(), b_view),
            transposed_product((&a, 7), (&b, 9), 300)
        );
        assert_eq!(
            parallel_product(b_view.transposed(), a_view),
            transposed_product((&b, 9), (&a, 7), 300)
        );
        let transposed: Vec<f32> = (0..7 * 300).map(|e| a[e % 300 * 7 + e / 300]).collect();
        assert_eq!(
            parallel_product(a_view, MatrixView::new(&a, 7, 7, 7)),
            transposed_product((&transposed, 300), (&a, 7), 7)
        );
    }
}
