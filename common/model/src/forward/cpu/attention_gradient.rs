//! The gradient of attention with respect to queries, keys and values.
//!
//! Scores are computed again, for the queries of one piece at a time (as in Dao et al. 2022, arXiv 2205.14135, algorithm 4), so
//! memory does not grow with the square of the length. With the weights `P` of a query, `dV += Pᵀ dO`, `dP = dO Vᵀ`,
//! `dS = P ∘ (dP − Σ P ∘ dP)`, `dQ = dS K`, `dK += dSᵀ Q`.

use std::time::Instant;

use burn::tensor::Tensor;
use rayon::prelude::*;
use uc_simd::{MatrixView, multiply, multiply_add};

use super::attention::{Piece, QUERIES, RotaryTables, WindowInput, admitted_pairs};
use super::graph::Recorded;
use super::{Values, matrix, piece_rows};
use crate::device::Cpu;
use crate::forward::heads::Heads;
use crate::forward::vector;
use crate::rope::Rope;
use crate::work::{self, Amount, Kind};

/// Parts of a window whose sums of the gradients of keys and values are made side by side.
const PARTS: usize = 4;

/// The inputs of attention.
#[derive(Debug, Clone)]
pub(super) struct RecordedAttention {
    pub(super) qkv: [Tensor<Cpu, 2>; 3],
    /// Number of windows, tokens of a window.
    pub(super) dims: [usize; 2],
    pub(super) spec: Heads,
    pub(super) rope: Option<Rope<Cpu>>,
}

/// The gradients of the queries of one part of a window and of one key head, and what they add to those of keys and values.
struct PartGradients {
    /// `[queries, heads of the group, width]`, of the rotated, scaled queries.
    q: Vec<f32>,
    /// `[keys, width]`, of the rotated keys from the first on.
    k: Vec<f32>,
    /// `[keys, value_width]`
    v: Vec<f32>,
}

impl Recorded<3> for RecordedAttention {
    fn gradient(self, grad_output: Tensor<Cpu, 2>) -> [Tensor<Cpu, 2>; 3] {
        let start = Instant::now();
        let ([windows, length], spec) = (self.dims, &self.spec);
        let [q, k, v] = self.qkv.each_ref().map(Values::new);
        let grad = Values::new(&grad_output);
        let tables = RotaryTables::new(self.rope.as_ref());
        let keys = tables.rotated_keys(&k, length, spec);
        let span = length.div_ceil(PARTS).next_multiple_of(QUERIES);
        let parts = length.div_ceil(span);
        let tasks: Vec<PartGradients> = (0..windows * spec.kv_heads * parts)
            .into_par_iter()
            .map_init(Vec::new, |scratch, task| {
                let (index, part) = (task / parts, task % parts);
                let (window, group) = (index / spec.kv_heads, index % spec.kv_heads);
                let width = spec.heads * spec.value_width;
                let grad = &grad[window * length * width..(window + 1) * length * width];
                let input = WindowInput::new([&q, &keys, &v], window, length, spec, &tables);
                let queries = part * span..length.min((part + 1) * span);
                input.part_gradients(group, queries, grad, scratch)
            })
            .collect();
        let joined = Joined {
            tasks,
            parts,
            span,
            length,
            spec,
        };
        let tokens = windows * length;
        let rows = |width: usize, fill: &(dyn Fn(usize, &mut [f32]) + Sync)| {
            let mut values = vec![0.0; tokens * width];
            let piece = piece_rows(width);
            let pieces = values.par_chunks_mut(piece * width).enumerate();
            pieces.for_each(|(index, rows)| {
                for (row, values) in rows.chunks_exact_mut(width).enumerate() {
                    fill(index * piece + row, values);
                }
            });
            matrix(values, [tokens, width])
        };
        let kv_width = |width| spec.kv_heads * width;
        let gradients = [
            rows(spec.heads * spec.width, &|t, out| {
                joined.query(t, &tables, out)
            }),
            rows(kv_width(spec.width), &|t, out| joined.key(t, &tables, out)),
            rows(kv_width(spec.value_width), &|t, out| joined.value(t, out)),
        ];
        let dims = 3 * spec.width + 2 * spec.value_width;
        let amount = Amount {
            operations: 2 * admitted_pairs(self.dims, spec) * dims as u64,
            bytes: 4 * (2 * (q.len() + k.len() + v.len()) + grad.len()) as u64,
        };
        work::add(Kind::Attention, amount, start.elapsed());
        gradients
    }
}

