//! Keys and values of the tokens of a sequence, in one attention block of a layer.
//!
//! They are held in blocks of [`BLOCK`] tokens. A clone shares the blocks; whoever adds a token to a shared block copies that
//! block first. So sequences that begin alike hold their common tokens once.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::vec::HalfFloatVecExt;
use serde::Serialize;
use uc_simd::{expand_bf16, expand_f16};

/// Tokens of a block.
pub(crate) const BLOCK: usize = 64;

/// Number format of cached keys and values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As they are computed.
    #[default]
    F32,
    /// Rounded to IEEE half precision; larger values become the largest.
    F16,
    /// Rounded to bfloat16.
    Bf16,
}

/// A value of the cache.
pub(crate) trait Element: Copy + Default + Send + Sync {
    /// The values, rounded.
    fn rounded(values: &[f32]) -> Vec<Self>;

    /// The values as f32, in `scratch` if they are not: those in `columns` of every row of `pitch` values. Others have no meaning.
    fn columns<'a>(
        values: &'a [Self],
        pitch: usize,
        columns: Range<usize>,
        scratch: &'a mut Vec<f32>,
    ) -> &'a [f32];
}

impl Element for f32 {
    fn rounded(values: &[f32]) -> Vec<Self> {
        values.to_vec()
    }

    fn columns<'a>(
        values: &'a [Self],
        _: usize,
        _: Range<usize>,
        _: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        values
    }
}

impl Element for half::bf16 {
    fn rounded(values: &[f32]) -> Vec<Self> {
        Vec::from_f32_slice(values)
    }

    fn columns<'a>(
        values: &'a [Self],
        pitch: usize,
        columns: Range<usize>,
        scratch: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        expanded(values, pitch, columns, scratch, expand_bf16)
    }
}

impl Element for half::f16 {
    fn rounded(values: &[f32]) -> Vec<Self> {
        let largest = half::f16::MAX.to_f32();
        let values = values.iter().map(|value| value.clamp(-largest, largest));
        Vec::from_f32_slice(&values.collect::<Vec<f32>>())
    }

    fn columns<'a>(
        values: &'a [Self],
        pitch: usize,
        columns: Range<usize>,
        scratch: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        expanded(values, pitch, columns, scratch, expand_f16)
    }
}

/// See [`Element::columns`]; `expand` writes the values of bits.
fn expanded<'a, E>(
    values: &[E],
    pitch: usize,
    columns: Range<usize>,
    scratch: &'a mut Vec<f32>,
    expand: impl Fn(&[u16], &mut [f32]),
) -> &'a [f32]
where
    [E]: HalfFloatSliceExt,
{
    scratch.resize(values.len(), 0.0);
    // Whole rows lie side by side.
    let (pitch, columns) = match columns.len() == pitch {
        true => (values.len(), 0..values.len()),
        false => (pitch, columns),
    };
    let rows = values.reinterpret_cast().chunks_exact(pitch);
    for (bits, out) in rows.zip(scratch.chunks_exact_mut(pitch)) {
        expand(&bits[columns.clone()], &mut out[columns.clone()]);
    }
    scratch
}

/// What is held of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// A key and a value for each of some heads.
    Heads {
        /// Heads.
        count: usize,
        /// Dimension of a key.
        key: usize,
        /// Dimension of a value.
        value: usize,
    },
    /// One vector that is the key of all heads, and whose elements from `first` on are their value.
    Latent {
        /// Dimension of the key.
        key: usize,
        /// Its elements that are not of the value.
        first: usize,
    },
}

impl Layout {
    /// Heads of keys and values.
    pub(crate) fn heads(self) -> usize {
        match self {
            Layout::Heads { count, .. } => count,
            Layout::Latent { .. } => 1,
        }
    }

    /// Dimension of a key.
    pub(crate) fn key(self) -> usize {
        match self {
            Layout::Heads { key, .. } | Layout::Latent { key, .. } => key,
        }
    }

    /// Dimension of a value.
    pub(crate) fn value(self) -> usize {
        match self {
            Layout::Heads { value, .. } => value,
            Layout::Latent { key, first } => key - first,
        }
    }

    /// Elements of a token: of its keys, and of values that are apart.
    pub(crate) fn widths(self) -> [usize; 2] {
        match self {
            Layout::Heads { count, key, value } => [count * key, count * value],
            Layout::Latent { key, .. } => [key, 0],
        }
    }
}

