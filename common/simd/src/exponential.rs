//! The vector width of the CPU kernels, and an exponential that vectorizes.
//!
//! The exponential is a polynomial because the exponential of the C library is scalar (it took longer than the matrix products of
//! attention) and differs between libraries. It consists of IEEE operations in a fixed order, so it has the same bits
//! on every instruction set.

/// Partial sums of a reduction, or channels processed side by side: one AVX-512 register.
pub const LANES: usize = 16;

/// `e^x` for `x <= 0`, within 2 ulp. Below -87 it returns `e^-87` (1.6e-38), about the smallest normal number.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; the polynomial for `e^r` is that of Cephes `expf`.
#[inline(always)]
pub fn exp_below_zero(x: f32) -> f32 {
    /// `1.5 · 2^23`: adding it rounds to an integer and leaves that in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let x = if x > -87.0 { x } else { -87.0 };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4_f32;
    for coefficient in [
        1.398_2e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = p.mul_add(r, coefficient);
    }
    let e = p.mul_add(r * r, r) + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    e * power
}

/// `row <- exp(row - max(row))`; returns the sum. For kernels.
#[inline(always)]
pub fn exponentials(row: &mut [f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut peaks = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = row.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            peaks[lane] = larger(block[lane], peaks[lane]);
        }
    }
    let peak = peaks
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, larger);
    let mut sums = [0.0_f32; LANES];
    let (blocks, rest) = row.as_chunks_mut::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            block[lane] = exp_below_zero(block[lane] - peak);
            sums[lane] += block[lane];
        }
    }
    let mut sum: f32 = sums.iter().sum();
    for value in rest {
        *value = exp_below_zero(*value - peak);
        sum += *value;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_within_two_ulp_of_the_exact_value() {
        let worst = (0..2_000_000)
            .map(|i| {
                let x = -87.0 * i as f32 / 2_000_000.0;
                let exact = f64::from(x).exp();
                let ulp = f64::from((exact as f32).next_up() - exact as f32);
                (f64::from(exp_below_zero(x)) - exact).abs() / ulp
            })
            .fold(0.0, f64::max);
        assert!(worst <= 2.0, "{worst} ulp");
        assert_eq!(exp_below_zero(0.0), 1.0);
        assert!(exp_below_zero(f32::NEG_INFINITY) < 1.7e-38);
    }
}
