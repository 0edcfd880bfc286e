//! The two slow spots of the forward pass as kernels of our own for the plain CPU backend:
//! attention and the MLP gate.
//!
//! Written as tensor operations, they spend more time in scalar exponentials, masks and fresh
//! memory than in products. The tensor formulation beside each (in `attention` and `math`) is the
//! reference, and what runs on every other backend, autodiff included. Work is cut into pieces of
//! fixed size, each computed by one thread: the bits do not depend on the number of threads.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;
use uc_simd::{MatrixView, multiply};

use super::attention::Heads;
use super::vector;
use crate::device::slice;
use crate::rope::Rope;

/// Queries of one piece of attention.
const QUERIES: usize = 64;
/// Elements of one piece of an elementwise loop.
const ELEMENTS: usize = 1 << 14;

/// `silu(gate) * up`, all `[tokens, ffn]`.
pub(super) fn silu_gate<B: Backend>(gate: Tensor<B, 2>, up: Tensor<B, 2>) -> Tensor<B, 2> {
    let device = gate.device();
    let (mut gate, up) = (gate.into_data(), up.into_data());
    let values: &mut [f32] = gate.as_mut_slice().expect("the CPU backend holds f32");
    values
        .par_chunks_mut(ELEMENTS)
        .zip(slice(&up).par_chunks(ELEMENTS))
        .for_each(|(gate, up)| vector::silu_gate(gate, up));
    Tensor::from_data(gate, &device)
}

/// As [`super::attention::attention`].
pub(super) fn attention<B: Backend>(
    q: Tensor<B, 2>,
    k: Tensor<B, 2>,
    v: Tensor<B, 2>,
    [windows, length]: [usize; 2],
    spec: &Heads,
    rope: Option<&Rope<B>>,
) -> Tensor<B, 2> {
    let device = q.device();
    let table = |t: &Tensor<B, 2>| t.clone().narrow(0, 0, length).into_data();
    let tables = rope.map(|rope| [table(&rope.cos), table(&rope.sin)]);
    let (q, k, v) = (q.into_data(), k.into_data(), v.into_data());
    let angles = match &tables {
        Some([cos, sin]) => Angles {
            half: cos.shape[1],
            cos: slice(cos),
            sin: slice(sin),
        },
        None => Angles {
            half: 0,
            cos: &[],
            sin: &[],
        },
    };
    let keys = rotated_keys(slice(&k), length, spec, &angles);
    let out_width = spec.heads * spec.value_width;
    let mut out = vec![0.0; windows * length * out_width];
    let per_window = out.par_chunks_mut(length * out_width).enumerate();
    per_window.for_each(|(window, out)| {
        let of_window = |width: usize| window * length * width..(window + 1) * length * width;
        let input = Input {
            q: &slice(&q)[of_window(spec.heads * spec.width)],
            keys: &keys[of_window(spec.kv_heads * spec.width)],
            v: &slice(&v)[of_window(spec.kv_heads * spec.value_width)],
            length,
            spec,
            angles: &angles,
        };
        let pieces = out.par_chunks_mut(QUERIES * out_width).enumerate();
        pieces.for_each_init(Vec::new, |scratch, (piece, out)| {
            input.attend(piece * QUERIES, out, scratch);
        });
    });
    let shape = [windows * length, out_width];
    Tensor::from_data(TensorData::new(out, shape), &device)
}

/// Cosines and sines, `[length, half]` each.
struct Angles<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    half: usize,
}

impl Angles<'_> {
    /// `out <- x` turned to `position` and scaled; both of a head's width.
    fn turn(&self, x: &[f32], position: usize, scale: f32, out: &mut [f32]) {
        let row = position * self.half..(position + 1) * self.half;
        let (cos, sin) = (&self.cos[row.clone()], &self.sin[row]);
        let (turned, rest) = x.split_at(2 * self.half);
        let (out_turned, out_rest) = out.split_at_mut(2 * self.half);
        let (low, high) = turned.split_at(self.half);
        let (out_low, out_high) = out_turned.split_at_mut(self.half);
        for i in 0..self.half {
            let (a, b) = (low[i] * scale, high[i] * scale);
            out_low[i] = a * cos[i] - b * sin[i];
            out_high[i] = b * cos[i] + a * sin[i];
        }
        for (out, x) in out_rest.iter_mut().zip(rest) {
            *out = x * scale;
        }
    }
}

