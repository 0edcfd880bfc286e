//! Attention in pieces of queries, each of which holds the scores of its own queries only.

use std::time::Instant;

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use rayon::prelude::*;
use uc_simd::{MatrixView, multiply};

use super::attention_gradient::RecordedAttention;
use super::graph::record;
use super::{Values, matrix};
use crate::device::Cpu;
use crate::forward::heads::Heads;
use crate::forward::vector;
use crate::rope::Rope;
use crate::work::{self, Amount, Kind};

/// Queries per piece of attention.
pub(super) const QUERIES: usize = 64;

/// As [`crate::forward::attention::attention`].
pub(in crate::forward) fn attention(
    q: Tensor<Cpu, 2>,
    k: Tensor<Cpu, 2>,
    v: Tensor<Cpu, 2>,
    [windows, length]: [usize; 2],
    spec: &Heads,
    rope: Option<&Rope<Cpu>>,
) -> Tensor<Cpu, 2> {
    let start = Instant::now();
    let [q, k, v] = [&q, &k, &v].map(Values::new);
    let tables = RotaryTables::new(rope);
    let keys = tables.rotated_keys(&k, length, spec);
    let out_width = spec.heads * spec.value_width;
    let mut out = vec![0.0; windows * length * out_width];
    let per_window = out.par_chunks_mut(length * out_width).enumerate();
    per_window.for_each(|(window, out)| {
        let input = WindowInput::new([&q, &keys, &v], window, length, spec, &tables);
        let pieces = out.par_chunks_mut(QUERIES * out_width).enumerate();
        pieces.for_each_init(Vec::new, |scratch, (piece, out)| {
            input.attend(piece * QUERIES, out, scratch);
        });
    });
    let amount = Amount {
        operations: 2
            * admitted_pairs([windows, length], spec)
            * (spec.width + spec.value_width) as u64,
        bytes: 4 * (q.len() + k.len() + v.len() + out.len()) as u64,
    };
    work::add(Kind::Attention, amount, start.elapsed());
    matrix(out, [windows * length, out_width])
}

/// Pairs of a query and a key that the mask admits, of all windows and heads.
pub(super) fn admitted_pairs([windows, length]: [usize; 2], spec: &Heads) -> u64 {
    let window = spec.window.unwrap_or(length).min(length);
    let pairs = window * (window + 1) / 2 + (length - window) * window;
    (windows * spec.heads * pairs) as u64
}

/// As [`attention`], recorded in the graph.
pub(in crate::forward) fn tracked_attention(
    q: Tensor<Autodiff<Cpu>, 2>,
    k: Tensor<Autodiff<Cpu>, 2>,
    v: Tensor<Autodiff<Cpu>, 2>,
    dims: [usize; 2],
    spec: &Heads,
    rope: Option<&Rope<Autodiff<Cpu>>>,
) -> Tensor<Autodiff<Cpu>, 2> {
    let rope = rope.map(|rope| Rope {
        cos: rope.cos.clone().inner(),
        sin: rope.sin.clone().inner(),
    });
    record([q, k, v], |qkv| {
        let [q, k, v] = qkv.clone();
        let output = attention(q, k, v, dims, spec, rope.as_ref());
        let recorded = RecordedAttention {
            qkv,
            dims,
            spec: *spec,
            rope,
        };
        (output, recorded)
    })
}

/// Rotary tables: cosines and sines, `[positions, half]` each. Without tables nothing is rotated.
pub(super) struct RotaryTables {
    cos_sin: Option<[Values; 2]>,
    half: usize,
}

impl RotaryTables {
    pub(super) fn new(rope: Option<&Rope<Cpu>>) -> Self {
        RotaryTables {
            cos_sin: rope.map(|rope| [Values::new(&rope.cos), Values::new(&rope.sin)]),
            half: rope.map_or(0, |rope| rope.cos.dims()[1]),
        }
    }

    /// `out <- scale * x`, rotated to `position`; `x` and `out` are one head.
    fn rotate(&self, x: &[f32], position: usize, scale: f32, out: &mut [f32]) {
        self.turn(x, position, scale, 1.0, out);
    }

