//! Keys and values of the tokens of a sequence, in one attention block of a layer.
//!
//! They are held in blocks of [`BLOCK`] tokens. A clone shares the blocks; whoever adds a token to a shared block copies that
//! block first. So sequences that begin alike hold their common tokens once.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::Serialize;
use uc_simd::{Kernel, bf16_value, dispatch};

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
    fn of(value: f32) -> Self;
    fn value(self) -> f32;

    /// The values as f32, in `scratch` if they are not.
    fn slice<'a>(values: &'a [Self], scratch: &'a mut Vec<f32>) -> &'a [f32] {
        scratch.resize(values.len(), 0.0);
        dispatch(Convert {
            values,
            out: scratch,
        });
        scratch
    }
}

impl Element for f32 {
    #[inline(always)]
    fn of(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn value(self) -> f32 {
        self
    }

    fn slice<'a>(values: &'a [Self], _: &'a mut Vec<f32>) -> &'a [f32] {
        values
    }
}

impl Element for half::bf16 {
    #[inline(always)]
    fn of(value: f32) -> Self {
        half::bf16::from_f32(value)
    }

    #[inline(always)]
    fn value(self) -> f32 {
        bf16_value(self.to_bits())
    }
}

impl Element for half::f16 {
    #[inline(always)]
    fn of(value: f32) -> Self {
        let largest = half::f16::MAX.to_f32();
        half::f16::from_f32(value.clamp(-largest, largest))
    }

    /// Written out, so that loops over it are vectorized. The product with a power of two is exact, also for subnormal numbers.
    #[inline(always)]
    fn value(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let (sign, rest) = ((bits & 0x8000) << 16, (bits & 0x7fff) << 13);
        let finite = f32::from_bits(rest) * f32::from_bits((127 + 112) << 23);
        let special = f32::from_bits(0x7f80_0000 | rest);
        let value = if rest < 0x0f80_0000 { finite } else { special };
        f32::from_bits(value.to_bits() | sign)
    }
}

/// See [`Element::slice`].
struct Convert<'a, E> {
    values: &'a [E],
    out: &'a mut [f32],
}

impl<E: Element> Kernel for Convert<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let out = self.out.iter_mut().zip(self.values);
        out.for_each(|(out, value)| *out = value.value());
    }
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
    match layout {
        Layout::Heads { value, .. } => {
            for (column, out) in block.keys.chunks_exact_mut(BLOCK).enumerate() {
                let keys = keys.iter().skip(column).step_by(key_width);
                let out = out[slot..].iter_mut().zip(keys);
                out.for_each(|(out, &key)| *out = E::of(key));
            }
            for (token, values) in values.chunks_exact(value_width).enumerate() {
                let heads = block.values.chunks_exact_mut(BLOCK * value);
                for (out, values) in heads.zip(values.chunks_exact(value)) {
                    let out = out[(slot + token) * value..].iter_mut().zip(values);
                    out.for_each(|(out, &value)| *out = E::of(value));
                }
            }
        }
        Layout::Latent { .. } => {
            let out = block.keys[slot * key_width..].iter_mut().zip(keys);
            out.for_each(|(out, &key)| *out = E::of(key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_has_its_value() {
        for bits in 0..=u16::MAX {
            let half = half::f16::from_bits(bits);
            let (found, expected) = (half.value(), half.to_f32());
            assert!(
                found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
                "{bits:04x}: {found} {expected}"
            );
        }
    }

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
