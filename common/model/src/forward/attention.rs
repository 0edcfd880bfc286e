//! Causal grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245), computed in chunks of queries so
//! that memory stays bounded.
//!
//! No key or value head is repeated in memory: the query heads that share a key head are laid out as one
//! taller matrix, `[kv_heads, group_size * queries, width]`. Values may have another dimension than queries
//! and keys.

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData, activation};

use super::cpu;
use super::heads::Heads;
use super::math::capped;
use crate::device::{Cpu, cast, is};
use crate::matmul::matmul;
use crate::rope::Rope;

/// Queries per chunk. A chunk skips the keys after its last query.
const QUERY_CHUNK: usize = 256;
/// Largest tensor of scores, in elements (256 MiB). Batches that need more are computed in groups of windows.
const SCORE_BUDGET: usize = 1 << 26;

/// `softmax(q kᵀ · scale + mask) v` for `windows` windows of `length` tokens.
///
/// `q: [windows * length, heads * width]`, `k: [windows * length, kv_heads * width]`,
/// `v: [windows * length, kv_heads * value_width]`, before rotation; the result is
/// `[windows * length, heads * value_width]`.
pub(super) fn attention<B: Backend>(
    q: Tensor<B, 2>,
    k: Tensor<B, 2>,
    v: Tensor<B, 2>,
    dims: [usize; 2],
    spec: &Heads,
    rope: Option<&Rope<B>>,
) -> Tensor<B, 2> {
    if is::<B, Cpu>() {
        let rope = rope.map(|rope| cast::<_, Rope<Cpu>>(rope.clone()));
        let [q, k, v] = [q, k, v].map(cast::<_, Tensor<Cpu, 2>>);
        return cast(cpu::attention(q, k, v, dims, spec, rope.as_ref()));
    }
    if is::<B, Autodiff<Cpu>>() {
        let rope = rope.map(|rope| cast::<_, Rope<Autodiff<Cpu>>>(rope.clone()));
        let [q, k, v] = [q, k, v].map(cast::<_, Tensor<Autodiff<Cpu>, 2>>);
        return cast(cpu::tracked_attention(q, k, v, dims, spec, rope.as_ref()));
    }
    reference(q, k, v, dims, spec, rope)
}

/// Attention as tensor operations.
fn reference<B: Backend>(
    q: Tensor<B, 2>,
    k: Tensor<B, 2>,
    v: Tensor<B, 2>,
    [windows, length]: [usize; 2],
    spec: &Heads,
    rope: Option<&Rope<B>>,
) -> Tensor<B, 2> {
    let &Heads {
        heads,
        kv_heads,
        width,
        value_width,
        ..
    } = spec;
    let rotated = |x| match rope {
        Some(rope) => rotate(x, rope),
        None => x,
    };
    let q = rotated(by_head(q * spec.scale, windows, length, heads, width));
    let k = rotated(by_head(k, windows, length, kv_heads, width));
    let v = by_head(v, windows, length, kv_heads, value_width);
    let group = (SCORE_BUDGET / (heads * length * length.min(QUERY_CHUNK))).clamp(1, windows);
    let context: Vec<Tensor<B, 4>> = (0..windows)
        .step_by(group)
        .map(|first| {
            let range = first..(first + group).min(windows);
            let part = |t: &Tensor<B, 4>| t.clone().slice([range.clone()]);
            causal(part(&q), part(&k), part(&v), spec)
        })
        .collect();
    let context = concat(context, 0);
    context
        .swap_dims(1, 2)
        .reshape([windows * length, heads * value_width])
}

/// `[windows * length, heads * width]` to `[windows, heads, length, width]`.
fn by_head<B: Backend>(
    x: Tensor<B, 2>,
    windows: usize,
    length: usize,
    heads: usize,
    width: usize,
) -> Tensor<B, 4> {
    x.reshape([windows, length, heads, width]).swap_dims(1, 2)
}

