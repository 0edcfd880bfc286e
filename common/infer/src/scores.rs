//! The loops of attention. Every sum has one order: a score is summed along the key, a weighted sum along the tokens, both in
//! ascending order and by fused multiply-adds. How many queries and tokens are computed side by side only decides which
//! registers hold the sums.
//!
//! Each loop is a kernel of its own, and its inner part is a function that returns the sums: otherwise the compiler keeps them in
//! memory, which is twenty times slower.

use std::ops::Range;

use uc_simd::{Kernel, LANES, dispatch, exp_below_zero};

use crate::cache::BLOCK;

/// Queries whose scores with vectors in rows are computed side by side, one in each lane.
pub(crate) const GROUP: usize = LANES;

#[inline(always)]
fn lanes(values: &[f32]) -> &[f32; LANES] {
    values
        .first_chunk()
        .expect("a slice of at least this length")
}

/// The scores `[n, BLOCK]` of `queries: [n, width]` with keys `[width, BLOCK]`, those of `tokens`. Others have no meaning.
pub(crate) fn scores_by_columns(
    queries: &[f32],
    keys: &[f32],
    width: usize,
    tokens: Range<usize>,
    scores: &mut [f32],
) {
    let fours = queries.len() / (4 * width) * 4;
    let (queries, rest) = queries.split_at(fours * width);
    let (scores, rest_scores) = scores.split_at_mut(fours * BLOCK);
    dispatch(ColumnScores::<4, 2> {
        queries,
        keys,
        width,
        tokens: tokens.clone(),
        scores,
    });
    macro_rules! rest {
        ($q:literal, $r:literal) => {
            dispatch(ColumnScores::<$q, $r> {
                queries: rest,
                keys,
                width,
                tokens,
                scores: rest_scores,
            })
        };
    }
    match rest.len() / width {
        0 => (),
        1 => rest!(1, 4),
        2 => rest!(2, 4),
        _ => rest!(3, 2),
    }
}

/// Scores in blocks of `Q` queries and `R · LANES` tokens.
struct ColumnScores<'a, const Q: usize, const R: usize> {
    queries: &'a [f32],
    keys: &'a [f32],
    width: usize,
    tokens: Range<usize>,
    scores: &'a mut [f32],
}

impl<const Q: usize, const R: usize> Kernel for ColumnScores<'_, Q, R> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let width = self.width;
        let queries = self.queries.chunks_exact(Q * width);
        for (queries, scores) in queries.zip(self.scores.chunks_exact_mut(Q * BLOCK)) {
            let first = self.tokens.start / (R * LANES) * (R * LANES);
            for first in (first..self.tokens.end).step_by(R * LANES) {
                let sums = column_sums::<Q, R>(queries, self.keys, width, first);
                for (q, sums) in sums.iter().enumerate() {
                    for (r, sums) in sums.iter().enumerate() {
                        let at = q * BLOCK + first + r * LANES;
                        scores[at..at + LANES].copy_from_slice(sums);
                    }
                }
            }
        }
    }
}

/// The scores of `Q` queries with `R · LANES` tokens from `first` on.
#[inline(always)]
fn column_sums<const Q: usize, const R: usize>(
    queries: &[f32],
    keys: &[f32],
    width: usize,
    first: usize,
) -> [[[f32; LANES]; R]; Q] {
    let queries: [&[f32]; Q] = std::array::from_fn(|q| &queries[q * width..(q + 1) * width]);
    let mut sums = [[[0.0_f32; LANES]; R]; Q];
    for (d, keys) in keys.chunks_exact(BLOCK).enumerate().take(width) {
        let keys: [&[f32; LANES]; R] = std::array::from_fn(|r| lanes(&keys[first + r * LANES..]));
        for r in 0..R {
            for q in 0..Q {
                let x = queries[q][d];
                for lane in 0..LANES {
                    sums[q][r][lane] = x.mul_add(keys[r][lane], sums[q][r][lane]);
                }
            }
        }
    }
    sums
}

/// `[n, width]` queries as `[n / GROUP, width, GROUP]`, filled up with zeros.
pub(crate) fn grouped(queries: &[f32], width: usize) -> Vec<f32> {
    let count = queries.len() / width;
    let mut groups = vec![0.0; count.div_ceil(GROUP) * GROUP * width];
    for (index, query) in queries.chunks_exact(width).enumerate() {
        let (group, lane) = (index / GROUP, index % GROUP);
        for (d, &x) in query.iter().enumerate() {
            groups[(group * width + d) * GROUP + lane] = x;
        }
    }
    groups
}

