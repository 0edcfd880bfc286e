//! Prints the speed of a large matrix product on all cores, in GFLOP/s: the ceiling of the passes. The best of several rounds, each
//! of which splits the rows among the threads.

use std::time::Instant;

use rayon::prelude::*;
use uc_simd::{MatrixView, multiply};

/// Rows and columns of the operands.
const SIDE: usize = 3072;
const ROUNDS: usize = 5;

fn main() {
    let values = |step: usize| -> Vec<f32> {
        let count = SIDE * SIDE;
        (0..count)
            .map(|i| (i * step % 1013) as f32 / 500.0 - 1.0)
            .collect()
    };
    let (left, right) = (values(7919), values(6421));
    let matrix = |values| MatrixView::new(values, SIDE, SIDE, SIDE);
    let rows = SIDE.div_ceil(rayon::current_num_threads());
    let mut product = vec![0.0; SIDE * SIDE];
    let best = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        let parts = product.par_chunks_mut(rows * SIDE).enumerate();
        parts.for_each(|(part, out)| {
            let left = matrix(&left).row_range(part * rows, out.len() / SIDE);
            multiply(out, SIDE, left, matrix(&right));
        });
        start.elapsed().as_secs_f64()
    });
    let seconds = best.fold(f64::INFINITY, f64::min);
    println!("{:.1}", 2.0 * (SIDE as f64).powi(3) / seconds / 1e9);
}