/// Rotates the pairs `(i, i + width/2)` of the first `width` elements of every head, where `width` is twice that of
/// the tables, by the angle of their position. The elements after them are not rotated.
fn rotate<B: Backend>(x: Tensor<B, 4>, rope: &Rope<B>) -> Tensor<B, 4> {
    let [windows, heads, length, width] = x.dims();
    let half = rope.cos.dims()[1];
    let flat = [windows * heads, length * half];
    let columns = |first: usize, last: usize| {
        x.clone()
            .slice([0..windows, 0..heads, 0..length, first..last])
    };
    let table = |t: &Tensor<B, 2>| t.clone().narrow(0, 0, length).reshape([1, length * half]);
    let low = columns(0, half).reshape(flat);
    let high = columns(half, 2 * half).reshape(flat);
    let (cos, sin) = (table(&rope.cos), table(&rope.sin));
    let rotated_low = low.clone() * cos.clone() - high.clone() * sin.clone();
    let rotated_high = high * cos + low * sin;
    let shape = [windows, heads, length, half];
    let mut parts = vec![rotated_low.reshape(shape), rotated_high.reshape(shape)];
    if 2 * half < width {
        parts.push(columns(2 * half, width));
    }
    Tensor::cat(parts, 3)
}

/// Attention of rotated, scaled `q: [w, heads, t, width]` over `k: [w, kv_heads, t, width]` and
/// `v: [w, kv_heads, t, value_width]`.
fn causal<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    spec: &Heads,
) -> Tensor<B, 4> {
    let [windows, heads, length, width] = q.dims();
    let kv_heads = k.dims()[1];
    let group_size = heads / kv_heads;
    let chunks = (0..length).step_by(QUERY_CHUNK).map(|first| {
        let last = (first + QUERY_CHUNK).min(length);
        let queries = last - first;
        let tall = [windows, kv_heads, group_size * queries, width];
        let q = q
            .clone()
            .slice([0..windows, 0..heads, first..last])
            .reshape(tall);
        let keys = [0..windows, 0..kv_heads, 0..last];
        let scores = matmul(q, k.clone().slice(keys.clone()).transpose());
        let scores = capped(
            scores.reshape([windows * heads, queries * last]),
            spec.softcap,
        );
        let scores = scores + mask(first, queries, spec.window, &v.device());
        let weights = activation::softmax(scores.reshape([windows * heads, queries, last]), 2);
        let weights = weights.reshape([windows, kv_heads, group_size * queries, last]);
        let context = matmul(weights, v.clone().slice(keys));
        context.reshape([windows, heads, queries, spec.value_width])
    });
    concat(chunks.collect(), 2)
}

/// `[1, queries * (first + queries)]`: 0 where query `first + i` attends to key `j`, else -inf.
fn mask<B: Backend>(
    first: usize,
    queries: usize,
    window: Option<usize>,
    device: &B::Device,
) -> Tensor<B, 2> {
    let keys = first + queries;
    let mut mask = vec![f32::NEG_INFINITY; queries * keys];
    for (i, row) in mask.chunks_exact_mut(keys).enumerate() {
        let last = first + i + 1;
        row[last.saturating_sub(window.unwrap_or(last))..last].fill(0.0);
    }
    Tensor::from_data(TensorData::new(mask, [1, queries * keys]), device)
}