/// The scores `[n, BLOCK]` of [`grouped`] queries with vectors `[BLOCK, width]`.
pub(crate) fn scores_by_rows(groups: &[f32], rows: &[f32], width: usize, scores: &mut [f32]) {
    dispatch(RowScores {
        groups,
        rows,
        width,
        scores,
    });
}

/// See [`scores_by_rows`].
struct RowScores<'a> {
    groups: &'a [f32],
    rows: &'a [f32],
    width: usize,
    scores: &'a mut [f32],
}

impl Kernel for RowScores<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        /// Vectors at the same time.
        const ROWS: usize = 8;
        let width = self.width;
        let groups = self.groups.chunks_exact(width * GROUP);
        for (group, scores) in groups.zip(self.scores.chunks_mut(GROUP * BLOCK)) {
            for first in (0..BLOCK).step_by(ROWS) {
                let vectors: [&[f32]; ROWS] = std::array::from_fn(|row| {
                    &self.rows[(first + row) * width..(first + row + 1) * width]
                });
                let mut sums = [[0.0_f32; GROUP]; ROWS];
                for d in 0..width {
                    let queries = lanes(&group[d * GROUP..]);
                    for row in 0..ROWS {
                        let x = vectors[row][d];
                        for lane in 0..GROUP {
                            sums[row][lane] = x.mul_add(queries[lane], sums[row][lane]);
                        }
                    }
                }
                for (query, scores) in scores.chunks_exact_mut(BLOCK).enumerate() {
                    for (row, sums) in sums.iter().enumerate() {
                        scores[first + row] = sums[query];
                    }
                }
            }
        }
    }
}

/// Rows of numbers, each `pitch` after the one before it.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) pitch: usize,
}

/// `out[q] += Σ weights[q][j] · rows[j]` over the range of each `q`; `out: [n, width]`, `weights: [n, stride]`.
pub(crate) fn add_weighted(
    out: &mut [f32],
    width: usize,
    weights: &[f32],
    stride: usize,
    rows: Rows<'_>,
    range: impl Fn(usize) -> Range<usize>,
) {
    let count = out.len() / width;
    for first in (0..count).step_by(4) {
        let several = 4.min(count - first);
        let out = &mut out[first * width..(first + several) * width];
        let weights = &weights[first * stride..(first + several) * stride];
        let ranges = (first..first + several).map(&range);
        let (low, high) = ranges.fold((0, usize::MAX), |(low, high), range| {
            (low.max(range.start), high.min(range.end))
        });
        let is_shared = several > 1 && low < high;
        for q in 0..several {
            let range = range(first + q);
            let own = match is_shared {
                true => range.start..low,
                false => range,
            };
            let (out, weights) = (
                &mut out[q * width..][..width],
                &weights[q * stride..][..stride],
            );
            add::<1>(out, width, weights, stride, rows, own);
        }
        if !is_shared {
            continue;
        }
        let add_shared = match several {
            2 => add::<2>,
            3 => add::<3>,
            _ => add::<4>,
        };
        add_shared(out, width, weights, stride, rows, low..high);
        for q in 0..several {
            let own = high..range(first + q).end;
            let (out, weights) = (
                &mut out[q * width..][..width],
                &weights[q * stride..][..stride],
            );
            add::<1>(out, width, weights, stride, rows, own);
        }
    }
}

/// `out[q] += Σ weights[q][j] · rows[j]` for `Q` queries and `j` in the range.
fn add<const Q: usize>(
    out: &mut [f32],
    width: usize,
    weights: &[f32],
    stride: usize,
    rows: Rows<'_>,
    range: Range<usize>,
) {
    if range.is_empty() {
        return;
    }
    let weights: [&[f32]; Q] = std::array::from_fn(|q| &weights[q * stride..][range.clone()]);
    dispatch(Add {
        out,
        width,
        weights,
        rows: &rows.values[range.start * rows.pitch..],
        pitch: rows.pitch,
    });
}

/// See [`add`].
struct Add<'a, const Q: usize> {
    /// [Q, width]
    out: &'a mut [f32],
    width: usize,
    /// `[rows]` for each query
    weights: [&'a [f32]; Q],
    rows: &'a [f32],
    pitch: usize,
}