    /// The gradient of [`RotaryTables::rotate`] with respect to `x`, given the one with respect to its output: the rotation back.
    pub(super) fn rotate_back(&self, grad: &[f32], position: usize, scale: f32, out: &mut [f32]) {
        self.turn(grad, position, scale, -1.0, out);
    }

    fn turn(&self, x: &[f32], position: usize, scale: f32, sign: f32, out: &mut [f32]) {
        let row = position * self.half..(position + 1) * self.half;
        let (cos, sin) = match &self.cos_sin {
            Some([cos, sin]) => (&cos[row.clone()], &sin[row]),
            None => (&[][..], &[][..]),
        };
        let (rotary, rest) = x.split_at(2 * self.half);
        let (out_rotary, out_rest) = out.split_at_mut(2 * self.half);
        let (low, high) = rotary.split_at(self.half);
        let (out_low, out_high) = out_rotary.split_at_mut(self.half);
        for i in 0..self.half {
            let (a, b, sin) = (low[i] * scale, high[i] * scale, sign * sin[i]);
            out_low[i] = a * cos[i] - b * sin;
            out_high[i] = b * cos[i] + a * sin;
        }
        for (out, x) in out_rest.iter_mut().zip(rest) {
            *out = x * scale;
        }
    }

    /// `k: [windows * length, kv_heads * width]` rotated, as `[windows, kv_heads, length, width]`.
    pub(super) fn rotated_keys(&self, k: &[f32], length: usize, spec: &Heads) -> Vec<f32> {
        let &Heads {
            kv_heads, width, ..
        } = spec;
        let mut out = vec![0.0; k.len()];
        let per_head = out.par_chunks_mut(length * width).enumerate();
        per_head.for_each(|(index, out)| {
            let (window, head) = (index / kv_heads, index % kv_heads);
            for (position, out) in out.chunks_exact_mut(width).enumerate() {
                let start = ((window * length + position) * kv_heads + head) * width;
                self.rotate(&k[start..start + width], position, 1.0, out);
            }
        });
        out
    }
}

/// The attention inputs of one window: queries, rotated keys, values.
pub(super) struct WindowInput<'a> {
    /// `[length, heads * width]`
    q: &'a [f32],
    /// `[kv_heads, length, width]`
    keys: &'a [f32],
    /// `[length, kv_heads * value_width]`
    v: &'a [f32],
    length: usize,
    pub(super) spec: &'a Heads,
    tables: &'a RotaryTables,
}

/// Some queries of a window and a key head: the queries of all heads that share it form one tall matrix.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// The key head.
    pub(super) group: usize,
    /// The first query, of all heads of the group.
    pub(super) first: usize,
    /// Number of queries of each head.
    pub(super) queries: usize,
}

/// The keys that a piece attends to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keys {
    /// The first key.
    pub(super) start: usize,
    /// Number of keys.
    pub(super) count: usize,
}

impl Piece {
    /// The query, counted from the first of the piece, and the head of a row of the tall matrix.
    pub(super) fn query_and_head(&self, row: usize, spec: &Heads) -> (usize, usize) {
        let group_size = spec.heads / spec.kv_heads;
        let head = self.group * group_size + row / self.queries;
        (row % self.queries, head)
    }

    /// Rows of the tall matrix.
    pub(super) fn rows(&self, spec: &Heads) -> usize {
        spec.heads / spec.kv_heads * self.queries
    }

    /// The keys that any of the queries attends to.
    pub(super) fn keys(&self, spec: &Heads) -> Keys {
        let window = spec.window.unwrap_or(usize::MAX);
        let start = (self.first + 1).saturating_sub(window);
        let count = self.first + self.queries - start;
        Keys { start, count }
    }
}