/// Concatenates along `dim`, without a copy if there is a single part.
fn concat<B: Backend>(mut parts: Vec<Tensor<B, 4>>, dim: usize) -> Tensor<B, 4> {
    if parts.len() == 1 {
        parts.remove(0)
    } else {
        Tensor::cat(parts, dim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Cpu;
    use crate::rope::{RopeScaling, RopeSpec};

    /// Largest accepted difference, relative to the largest value.
    const ERROR: f32 = 2e-6;

    fn random<const D: usize>(shape: [usize; D], step: usize) -> Tensor<Cpu, D> {
        let number = |i: usize| (i * step % 1009) as f32 / 504.5 - 1.0;
        let values: Vec<f32> = (1..=shape.iter().product()).map(number).collect();
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    }

    /// Shapes of heads, width of the rotated part, length of a window.
    fn cases() -> Vec<(Heads, usize, usize)> {
        let default = Heads {
            heads: 4,
            kv_heads: 4,
            width: 10,
            value_width: 10,
            window: None,
            scale: 0.7,
            softcap: None,
        };
        vec![
            (default, 0, QUERY_CHUNK + 40),
            (
                Heads {
                    value_width: 3,
                    ..default
                },
                8,
                70,
            ),
            (
                Heads {
                    kv_heads: 2,
                    value_width: 17,
                    window: Some(19),
                    ..default
                },
                10,
                QUERY_CHUNK + 40,
            ),
            (
                Heads {
                    kv_heads: 1,
                    softcap: Some(1.5),
                    ..default
                },
                4,
                33,
            ),
        ]
    }

    fn tables(width: usize, length: usize) -> Option<Rope<Cpu>> {
        let spec = RopeSpec {
            width,
            theta: 100.0,
            scaling: RopeScaling::Default,
        };
        (width > 0).then(|| Rope::new(&spec, length, &Default::default()))
    }

    fn assert_close(found: Tensor<Cpu, 2>, expected: Tensor<Cpu, 2>, case: &str) {
        let largest = expected.clone().abs().max().into_scalar();
        let error = (found - expected).abs().max().into_scalar() / largest;
        assert!(error <= ERROR, "{case}: {error:.1e}");
    }

    #[test]
    fn the_kernel_equals_the_tensor_formulation() {
        for (heads, rotary_dim, length) in cases() {
            let rows = 2 * length;
            let q = random([rows, heads.heads * heads.width], 7919);
            let k = random([rows, heads.kv_heads * heads.width], 6421);
            let v = random([rows, heads.kv_heads * heads.value_width], 4099);
            let rope = tables(rotary_dim, length);
            let run = |kernel: fn(_, _, _, _, &Heads, Option<&Rope<Cpu>>) -> Tensor<Cpu, 2>| {
                let dims = [2, length];
                kernel(q.clone(), k.clone(), v.clone(), dims, &heads, rope.as_ref())
            };
            let (found, expected) = (run(cpu::attention), run(reference));
            let shape = [rows, heads.heads * heads.value_width];
            assert_eq!([found.dims(), expected.dims()], [shape; 2], "{heads:?}");
            assert_close(found, expected, &format!("{heads:?}"));
        }
    }

    #[test]
    fn the_gradient_of_the_kernel_equals_that_of_the_tensor_formulation() {
        type Graph = Autodiff<Cpu>;
        for (heads, rotary_dim, length) in cases() {
            let rows = 2 * length;
            let leaf = |width, step| {
                Tensor::<Graph, 2>::from_inner(random([rows, width], step)).require_grad()
            };
            let inputs = [
                leaf(heads.heads * heads.width, 7919),
                leaf(heads.kv_heads * heads.width, 6421),
                leaf(heads.kv_heads * heads.value_width, 4099),
            ];
            let rope = tables(rotary_dim, length).map(|rope| Rope {
                cos: Tensor::<Graph, 2>::from_inner(rope.cos),
                sin: Tensor::from_inner(rope.sin),
            });
            let weight = random([rows, heads.heads * heads.value_width], 5557);
            let run = |kernel: fn(_, _, _, _, &Heads, Option<&Rope<Graph>>) -> Tensor<Graph, 2>| {
                let [q, k, v] = inputs.clone();
                let y = kernel(q, k, v, [2, length], &heads, rope.as_ref());
                let gradients = (y * Tensor::from_inner(weight.clone())).sum().backward();
                inputs.each_ref().map(|x| x.grad(&gradients).unwrap())
            };
            let found = run(cpu::tracked_attention);
            for (index, (found, expected)) in found.into_iter().zip(run(reference)).enumerate() {
                assert_close(found, expected, &format!("{heads:?}, input {index}"));
            }
        }
    }
}