impl WindowInput<'_> {
    /// The gradients of the given queries of the heads that share a key head; `grad: [length, heads * value_width]`.
    fn part_gradients(
        &self,
        group: usize,
        range: std::ops::Range<usize>,
        grad: &[f32],
        scratch: &mut Vec<f32>,
    ) -> PartGradients {
        let &Heads {
            heads,
            width,
            value_width,
            ..
        } = self.spec;
        let group_size = heads / self.spec.kv_heads;
        let mut part = PartGradients {
            q: vec![0.0; range.len() * group_size * width],
            k: vec![0.0; range.end * width],
            v: vec![0.0; range.end * value_width],
        };
        for first in range.clone().step_by(QUERIES) {
            let queries = QUERIES.min(range.end - first);
            let piece = Piece {
                group,
                first,
                queries,
            };
            let (rows, keys) = (piece.rows(self.spec), piece.keys(self.spec));
            let count = keys.count;
            scratch.resize(rows * (2 * width + value_width + 1 + 2 * count), 0.0);
            let (rotated, rest) = scratch.split_at_mut(rows * width);
            let (grad_rotated, rest) = rest.split_at_mut(rows * width);
            let (grad_rows, rest) = rest.split_at_mut(rows * value_width);
            let (sums, rest) = rest.split_at_mut(rows);
            let (scores, grad_scores) = rest.split_at_mut(rows * count);
            self.rotated_queries(piece, rotated);
            for (row, out) in grad_rows.chunks_exact_mut(value_width).enumerate() {
                let (query, head) = piece.query_and_head(row, self.spec);
                let at = ((first + query) * heads + head) * value_width;
                out.copy_from_slice(&grad[at..at + value_width]);
            }
            let grad_rows = MatrixView::new(grad_rows, rows, value_width, value_width);
            self.scores(piece, keys, rotated, scores);
            let slopes = self.spec.softcap.map(|cap| cap_slopes(scores, cap as f32));
            vector::attention_weights(scores, count, self.mask(piece, keys), sums);
            multiply(
                grad_scores,
                count,
                grad_rows,
                self.values(piece, keys).transposed(),
            );
            vector::attention_weights_gradient(scores, sums, grad_scores);
            if let Some(slopes) = slopes {
                let pairs = grad_scores.iter_mut().zip(slopes);
                pairs.for_each(|(grad, slope)| *grad *= slope);
            }
            let weights = MatrixView::new(scores, rows, count, count).transposed();
            multiply_add(
                &mut part.v[keys.start * value_width..],
                value_width,
                weights,
                grad_rows,
            );
            let grad_scores = MatrixView::new(grad_scores, rows, count, count);
            multiply(grad_rotated, width, grad_scores, self.keys(piece, keys));
            let rotated = MatrixView::new(rotated, rows, width, width);
            let grad_keys = &mut part.k[keys.start * width..];
            multiply_add(grad_keys, width, grad_scores.transposed(), rotated);
            for (row, grad) in grad_rotated.chunks_exact(width).enumerate() {
                let (query, head) = piece.query_and_head(row, self.spec);
                let slot = (first - range.start + query) * group_size + head % group_size;
                part.q[slot * width..(slot + 1) * width].copy_from_slice(grad);
            }
        }
        part
    }
}

/// The derivatives of the capped scores by the scores before the cap.
fn cap_slopes(scores: &[f32], cap: f32) -> Vec<f32> {
    let slope = |score: &f32| 1.0 - (score / cap) * (score / cap);
    scores.iter().map(slope).collect()
}

/// The gradients of all parts: by window, key head and part of the window.
struct Joined<'a> {
    tasks: Vec<PartGradients>,
    parts: usize,
    /// Queries of a part.
    span: usize,
    length: usize,
    spec: &'a Heads,
}

impl Joined<'_> {
    /// The parts of a window and a key head.
    fn group(&self, window: usize, group: usize) -> &[PartGradients] {
        let first = (window * self.spec.kv_heads + group) * self.parts;
        &self.tasks[first..first + self.parts]
    }

    /// The gradient of the query of a token, `out: [heads * width]`.
    fn query(&self, token: usize, tables: &RotaryTables, out: &mut [f32]) {
        let (window, position) = (token / self.length, token % self.length);
        let (width, group_size) = (self.spec.width, self.spec.heads / self.spec.kv_heads);
        for (head, out) in out.chunks_exact_mut(width).enumerate() {
            let part = &self.group(window, head / group_size)[position / self.span];
            let slot = position % self.span * group_size + head % group_size;
            let grad = &part.q[slot * width..(slot + 1) * width];
            tables.rotate_back(grad, position, self.spec.scale as f32, out);
        }
    }

    /// The gradient of the key of a token, `out: [kv_heads * width]`.
    fn key(&self, token: usize, tables: &RotaryTables, out: &mut [f32]) {
        let width = self.spec.width;
        let mut sum = vec![0.0; width];
        for (group, out) in out.chunks_exact_mut(width).enumerate() {
            self.add_parts(token, group, width, |part| &part.k, &mut sum);
            tables.rotate_back(&sum, token % self.length, 1.0, out);
        }
    }

    /// The gradient of the value of a token, `out: [kv_heads * value_width]`.
    fn value(&self, token: usize, out: &mut [f32]) {
        let width = self.spec.value_width;
        for (group, out) in out.chunks_exact_mut(width).enumerate() {
            self.add_parts(token, group, width, |part| &part.v, out);
        }
    }

    /// `sum <- ` what the parts add to the gradient of the key or value of a token, in the order of the parts.
    fn add_parts(
        &self,
        token: usize,
        group: usize,
        width: usize,
        of: impl Fn(&PartGradients) -> &[f32],
        sum: &mut [f32],
    ) {
        let (window, position) = (token / self.length, token % self.length);
        sum.fill(0.0);
        // Earlier queries do not attend to the token.
        for part in &self.group(window, group)[position / self.span..] {
            let grad = &of(part)[position * width..(position + 1) * width];
            sum.iter_mut().zip(grad).for_each(|(sum, x)| *sum += x);
        }
    }
}