/// Some tokens in a row.
#[derive(Debug, Clone)]
pub(crate) struct Block<E> {
    /// For heads `[heads, key, BLOCK]`, so that the scores of many tokens are computed side by side; else `[BLOCK, key]`.
    pub(crate) keys: Vec<E>,
    /// For heads `[heads, BLOCK, value]`; else empty.
    pub(crate) values: Vec<E>,
}

/// The blocks in one number format.
pub(crate) type Blocks<E> = VecDeque<Arc<Block<E>>>;

/// The blocks of the three formats.
#[derive(Debug, Clone)]
pub(crate) enum Store {
    F32(Blocks<f32>),
    F16(Blocks<half::f16>),
    Bf16(Blocks<half::bf16>),
}

/// The same expression for the blocks of whichever format.
macro_rules! with_blocks {
    ($store:expr, $blocks:ident => $body:expr) => {
        match $store {
            $crate::cache::Store::F32($blocks) => $body,
            $crate::cache::Store::F16($blocks) => $body,
            $crate::cache::Store::Bf16($blocks) => $body,
        }
    };
}
pub(crate) use with_blocks;

/// The cache of one attention block.
#[derive(Debug, Clone)]
pub(crate) struct KvCache {
    pub(crate) store: Store,
    pub(crate) layout: Layout,
    /// Index of the first block that is held: block `i` has the tokens from `i · BLOCK` on.
    pub(crate) first: usize,
    /// Tokens so far, with those that are forgotten.
    tokens: usize,
    /// Tokens that a token attends to, itself included.
    window: Option<usize>,
}

impl KvCache {
    pub(crate) fn new(precision: Precision, layout: Layout, window: Option<usize>) -> Self {
        KvCache {
            store: match precision {
                Precision::F32 => Store::F32(VecDeque::new()),
                Precision::F16 => Store::F16(VecDeque::new()),
                Precision::Bf16 => Store::Bf16(VecDeque::new()),
            },
            layout,
            first: 0,
            tokens: 0,
            window,
        }
    }

    /// Adds the keys `[tokens, heads · key]` of the next tokens, and their values `[tokens, heads · value]` if those are apart.
    pub(crate) fn push(&mut self, keys: &[f32], values: &[f32]) {
        let [key_width, value_width] = self.layout.widths();
        let count = keys.len() / key_width;
        let mut done = 0;
        while done < count {
            let slot = self.tokens % BLOCK;
            let part = (BLOCK - slot).min(count - done);
            let (layout, index) = (self.layout, self.tokens / BLOCK - self.first);
            let keys = &keys[done * key_width..][..part * key_width];
            let values = &values[done * value_width..][..part * value_width];
            with_blocks!(&mut self.store, blocks => put(blocks, layout, [index, slot], keys, values));
            done += part;
            self.tokens += part;
        }
    }

    /// Forgets the blocks that no later token attends to, except one, so that the last tokens can be cut off.
    pub(crate) fn forget(&mut self) {
        let needed = self.needed(self.tokens).saturating_sub(BLOCK) / BLOCK;
        let needed = needed.max(self.first);
        let excess = needed - self.first;
        with_blocks!(&mut self.store, blocks => drop(blocks.drain(..excess.min(blocks.len()))));
        self.first = needed;
    }

    /// The first token that the token after `tokens` ones attends to.
    fn needed(&self, tokens: usize) -> usize {
        match self.window {
            Some(window) => (tokens + 1).saturating_sub(window),
            None => 0,
        }
    }

    /// Whether it forgets tokens.
    pub(crate) fn has_window(&self) -> bool {
        self.window.is_some()
    }

    /// Whether what follows the first `tokens` tokens can be computed again.
    pub(crate) fn can_be_cut(&self, tokens: usize) -> bool {
        tokens <= self.tokens && self.first * BLOCK <= self.needed(tokens)
    }

    /// Leaves the first `tokens` tokens, which [`KvCache::can_be_cut`] allows.
    pub(crate) fn cut(&mut self, tokens: usize) {
        let held = tokens.div_ceil(BLOCK) - self.first;
        with_blocks!(&mut self.store, blocks => blocks.truncate(held));
        self.tokens = tokens;
    }

    /// The address and the bytes of every block.
    pub(crate) fn parts(&self) -> Vec<(usize, u64)> {
        fn of<E>(blocks: &Blocks<E>) -> Vec<(usize, u64)> {
            let part = |block: &Arc<Block<E>>| {
                let elements = block.keys.len() + block.values.len();
                let bytes = elements * size_of::<E>();
                (Arc::as_ptr(block).addr(), bytes as u64)
            };
            blocks.iter().map(part).collect()
        }
        with_blocks!(&self.store, blocks => of(blocks))
    }
}

