//! Attention of queries over the cached keys and values: in tiles of queries that share a head of keys, on all threads.
//!
//! The weights of a query are made by a running softmax: block after block of its tokens, with the largest score so far
//! (Milakov and Gimelshein 2018, arXiv 1805.02867). Parts of [`PART`] blocks begin anew, so that threads can share a long
//! context, and are joined in their order. Blocks and parts begin at fixed positions of the sequence. So the bits of a query
//! depend on its tokens alone, not on the chunk that it is computed in, on tiles or on threads.

use std::ops::Range;

use rayon::prelude::*;
use uc_simd::{Kernel, dispatch, exp_below_zero};

use crate::attention::Span;
use crate::cache::{BLOCK, Blocks, Element, KvCache, Layout, with_blocks};
use crate::kernel::dot;
use crate::rotary::Tables;
use crate::scores::{
    GROUP, Rows, Softmax, add_weighted, grouped, larger, rescale, scores_by_columns,
    scores_by_rows, weigh,
};
use crate::sequence::State;
use crate::tasks;
use crate::vector::cap;

/// Blocks of a part.
const PART: usize = 16;
/// Most queries of a tile.
const TILE: usize = 32;
/// Spans whose tokens are worth a thread: each waits for the memory of its cache.
const SPANS: usize = 4;
/// Multiply-adds that are worth a thread.
const TASK: usize = 1 << 17;

/// The dimensions of attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// Query heads, a multiple of the heads of keys.
    pub(crate) count: usize,
    /// Keys and values. The first elements of a key are rotated.
    pub(crate) layout: Layout,
    /// Index of the rotary embedding among those of the model.
    pub(crate) rope: Option<usize>,
    /// Number of tokens that a token attends to, itself included.
    pub(crate) window: Option<usize>,
    /// Factor of the scores.
    pub(crate) scale: f32,
    /// Scores become `cap · tanh(score / cap)`.
    pub(crate) softcap: Option<f64>,
}

impl Heads {
    /// Attention of `q: [tokens, heads · key]`; the keys `[tokens, key heads · key]` and values `[tokens, key heads · value]` of
    /// the tokens are added to the caches first. `[tokens, heads · value]`.
    pub(crate) fn attend(
        &self,
        q: &[f32],
        k: &mut [f32],
        v: &[f32],
        spans: &mut [Span<'_>],
    ) -> Vec<f32> {
        self.add(spans, k, v);
        let tiles = self.tiles(spans);
        let attended = attended(&tiles, q);
        let width = self.layout.value();
        let mut out = vec![0.0; q.len() / self.layout.key() * width];
        for (tile, attended) in tiles.iter().zip(attended) {
            for (query, attended) in tile.queries.clone().zip(attended.chunks_exact(width)) {
                let at = tile.place(query) * width;
                out[at..at + width].copy_from_slice(attended);
            }
        }
        for span in spans {
            cache(span).forget();
        }
        out
    }

    /// Adds the keys and values of the spans to their caches.
    fn add(&self, spans: &mut [Span<'_>], mut k: &mut [f32], v: &[f32]) {
        let [key_width, value_width] = self.layout.widths();
        let mut next = 0;
        let parts = spans.iter_mut().map(|span| {
            assert_eq!(span.first, next, "spans without gaps");
            next += span.count;
            let keys = k.split_off_mut(..span.count * key_width);
            let values = &v[span.first * value_width..next * value_width];
            (span, keys.expect("the keys of all tokens"), values)
        });
        let add = |(span, keys, values): (&mut Span<'_>, &mut [f32], &[f32])| {
            if let Some(rope) = self.rope {
                let heads = keys.chunks_exact_mut(self.layout.key()).enumerate();
                heads.for_each(|(index, head)| {
                    span.tables[rope].rotate(head, index / self.layout.heads());
                });
            }
            cache(span).push(keys, values);
        };
        let parts: Vec<_> = parts.collect();
        match parts.len() < SPANS {
            true => parts.into_iter().for_each(add),
            false => tasks::for_each(parts, |part, (): &mut ()| add(part)),
        }
    }

    /// The tiles of all spans. Their size is a matter of speed alone.
    fn tiles<'a>(&'a self, spans: &'a [Span<'a>]) -> Vec<Tile<'a>> {
        let group = self.count / self.layout.heads();
        let tokens: usize = spans.iter().map(|span| span.count).sum();
        let share = tokens * self.count / (4 * rayon::current_num_threads());
        let size = share.clamp(group.min(GROUP), TILE);
        let mut tiles = Vec::new();
        for span in spans {
            let State::Cache(cache) = &*span.state else {
                unreachable!("a sequence has the states of its model");
            };
            for kv_head in 0..self.layout.heads() {
                let queries = span.count * group;
                for first in (0..queries).step_by(size) {
                    tiles.push(Tile {
                        heads: self,
                        cache,
                        tables: self.rope.map(|rope| &span.tables[rope]),
                        first: span.first,
                        position: span.position,
                        group,
                        kv_head,
                        queries: first..(first + size).min(queries),
                    });
                }
            }
        }
        tiles
    }
}

