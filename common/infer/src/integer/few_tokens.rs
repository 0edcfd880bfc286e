//! Products with the activations of few tokens: the fields of a piece are decoded and multiplied in registers, for up to
//! [`SIDE`] tokens side by side.

use super::{Activations, FEW_TOKENS, Quantized, Values};
use crate::packed::{Operands, Outlier, PANEL, Packed, Piece, SIDE, STRIP, avx2, avx512};

/// Sums of the rows of a strip.
type Rows = [f32; STRIP];

/// The activations of few tokens as the kernels of an instruction set take them, `[panels, tokens]`.
#[derive(Debug)]
pub(super) enum TokenPanels {
    Avx512(Vec<avx512::Halves>),
    Avx2(Vec<avx2::Pairs>),
}

impl TokenPanels {
    /// From the integers `[panels, tokens]`, if the processor has such kernels.
    pub(super) fn new(values: &[[i16; PANEL]]) -> Option<Self> {
        Self::avx512(values).or_else(|| Self::avx2(values))
    }

    fn avx512(values: &[[i16; PANEL]]) -> Option<Self> {
        let panels = || values.iter().map(avx512::Halves::new).collect();
        avx512::is_available().then(|| TokenPanels::Avx512(panels()))
    }

    fn avx2(values: &[[i16; PANEL]]) -> Option<Self> {
        let panels = || values.iter().map(avx2::Pairs::new).collect();
        avx2::is_available().then(|| TokenPanels::Avx2(panels()))
    }
}

/// The activations of one token and panel, and the kernels that take them.
trait TokenPanel: Sized {
    /// See [`avx512::add_products`].
    fn add_products<const T: usize>(
        of: &Operands<'_, Self, T>,
        out: &mut [Rows; T],
        special: &mut dyn FnMut(usize, &[i16; PANEL]),
    );

    /// The sum of the products of a row for one token, whatever its levels.
    fn wide_sum(levels: &[i16; PANEL], x: &[i16; PANEL]) -> i64;
}

impl TokenPanel for avx512::Halves {
    fn add_products<const T: usize>(
        of: &Operands<'_, Self, T>,
        out: &mut [Rows; T],
        special: &mut dyn FnMut(usize, &[i16; PANEL]),
    ) {
        avx512::add_products(of, out, special);
    }

    fn wide_sum(levels: &[i16; PANEL], x: &[i16; PANEL]) -> i64 {
        avx512::wide_sum(levels, x)
    }
}

impl TokenPanel for avx2::Pairs {
    fn add_products<const T: usize>(
        of: &Operands<'_, Self, T>,
        out: &mut [Rows; T],
        special: &mut dyn FnMut(usize, &[i16; PANEL]),
    ) {
        avx2::add_products(of, out, special);
    }

    fn wide_sum(levels: &[i16; PANEL], x: &[i16; PANEL]) -> i64 {
        avx2::wide_sum(levels, x)
    }
}

/// Adds to `out: [rows, tokens]` the products of a strip.
pub(super) fn add_strip(
    packed: &Packed,
    strip: usize,
    x: &Quantized,
    panels: &TokenPanels,
    out: &mut [f32],
) {
    match panels {
        TokenPanels::Avx512(panels) => add_strip_of(packed, strip, x, panels, out),
        TokenPanels::Avx2(panels) => add_strip_of(packed, strip, x, panels, out),
    }
}

/// See [`add_strip`].
fn add_strip_of<P: TokenPanel>(
    packed: &Packed,
    strip: usize,
    x: &Quantized,
    token_panels: &[P],
    out: &mut [f32],
) {
    // The sums of one token lie in order already.
    if x.tokens() == 1 {
        let mut values = [0.0; STRIP];
        let values = std::slice::from_mut(&mut values);
        let rows = out.len();
        values[0][..rows].copy_from_slice(out);
        add_panels(packed, strip, x, token_panels, values);
        return out.copy_from_slice(&values[0][..rows]);
    }
    let mut of_tokens = [[0.0; STRIP]; FEW_TOKENS];
    let of_tokens = &mut of_tokens[..x.tokens()];
    for (row, out) in out.chunks_exact(x.tokens()).enumerate() {
        for (values, &value) in of_tokens.iter_mut().zip(out) {
            values[row] = value;
        }
    }
    add_panels(packed, strip, x, token_panels, of_tokens);
    for (row, out) in out.chunks_exact_mut(x.tokens()).enumerate() {
        for (out, values) in out.iter_mut().zip(&*of_tokens) {
            *out = values[row];
        }
    }
}

