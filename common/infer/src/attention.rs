//! Grouped-query attention of the tokens of a chunk over the cached keys and values.

use rayon::prelude::*;
use uc_model::spec::{AttentionSpec, QkvSpec};
use uc_simd::{Kernel, dispatch, exponentials};

use crate::cache::{Element, KvCache, Store, Stores};
use crate::error::InferError;
use crate::kernel::dot;
use crate::linear::Linear;
use crate::norm::Norm;
use crate::rotary::Tables;
use crate::sequence::State;
use crate::source::Source;
use crate::vector::cap;

/// The part of a batch that belongs to one sequence.
pub(crate) struct Span<'a> {
    /// Index of its first token in the batch.
    pub(crate) first: usize,
    /// Number of its tokens.
    pub(crate) count: usize,
    /// Position of its first token in the sequence.
    pub(crate) position: usize,
    /// Cosines and sines of its positions, for each rotary embedding of the model.
    pub(crate) tables: &'a [Tables],
    /// The state of the block for this sequence.
    pub(crate) state: &'a mut State,
}

/// The dimensions of attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// Query heads, a multiple of `kv_heads`.
    pub(crate) heads: usize,
    /// Key and value heads.
    pub(crate) kv_heads: usize,
    /// Dimension of a query or key head. Its first elements are rotated.
    pub(crate) width: usize,
    /// Dimension of a value head.
    pub(crate) value_width: usize,
    /// Number of tokens that a token attends to, itself included.
    pub(crate) window: Option<usize>,
    /// Factor of the scores.
    pub(crate) scale: f32,
    /// Scores become `cap · tanh(score / cap)`.
    pub(crate) softcap: Option<f64>,
}

/// The weights of an attention block.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) heads: Heads,
    pub(crate) qkv: Vec<Linear>,
    per_head: bool,
    pub(crate) output: Linear,
    /// Norms of queries and of keys.
    norms: Option<[Norm; 2]>,
    /// Index of the rotary embedding among those of the model.
    rope: Option<usize>,
}

impl Attention {
    pub(crate) fn new(
        spec: &AttentionSpec,
        rope: Option<usize>,
        source: &dyn Source,
    ) -> Result<Self, InferError> {
        let projections = spec.qkv.projections().into_iter();
        let norms = match &spec.qk_norm {
            Some(norms) => Some([Norm::new(&norms.q, source)?, Norm::new(&norms.k, source)?]),
            None => None,
        };
        Ok(Attention {
            heads: Heads {
                heads: spec.heads,
                kv_heads: spec.kv_heads,
                width: spec.head_dim,
                value_width: spec.head_dim,
                window: spec.window,
                scale: spec.scale as f32,
                softcap: spec.softcap,
            },
            qkv: projections
                .map(|projection| Linear::new(projection, source))
                .collect::<Result<_, _>>()?,
            per_head: matches!(spec.qkv, QkvSpec::FusedPerHead(_)),
            output: Linear::new(&spec.output, source)?,
            norms,
            rope,
        })
    }

    /// `x: [tokens, hidden]` to the same shape.
    pub(crate) fn forward(&self, x: &[f32], spans: &mut [Span<'_>]) -> Vec<f32> {
        let [mut q, mut k, v] = self.project(x);
        if let Some([q_norm, k_norm]) = &self.norms {
            q_norm.apply(&mut q);
            k_norm.apply(&mut k);
        }
        let context = self.heads.attend(&mut q, &mut k, &v, self.rope, spans);
        self.output.forward(&context)
    }

    /// Queries, keys and values, each `[tokens, heads · width]`.
    fn project(&self, x: &[f32]) -> [Vec<f32>; 3] {
        let projected = self.qkv.iter().map(|linear| linear.forward(x));
        let projected: Vec<Vec<f32>> = projected.collect();
        let fused = match <[Vec<f32>; 3]>::try_from(projected) {
            Ok(three) => return three,
            Err(mut one) => one.remove(0),
        };
        let (heads, kv_heads, width) = (self.heads.heads, self.heads.kv_heads, self.heads.width);
        let (q, kv) = (heads * width, kv_heads * width);
        if self.per_head {
            return [0, 1, 2].map(|part| columns(&fused, 3 * width, part * width, width));
        }
        [(0, q), (q, kv), (q + kv, kv)]
            .map(|(first, count)| columns(&fused, q + 2 * kv, first, count))
    }
}

/// The columns `first..first + count` of `values: [rows, width]`.
pub(crate) fn columns(values: &[f32], width: usize, first: usize, count: usize) -> Vec<f32> {
    let rows = values.chunks_exact(width);
    rows.flat_map(|row| &row[first..first + count])
        .copied()
        .collect()
}

impl Heads {
    /// `[width of the keys of a token, width of its values]`.
    pub(crate) fn cached(&self) -> [usize; 2] {
        [self.kv_heads * self.width, self.kv_heads * self.value_width]
    }

