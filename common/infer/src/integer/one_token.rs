//! Products with the activations of one token, whose fields are decoded and multiplied in registers.

use super::{Activations, Values};
use crate::packed::{Outlier, Piece, STRIP, avx512};

/// Adds to `out: [rows]` the products of the rows of a piece.
pub(super) fn add_products(
    x: Activations<'_>,
    halves: &avx512::Halves,
    piece: Piece<'_>,
    out: &mut [f32],
) {
    let Values::Plain([values]) = x.values else {
        unreachable!("the integers of one token are plain");
    };
    let scale = x.scales[0];
    let product = |outlier: &Outlier| {
        i64::from(outlier.difference()) * i64::from(values[usize::from(outlier.column)])
    };
    // The whole sum of a row that is not special fits into 32 bits, whatever its parts do.
    let mut sums = [0i32; STRIP];
    for outlier in piece.outliers() {
        let sum = &mut sums[usize::from(outlier.row)];
        *sum = sum.wrapping_add(product(outlier) as i32);
    }
    let mut specials: Vec<(usize, i64)> = Vec::new();
    avx512::add_products(piece, halves, &sums, scale, out, &mut |row, levels| {
        let of_row = |outlier: &&Outlier| usize::from(outlier.row) == row;
        let outliers = piece.outliers().iter().filter(of_row).map(product);
        specials.push((
            row,
            avx512::wide_sum(levels, values) + outliers.sum::<i64>(),
        ));
    });
    for (row, sum) in specials {
        out[row] = scale.mul_add(sum as f32, out[row]);
    }
}
