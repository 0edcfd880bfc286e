//! Values of IEEE half precision.
//!
//! Safety: the unsafe operations are loads and stores of whole vectors in slices of their length, and a call that is guarded by a check
//! that the processor has the instructions.
#![allow(unsafe_code)]

use crate::bf16::Expand;
use crate::dispatch::dispatch;

/// The value of a half with these bits, exact. The product with a power of two is exact, also for subnormal numbers.
#[inline(always)]
fn f16_value(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let (sign, rest) = ((bits & 0x8000) << 16, (bits & 0x7fff) << 13);
    let finite = f32::from_bits(rest) * f32::from_bits((127 + 112) << 23);
    let special = f32::from_bits(0x7f80_0000 | rest);
    let value = if rest < 0x0f80_0000 { finite } else { special };
    f32::from_bits(value.to_bits() | sign)
}

/// `out <- values`, from the bits of half precision. A NaN stays a NaN.
///
/// # Panics
/// If the lengths differ.
pub fn expand_f16(values: &[u16], out: &mut [f32]) {
    assert_eq!(values.len(), out.len(), "as many values");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has AVX-512.
        return unsafe { x86::expand(values, out) };
    }
    dispatch(Expand(values, out, f16_value));
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{_mm256_loadu_si256, _mm512_cvtph_ps, _mm512_storeu_ps};

    /// Numbers of a vector.
    const WIDTH: usize = 16;

    /// See [`super::expand_f16`].
    #[target_feature(enable = "avx512f")]
    pub(super) fn expand(values: &[u16], out: &mut [f32]) {
        let (values, last_values) = values.as_chunks::<WIDTH>();
        let (out, last_out) = out.as_chunks_mut::<WIDTH>();
        for (out, values) in out.iter_mut().zip(values) {
            // SAFETY: 16 numbers each.
            unsafe {
                let values = _mm256_loadu_si256(values.as_ptr().cast());
                _mm512_storeu_ps(out.as_mut_ptr(), _mm512_cvtph_ps(values));
            }
        }
        for (out, &bits) in last_out.iter_mut().zip(last_values) {
            *out = super::f16_value(bits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::Kernel;

    /// By the definition: sign, exponent and fraction.
    fn defined(bits: u16) -> f32 {
        let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
        let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023) / 1024.0);
        sign * match (exponent, fraction) {
            (0, _) => fraction * 2.0_f32.powi(-14),
            (31, 0.0) => f32::INFINITY,
            (31, _) => f32::NAN,
            _ => (1.0 + fraction) * 2.0_f32.powi(exponent - 15),
        }
    }

    #[test]
    fn every_half_has_its_value() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let (mut found, mut portable) = (vec![0.0; all.len()], vec![0.0; all.len()]);
        expand_f16(&all, &mut found);
        Expand(&all, &mut portable, f16_value).run();
        for bits in all {
            let expected = defined(bits);
            for found in [found[usize::from(bits)], portable[usize::from(bits)]] {
                assert!(
                    found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
                    "{bits:04x}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn parts_of_a_vector_are_expanded() {
        for count in [0, 1, 15, 17, 40] {
            let values: Vec<u16> = (0..count).map(|i| 0x3c00 + i).collect();
            let mut out = vec![0.0; values.len()];
            expand_f16(&values, &mut out);
            let expected: Vec<f32> = values.iter().map(|&bits| defined(bits)).collect();
            assert_eq!(out, expected);
        }
    }
}