    /// Attention of `q: [tokens, heads · width]`; the keys `[tokens, kv_heads · width]` and values
    /// `[tokens, kv_heads · value_width]` of the tokens are added to the caches first. `[tokens, heads · value_width]`.
    pub(crate) fn attend(
        &self,
        q: &mut [f32],
        k: &mut [f32],
        v: &[f32],
        rope: Option<usize>,
        spans: &mut [Span<'_>],
    ) -> Vec<f32> {
        let out_width = self.heads * self.value_width;
        let (q_width, [k_width, v_width]) = (self.heads * self.width, self.cached());
        let mut out = vec![0.0; q.len() / q_width * out_width];
        for span in spans {
            let rows = span.first..span.first + span.count;
            let q = &mut q[rows.start * q_width..rows.end * q_width];
            let k = &mut k[rows.start * k_width..rows.end * k_width];
            let v = &v[rows.start * v_width..rows.end * v_width];
            let none = Tables::default();
            let tables = rope.map_or(&none, |rope| &span.tables[rope]);
            rotate(q, tables, self.heads, self.width, self.scale);
            rotate(k, tables, self.kv_heads, self.width, 1.0);
            let State::Cache(cache) = &mut *span.state else {
                unreachable!("a sequence has the states of its model");
            };
            cache.push(k, v);
            let out = &mut out[rows.start * out_width..rows.end * out_width];
            match &cache.stores {
                Stores::F32(store) => self.attend_to(q, store, cache, span.position, out),
                Stores::F16(store) => self.attend_to(q, store, cache, span.position, out),
                Stores::Bf16(store) => self.attend_to(q, store, cache, span.position, out),
            }
            cache.forget();
        }
        out
    }

    /// Attention of rotated, scaled queries whose first is at `position`.
    fn attend_to<E: Element>(
        &self,
        q: &[f32],
        store: &Store<E>,
        cache: &KvCache,
        position: usize,
        out: &mut [f32],
    ) {
        let group = self.heads / self.kv_heads;
        let window = self.window.unwrap_or(usize::MAX);
        let heads = out
            .par_chunks_mut(self.value_width)
            .zip(q.par_chunks(self.width));
        heads
            .enumerate()
            .for_each_init(Vec::new, |scores, (index, (out, q))| {
                let (token, head) = (index / self.heads, index % self.heads);
                let end = position + token + 1;
                let start = end.saturating_sub(window);
                dispatch(Head {
                    heads: self,
                    q,
                    store,
                    kv_head: head / group,
                    tokens: start - cache.first..end - cache.first,
                    scores,
                    out,
                });
            });
    }
}

/// Rotates all heads of the tokens of a span.
fn rotate(x: &mut [f32], tables: &Tables, heads: usize, width: usize, scale: f32) {
    for (index, head) in x.chunks_exact_mut(width).enumerate() {
        tables.rotate(head, index / heads, scale);
    }
}

/// One head of one token.
struct Head<'a, E> {
    heads: &'a Heads,
    /// `[width]`
    q: &'a [f32],
    store: &'a Store<E>,
    kv_head: usize,
    /// Indices of the tokens in the cache.
    tokens: std::ops::Range<usize>,
    /// Scratch.
    scores: &'a mut Vec<f32>,
    /// `[value_width]`
    out: &'a mut [f32],
}

/// Elements of a key that are converted at the same time.
const KEY_PART: usize = 256;

impl<E: Element> Kernel for Head<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let &Heads {
            width, value_width, ..
        } = self.heads;
        let [k_width, v_width] = self.heads.cached();
        self.scores.clear();
        for token in self.tokens.clone() {
            let at = token * k_width + self.kv_head * width;
            let key = &self.store.keys[at..at + width];
            let mut score = 0.0;
            let mut part = [0.0; KEY_PART];
            for (key, q) in key.chunks(KEY_PART).zip(self.q.chunks(KEY_PART)) {
                let part = &mut part[..key.len()];
                part.iter_mut()
                    .zip(key)
                    .for_each(|(part, key)| *part = key.value());
                score += dot(part, q);
            }
            self.scores.push(score);
        }
        if let Some(softcap) = self.heads.softcap {
            cap(self.scores, softcap);
        }
        let sum = exponentials(self.scores);
        self.out.fill(0.0);
        for (&weight, token) in self.scores.iter().zip(self.tokens) {
            let at = token * v_width + self.kv_head * value_width;
            let values = &self.store.values[at..at + value_width];
            for (out, value) in self.out.iter_mut().zip(values) {
                *out = weight.mul_add(value.value(), *out);
            }
        }
        let inverse = 1.0 / sum;
        self.out.iter_mut().for_each(|out| *out *= inverse);
    }
}