/// What each tile gives.
fn attended(tiles: &[Tile<'_>], q: &[f32]) -> Vec<Vec<f32>> {
    let work = tiles.iter().map(Tile::work);
    if work.clone().sum::<usize>() < 2 * TASK {
        return tiles.iter().map(|tile| tile.attend(q)).collect();
    }
    if work.max() >= Some(2 * TASK) {
        // Threads share such a tile.
        return tiles.par_iter().map(|tile| tile.attend(q)).collect();
    }
    let mut attended = vec![Vec::new(); tiles.len()];
    let tasks = tiles.iter().zip(&mut attended).collect();
    tasks::for_each(
        tasks,
        |(tile, out): (&Tile<'_>, &mut Vec<f32>), (): &mut ()| {
            *out = tile.attend(q);
        },
    );
    attended
}

/// The cache of a span.
fn cache<'a>(span: &'a mut Span<'_>) -> &'a mut KvCache {
    match &mut *span.state {
        State::Cache(cache) => cache,
        _ => unreachable!("a sequence has the states of its model"),
    }
}

/// Some queries of a span that share a head of keys.
struct Tile<'a> {
    heads: &'a Heads,
    cache: &'a KvCache,
    /// Cosines and sines of the span's positions.
    tables: Option<&'a Tables>,
    /// Index of the first token of the span in the batch.
    first: usize,
    /// Position of that token.
    position: usize,
    /// Query heads of the head of keys.
    group: usize,
    kv_head: usize,
    /// The queries, token by token, of each the heads of the group.
    queries: Range<usize>,
}

impl Tile<'_> {
    /// Index of a query among all heads of all tokens of the batch.
    fn place(&self, query: usize) -> usize {
        let (token, head) = (query / self.group, query % self.group);
        (self.first + token) * self.heads.count + self.kv_head * self.group + head
    }

    /// The tokens that a query attends to.
    fn tokens(&self, query: usize) -> Range<usize> {
        let end = self.position + query / self.group + 1;
        end.saturating_sub(self.heads.window.unwrap_or(usize::MAX))..end
    }

    /// The tokens that any of the queries attends to.
    fn all_tokens(&self) -> Range<usize> {
        self.tokens(self.queries.start).start..self.tokens(self.queries.end - 1).end
    }

    /// About how many multiply-adds it takes.
    fn work(&self) -> usize {
        let layout = self.heads.layout;
        self.queries.len() * self.all_tokens().len() * (layout.key() + layout.value())
    }

    /// `[queries, value]` from the queries `[tokens, heads · key]` of the batch.
    fn attend(&self, q: &[f32]) -> Vec<f32> {
        let width = self.heads.layout.key();
        let mut queries = Vec::with_capacity(self.queries.len() * width);
        for query in self.queries.clone() {
            let start = queries.len();
            let at = self.place(query) * width;
            queries.extend(q[at..at + width].iter().map(|x| x * self.heads.scale));
            if let Some(tables) = self.tables {
                tables.rotate(&mut queries[start..], query / self.group);
            }
        }
        if let Layout::Latent { .. } = self.heads.layout {
            queries = grouped(&queries, width);
        }
        let tokens = self.all_tokens();
        let parts = tokens.start / (PART * BLOCK)..tokens.end.div_ceil(PART * BLOCK);
        let part = |part: usize| {
            let blocks = (part * PART).max(tokens.start / BLOCK)
                ..((part + 1) * PART).min(tokens.end.div_ceil(BLOCK));
            with_blocks!(&self.cache.store, held => Part {
                tile: self,
                queries: &queries,
                held,
                blocks,
            }
            .attend())
        };
        let parts: Vec<Sums> = match self.work() < 2 * TASK {
            true => parts.map(part).collect(),
            false => parts.into_par_iter().map(part).collect(),
        };
        let sums = parts.into_iter().reduce(Sums::join);
        sums.map_or_else(Vec::new, Sums::finish)
    }
}

/// What a running softmax has after some tokens, for some queries.
struct Sums {
    /// `[queries]` largest scores.
    peaks: Vec<f32>,
    /// `[queries]` sums of the weights.
    sums: Vec<f32>,
    /// [queries, value] weighted sums.
    out: Vec<f32>,
}

impl Sums {
    /// Those of the tokens of both; `later` follows.
    fn join(mut self, mut later: Sums) -> Self {
        let width = self.out.len() / self.peaks.len();
        for query in 0..self.peaks.len() {
            // A part may have no tokens of a query.
            if later.sums[query] == 0.0 {
                continue;
            }
            let new = larger(later.peaks[query], self.peaks[query]);
            let row = query * width..(query + 1) * width;
            if self.sums[query] == 0.0 {
                self.peaks[query] = later.peaks[query];
                self.sums[query] = later.sums[query];
                self.out[row.clone()].copy_from_slice(&later.out[row]);
                continue;
            }
            for sums in [&mut self, &mut later] {
                let factor = exp_below_zero(sums.peaks[query] - new);
                rescale(&mut sums.out[row.clone()], &mut sums.sums[query], factor);
            }
            self.peaks[query] = new;
            self.sums[query] += later.sums[query];
            let sums = self.out[row.clone()].iter_mut().zip(&later.out[row]);
            sums.for_each(|(sum, later)| *sum += later);
        }
        self
    }

