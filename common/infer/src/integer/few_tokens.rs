//! Products with the activations of few tokens: the fields of a piece are decoded and multiplied in registers, for up to
//! [`avx512::SIDE`] tokens side by side.

use super::{Activations, FEW_TOKENS, Quantized, Values};
use crate::packed::{Outlier, Packed, Piece, STRIP, avx512};

/// Sums of the rows of a strip.
type Rows = [f32; STRIP];

/// Adds to `out: [rows, tokens]` the products of a strip.
pub(super) fn add_strip(packed: &Packed, strip: usize, x: &Quantized, out: &mut [f32]) {
    // The sums of one token lie in order already.
    if x.tokens() == 1 {
        let mut values = [0.0; STRIP];
        let values = std::slice::from_mut(&mut values);
        let rows = out.len();
        values[0][..rows].copy_from_slice(out);
        add_panels(packed, strip, x, values);
        return out.copy_from_slice(&values[0][..rows]);
    }
    let mut of_tokens = [[0.0; STRIP]; FEW_TOKENS];
    let of_tokens = &mut of_tokens[..x.tokens()];
    for (row, out) in out.chunks_exact(x.tokens()).enumerate() {
        for (values, &value) in of_tokens.iter_mut().zip(out) {
            values[row] = value;
        }
    }
    add_panels(packed, strip, x, of_tokens);
    for (row, out) in out.chunks_exact_mut(x.tokens()).enumerate() {
        for (out, values) in out.iter_mut().zip(&*of_tokens) {
            *out = values[row];
        }
    }
}

/// Adds to `out: [tokens, rows]` the products of a strip.
fn add_panels(packed: &Packed, strip: usize, x: &Quantized, out: &mut [Rows]) {
    for panel in 0..packed.panels() {
        let piece = packed.piece(strip, panel);
        piece.prefetch_outliers();
        let x = x.panel(panel);
        for (index, out) in out.chunks_mut(avx512::SIDE).enumerate() {
            let first = index * avx512::SIDE;
            match out.len() {
                1 => add_products::<1>(x, first, piece, out),
                2 => add_products::<2>(x, first, piece, out),
                3 => add_products::<3>(x, first, piece, out),
                _ => add_products::<{ avx512::SIDE }>(x, first, piece, out),
            }
        }
    }
}

/// Adds to `out: [tokens, rows]` the products of the rows of a piece with the activations of `T` tokens from `first` on.
fn add_products<const T: usize>(
    x: Activations<'_>,
    first: usize,
    piece: Piece<'_>,
    out: &mut [Rows],
) {
    fn of_tokens<const T: usize, V>(values: &[V], first: usize) -> &[V; T] {
        values[first..].first_chunk().expect("as many tokens")
    }
    let Values::Plain(values) = x.values else {
        unreachable!("the integers of few tokens are plain");
    };
    let values = of_tokens::<T, _>(values, first);
    let scales = *of_tokens::<T, _>(x.scales, first);
    let product = |outlier: &Outlier, token: usize| {
        i64::from(outlier.difference()) * i64::from(values[token][usize::from(outlier.column)])
    };
    // The whole sum of a row that is not special fits into 32 bits, whatever its parts do.
    let mut sums = [[0i32; STRIP]; T];
    for outlier in piece.outliers() {
        for (token, sums) in sums.iter_mut().enumerate() {
            let sum = &mut sums[usize::from(outlier.row)];
            *sum = sum.wrapping_add(product(outlier, token) as i32);
        }
    }
    let mut specials: Vec<(usize, [i64; T])> = Vec::new();
    let special = &mut |row, levels: &_| {
        let outliers = piece.outliers().iter();
        let outliers = outliers.filter(|outlier| usize::from(outlier.row) == row);
        let mut sums = values.each_ref().map(|x| avx512::wide_sum(levels, x));
        for outlier in outliers {
            for (token, sum) in sums.iter_mut().enumerate() {
                *sum += product(outlier, token);
            }
        }
        specials.push((row, sums));
    };
    let out = out.first_chunk_mut().expect("as many tokens");
    let halves = of_tokens(x.halves, first);
    avx512::add_products(piece, halves, &sums, &scales, out, special);
    for (row, sums) in specials {
        for token in 0..T {
            let out = &mut out[token][row];
            *out = scales[token].mul_add(sums[token] as f32, *out);
        }
    }
}
