//! Kernels for the plain CPU backend, for the two parts of the forward pass that are slow as tensor
//! operations: attention and the MLP gate.
//!
//! As tensor operations these spend more time in scalar exponentials, masks and allocation than in matrix
//! products. The tensor formulation of each (in `attention` and `math`) is the reference, and runs on every
//! other backend, autodiff included. Work is split into pieces of fixed size, each computed by one thread, so
//! the bits of a result do not depend on the number of threads.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;
use uc_simd::{MatrixView, multiply};

use super::heads::Heads;
use super::vector;
use crate::device::slice;
use crate::rope::Rope;

/// Queries per piece of attention.
const QUERIES: usize = 64;
/// Elements per piece of an elementwise loop.
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
    let cos_sin = rope.map(|rope| [table(&rope.cos), table(&rope.sin)]);
    let (q, k, v) = (q.into_data(), k.into_data(), v.into_data());
    let tables = match &cos_sin {
        Some([cos, sin]) => RotaryTables {
            half: cos.shape[1],
            cos: slice(cos),
            sin: slice(sin),
        },
        None => RotaryTables {
            half: 0,
            cos: &[],
            sin: &[],
        },
    };
    let keys = rotated_keys(slice(&k), length, spec, &tables);
    let out_width = spec.heads * spec.value_width;
    let mut out = vec![0.0; windows * length * out_width];
    let per_window = out.par_chunks_mut(length * out_width).enumerate();
    per_window.for_each(|(window, out)| {
        let window_range = |width: usize| window * length * width..(window + 1) * length * width;
        let input = WindowInput {
            q: &slice(&q)[window_range(spec.heads * spec.width)],
            keys: &keys[window_range(spec.kv_heads * spec.width)],
            v: &slice(&v)[window_range(spec.kv_heads * spec.value_width)],
            length,
            spec,
            tables: &tables,
        };
        let pieces = out.par_chunks_mut(QUERIES * out_width).enumerate();
        pieces.for_each_init(Vec::new, |scratch, (piece, out)| {
            input.attend(piece * QUERIES, out, scratch);
        });
    });
    let shape = [windows * length, out_width];
    Tensor::from_data(TensorData::new(out, shape), &device)
}

/// Rotary tables: cosines and sines, `[length, half]` each.
struct RotaryTables<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    half: usize,
}

impl RotaryTables<'_> {
    /// `out <- scale * x`, rotated to `position`; `x` and `out` are one head.
    fn rotate(&self, x: &[f32], position: usize, scale: f32, out: &mut [f32]) {
        let row = position * self.half..(position + 1) * self.half;
        let (cos, sin) = (&self.cos[row.clone()], &self.sin[row]);
        let (rotary, rest) = x.split_at(2 * self.half);
        let (out_rotary, out_rest) = out.split_at_mut(2 * self.half);
        let (low, high) = rotary.split_at(self.half);
        let (out_low, out_high) = out_rotary.split_at_mut(self.half);
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

/// `k: [windows * length, kv_heads * width]` rotated, as `[windows, kv_heads, length, width]`.
fn rotated_keys(k: &[f32], length: usize, spec: &Heads, tables: &RotaryTables<'_>) -> Vec<f32> {
    let &Heads {
        kv_heads, width, ..
    } = spec;
    let mut out = vec![0.0; k.len()];
    let per_head = out.par_chunks_mut(length * width).enumerate();
    per_head.for_each(|(index, out)| {
        let (window, head) = (index / kv_heads, index % kv_heads);
        for (position, out) in out.chunks_exact_mut(width).enumerate() {
            let start = ((window * length + position) * kv_heads + head) * width;
            tables.rotate(&k[start..start + width], position, 1.0, out);
        }
    });
    out
}

/// The attention inputs of one window: queries, rotated keys, values.
struct WindowInput<'a> {
    /// `[length, heads * width]`
    q: &'a [f32],
    /// `[kv_heads, length, width]`
    keys: &'a [f32],
    /// `[length, kv_heads * value_width]`
    v: &'a [f32],
    length: usize,
    spec: &'a Heads,
    tables: &'a RotaryTables<'a>,
}

impl WindowInput<'_> {
    /// Attention of the queries starting at `first`, one per row of `out: [queries, heads * value_width]`. The
    /// query heads that share a key head form one taller matrix.
    fn attend(&self, first: usize, out: &mut [f32], scratch: &mut Vec<f32>) {
        let &Heads {
            heads,
            kv_heads,
            width,
            value_width,
            ..
        } = self.spec;
        let window = self.spec.window.unwrap_or(usize::MAX);
        let group_size = heads / kv_heads;
        let queries = out.len() / (heads * value_width);
        // The first key that any of these queries attends to.
        let start = (first + 1).saturating_sub(window);
        let (rows, keys) = (group_size * queries, first + queries - start);
        scratch.resize(rows * (width + value_width + keys + 1), 0.0);
        let (rotated_q, rest) = scratch.split_at_mut(rows * width);
        let (context, rest) = rest.split_at_mut(rows * value_width);
        let (sums, rest) = rest.split_at_mut(rows);
        let scores = &mut rest[..rows * keys];
        let scale = self.spec.scale as f32;
        for group in 0..kv_heads {
            // The query and the head of a row.
            let query_and_head = |row: usize| (row % queries, group * group_size + row / queries);
            for (row, rotated_q) in rotated_q.chunks_exact_mut(width).enumerate() {
                let (query, head) = query_and_head(row);
                let q = &self.q[((first + query) * heads + head) * width..][..width];
                self.tables.rotate(q, first + query, scale, rotated_q);
            }
            let all_keys = &self.keys[(group * self.length + start) * width..];
            let visible_keys = MatrixView::new(all_keys, keys, width, width);
            let rotated_q = MatrixView::new(rotated_q, rows, width, width);
            multiply(scores, keys, rotated_q, visible_keys.transposed());
            if let Some(cap) = self.spec.softcap {
                let cap = cap as f32;
                scores.iter_mut().for_each(|s| *s = cap * (*s / cap).tanh());
            }
            let mask = vector::KeyMask {
                queries,
                first: first - start,
                window,
            };
            vector::attention_weights(scores, keys, mask, sums);
            let all_values = &self.v[(start * kv_heads + group) * value_width..];
            let values = MatrixView::new(all_values, keys, value_width, kv_heads * value_width);
            multiply(
                context,
                value_width,
                MatrixView::new(scores, rows, keys, keys),
                values,
            );
            for (row, (context, sum)) in context.chunks_exact(value_width).zip(&*sums).enumerate() {
                let (query, head) = query_and_head(row);
                let out = &mut out[(query * heads + head) * value_width..][..value_width];
                let inverse = 1.0 / sum;
                out.iter_mut()
                    .zip(context)
                    .for_each(|(out, context)| *out = context * inverse);
            }
        }
    }
}
