//! Products with the activations of few tokens: the fields of a piece are decoded and multiplied in registers for one token after the
//! other, from the first-level cache for all but the first.

use super::{Activations, FEW_TOKENS, Quantized, Values};
use crate::packed::{Outlier, Packed, Piece, STRIP, avx512};

/// Adds to `out: [rows, tokens]` the products of a strip.
pub(super) fn add_strip(packed: &Packed, strip: usize, x: &Quantized, out: &mut [f32]) {
    let tokens = x.tokens();
    let pieces = (0..packed.panels()).map(|panel| {
        let piece = packed.piece(strip, panel);
        piece.prefetch_outliers();
        (x.panel(panel), piece)
    });
    if tokens == 1 {
        return pieces.for_each(|(x, piece)| add_products(x, 0, piece, out));
    }
    let mut of_tokens = [[0.0; STRIP]; FEW_TOKENS];
    for (row, out) in out.chunks_exact(tokens).enumerate() {
        for (values, &value) in of_tokens.iter_mut().zip(out) {
            values[row] = value;
        }
    }
    let rows = out.len() / tokens;
    for (x, piece) in pieces {
        for (token, values) in of_tokens.iter_mut().take(tokens).enumerate() {
            add_products(x, token, piece, &mut values[..rows]);
        }
    }
    for (row, out) in out.chunks_exact_mut(tokens).enumerate() {
        for (out, values) in out.iter_mut().zip(&of_tokens) {
            *out = values[row];
        }
    }
}

/// Adds to `out: [rows]` the products of the rows of a piece with the activations of a token.
fn add_products(x: Activations<'_>, token: usize, piece: Piece<'_>, out: &mut [f32]) {
    let Values::Plain(values) = x.values else {
        unreachable!("the integers of few tokens are plain");
    };
    let (values, scale) = (&values[token], x.scales[token]);
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
    let special = &mut |row, levels: &_| {
        let of_row = |outlier: &&Outlier| usize::from(outlier.row) == row;
        let outliers = piece.outliers().iter().filter(of_row).map(product);
        specials.push((
            row,
            avx512::wide_sum(levels, values) + outliers.sum::<i64>(),
        ));
    };
    avx512::add_products(piece, &x.halves[token], &sums, scale, out, special);
    for (row, sum) in specials {
        out[row] = scale.mul_add(sum as f32, out[row]);
    }
}