/// Puts tokens into a block, from a slot on, which may be the first of a new block.
fn put<E: Element>(
    blocks: &mut Blocks<E>,
    layout: Layout,
    [index, slot]: [usize; 2],
    keys: &[f32],
    values: &[f32],
) {
    let [key_width, value_width] = layout.widths();
    if index == blocks.len() {
        blocks.push_back(Arc::new(Block {
            keys: vec![E::default(); key_width * BLOCK],
            values: vec![E::default(); value_width * BLOCK],
        }));
    }
    let block = Arc::make_mut(&mut blocks[index]);
    let (keys, values) = (E::rounded(keys), E::rounded(values));
    match layout {
        Layout::Heads { value, .. } => {
            let tokens = keys.len() / key_width;
            for (column, out) in block.keys.chunks_exact_mut(BLOCK).enumerate() {
                for (token, out) in out[slot..][..tokens].iter_mut().enumerate() {
                    *out = keys[token * key_width + column];
                }
            }
            for (token, values) in values.chunks_exact(value_width).enumerate() {
                let heads = block.values.chunks_exact_mut(BLOCK * value);
                for (out, values) in heads.zip(values.chunks_exact(value)) {
                    out[(slot + token) * value..][..value].copy_from_slice(values);
                }
            }
        }
        Layout::Latent { .. } => {
            block.keys[slot * key_width..][..keys.len()].copy_from_slice(&keys);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout::Heads {
        count: 1,
        key: 2,
        value: 1,
    };

    /// A cache of `tokens` tokens, whose keys and values are their positions; added in parts.
    fn filled(window: Option<usize>, tokens: usize, part: usize) -> KvCache {
        let mut cache = KvCache::new(Precision::F32, LAYOUT, window);
        let all: Vec<usize> = (0..tokens).collect();
        for part in all.chunks(part) {
            let values: Vec<f32> = part.iter().map(|&token| token as f32).collect();
            let keys: Vec<f32> = values.iter().flat_map(|&x| [x, -x]).collect();
            cache.push(&keys, &values);
            cache.forget();
        }
        cache
    }

    /// The second element of the key and the value of a token.
    fn token(cache: &KvCache, token: usize) -> [f32; 2] {
        let Store::F32(blocks) = &cache.store else {
            panic!("f32");
        };
        let block = &blocks[token / BLOCK - cache.first];
        [
            block.keys[BLOCK + token % BLOCK],
            block.values[token % BLOCK],
        ]
    }

    #[test]
    fn a_sliding_window_forgets_but_keeps_what_the_next_token_attends_to() {
        for tokens in [1, 63, 64, 65, 127, 128, 500] {
            let cache = filled(Some(70), tokens, 9);
            let needed = (tokens + 1).saturating_sub(70);
            assert_eq!(cache.first, needed.saturating_sub(BLOCK) / BLOCK);
            for position in needed..tokens {
                let x = position as f32;
                assert_eq!(token(&cache, position), [-x, x]);
            }
            assert!(cache.parts().len() <= 70 / BLOCK + 3);
        }
    }

    #[test]
    fn clones_share_blocks_until_one_of_them_adds_a_token() {
        let cache = filled(None, 100, 100);
        let mut clone = cache.clone();
        assert_eq!(clone.parts(), cache.parts());
        clone.cut(80);
        clone.push(&[7.0, 8.0], &[9.0]);
        assert_eq!(token(&clone, 80), [8.0, 9.0]);
        assert_eq!(token(&cache, 80), [-80.0, 80.0]);
        assert_eq!(clone.parts()[0], cache.parts()[0]);
        assert_ne!(clone.parts()[1], cache.parts()[1]);
    }

    #[test]
    fn a_cache_can_be_cut_where_nothing_is_forgotten_that_is_needed() {
        let whole = filled(None, 300, 64);
        assert!((0..=300).all(|tokens| whole.can_be_cut(tokens)));
        assert!(!whole.can_be_cut(301));
        let window = filled(Some(70), 300, 64);
        assert_eq!(window.first, 2);
        let cuts: Vec<usize> = (0..=300).filter(|&n| window.can_be_cut(n)).collect();
        assert_eq!(cuts, (128 + 69..=300).collect::<Vec<_>>());
        for tokens in cuts {
            let mut cut = window.clone();
            cut.cut(tokens);
            cut.forget();
            assert_eq!(
                token(&cut, tokens - 1),
                [1.0 - tokens as f32, tokens as f32 - 1.0]
            );
        }
    }
}
