//! The loops of attention. Every sum has one order: a score is summed along the key, a weighted sum along the tokens, both in
//! ascending order and by fused multiply-adds. How many queries and tokens are computed side by side only decides which
//! registers hold the sums.

use std::ops::Range;

use uc_simd::{LANES, exp_below_zero};

use crate::cache::BLOCK;

/// Queries whose scores with vectors in rows are computed side by side, one in each lane.
pub(crate) const GROUP: usize = LANES;

#[inline(always)]
fn lanes(values: &[f32]) -> &[f32; LANES] {
    values
        .first_chunk()
        .expect("a slice of at least this length")
}

/// The scores `[n, BLOCK]` of `queries: [n, width]` with keys `[width, BLOCK]`.
#[inline(always)]
pub(crate) fn scores_by_columns(queries: &[f32], keys: &[f32], width: usize, scores: &mut [f32]) {
    let fours = queries.len() / (4 * width) * 4;
    let (fours, rest) = queries.split_at(fours * width);
    let (four_scores, rest_scores) = scores.split_at_mut(fours.len() / width * BLOCK);
    for (queries, scores) in fours
        .chunks_exact(4 * width)
        .zip(four_scores.chunks_exact_mut(4 * BLOCK))
    {
        for first in (0..BLOCK).step_by(2 * LANES) {
            column_scores::<4, 2>(queries, keys, width, first, scores);
        }
    }
    for (query, scores) in rest
        .chunks_exact(width)
        .zip(rest_scores.chunks_exact_mut(BLOCK))
    {
        column_scores::<1, 4>(query, keys, width, 0, scores);
    }
}

/// Scores of `Q` queries with `R · LANES` tokens from `first` on.
#[inline(always)]
fn column_scores<const Q: usize, const R: usize>(
    queries: &[f32],
    keys: &[f32],
    width: usize,
    first: usize,
    scores: &mut [f32],
) {
    let rows: [&[f32]; Q] = std::array::from_fn(|q| &queries[q * width..(q + 1) * width]);
    let mut sums = [[[0.0_f32; LANES]; R]; Q];
    for (d, keys) in keys.chunks_exact(BLOCK).enumerate().take(width) {
        for r in 0..R {
            let keys = lanes(&keys[first + r * LANES..]);
            for q in 0..Q {
                let x = rows[q][d];
                for lane in 0..LANES {
                    sums[q][r][lane] = x.mul_add(keys[lane], sums[q][r][lane]);
                }
            }
        }
    }
    for (q, sums) in sums.iter().enumerate() {
        for (r, sums) in sums.iter().enumerate() {
            let at = q * BLOCK + first + r * LANES;
            scores[at..at + LANES].copy_from_slice(sums);
        }
    }
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
#[inline(always)]
pub(crate) fn scores_by_rows(groups: &[f32], rows: &[f32], width: usize, scores: &mut [f32]) {
    /// Vectors at the same time.
    const ROWS: usize = 8;
    let groups = groups.chunks_exact(width * GROUP);
    for (group, scores) in groups.zip(scores.chunks_mut(GROUP * BLOCK)) {
        for first in (0..BLOCK).step_by(ROWS) {
            let vectors: [&[f32]; ROWS] =
                std::array::from_fn(|row| &rows[(first + row) * width..(first + row + 1) * width]);
            let mut sums = [[0.0_f32; GROUP]; ROWS];
            for (d, queries) in group.as_chunks::<GROUP>().0.iter().enumerate() {
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

/// Rows of numbers, each `pitch` after the one before it.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) pitch: usize,
}

/// `out[q] += Σ weights[q][j] · rows[j]` over the range of each `q`; `out: [n, width]`, `weights: [n, stride]`.
#[inline(always)]
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
        let is_shared = several == 4 && low < high;
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
        add::<4>(out, width, weights, stride, rows, low..high);
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

/// `out[q] += Σ weights[q][j] · rows[j]` for `j` in the range.
#[inline(always)]
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
    let mut column = 0;
    while column + 2 * LANES <= width {
        add_columns::<Q, 2>(out, width, weights, stride, rows, range.clone(), column);
        column += 2 * LANES;
    }
    if column + LANES <= width {
        add_columns::<Q, 1>(out, width, weights, stride, rows, range.clone(), column);
        column += LANES;
    }
    for q in 0..Q {
        for j in range.clone() {
            let weight = weights[q * stride + j];
            let row = &rows.values[j * rows.pitch..][column..width];
            let out = out[q * width..][column..width].iter_mut().zip(row);
            out.for_each(|(out, &x)| *out = weight.mul_add(x, *out));
        }
    }
}

/// [`add`] for `R · LANES` columns from `column` on.
#[inline(always)]
fn add_columns<const Q: usize, const R: usize>(
    out: &mut [f32],
    width: usize,
    weights: &[f32],
    stride: usize,
    rows: Rows<'_>,
    range: Range<usize>,
    column: usize,
) {
    let mut sums: [[[f32; LANES]; R]; Q] = std::array::from_fn(|q| {
        std::array::from_fn(|r| *lanes(&out[q * width + column + r * LANES..]))
    });
    let weights: [&[f32]; Q] = std::array::from_fn(|q| &weights[q * stride..(q + 1) * stride]);
    for j in range {
        let row = &rows.values[j * rows.pitch + column..][..R * LANES];
        for r in 0..R {
            let row = lanes(&row[r * LANES..]);
            for q in 0..Q {
                let weight = weights[q][j];
                for lane in 0..LANES {
                    sums[q][r][lane] = weight.mul_add(row[lane], sums[q][r][lane]);
                }
            }
        }
    }
    for (q, sums) in sums.iter().enumerate() {
        for (r, sums) in sums.iter().enumerate() {
            let at = q * width + column + r * LANES;
            out[at..at + LANES].copy_from_slice(sums);
        }
    }
}

/// From the scores of one query with a block to weights: the largest score so far, the sum of the weights so far and the
/// weighted sum so far are brought to the new largest score. Scores outside the range, which is not empty, get no weight.
#[inline(always)]
pub(crate) fn weigh(
    scores: &mut [f32; BLOCK],
    range: Range<usize>,
    peak: &mut f32,
    sum: &mut f32,
    out: &mut [f32],
) {
    scores[..range.start].fill(f32::NEG_INFINITY);
    scores[range.end..].fill(f32::NEG_INFINITY);
    let mut peaks = [f32::NEG_INFINITY; LANES];
    for part in scores.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            peaks[lane] = larger(part[lane], peaks[lane]);
        }
    }
    let new = peaks.into_iter().fold(*peak, larger);
    let mut sums = [0.0_f32; LANES];
    // NaN if a score is no number, which the exponential would hide.
    let hidden: f32 = scores[range.clone()].iter().map(|score| score * 0.0).sum();
    for part in scores.as_chunks_mut::<LANES>().0 {
        for lane in 0..LANES {
            part[lane] = exp_below_zero(part[lane] - new);
        }
    }
    scores[..range.start].fill(0.0);
    scores[range.end..].fill(0.0);
    for part in scores.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            sums[lane] += part[lane];
        }
    }
    rescale(out, sum, exp_below_zero(*peak - new));
    *sum += sums.iter().sum::<f32>() + hidden;
    *peak = new;
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
