//! The values of a weight tensor, in f32 or as bfloat16.

use uc_simd::expand_bf16;

/// The values of a tensor, row by row.
#[derive(Debug, Clone, PartialEq)]
pub enum WeightValues {
    /// In f32.
    F32(Vec<f32>),
    /// The bits of bfloat16.
    Bf16(Vec<u16>),
}

impl WeightValues {
    /// The values with these little-endian bits of bfloat16.
    pub fn from_bf16_bytes(bytes: &[u8]) -> Self {
        let (pairs, _) = bytes.as_chunks::<2>();
        WeightValues::Bf16(pairs.iter().map(|&pair| u16::from_le_bytes(pair)).collect())
    }

    /// Index of the first value that is infinite or not a number, and the value.
    pub fn non_finite(&self) -> Option<(usize, f32)> {
        let value = |bits: u16| f32::from_bits(u32::from(bits) << 16);
        match self {
            WeightValues::F32(values) => {
                let index = values.iter().position(|value| !value.is_finite())?;
                Some((index, values[index]))
            }
            WeightValues::Bf16(bits) => {
                let index = bits.iter().position(|&bits| !value(bits).is_finite())?;
                Some((index, value(bits[index])))
            }
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            WeightValues::F32(values) => values.len(),
            WeightValues::Bf16(values) => values.len(),
        }
    }

    /// The values in f32; the conversion is exact.
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            WeightValues::F32(values) => values,
            WeightValues::Bf16(bits) => {
                let mut values = vec![0.0; bits.len()];
                expand_bf16(&bits, &mut values);
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
