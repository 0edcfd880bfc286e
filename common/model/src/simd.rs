//! Loops compiled for the widest vectors that the processor has, and an exponential that fits into them.
//!
//! The exponential is a polynomial of its own: the system's is scalar (it took longer than the
//! products of attention) and differs between C libraries. Every operation is an IEEE operation on
//! its own element and every sum has a fixed order, so all instruction sets give the same bits.
//!
//! Safety: the only unsafe step is to call a function compiled for an instruction set, behind the
//! check that the processor has it.
#![allow(unsafe_code)]

/// Partial results of a reduction, or channels side by side: one AVX-512 register.
pub(crate) const LANES: usize = 16;

/// A loop to be compiled for several instruction sets.
pub(crate) trait Kernel {
    /// What the loop gives back.
    type Output;
    /// Runs it; to be inlined into every instruction set's function.
    fn run(self) -> Self::Output;
}

/// Runs a kernel with the widest instruction set that the processor has.
#[inline]
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn avx512<K: Kernel>(kernel: K) -> K::Output {
            kernel.run()
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2<K: Kernel>(kernel: K) -> K::Output {
            kernel.run()
        }
        let base = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let wide = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if base && wide {
            // SAFETY: the processor has every feature that `avx512` is compiled for.
            return unsafe { avx512(kernel) };
        }
        if base {
            // SAFETY: the processor has every feature that `avx2` is compiled for.
            return unsafe { avx2(kernel) };
        }
    }
    kernel.run()
}

/// `e^x` for `x <= 0`, to 2 ulp; below -87 it is `e^-87` (1.6e-38), the end of the normal numbers.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; the polynomial for `e^r` is that of Cephes `expf`.
#[inline(always)]
pub(crate) fn exp_below_zero(x: f32) -> f32 {
    /// Adding it leaves the nearest integer in the low bits of the sum.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_within_two_ulp_of_the_exact_one() {
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
