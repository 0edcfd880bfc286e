//! The element types of exports: from the values of a pack to the bytes of a file, and back.
//!
//! Owns the rounding to float16 and bfloat16 and the blocks of Q8_0, which is that of llama.cpp's reference: blocks of 32 values
//! with a float16 scale `d = max|x| / 127` and `round(x / d)`, half away from zero. Works on slices.

use half::{bf16, f16};
use uc_pack::ExactDtype;

/// Values of a block of Q8_0.
pub const Q8_0_BLOCK: u64 = 32;
/// Bytes of a block of Q8_0: a float16 and 32 signed bytes.
pub const Q8_0_BYTES: u64 = 34;

/// An element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// The bytes of the pack, of this type.
    AsStored(ExactDtype),
    /// float32.
    F32,
    /// float16.
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of 32 values with a common scale.
    Q8_0,
}

/// What an export adds to values or computes from them, because the other program expects it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adjustment {
    /// Nothing.
    None,
    /// 1 is added: weights of norms that multiply by `1 + w`.
    PlusOne,
    /// `-exp(x)`: the decay of a state space from its logarithm.
    MinusExp,
}

impl Adjustment {
    /// Applies it.
    pub fn apply(self, values: &mut [f32]) {
        match self {
            Self::None => {}
            Self::PlusOne => values.iter_mut().for_each(|x| *x += 1.0),
            Self::MinusExp => values.iter_mut().for_each(|x| *x = -x.exp()),
        }
    }

    /// Takes it back.
    pub fn undo(self, values: &mut [f32]) {
        match self {
            Self::None => {}
            Self::PlusOne => values.iter_mut().for_each(|x| *x -= 1.0),
            Self::MinusExp => values.iter_mut().for_each(|x| *x = (-*x).ln()),
        }
    }
}

impl Encoding {
    /// Bytes of `count` values; for Q8_0 a multiple of 32.
    pub fn bytes(self, count: u64) -> u64 {
        match self {
            Self::AsStored(dtype) => count * dtype.width(),
            Self::F32 => count * 4,
            Self::F16 | Self::Bf16 => count * 2,
            Self::Q8_0 => count / Q8_0_BLOCK * Q8_0_BYTES,
        }
    }

    /// Appends values to `out` in this type.
    ///
    /// # Errors
    /// The first value that the type cannot hold: one that float16 would round to infinity.
    pub fn encode(self, values: &[f32], out: &mut Vec<u8>) -> Result<(), f32> {
        match self {
            Self::F32 | Self::AsStored(_) => {
                out.extend(values.iter().flat_map(|x| x.to_le_bytes()));
            }
            Self::Bf16 => out.extend(values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes())),
            Self::F16 => {
                for &value in values {
                    let rounded = f16::from_f32(value);
                    if !rounded.is_finite() {
                        return Err(value);
                    }
                    out.extend(rounded.to_le_bytes());
                }
            }
            Self::Q8_0 => {
                for block in values.chunks(Q8_0_BLOCK as usize) {
                    encode_q8_0(block, out)?;
                }
            }
        }
        Ok(())
    }

    /// The values of bytes of this type; `None` for a type that is no float.
    pub fn decode(self, bytes: &[u8]) -> Option<Vec<f32>> {
        let halves = || bytes.as_chunks::<2>().0.iter().copied();
        Some(match self {
            Self::AsStored(ExactDtype::F32) | Self::F32 => {
                let words = bytes.as_chunks::<4>().0.iter();
                words.map(|word| f32::from_le_bytes(*word)).collect()
            }
            Self::AsStored(ExactDtype::BF16) | Self::Bf16 => halves()
                .map(|half| bf16::from_le_bytes(half).to_f32())
                .collect(),
            Self::AsStored(ExactDtype::F16) | Self::F16 => halves()
                .map(|half| f16::from_le_bytes(half).to_f32())
                .collect(),
            Self::Q8_0 => bytes
                .chunks_exact(Q8_0_BYTES as usize)
                .flat_map(decode_q8_0)
                .collect(),
            Self::AsStored(_) => return None,
        })
    }
}

/// Appends a block of Q8_0. The quotient is a product with `1/d`, as in llama.cpp.
fn encode_q8_0(block: &[f32], out: &mut Vec<u8>) -> Result<(), f32> {
    let largest = block.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let stored = f16::from_f32(scale);
    if !stored.is_finite() {
        return Err(largest);
    }
    out.extend(stored.to_le_bytes());
    // A product may exceed 127 by a rounding error only, which `round` removes.
    out.extend(block.iter().map(|x| (x * inverse).round() as i8 as u8));
    Ok(())
}

/// The values of a block of Q8_0.
fn decode_q8_0(block: &[u8]) -> impl Iterator<Item = f32> + '_ {
    let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
    block[2..]
        .iter()
        .map(move |byte| f32::from(*byte as i8) * scale)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_block_of_q8_0_is_that_of_the_reference() {
        // d = 127 / 127 = 1: integers stay, halves are rounded away from zero.
        let mut values = vec![0.0f32; 32];
        values[..6].copy_from_slice(&[127.0, -127.0, 0.5, -0.5, 2.5, 1.4]);
        let mut bytes = Vec::new();
        Encoding::Q8_0.encode(&values, &mut bytes).expect("finite");
        assert_eq!(bytes.len(), 34);
        assert_eq!(bytes[..8], [0x00, 0x3c, 127, 129, 1, 255, 3, 1]);
        let back = Encoding::Q8_0.decode(&bytes).expect("floats");
        assert_eq!(back[..6], [127.0, -127.0, 1.0, -1.0, 3.0, 1.0]);
        let mut zeros = Vec::new();
        Encoding::Q8_0
            .encode(&[0.0; 32], &mut zeros)
            .expect("finite");
        assert_eq!(zeros, [0; 34]);
    }

    #[test]
    fn a_value_that_float16_cannot_hold_is_returned() {
        let mut out = Vec::new();
        assert_eq!(Encoding::F16.encode(&[1.0, 1e6], &mut out), Err(1e6));
        assert_eq!(Encoding::Q8_0.encode(&[1e8; 32], &mut out), Err(1e8));
    }

    proptest! {
        #[test]
        fn decoded_values_lie_within_the_rounding_of_their_type(
            values in prop::collection::vec(-100.0f32..100.0, 64)
        ) {
            for (encoding, error) in [
                (Encoding::F32, 0.0),
                (Encoding::F16, 0.05),
                (Encoding::Bf16, 0.4),
                (Encoding::Q8_0, 0.5),
            ] {
                let mut bytes = Vec::new();
                encoding.encode(&values, &mut bytes).expect("small");
                prop_assert_eq!(bytes.len() as u64, encoding.bytes(64));
                let back = encoding.decode(&bytes).expect("floats");
                for (a, b) in values.iter().zip(back) {
                    prop_assert!((a - b).abs() <= error, "{:?}: {} {}", encoding, a, b);
                }
            }
        }
    }
}