    /// The weighted means.
    fn finish(mut self) -> Vec<f32> {
        let width = self.out.len() / self.peaks.len();
        for (out, sum) in self.out.chunks_exact_mut(width).zip(self.sums) {
            let inverse = 1.0 / sum;
            out.iter_mut().for_each(|out| *out *= inverse);
        }
        self.out
    }
}

/// A tile with some blocks of its tokens.
struct Part<'a, E> {
    tile: &'a Tile<'a>,
    /// As the layout needs them, rotated and scaled.
    queries: &'a [f32],
    /// The blocks of the cache.
    held: &'a Blocks<E>,
    /// Indices of the blocks from the beginning of the sequence.
    blocks: Range<usize>,
}

impl<E: Element> Part<'_, E> {
    fn attend(self) -> Sums {
        let tile = self.tile;
        let count = tile.queries.len();
        let layout = tile.heads.layout;
        let (key_width, width) = (layout.key(), layout.value());
        let mut sums = Sums {
            peaks: vec![f32::NEG_INFINITY; count],
            sums: vec![0.0; count],
            out: vec![0.0; count * width],
        };
        let mut scores = vec![0.0; count * BLOCK];
        let (mut key_scratch, mut value_scratch) = (Vec::new(), Vec::new());
        for index in self.blocks.clone() {
            let block = &self.held[index - tile.cache.first];
            let head = tile.kv_head;
            let keys = &block.keys[head * key_width * BLOCK..][..key_width * BLOCK];
            let in_block = |tokens: Range<usize>| {
                let in_block = |token: usize| token.saturating_sub(index * BLOCK).min(BLOCK);
                in_block(tokens.start)..in_block(tokens.end)
            };
            let tokens = in_block(tile.all_tokens());
            let rows = match layout {
                Layout::Heads { .. } => {
                    let values = &block.values[head * width * BLOCK..][..width * BLOCK];
                    let used = tokens.start * width..tokens.end * width;
                    let keys = E::columns(keys, BLOCK, tokens.clone(), &mut key_scratch);
                    scores_by_columns(self.queries, keys, key_width, tokens, &mut scores);
                    Rows {
                        values: E::columns(values, values.len(), used, &mut value_scratch),
                        pitch: width,
                    }
                }
                Layout::Latent { first, .. } => {
                    let used = tokens.start * key_width..tokens.end * key_width;
                    let keys = E::columns(keys, keys.len(), used, &mut key_scratch);
                    scores_by_rows(self.queries, keys, key_width, &mut scores);
                    Rows {
                        values: &keys[first..],
                        pitch: key_width,
                    }
                }
            };
            // The tokens of the block that a query attends to.
            let range = |query: usize| in_block(tile.tokens(tile.queries.start + query));
            for (query, scores) in scores.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                let range = range(query);
                if range.is_empty() {
                    continue;
                }
                if let Some(softcap) = tile.heads.softcap {
                    cap(&mut scores[range.clone()], softcap);
                }
                let softmax = Softmax {
                    peak: &mut sums.peaks[query],
                    sum: &mut sums.sums[query],
                    out: &mut sums.out[query * width..(query + 1) * width],
                };
                weigh(scores, range, softmax);
            }
            add_weighted(&mut sums.out, width, &scores, BLOCK, rows, range);
        }
        sums
    }
}

/// `out[t] = Σ x[t][j] · values[j]` for `x: [tokens, n]`, `values: [n, width]`; `[tokens, width]`.
pub(crate) fn weighted_sums(x: &[f32], values: &[f32], width: usize) -> Vec<f32> {
    let count = values.len() / width;
    let mut out = vec![0.0; x.len() / count * width];
    let rows = Rows {
        values,
        pitch: width,
    };
    add_weighted(&mut out, width, x, count, rows, |_| 0..count);
    out
}

/// `out[t][j] = <x[t], rows[j]>` for `x: [tokens, width]`, `rows: [n, width]`; `[tokens, n]`.
pub(crate) fn dots(x: &[f32], rows: &[f32], width: usize) -> Vec<f32> {
    struct Dots<'a>(&'a [f32], &'a [f32], usize);
    impl Kernel for Dots<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn run(self) -> Vec<f32> {
            let Dots(x, rows, width) = self;
            let x = x.chunks_exact(width);
            x.flat_map(|x| rows.chunks_exact(width).map(|row| dot(x, row)))
                .collect()
        }
    }
    dispatch(Dots(x, rows, width))
}

#[cfg(test)]
mod tests;
