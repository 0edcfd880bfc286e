//! The values of a weight tensor in the type of its file.

use half::f16;
use uc_simd::{bf16_value, expand_bf16, expand_f16};

/// The values of a tensor, row by row.
#[derive(Debug, Clone, PartialEq)]
pub enum WeightValues {
    /// In f32.
    F32(Vec<f32>),
    /// In 16 bits.
    Half(HalfType, Vec<u16>),
}

/// A floating-point type of 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HalfType {
    /// bfloat16.
    Bf16,
    /// IEEE binary16.
    F16,
}

impl HalfType {
    /// `out <- values`, exact.
    ///
    /// # Panics
    /// If they differ in length.
    pub fn expand(self, values: &[u16], out: &mut [f32]) {
        match self {
            HalfType::Bf16 => expand_bf16(values, out),
            HalfType::F16 => expand_f16(values, out),
        }
    }

    fn to_f32(self, bits: u16) -> f32 {
        match self {
            HalfType::Bf16 => bf16_value(bits),
            HalfType::F16 => f16::from_bits(bits).to_f32(),
        }
    }
}

impl WeightValues {
    /// The 16-bit values with these little-endian bytes.
    pub fn from_half_bytes(half: HalfType, bytes: &[u8]) -> Self {
        let (pairs, _) = bytes.as_chunks::<2>();
        let values = pairs.iter().map(|&pair| u16::from_le_bytes(pair));
        WeightValues::Half(half, values.collect())
    }

    /// The values in bfloat16 if it has all of them exactly, else in f32. Products with equal weights then have the same bits, whatever type
    /// their files store.
    pub fn narrowed(values: Vec<f32>) -> Self {
        match values.iter().all(|value| value.to_bits() & 0xffff == 0) {
            true => {
                let bits = values.iter().map(|value| (value.to_bits() >> 16) as u16);
                WeightValues::Half(HalfType::Bf16, bits.collect())
            }
            false => WeightValues::F32(values),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            WeightValues::F32(values) => values.len(),
            WeightValues::Half(_, values) => values.len(),
        }
    }

    /// Index of the first value that is infinite or not a number, and the value.
    pub fn non_finite(&self) -> Option<(usize, f32)> {
        match self {
            WeightValues::F32(values) => {
                let index = values.iter().position(|value| !value.is_finite())?;
                Some((index, values[index]))
            }
            WeightValues::Half(half, bits) => {
                let index = bits
                    .iter()
                    .position(|&bits| !half.to_f32(bits).is_finite())?;
                Some((index, half.to_f32(bits[index])))
            }
        }
    }

    /// The values in f32; the conversion is exact.
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            WeightValues::F32(values) => values,
            WeightValues::Half(half, bits) => {
                let mut values = vec![0.0; bits.len()];
                half.expand(&bits, &mut values);
                values
            }
        }
    }
}

impl From<Vec<f32>> for WeightValues {
    fn from(values: Vec<f32>) -> Self {
        WeightValues::F32(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_expanded_exactly_and_infinities_found() {
        let number = 1.5_f32;
        let bits = [(HalfType::Bf16, 0x3fc0_u16), (HalfType::F16, 0x3e00)];
        for (half, bits) in bits {
            let values =
                WeightValues::from_half_bytes(half, &[bits, bits].map(u16::to_le_bytes).concat());
            assert_eq!(values.count(), 2);
            assert_eq!(values.non_finite(), None);
            assert_eq!(values.into_f32(), [number; 2]);
        }
        for (third, is_half) in [(0.5, true), (0.1, false)] {
            let values = vec![1.0, -2.5, third];
            let narrowed = WeightValues::narrowed(values.clone());
            assert_eq!(matches!(narrowed, WeightValues::Half(..)), is_half);
            assert_eq!(narrowed.into_f32(), values);
        }
        let infinite = WeightValues::Half(HalfType::F16, vec![0x3e00, 0x7c00]);
        assert_eq!(infinite.non_finite(), Some((1, f32::INFINITY)));
    }
}