impl<const Q: usize> Kernel for Add<'_, Q> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        // As many sums at the same time as there are registers for.
        let mut column = 0;
        while Q <= 2 && column + 4 * LANES <= self.width {
            self.columns::<4>(column);
            column += 4 * LANES;
        }
        while column + 2 * LANES <= self.width {
            self.columns::<2>(column);
            column += 2 * LANES;
        }
        if column + LANES <= self.width {
            self.columns::<1>(column);
            column += LANES;
        }
        for (q, weights) in self.weights.iter().enumerate() {
            for (j, weight) in weights.iter().enumerate() {
                let row = &self.rows[j * self.pitch..][column..self.width];
                let out = self.out[q * self.width..][column..self.width].iter_mut();
                out.zip(row)
                    .for_each(|(out, &x)| *out = weight.mul_add(x, *out));
            }
        }
    }
}

impl<const Q: usize> Add<'_, Q> {
    /// `R · LANES` columns from `column` on.
    #[inline(always)]
    fn columns<const R: usize>(&mut self, column: usize) {
        let sums = self.added::<R>(column);
        for (q, sums) in sums.iter().enumerate() {
            for (r, sums) in sums.iter().enumerate() {
                let at = q * self.width + column + r * LANES;
                self.out[at..at + LANES].copy_from_slice(sums);
            }
        }
    }

    /// The sums of these columns.
    #[inline(always)]
    fn added<const R: usize>(&self, column: usize) -> [[[f32; LANES]; R]; Q] {
        let mut sums = [[[0.0_f32; LANES]; R]; Q];
        for q in 0..Q {
            for r in 0..R {
                sums[q][r] = *lanes(&self.out[q * self.width + column + r * LANES..]);
            }
        }
        let count = self.weights[0].len();
        let weights: [&[f32]; Q] = self.weights.map(|weights| &weights[..count]);
        for j in 0..count {
            let row = &self.rows[j * self.pitch + column..];
            let row: [&[f32; LANES]; R] = std::array::from_fn(|r| lanes(&row[r * LANES..]));
            for r in 0..R {
                for q in 0..Q {
                    let weight = weights[q][j];
                    for lane in 0..LANES {
                        sums[q][r][lane] = weight.mul_add(row[r][lane], sums[q][r][lane]);
                    }
                }
            }
        }
        sums
    }
}

/// What a running softmax has of one query.
pub(crate) struct Softmax<'a> {
    /// The largest score.
    pub(crate) peak: &'a mut f32,
    /// The sum of the weights.
    pub(crate) sum: &'a mut f32,
    /// The weighted sum.
    pub(crate) out: &'a mut [f32],
}

/// From the scores of one query with a block to weights; what is there of the query is brought to the new largest score. Scores
/// outside the range, which is not empty, get no weight.
pub(crate) fn weigh(scores: &mut [f32; BLOCK], range: Range<usize>, softmax: Softmax<'_>) {
    dispatch(Weigh {
        scores,
        range,
        softmax,
    });
}

/// See [`weigh`].
struct Weigh<'a> {
    scores: &'a mut [f32; BLOCK],
    range: Range<usize>,
    softmax: Softmax<'a>,
}

impl Kernel for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Weigh {
            scores,
            range,
            softmax,
        } = self;
        // Without a branch, so that it is vectorized.
        let numbers = scores[range.clone()].iter();
        let are_numbers = numbers.fold(true, |are, score| are & score.is_finite());
        scores[..range.start].fill(f32::NEG_INFINITY);
        scores[range.end..].fill(f32::NEG_INFINITY);
        let mut peaks = [f32::NEG_INFINITY; LANES];
        for part in scores.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                peaks[lane] = larger(part[lane], peaks[lane]);
            }
        }
        let new = peaks.into_iter().fold(*softmax.peak, larger);
        for part in scores.as_chunks_mut::<LANES>().0 {
            for lane in 0..LANES {
                part[lane] = exp_below_zero(part[lane] - new);
            }
        }
        scores[..range.start].fill(0.0);
        scores[range.end..].fill(0.0);
        let mut sums = [0.0_f32; LANES];
        for part in scores.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                sums[lane] += part[lane];
            }
        }
        rescale(
            softmax.out,
            softmax.sum,
            exp_below_zero(*softmax.peak - new),
        );
        *softmax.sum += match are_numbers {
            true => sums.iter().sum::<f32>(),
            // The exponential would hide it.
            false => f32::NAN,
        };
        *softmax.peak = new;
    }
}

/// Brings a weighted sum and the sum of its weights to another largest score.
#[inline(always)]
pub(crate) fn rescale(out: &mut [f32], sum: &mut f32, factor: f32) {
    if factor != 1.0 {
        *sum *= factor;
        out.iter_mut().for_each(|out| *out *= factor);
    }
}

#[inline(always)]
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}
