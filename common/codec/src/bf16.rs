//! bfloat16 as raw bits: the upper half of an IEEE f32.
//!
//! These two conversions are the only ones, so that every part of the system rounds in the same way.

use crate::error::CodecError;

/// Value of a bfloat16, exact.
#[inline(always)]
pub fn to_f32(bits: u16) -> f32 {
    uc_simd::bf16_value(bits)
}

/// Nearest bfloat16, ties to even. Overflow gives an infinity; a NaN stays a NaN (its quiet bit is set, so that
/// truncating the payload cannot turn it into an infinity).
#[inline(always)]
pub fn round_nearest_even(value: f32) -> u16 {
    uc_simd::bf16_bits(value)
}

/// Distance of adjacent bfloat16 values at a finite value that is not 0; that of the smallest normal numbers below them.
pub fn spacing(value: f32) -> f64 {
    let exponent = u64::from((value.to_bits() >> 23) & 0xff).max(1);
    // 2^(exponent − 127 − 7) in the format of f64: this runs for every weight.
    f64::from_bits((exponent + 1023 - 127 - 7) << 52)
}

/// Whether a value is neither NaN nor infinite.
#[inline(always)]
pub fn is_finite(bits: u16) -> bool {
    bits & EXPONENT != EXPONENT
}

/// The bits of the exponent: all are 1 in NaN and infinities.
const EXPONENT: u16 = 0x7f80;

/// Refuses NaN and infinities.
pub(crate) fn check_finite(what: &'static str, values: &[u16]) -> Result<(), CodecError> {
    match values.iter().position(|&x| !is_finite(x)) {
        None => Ok(()),
        Some(index) => {
            let found = to_f32(values[index]);
            Err(CodecError::NotFinite { what, index, found })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bfloat16_survives_conversion_to_f32_and_back() {
        for bits in 0..=u16::MAX {
            let back = round_nearest_even(to_f32(bits));
            if to_f32(bits).is_nan() {
                assert_eq!(back, bits | 0x0040);
            } else {
                assert_eq!(back, bits);
            }
        }
    }

    #[test]
    fn rounding_agrees_with_the_half_crate_around_every_tie() {
        for upper in (0..=u16::MAX).step_by(7) {
            for lower in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits((u32::from(upper) << 16) | lower);
                if value.is_nan() {
                    assert!(to_f32(round_nearest_even(value)).is_nan());
                } else {
                    assert_eq!(
                        round_nearest_even(value),
                        half::bf16::from_f32(value).to_bits(),
                        "{value}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_spacing_is_the_distance_to_the_next_value() {
        for value in [1.0f32, 1.5, -3.0, 0.01, 1e30, 1e-30] {
            let bits = round_nearest_even(value);
            let next = f64::from(to_f32(bits + 1)) - f64::from(to_f32(bits));
            assert_eq!(spacing(value), next.abs(), "{value}");
        }
    }
}