/// `k: [windows * length, kv_heads * width]` turned, as `[windows, kv_heads, length, width]`.
fn rotated_keys(k: &[f32], length: usize, spec: &Heads, angles: &Angles<'_>) -> Vec<f32> {
    let &Heads {
        kv_heads, width, ..
    } = spec;
    let mut out = vec![0.0; k.len()];
    let per_head = out.par_chunks_mut(length * width).enumerate();
    per_head.for_each(|(index, out)| {
        let (window, head) = (index / kv_heads, index % kv_heads);
        for (position, out) in out.chunks_exact_mut(width).enumerate() {
            let start = ((window * length + position) * kv_heads + head) * width;
            angles.turn(&k[start..start + width], position, 1.0, out);
        }
    });
    out
}

/// One window's queries, turned keys and values.
struct Input<'a> {
    /// `[length, heads * width]`
    q: &'a [f32],
    /// `[kv_heads, length, width]`
    keys: &'a [f32],
    /// `[length, kv_heads * value_width]`
    v: &'a [f32],
    length: usize,
    spec: &'a Heads,
    angles: &'a Angles<'a>,
}

impl Input<'_> {
    /// Attention of the queries from `first` on, as many as `out: [queries, heads * value_width]` has
    /// rows. The query heads that share a key head form one taller matrix.
    fn attend(&self, first: usize, out: &mut [f32], scratch: &mut Vec<f32>) {
        let &Heads {
            heads,
            kv_heads,
            width,
            value_width,
            ..
        } = self.spec;
        let window = self.spec.window.unwrap_or(usize::MAX);
        let share = heads / kv_heads;
        let queries = out.len() / (heads * value_width);
        // The first key that any of these queries sees.
        let start = (first + 1).saturating_sub(window);
        let (rows, keys) = (share * queries, first + queries - start);
        scratch.resize(rows * (width + value_width + keys + 1), 0.0);
        let (turned, rest) = scratch.split_at_mut(rows * width);
        let (mixed, rest) = rest.split_at_mut(rows * value_width);
        let (sums, rest) = rest.split_at_mut(rows);
        let scores = &mut rest[..rows * keys];
        let scale = self.spec.scale as f32;
        for group in 0..kv_heads {
            // Query and head of a row.
            let place = |row: usize| (row % queries, group * share + row / queries);
            for (row, turned) in turned.chunks_exact_mut(width).enumerate() {
                let (query, head) = place(row);
                let q = &self.q[((first + query) * heads + head) * width..][..width];
                self.angles.turn(q, first + query, scale, turned);
            }
            let all_keys = &self.keys[(group * self.length + start) * width..];
            let seen = MatrixView::new(all_keys, keys, width, width);
            let turned = MatrixView::new(turned, rows, width, width);
            multiply(scores, keys, turned, seen.transposed());
            if let Some(cap) = self.spec.softcap {
                let cap = cap as f32;
                scores.iter_mut().for_each(|s| *s = cap * (*s / cap).tanh());
            }
            let seen = vector::Seen {
                queries,
                first: first - start,
                window,
            };
            vector::attention_weights(scores, keys, seen, sums);
            let all_values = &self.v[(start * kv_heads + group) * value_width..];
            let values = MatrixView::new(all_values, keys, value_width, kv_heads * value_width);
            multiply(
                mixed,
                value_width,
                MatrixView::new(scores, rows, keys, keys),
                values,
            );
            for (row, (mixed, sum)) in mixed.chunks_exact(value_width).zip(&*sums).enumerate() {
                let (query, head) = place(row);
                let out = &mut out[(query * heads + head) * value_width..][..value_width];
                let inverse = 1.0 / sum;
                out.iter_mut()
                    .zip(mixed)
                    .for_each(|(out, mixed)| *out = mixed * inverse);
            }
        }
    }
}
