//! Activations as integers.

use rayon::prelude::*;
use uc_simd::{Kernel, dispatch};

#[cfg(target_arch = "x86_64")]
use super::few_tokens::TokenPanels;
use super::{Activations, CHUNK_ROWS, FEW_TOKENS, LANES, Values};
use crate::columns::Columns;
use crate::packed::PANEL;
#[cfg(target_arch = "x86_64")]
use crate::packed::amx;
use crate::vector::nearest_integer;

/// Largest magnitude of an activation as an integer: each half, the high one and the low one, fits into a signed byte.
pub(crate) const LARGEST: f32 = 32_512.0;
/// A panel whose largest activation is below this counts as zero: its scale could not be represented.
const SMALLEST: f32 = 1e-30;

/// How the integers of several tokens lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Token after token.
    Plain,
    /// In pairs of columns of [`LANES`] tokens.
    Interleaved,
    /// For the tiles of AMX.
    #[cfg(target_arch = "x86_64")]
    Tiles,
}

impl Layout {
    /// Those of so many tokens that this processor multiplies; the fastest comes last.
    pub(super) fn all(tokens: usize) -> impl Iterator<Item = Self> {
        let vectors = match tokens <= FEW_TOKENS {
            true => Layout::Plain,
            false => Layout::Interleaved,
        };
        let layouts = [Some(vectors), tiles(tokens)];
        layouts.into_iter().flatten()
    }
}

/// The layout for tiles, on processors that have them.
fn tiles(tokens: usize) -> Option<Layout> {
    #[cfg(target_arch = "x86_64")]
    if tokens > FEW_TOKENS && amx::is_available() {
        return Some(Layout::Tiles);
    }
    let _ = tokens;
    None
}

/// The activations of some tokens as integers, for all linears that read them.
#[derive(Debug)]
pub(crate) struct Quantized {
    tokens: usize,
    cols: usize,
    /// `[panels, tokens]`
    scales: Vec<f32>,
    values: Storage,
    /// Of few tokens, if the processor has kernels for them.
    #[cfg(target_arch = "x86_64")]
    token_panels: Option<TokenPanels>,
}

/// The integers of all panels; see [`Values`].
#[derive(Debug)]
enum Storage {
    Plain(Vec<[i16; PANEL]>),
    Interleaved(Vec<i16>),
    #[cfg(target_arch = "x86_64")]
    Tiles(Vec<amx::TokenTiles>),
}

impl Quantized {
    /// Number of vectors.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Of few tokens, if the processor has kernels for them.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn token_panels(&self) -> Option<&TokenPanels> {
        self.token_panels.as_ref()
    }

    /// `[panels, tokens]`
    #[cfg(target_arch = "x86_64")]
    pub(super) fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Whether they are laid out for tiles.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn has_tiles(&self) -> bool {
        matches!(self.values, Storage::Tiles(_))
    }

    /// Rows in twelve bits that are multiplied together.
    pub(super) fn chunk_rows(&self) -> usize {
        match self.values {
            #[cfg(target_arch = "x86_64")]
            Storage::Tiles(_) => amx::ROWS,
            _ => CHUNK_ROWS,
        }
    }

    /// Panels of a vector.
    pub(super) fn panels(&self) -> usize {
        self.scales.len() / self.tokens
    }

    /// Quantizes the vectors `x: [tokens, cols]`.
    pub(crate) fn new(x: &[f32], columns: &Columns) -> Self {
        let layout = Layout::all(x.len() / columns.len()).last();
        Self::with_layout(layout.expect("a layout"), x, columns)
    }

    /// As [`Quantized::new`], in one of the layouts of the processor.
    pub(super) fn with_layout(layout: Layout, x: &[f32], columns: &Columns) -> Self {
        let tokens = x.len() / columns.len();
        let panels = columns.len().div_ceil(PANEL);
        let vectors = panels * tokens.div_ceil(LANES);
        let mut scales = vec![0.0; panels * tokens];
        let of = Source { x, columns, tokens };
        let values = match layout {
            Layout::Plain => {
                let mut values = vec![[0; PANEL]; panels * tokens];
                of.quantize(&mut values, &mut scales, |values, integers| {
                    values.copy_from_slice(&integers[..values.len()]);
                });
                Storage::Plain(values)
            }
            Layout::Interleaved => {
                let mut values = vec![[[0; 2]; LANES]; vectors * PANEL / 2];
                of.quantize(&mut values, &mut scales, |values, integers| {
                    let pairs = integers.each_ref().map(|row| row.as_chunks().0);
                    dispatch(Interleave {
                        rows: pairs,
                        out: values,
                    });
                });
                Storage::Interleaved(values.into_flattened().into_flattened())
            }
            #[cfg(target_arch = "x86_64")]
            Layout::Tiles => {
                let mut values = vec![amx::TokenTiles::ZERO; vectors];
                of.quantize(&mut values, &mut scales, |values, integers| {
                    dispatch(amx::SetTokens(&mut values[0], integers));
                });
                Storage::Tiles(values)
            }
        };
        Quantized {
            tokens,
            cols: columns.len(),
            #[cfg(target_arch = "x86_64")]
            token_panels: match &values {
                Storage::Plain(values) => TokenPanels::new(values),
                _ => None,
            },
            scales,
            values,
        }
    }
}

