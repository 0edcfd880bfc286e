//! Run a plain loop with the widest vectors that this processor has.
//!
//! A [`Kernel`] is ordinary safe Rust; [`dispatch`] compiles it once per instruction set and picks
//! one at run time. All variants compute the same bits: every operation in a kernel is an IEEE
//! operation on its own element, and fused multiply-adds are written as `f32::mul_add`.
//!
//! Safety: the only unsafe step is to call a function compiled for an instruction set, and each
//! call stands behind the check that the processor has exactly that set.
#![allow(unsafe_code)]

/// A loop to be compiled for several instruction sets. `run` should be `#[inline(always)]`, and so
/// should the functions that it calls.
pub(crate) trait Kernel {
    /// What the loop returns.
    type Output;
    /// The loop.
    fn run(self) -> Self::Output;
}

/// Runs `kernel` with AVX-512, AVX2 or the target's base instruction set.
#[inline]
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
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

/// Does this processor have the AVX-512 subset that the kernels use (as of Skylake-SP and Zen 4)?
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

/// Does this processor have AVX2, fused multiply-add and the bit counts that come with them?
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("bmi1")
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
