//! Products of panels by the dot products of AVX512-BF16.
//!
//! Safety: the unsafe operations are calls of functions compiled for an instruction set, which their callers check, and accesses to arrays and
//! slices whose lengths are checked before.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m512bh, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
};
use std::mem::{MaybeUninit, transmute};

use super::pack::{PANEL, Pairs};

/// Rows of the sums that the kernel keeps in registers.
const ROWS: usize = 8;
/// Values of f32 in a register.
const LANES: usize = 16;

/// The products of at least `rows` vectors of a panel with all of another, written to rows of `dst` or added to them.
///
/// # Safety
/// The processor has AVX512-BF16. `dst` is initialized if the products are added.
pub(super) unsafe fn product<const ADD: bool>(
    dst: &mut [MaybeUninit<f32>],
    stride: usize,
    rows: usize,
    left: &[Pairs],
    right: &[Pairs],
) {
    assert!(rows <= PANEL && (PANEL - 1) * stride + PANEL <= dst.len());
    for first in (0..rows).step_by(ROWS) {
        // SAFETY: rows `first..first + ROWS` lie inside a panel and, by the assertion, inside `dst`, which is initialized if it is read.
        unsafe { some_rows::<ADD>(&mut dst[first * stride..], stride, first, left, right) };
    }
}

/// The products of the `ROWS` vectors of a panel from `first` on with all of another.
///
/// # Safety
/// The processor has AVX512-BF16. `first + ROWS` is at most `PANEL`; `dst` holds `PANEL` values at each of the first `ROWS` multiples of
/// `stride`, initialized if the products are added.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn some_rows<const ADD: bool>(
    dst: &mut [MaybeUninit<f32>],
    stride: usize,
    first: usize,
    left: &[Pairs],
    right: &[Pairs],
) {
    let mut sums = [[_mm512_setzero_ps(); PANEL / LANES]; ROWS];
    for (Pairs(left), Pairs(right)) in left.iter().zip(right) {
        // SAFETY: inside the pair of each vector of a panel.
        let columns: [__m512bh; PANEL / LANES] = std::array::from_fn(|part| unsafe {
            transmute(_mm512_loadu_si512(right.as_ptr().add(part * LANES).cast()))
        });
        for row in 0..ROWS {
            // SAFETY: as above, by the caller's promise about `first`.
            let pair: __m512bh =
                unsafe { transmute(_mm512_set1_epi32(*left.as_ptr().add(first + row) as i32)) };
            for part in 0..PANEL / LANES {
                sums[row][part] = _mm512_dpbf16_ps(sums[row][part], columns[part], pair);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (part, &sum) in sums.iter().enumerate() {
            // SAFETY: inside `dst`, and initialized if it is read, by the caller's promise.
            unsafe {
                let at = dst.as_mut_ptr().add(row * stride + part * LANES).cast();
                let sum = match ADD {
                    true => _mm512_add_ps(_mm512_loadu_ps(at), sum),
                    false => sum,
                };
                _mm512_storeu_ps(at, sum);
            }
        }
    }
}
