//! Elementwise loops of the CPU kernels, compiled for the widest vectors that the processor has.
//!
//! The exponential is a polynomial of its own: the system's is scalar (it took longer than the
//! products of attention) and differs between C libraries. Every operation is an IEEE operation on
//! its own element and every sum has a fixed order, so all instruction sets give the same bits.
//!
//! Safety: the only unsafe step is to call a function compiled for an instruction set, behind the
//! check that the processor has it.
#![allow(unsafe_code)]

/// Partial results of a reduction: one AVX-512 register.
const LANES: usize = 16;

/// A loop to be compiled for several instruction sets.
trait Kernel {
    type Output;
    fn run(self) -> Self::Output;
}

#[inline]
fn dispatch<K: Kernel>(kernel: K) -> K::Output {
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
fn exp_below_zero(x: f32) -> f32 {
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

struct SiluGate<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for SiluGate<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (gate, &up) in self.gate.iter_mut().zip(self.up) {
            let x = *gate;
            let e = exp_below_zero(-x.abs());
            let top = if x >= 0.0 { 1.0 } else { e };
            *gate = x * (top / (1.0 + e)) * up;
        }
    }
}

/// `gate <- silu(gate) * up`.
pub(super) fn silu_gate(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up differ in length");
    dispatch(SiluGate { gate, up });
}

struct Weights<'a> {
    scores: &'a mut [f32],
    keys: usize,
    queries: usize,
    first: usize,
    sums: &'a mut [f32],
}

impl Kernel for Weights<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let rows = self.scores.chunks_exact_mut(self.keys);
        for (index, (row, sum)) in rows.zip(self.sums).enumerate() {
            let (seen, future) = row.split_at_mut(self.first + index % self.queries + 1);
            future.fill(0.0);
            *sum = exponentials(seen);
        }
    }
}

/// `row <- exp(row - max(row))`, giving the sum.
#[inline(always)]
fn exponentials(row: &mut [f32]) -> f32 {
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

/// Attention weights before division: in every row of `scores: [heads * queries, keys]`, of which
/// row `i` belongs to query `first + i % queries`, the keys that the query sees become
/// `exp(score - largest)`, later keys 0; `sums[i]` becomes the row's sum.
pub(super) fn attention_weights(
    scores: &mut [f32],
    keys: usize,
    queries: usize,
    first: usize,
    sums: &mut [f32],
) {
    assert_eq!(scores.len(), sums.len() * keys, "scores and sums differ");
    assert!(first + queries <= keys, "queries beyond the keys");
    dispatch(Weights {
        scores,
        keys,
        queries,
        first,
        sums,
    });
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

    #[test]
    fn wide_and_plain_instruction_sets_give_the_same_bits() {
        let scores: Vec<f32> = (0..6 * 77)
            .map(|i| ((i * 131 % 997) as f32 - 500.0) / 30.0)
            .collect();
        let (mut wide, mut plain) = (scores.clone(), scores);
        let (mut wide_sums, mut plain_sums) = ([0.0; 6], [0.0; 6]);
        attention_weights(&mut wide, 77, 3, 70, &mut wide_sums);
        Weights {
            scores: &mut plain,
            keys: 77,
            queries: 3,
            first: 70,
            sums: &mut plain_sums,
        }
        .run();
        assert_eq!(wide, plain);
        assert_eq!(wide_sums, plain_sums);
        let up = vec![0.7; wide.len()];
        silu_gate(&mut wide, &up);
        SiluGate {
            gate: &mut plain,
            up: &up,
        }
        .run();
        assert_eq!(wide, plain);
    }

    #[test]
    fn future_keys_get_no_weight() {
        let mut scores = vec![1.0; 2 * 2 * 5];
        let mut sums = [0.0; 4];
        attention_weights(&mut scores, 5, 2, 3, &mut sums);
        assert_eq!(sums, [4.0, 5.0, 4.0, 5.0]);
        assert_eq!(scores[4], 0.0);
    }

    #[test]
    fn silu_holds_at_the_ends() {
        let mut gate = [-200.0, -1.0, 0.0, 1.0, 200.0];
        silu_gate(&mut gate, &[1.0; 5]);
        let exact = [0.0, -0.268_941_43, 0.0, 0.731_058_6, 200.0];
        for (found, expected) in gate.iter().zip(exact) {
            assert!((found - expected).abs() <= 1e-7, "{found} {expected}");
        }
    }
}
