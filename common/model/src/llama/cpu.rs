//! The two slow spots of the forward pass as kernels of our own for the plain CPU backend:
//! attention and the MLP gate.
//!
//! Written as tensor operations, they spend more time in scalar exponentials, masks and fresh
//! memory than in products. The tensor formulation beside each (in `attention` and `math`) is the
//! reference, and what runs on every other backend, autodiff included. Work is cut into pieces of
//! fixed size, each computed by one thread: the bits do not depend on the number of threads.

use std::any::TypeId;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use super::attention::Heads;
use super::product::{View, multiply};
use super::vector;
use crate::device::Cpu;
use crate::rope::Rope;

/// Queries of one piece of attention.
const QUERIES: usize = 64;
/// Elements of one piece of an elementwise loop.
const ELEMENTS: usize = 1 << 14;

/// Whether `B` is the plain CPU backend, so that its tensors may be opened as slices.
pub(super) fn is_cpu<B: Backend>() -> bool {
    TypeId::of::<B>() == TypeId::of::<Cpu>()
}

/// As [`super::math::silu_gate`].
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
    windows: usize,
    length: usize,
    heads: Heads,
    rope: &Rope<B>,
) -> Tensor<B, 2> {
    let device = q.device();
    let table = |t: &Tensor<B, 2>| t.clone().narrow(0, 0, length).into_data();
    let (cos, sin) = (table(&rope.cos), table(&rope.sin));
    let (q, k, v) = (q.into_data(), k.into_data(), v.into_data());
    let angles = Angles {
        cos: slice(&cos),
        sin: slice(&sin),
        half: heads.head_dim / 2,
    };
    let keys = rotated_keys(slice(&k), length, heads, &angles);
    let width = heads.heads * heads.head_dim;
    let mut out = vec![0.0; windows * length * width];
    let per_window = length * heads.kv_heads * heads.head_dim;
    let per_window_windows = out.par_chunks_mut(length * width).enumerate();
    per_window_windows.for_each(|(window, out)| {
        let of_window = window * per_window..(window + 1) * per_window;
        let input = Input {
            q: &slice(&q)[window * length * width..][..length * width],
            keys: &keys[of_window.clone()],
            v: &slice(&v)[of_window],
            length,
            heads,
            angles: &angles,
        };
        let pieces = out.par_chunks_mut(QUERIES * width).enumerate();
        pieces.for_each_init(Vec::new, |scratch, (piece, out)| {
            input.attend(piece * QUERIES, out, scratch);
        });
    });
    Tensor::from_data(TensorData::new(out, [windows * length, width]), &device)
}

/// Cosines and sines, `[length, half]` each.
struct Angles<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    half: usize,
}

impl Angles<'_> {
    /// `out <- x` turned to `position` and scaled; both `[2 * half]`.
    fn turn(&self, x: &[f32], position: usize, scale: f32, out: &mut [f32]) {
        let row = position * self.half..(position + 1) * self.half;
        let (cos, sin) = (&self.cos[row.clone()], &self.sin[row]);
        let (low, high) = x.split_at(self.half);
        let (out_low, out_high) = out.split_at_mut(self.half);
        for i in 0..self.half {
            let (a, b) = (low[i] * scale, high[i] * scale);
            out_low[i] = a * cos[i] - b * sin[i];
            out_high[i] = b * cos[i] + a * sin[i];
        }
    }
}

/// `k: [windows * length, kv_heads * head_dim]` turned, as `[windows, kv_heads, length, head_dim]`.
fn rotated_keys(k: &[f32], length: usize, heads: Heads, angles: &Angles<'_>) -> Vec<f32> {
    let Heads {
        kv_heads, head_dim, ..
    } = heads;
    let mut out = vec![0.0; k.len()];
    let per_head = out.par_chunks_mut(length * head_dim).enumerate();
    per_head.for_each(|(index, out)| {
        let (window, head) = (index / kv_heads, index % kv_heads);
        for (position, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let start = ((window * length + position) * kv_heads + head) * head_dim;
            angles.turn(&k[start..start + head_dim], position, 1.0, out);
        }
    });
    out
}

/// One window's queries, turned keys and values.
struct Input<'a> {
    /// `[length, heads * head_dim]`
    q: &'a [f32],
    /// `[kv_heads, length, head_dim]`
    keys: &'a [f32],
    /// `[length, kv_heads * head_dim]`
    v: &'a [f32],
    length: usize,
    heads: Heads,
    angles: &'a Angles<'a>,
}

impl Input<'_> {
    /// Attention of the queries from `first` on, as many as `out: [queries, heads * head_dim]` has
    /// rows. The query heads that share a key head form one taller matrix.
    fn attend(&self, first: usize, out: &mut [f32], scratch: &mut Vec<f32>) {
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = self.heads;
        let (width, share) = (heads * head_dim, heads / kv_heads);
        let queries = out.len() / width;
        let (rows, keys) = (share * queries, first + queries);
        scratch.resize(rows * (2 * head_dim + keys + 1), 0.0);
        let (turned, rest) = scratch.split_at_mut(rows * head_dim);
        let (mixed, rest) = rest.split_at_mut(rows * head_dim);
        let (sums, rest) = rest.split_at_mut(rows);
        let scores = &mut rest[..rows * keys];
        let scale = (head_dim as f64).sqrt().recip() as f32;
        for group in 0..kv_heads {
            let place = |row: usize| {
                let (head, query) = (group * share + row / queries, row % queries);
                (query, head * head_dim)
            };
            for (row, turned) in turned.chunks_exact_mut(head_dim).enumerate() {
                let (query, column) = place(row);
                let start = (first + query) * width + column;
                let q = &self.q[start..start + head_dim];
                self.angles.turn(q, first + query, scale, turned);
            }
            let all_keys = &self.keys[group * self.length * head_dim..];
            let seen = View::new(all_keys, keys, head_dim, head_dim);
            multiply(
                scores,
                View::new(turned, rows, head_dim, head_dim),
                seen.transposed(),
            );
            vector::attention_weights(scores, keys, queries, first, sums);
            let values = View::new(
                &self.v[group * head_dim..],
                keys,
                head_dim,
                kv_heads * head_dim,
            );
            multiply(mixed, View::new(scores, rows, keys, keys), values);
            for (row, (mixed, sum)) in mixed.chunks_exact(head_dim).zip(&*sums).enumerate() {
                let (query, column) = place(row);
                let out = &mut out[query * width + column..][..head_dim];
                let inverse = 1.0 / sum;
                out.iter_mut()
                    .zip(mixed)
                    .for_each(|(out, mixed)| *out = mixed * inverse);
            }
        }
    }
}

/// The values of an f32 tensor.
fn slice(data: &TensorData) -> &[f32] {
    data.as_slice().expect("the CPU backend holds f32")
}
