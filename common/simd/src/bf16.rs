//! Products of matrices rounded to bfloat16, with sums in f32, by the dot products of AVX512-BF16, at twice the multiply-adds of f32, or by
//! the tiles of AMX, at sixteen times.
//!
//! Operands are packed into panels first: [`PANEL`] vectors, two of their components side by side, as the instructions read them. The
//! vectors are the rows of a matrix ([`pack_rows`]) or its columns ([`pack_columns`]). The product of two bfloat16 numbers is exact in f32,
//! so rounding the operands is all that is lost against a product in f32; an operand that is split into three bfloat16 numbers
//! ([`Left::from_exact_rows`]) loses nothing. Processors without the instructions multiply operands rounded by [`round_to_bf16`] in f32.

mod pack;
mod product;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod vectors;

pub use pack::{PANEL, Pairs, ToBf16, pack_columns, pack_rows, panel_len};
pub use product::{Left, has_bf16_products, left_vectors};

use crate::dispatch::{Kernel, dispatch};

/// The bits of the bfloat16 nearest to `value`, ties to even. Overflow gives an infinity; a NaN stays a NaN (its quiet bit is set, so
/// that truncating the payload cannot turn it into an infinity).
#[inline(always)]
pub fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let nan = bits | 0x0040_0000;
    ((if value.is_nan() { nan } else { rounded }) >> 16) as u16
}

/// The value of a bfloat16 with these bits, exact.
#[inline(always)]
pub fn bf16_value(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

struct Round<'a>(&'a [f32], &'a mut [f32]);

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (out, &value) in self.1.iter_mut().zip(self.0) {
            *out = bf16_value(bf16_bits(value));
        }
    }
}

/// `out <- values`, rounded to bfloat16.
pub fn round_to_bf16(values: &[f32], out: &mut [f32]) {
    dispatch(Round(values, out));
}

/// Writes the values of bits, each with a function that is inlined.
pub(crate) struct Expand<'a, F>(pub(crate) &'a [u16], pub(crate) &'a mut [f32], pub(crate) F);

impl<F: Fn(u16) -> f32> Kernel for Expand<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (out, &bits) in self.1.iter_mut().zip(self.0) {
            *out = self.2(bits);
        }
    }
}

/// `out <- values`, from the bits of bfloat16.
pub fn expand_bf16(values: &[u16], out: &mut [f32]) {
    dispatch(Expand(values, out, bf16_value));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(values: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; values.len()];
        round_to_bf16(values, &mut out);
        out
    }

    #[test]
    fn values_are_rounded_to_the_nearest_even_neighbour() {
        let cases = [
            (1.0, 1.0),
            (1.0 + 1.0 / 256.0, 1.0),
            (1.0 + 3.0 / 256.0, 1.0 + 1.0 / 64.0),
            (-1.0 - 1.01 / 256.0, -1.0 - 1.0 / 128.0),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
        ];
        for (value, expected) in cases {
            assert_eq!(rounded(&[value]), [expected], "{value}");
        }
        for bits in [0x7fff_ffff, 0x7f80_0001, 0xffff_ffff] {
            assert!(rounded(&[f32::from_bits(bits)])[0].is_nan());
        }
    }
}