/// Adds to `out: [tokens, rows]` the products of a strip.
fn add_panels<P: TokenPanel>(
    packed: &Packed,
    strip: usize,
    x: &Quantized,
    token_panels: &[P],
    out: &mut [Rows],
) {
    for panel in 0..packed.panels() {
        let piece = packed.piece(strip, panel);
        piece.prefetch_outliers();
        let token_panels = &token_panels[panel * x.tokens()..];
        let x = x.panel(panel);
        for (index, out) in out.chunks_mut(SIDE).enumerate() {
            let first = index * SIDE;
            let token_panels = &token_panels[first..];
            match out.len() {
                1 => add_products::<1, P>(x, first, token_panels, piece, out),
                2 => add_products::<2, P>(x, first, token_panels, piece, out),
                3 => add_products::<3, P>(x, first, token_panels, piece, out),
                _ => add_products::<SIDE, P>(x, first, token_panels, piece, out),
            }
        }
    }
}

/// Adds to `out: [tokens, rows]` the products of the rows of a piece with the activations of `T` tokens from `first` on.
fn add_products<const T: usize, P: TokenPanel>(
    x: Activations<'_>,
    first: usize,
    token_panels: &[P],
    piece: Piece<'_>,
    out: &mut [Rows],
) {
    fn of_tokens<const T: usize, V>(values: &[V]) -> &[V; T] {
        values.first_chunk().expect("as many tokens")
    }
    let Values::Plain(values) = x.values else {
        unreachable!("the integers of few tokens are plain");
    };
    let values = of_tokens::<T, _>(&values[first..]);
    let scales = of_tokens::<T, _>(&x.scales[first..]);
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
        let mut sums = values.each_ref().map(|x| P::wide_sum(levels, x));
        for outlier in outliers {
            for (token, sum) in sums.iter_mut().enumerate() {
                *sum += product(outlier, token);
            }
        }
        specials.push((row, sums));
    };
    let out = out.first_chunk_mut().expect("as many tokens");
    let operands = Operands {
        piece,
        x: of_tokens(token_panels),
        sums: &sums,
        scales,
    };
    P::add_products(&operands, out, special);
    for (row, sums) in specials {
        for token in 0..T {
            let out = &mut out[token][row];
            *out = scales[token].mul_add(sums[token] as f32, *out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::columns::Columns;
    use crate::integer::{Scratch, add_rows};
    use crate::packed::tests::packed;

    #[test]
    fn every_instruction_set_gives_the_sums_of_decoded_levels() {
        let (rows, cols) = (300, 600);
        let packed = packed(rows, cols);
        let columns = Columns::new(&vec![0; cols]);
        for tokens in 1..=FEW_TOKENS {
            let number = |i: usize| (i * 7919 % 1009) as f32 - 504.0;
            let x: Vec<f32> = (0..tokens * cols).map(number).collect();
            let x = Quantized::new(&x, &columns);
            for strip in 0..rows.div_ceil(STRIP) {
                let count = (rows - strip * STRIP).min(STRIP);
                let mut expected: Vec<f32> = (0..count * tokens).map(number).collect();
                let mut values = Vec::new();
                let before = expected.clone();
                for panel in 0..packed.panels() {
                    let (x, piece) = (x.panel(panel), packed.piece(strip, panel));
                    add_rows(x, piece, &mut Scratch::default(), &mut expected);
                    let Values::Plain(of_tokens) = x.values else {
                        panic!("the integers of few tokens are plain");
                    };
                    values.extend_from_slice(of_tokens);
                }
                let of_sets = [TokenPanels::avx512(&values), TokenPanels::avx2(&values)];
                for panels in of_sets.into_iter().flatten() {
                    let mut found = before.clone();
                    add_strip(&packed, strip, &x, &panels, &mut found);
                    assert_eq!(found, expected, "{tokens} {strip}");
                }
            }
        }
    }
}