/// The vectors to quantize.
struct Source<'a> {
    /// `[tokens, cols]`
    x: &'a [f32],
    columns: &'a Columns,
    tokens: usize,
}

impl Source<'_> {
    /// Passes the integers of every panel and vector of [`LANES`] tokens to `set`, with its part of the values; those of tokens that the
    /// last vector does not have are 0. Sets the scales `[panels, tokens]`.
    fn quantize<T: Send>(
        &self,
        values: &mut [T],
        scales: &mut [f32],
        set: impl Fn(&mut [T], &[[i16; PANEL]; LANES]) + Sync,
    ) {
        let panels = self.columns.len().div_ceil(PANEL);
        let vectors = self.tokens.div_ceil(LANES);
        let of_vector = values.len() / (panels * vectors);
        let scales: Vec<&mut [f32]> = scales
            .chunks_mut(self.tokens)
            .flat_map(|scales| scales.chunks_mut(LANES))
            .collect();
        let parts = values.par_chunks_mut(of_vector).zip(scales).enumerate();
        let part = |(index, (values, scales)): (usize, (&mut [T], &mut [f32]))| {
            let mut integers = [[0; PANEL]; LANES];
            dispatch(QuantizedVector {
                of: self,
                panel: index / vectors,
                first: index % vectors * LANES,
                scales,
                integers: &mut integers,
            });
            set(values, &integers);
        };
        match self.tokens {
            1 => parts.with_min_len(panels).for_each(part),
            _ => parts.for_each(part),
        }
    }
}

/// Quantizes a panel of some tokens, as many as there are scales, from `first` on.
struct QuantizedVector<'a> {
    of: &'a Source<'a>,
    panel: usize,
    first: usize,
    scales: &'a mut [f32],
    integers: &'a mut [[i16; PANEL]; LANES],
}

impl Kernel for QuantizedVector<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Source { x, columns, .. } = self.of;
        let cols = columns.len();
        let places = self.panel * PANEL..((self.panel + 1) * PANEL).min(cols);
        let (order, mut factors) = (&columns.order[places.clone()], [0.0; PANEL]);
        for (factor, of_column) in factors.iter_mut().zip(columns.factors(places)) {
            *factor = of_column;
        }
        let mut scaled = [0.0; PANEL];
        let tokens = x[self.first * cols..].chunks_exact(cols);
        let results = self.scales.iter_mut().zip(self.integers);
        for (x, (scale, integers)) in tokens.zip(results) {
            for ((scaled, &column), factor) in scaled.iter_mut().zip(order).zip(&factors) {
                *scaled = x[column as usize] * factor;
            }
            *scale = Rounding(&scaled, integers).run();
        }
    }
}

/// Writes the rows of [`LANES`] tokens as columns: `out[place][token] = rows[token][place]`.
pub(crate) struct Interleave<'a, T> {
    pub(crate) rows: [&'a [T]; LANES],
    pub(crate) out: &'a mut [[T; LANES]],
}

impl<T: Copy> Kernel for Interleave<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Interleave { rows, out } = self;
        for (index, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let first = index * LANES;
            let tile: [&[T; LANES]; LANES] =
                rows.map(|row| row[first..].first_chunk().expect("rows of whole tiles"));
            for (place, out) in out.iter_mut().enumerate() {
                *out = tile.map(|row| row[place]);
            }
        }
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
        fn part<T>(values: &[T], panels: usize, panel: usize) -> &[T] {
            let count = values.len() / panels;
            &values[panel * count..(panel + 1) * count]
        }
        let panels = self.panels();
        Activations {
            scales: part(&self.scales, panels, panel),
            values: match &self.values {
                Storage::Plain(values) => Values::Plain(part(values, panels, panel)),
                Storage::Interleaved(values) => Values::Interleaved(part(values, panels, panel)),
                #[cfg(target_arch = "x86_64")]
                Storage::Tiles(values) => Values::Tiles(part(values, panels, panel)),
            },
            columns: PANEL.min(self.cols - panel * PANEL),
        }
    }
}
