//! Activations as integers.

use rayon::prelude::*;
use uc_simd::{Kernel, dispatch};

use super::{Activations, INTERLEAVED_TOKENS, LANES};
use crate::columns::Columns;
use crate::packed::PANEL;
#[cfg(target_arch = "x86_64")]
use crate::packed::avx512;
use crate::vector::nearest_integer;

/// Largest magnitude of an activation as an integer: each half, the high one and the low one, fits into a signed byte.
pub(crate) const LARGEST: f32 = 32_512.0;
/// A panel whose largest activation is below this counts as zero: its scale could not be represented.
const SMALLEST: f32 = 1e-30;

/// The activations of some tokens as integers, for all linears that read them.
#[derive(Debug)]
pub(crate) struct Quantized {
    tokens: usize,
    cols: usize,
    /// `[panels, tokens]`
    scales: Vec<f32>,
    /// `[panels, tokens, PANEL]`, or, interleaved, `[panels, tokens / LANES, PANEL / 2, LANES, 2]`.
    values: Vec<i16>,
    /// For one token, and the instruction set that wants it, `[panels]`.
    #[cfg(target_arch = "x86_64")]
    halves: Vec<avx512::Halves>,
}

impl Quantized {
    /// Number of vectors.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// For one token, and the instruction set that wants it, `[panels]`.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn halves(&self) -> Option<&[avx512::Halves]> {
        (!self.halves.is_empty()).then_some(&*self.halves)
    }

    /// `[panels, tokens]`
    #[cfg(target_arch = "x86_64")]
    pub(super) fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Panels of a vector.
    pub(super) fn panels(&self) -> usize {
        self.scales.len() / self.tokens
    }

    /// Quantizes the vectors `x: [tokens, cols]`.
    pub(crate) fn new(x: &[f32], columns: &Columns) -> Self {
        let (cols, tokens) = (columns.len(), x.len() / columns.len());
        let panels = cols.div_ceil(PANEL);
        let lanes = match tokens < INTERLEAVED_TOKENS {
            true => 1,
            false => LANES,
        };
        let padded = tokens.next_multiple_of(lanes);
        let mut values = vec![0; panels * padded * PANEL];
        let mut scales = vec![0.0; panels * tokens];
        let panel = |(panel, (values, scales)): (usize, (&mut [i16], &mut [f32]))| {
            let places = panel * PANEL..((panel + 1) * PANEL).min(cols);
            let (order, mut factors) = (&columns.order[places.clone()], [0.0; PANEL]);
            for (factor, of_column) in factors.iter_mut().zip(columns.factors(places)) {
                *factor = of_column;
            }
            let mut scaled = [0.0; PANEL];
            let mut integers = [0; PANEL];
            for (token, scale) in scales.iter_mut().enumerate() {
                let x = &x[token * cols..(token + 1) * cols];
                for ((scaled, &column), factor) in scaled.iter_mut().zip(order).zip(&factors) {
                    *scaled = x[column as usize] * factor;
                }
                *scale = dispatch(Rounding(&scaled, &mut integers));
                match lanes {
                    1 => values[token * PANEL..(token + 1) * PANEL].copy_from_slice(&integers),
                    _ => interleave(&integers, values, token),
                }
            }
        };
        let parts = values
            .par_chunks_mut(padded * PANEL)
            .zip(scales.par_chunks_mut(tokens));
        match tokens {
            1 => parts
                .into_par_iter()
                .enumerate()
                .with_min_len(panels)
                .for_each(panel),
            _ => parts.enumerate().for_each(panel),
        }
        Quantized {
            tokens,
            cols,
            #[cfg(target_arch = "x86_64")]
            halves: match tokens == 1 && avx512::is_available() {
                true => values
                    .as_chunks::<PANEL>()
                    .0
                    .iter()
                    .map(avx512::Halves::new)
                    .collect(),
                false => Vec::new(),
            },
            scales,
            values,
        }
    }
}

/// Writes the integers of a token among those of its neighbours, in pairs.
fn interleave(integers: &[i16; PANEL], values: &mut [i16], token: usize) {
    let vector = &mut values[token / LANES * LANES * PANEL..][..LANES * PANEL];
    let pairs = vector.chunks_exact_mut(2 * LANES);
    for (pair, integers) in pairs.zip(integers.as_chunks::<2>().0) {
        let lane = 2 * (token % LANES);
        pair[lane..lane + 2].copy_from_slice(integers);
    }
}

/// Rounds the activations of a panel; its scale.
struct Rounding<'a>(&'a [f32; PANEL], &'a mut [i16; PANEL]);

impl Kernel for Rounding<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let Rounding(scaled, integers) = self;
        // An infinite element or one that is not a number gives a sum that is not a number.
        let mut nothing = [0.0f32; 16];
        let mut largest = [0.0f32; 16];
        for scaled in scaled.as_chunks::<16>().0 {
            for lane in 0..16 {
                nothing[lane] += scaled[lane] * 0.0;
                largest[lane] = largest[lane].max(scaled[lane].abs());
            }
        }
        let largest = largest.into_iter().fold(0.0, f32::max);
        if nothing.iter().any(|x| x.is_nan()) || largest < SMALLEST {
            integers.fill(0);
            return nothing.iter().sum();
        }
        let inverse = LARGEST / largest;
        for (integer, scaled) in integers.iter_mut().zip(scaled) {
            *integer = nearest_integer(scaled * inverse) as i16;
        }
        largest / LARGEST
    }
}

impl Quantized {
    /// The activations of a panel.
    pub(super) fn panel(&self, panel: usize) -> Activations<'_> {
        let panels = self.panels();
        let count = self.values.len() / panels;
        Activations {
            scales: &self.scales[panel * self.tokens..(panel + 1) * self.tokens],
            values: &self.values[panel * count..(panel + 1) * count],
            columns: PANEL.min(self.cols - panel * PANEL),
            #[cfg(target_arch = "x86_64")]
            halves: self.halves.get(panel),
        }
    }
}
