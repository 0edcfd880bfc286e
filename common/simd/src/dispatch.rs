//! Runs a loop with the widest vectors that this processor has.
//!
//! A [`Kernel`] is ordinary safe Rust. [`dispatch`] compiles it once per instruction set and picks one at run time. All
//! variants compute the same bits as long as every operation in the kernel is an IEEE operation on its own element, every
//! sum has a fixed order, and fused multiply-adds are written as `f32::mul_add`.
//!
//! Safety: the unsafe operations are calls of functions compiled for an instruction set, each guarded by a check that the
//! processor supports that set, and prefetches.
#![allow(unsafe_code)]

/// A loop to be compiled for several instruction sets. `run`, and the functions that it calls, should be
/// `#[inline(always)]` so that they are compiled with the instruction set of the caller.
pub trait Kernel {
    /// What the loop returns.
    type Output;
    /// Runs the loop.
    fn run(self) -> Self::Output;
}

/// Runs `kernel` with AVX-512, AVX2 or the target's base instruction set.
#[inline]
pub fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if has_avx512() {
            // SAFETY: the processor has every feature named at `x86::run_avx512`.
            return unsafe { x86::run_avx512(kernel) };
        }
        if has_avx2() {
            // SAFETY: the processor has every feature named at `x86::run_avx2`.
            return unsafe { x86::run_avx2(kernel) };
        }
    }
    kernel.run()
}

/// Whether this processor has the AVX-512 subset that the kernels use (Skylake-SP, Zen 4 and later).
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

/// Whether this processor has AVX2, fused multiply-add, POPCNT and BMI1.
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("bmi1")
}

/// Asks for the memory of an element, which may lie beyond the end, before it is needed. Has no other effect.
#[inline(always)]
pub fn prefetch<T>(values: &[T], index: usize) {
    prefetch_into::<1, T>(values, index);
}

/// As [`prefetch`], into the second-level cache: more lines can be in flight to it than to the first level.
#[inline(always)]
pub fn prefetch_l2<T>(values: &[T], index: usize) {
    prefetch_into::<2, T>(values, index);
}

/// Prefetches into the cache of a level, 1 or 2.
#[inline(always)]
fn prefetch_into<const LEVEL: u8, T>(values: &[T], index: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        let address = values.as_ptr().wrapping_add(index).cast();
        // SAFETY: a prefetch accesses nothing, whatever the address.
        unsafe {
            match LEVEL {
                1 => _mm_prefetch::<_MM_HINT_T0>(address),
                _ => _mm_prefetch::<_MM_HINT_T1>(address),
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, index);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Kernel;

    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run()
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dot<'a>(&'a [f32], &'a [f32]);

    impl Kernel for Dot<'_> {
        type Output = f32;

        #[inline(always)]
        fn run(self) -> f32 {
            let mut sums = [0.0f32; 16];
            for (a, b) in self.0.chunks_exact(16).zip(self.1.chunks_exact(16)) {
                for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
                    *sum = a.mul_add(*b, *sum);
                }
            }
            sums.iter().sum()
        }
    }

    #[test]
    fn a_dispatched_kernel_has_the_bits_of_the_portable_one() {
        let a: Vec<f32> = (0..4096).map(|i| (i as f32 * 0.37).sin()).collect();
        let b: Vec<f32> = (0..4096).map(|i| (i as f32 * 0.11).cos()).collect();
        let portable = Dot(&a, &b).run();
        assert_eq!(dispatch(Dot(&a, &b)).to_bits(), portable.to_bits());
    }
}
