//! Keys and values of the tokens of a sequence, in one layer.

use serde::Serialize;

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
pub(crate) trait Element: Copy + Send + Sync {
    fn of(value: f32) -> Self;
    fn value(self) -> f32;
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
}

impl Element for half::bf16 {
    #[inline(always)]
    fn of(value: f32) -> Self {
        half::bf16::from_f32(value)
    }

    #[inline(always)]
    fn value(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
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

/// Keys and values in one number format.
#[derive(Debug, Clone)]
pub(crate) struct Store<E> {
    /// [tokens, key width]
    pub(crate) keys: Vec<E>,
    /// [tokens, value width]
    pub(crate) values: Vec<E>,
}

/// The stores of the three formats.
#[derive(Debug, Clone)]
pub(crate) enum Stores {
    F32(Store<f32>),
    F16(Store<half::f16>),
    Bf16(Store<half::bf16>),
}

/// The cache of one attention block.
#[derive(Debug, Clone)]
pub(crate) struct KvCache {
    pub(crate) stores: Stores,
    /// Position of the first token that is held.
    pub(crate) first: usize,
    key_width: usize,
    value_width: usize,
    /// Tokens that a token attends to, itself included.
    window: Option<usize>,
}

impl KvCache {
    pub(crate) fn new(
        precision: Precision,
        [key_width, value_width]: [usize; 2],
        window: Option<usize>,
    ) -> Self {
        fn empty<E>() -> Store<E> {
            Store {
                keys: Vec::new(),
                values: Vec::new(),
            }
        }
        KvCache {
            stores: match precision {
                Precision::F32 => Stores::F32(empty()),
                Precision::F16 => Stores::F16(empty()),
                Precision::Bf16 => Stores::Bf16(empty()),
            },
            first: 0,
            key_width,
            value_width,
            window,
        }
    }

    /// Adds the keys and values of the next tokens.
    pub(crate) fn push(&mut self, keys: &[f32], values: &[f32]) {
        fn push<E: Element>(store: &mut Store<E>, keys: &[f32], values: &[f32]) {
            store.keys.extend(keys.iter().map(|&x| E::of(x)));
            store.values.extend(values.iter().map(|&x| E::of(x)));
        }
        match &mut self.stores {
            Stores::F32(store) => push(store, keys, values),
            Stores::F16(store) => push(store, keys, values),
            Stores::Bf16(store) => push(store, keys, values),
        }
    }

    /// Forgets the tokens that no later token attends to. Some are kept so that not every token moves the others.
    pub(crate) fn forget(&mut self) {
        let Some(window) = self.window else { return };
        let held = self.len();
        if held < window.saturating_mul(2) {
            return;
        }
        let excess = held - (window - 1);
        let (keys, values) = (excess * self.key_width, excess * self.value_width);
        fn drop_first<E>(store: &mut Store<E>, keys: usize, values: usize) {
            store.keys.drain(..keys);
            store.values.drain(..values);
        }
        match &mut self.stores {
            Stores::F32(store) => drop_first(store, keys, values),
            Stores::F16(store) => drop_first(store, keys, values),
            Stores::Bf16(store) => drop_first(store, keys, values),
        }
        self.first += excess;
    }

    /// Tokens that are held.
    fn len(&self) -> usize {
        let keys = match &self.stores {
            Stores::F32(store) => store.keys.len(),
            Stores::F16(store) => store.keys.len(),
            Stores::Bf16(store) => store.keys.len(),
        };
        keys / self.key_width
    }

    /// Bytes that the keys and values take.
    pub(crate) fn bytes(&self) -> usize {
        let element = match &self.stores {
            Stores::F32(_) => 4,
            _ => 2,
        };
        self.len() * (self.key_width + self.value_width) * element
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

    #[test]
    fn a_sliding_window_forgets_but_keeps_what_the_next_token_attends_to() {
        let mut cache = KvCache::new(Precision::F16, [2, 1], Some(4));
        for token in 0..100_u16 {
            let x = f32::from(token);
            cache.push(&[x, x], &[x]);
            cache.forget();
            assert!(cache.len() < 8);
            assert!(cache.first + cache.len() == usize::from(token) + 1);
            assert!(cache.len() >= 3.min(usize::from(token) + 1));
            let Stores::F16(store) = &cache.stores else {
                panic!("f16");
            };
            assert_eq!(store.keys[0].value(), cache.first as f32);
        }
        assert!(cache.bytes() <= 8 * 3 * 2);
    }
}