impl<'a> WindowInput<'a> {
    /// The part of one window of all queries, rotated keys and values.
    pub(super) fn new(
        [q, keys, v]: [&'a [f32]; 3],
        window: usize,
        length: usize,
        spec: &'a Heads,
        tables: &'a RotaryTables,
    ) -> Self {
        let range = |width: usize| window * length * width..(window + 1) * length * width;
        WindowInput {
            q: &q[range(spec.heads * spec.width)],
            keys: &keys[range(spec.kv_heads * spec.width)],
            v: &v[range(spec.kv_heads * spec.value_width)],
            length,
            spec,
            tables,
        }
    }

    /// The rotated, scaled queries of a piece: `out: [rows, width]`.
    pub(super) fn rotated_queries(&self, piece: Piece, out: &mut [f32]) {
        let &Heads { heads, width, .. } = self.spec;
        for (row, out) in out.chunks_exact_mut(width).enumerate() {
            let (query, head) = piece.query_and_head(row, self.spec);
            let position = piece.first + query;
            let q = &self.q[(position * heads + head) * width..][..width];
            self.tables.rotate(q, position, self.spec.scale as f32, out);
        }
    }

    /// The rotated keys `[keys, width]` of a piece.
    pub(super) fn keys(&self, piece: Piece, keys: Keys) -> MatrixView<'a> {
        let width = self.spec.width;
        let first = (piece.group * self.length + keys.start) * width;
        MatrixView::new(&self.keys[first..], keys.count, width, width)
    }

    /// The values `[keys, value_width]` of a piece.
    pub(super) fn values(&self, piece: Piece, keys: Keys) -> MatrixView<'a> {
        let &Heads {
            kv_heads,
            value_width,
            ..
        } = self.spec;
        let first = (keys.start * kv_heads + piece.group) * value_width;
        let stride = kv_heads * value_width;
        MatrixView::new(&self.v[first..], keys.count, value_width, stride)
    }

    /// The scores `[rows, keys]` of a piece, capped: `queries` are its rotated queries.
    pub(super) fn scores(&self, piece: Piece, keys: Keys, queries: &[f32], scores: &mut [f32]) {
        let (rows, width) = (piece.rows(self.spec), self.spec.width);
        let queries = MatrixView::new(queries, rows, width, width);
        let visible_keys = self.keys(piece, keys).transposed();
        multiply(scores, keys.count, queries, visible_keys);
        if let Some(cap) = self.spec.softcap {
            let cap = cap as f32;
            scores.iter_mut().for_each(|s| *s = cap * (*s / cap).tanh());
        }
    }

    /// The mask of the scores of a piece.
    pub(super) fn mask(&self, piece: Piece, keys: Keys) -> vector::KeyMask {
        vector::KeyMask {
            queries: piece.queries,
            first: piece.first - keys.start,
            window: self.spec.window.unwrap_or(usize::MAX),
        }
    }

    /// Attention of the queries starting at `first`, one per row of `out: [queries, heads * value_width]`.
    fn attend(&self, first: usize, out: &mut [f32], scratch: &mut Vec<f32>) {
        let &Heads {
            heads,
            kv_heads,
            width,
            value_width,
            ..
        } = self.spec;
        let queries = out.len() / (heads * value_width);
        for group in 0..kv_heads {
            let piece = Piece {
                group,
                first,
                queries,
            };
            let (rows, keys) = (piece.rows(self.spec), piece.keys(self.spec));
            scratch.resize(rows * (width + value_width + keys.count + 1), 0.0);
            let (rotated, rest) = scratch.split_at_mut(rows * width);
            let (context, rest) = rest.split_at_mut(rows * value_width);
            let (sums, scores) = rest.split_at_mut(rows);
            self.rotated_queries(piece, rotated);
            self.scores(piece, keys, rotated, scores);
            vector::attention_weights(scores, keys.count, self.mask(piece, keys), sums);
            let weights = MatrixView::new(scores, rows, keys.count, keys.count);
            multiply(context, value_width, weights, self.values(piece, keys));
            for (row, (context, sum)) in context.chunks_exact(value_width).zip(&*sums).enumerate() {
                let (query, head) = piece.query_and_head(row, self.spec);
                let out = &mut out[(query * heads + head) * value_width..][..value_width];
                let inverse = 1.0 / sum;
                out.iter_mut()
                    .zip(context)
                    .for_each(|(out, context)| *out = context * inverse);
            }
        }
    }
}
