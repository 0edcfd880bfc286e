//! Tests of the bound: against the captured energy that a fit finds, against exact eigenvalues, and of its distribution.

use super::super::{OverlayFit, fit, signs, thin_svd};
use super::*;
use crate::factor::factorize;

/// Approximately normal numbers from a seed.
fn noise(count: usize, seed: usize) -> Vec<f32> {
    (0..count.div_ceil(SAMPLES))
        .flat_map(|row| normals(row + seed * 1_000_003))
        .take(count)
        .collect()
}

/// Correlations that fall with the distance of the inputs, and a scale for every input.
fn correlated(n: usize, scale: impl Fn(usize) -> f32) -> Vec<f32> {
    (0..n * n)
        .map(|e| {
            let (i, j) = (e / n, e % n);
            0.9f32.powi(i.abs_diff(j) as i32) * scale(i) * scale(j)
        })
        .collect()
}

/// A residual with the row steps and moments under which it is judged.
struct Case {
    residual: Vec<f32>,
    m: usize,
    n: usize,
    moments: Vec<f32>,
    row_steps: Vec<f32>,
}

impl Case {
    fn bound(&self, max_rank: usize) -> CaptureBound {
        let shape = (self.m, self.n);
        let steps = &self.row_steps;
        capture_bound(&self.residual, shape, &self.moments, 0.01, steps, max_rank).unwrap()
    }

    fn fit(&self, max_rank: usize) -> OverlayFit {
        let factor = factorize(&self.moments, self.n, 0.01).unwrap();
        let (m, n) = (self.m, self.n);
        fit(
            self.residual.clone(),
            m,
            n,
            &factor,
            &self.row_steps,
            max_rank,
        )
        .unwrap()
    }

    /// The bound and the fit, after checking that the former is nowhere below the latter, and that what it excludes is not chosen.
    fn check(&self, max_rank: usize) -> (CaptureBound, OverlayFit) {
        let (bound, fit) = (self.bound(max_rank), self.fit(max_rank));
        for rank in 1..=fit.max_rank() {
            let (most, found) = (bound.captured(rank), fit.captured_energy(rank));
            assert!(most >= found, "rank {rank}: {most} below {found}");
        }
        if bound.excludes(self.m, self.n, max_rank) {
            assert_eq!(fit.best_rank(), 0);
        }
        (bound, fit)
    }
}

/// Independent errors whose variance in the metric of the moments is the same for all weights, as error feedback leaves them.
fn white(m: usize, n: usize, seed: usize) -> Case {
    Case {
        residual: noise(m * n, seed),
        m,
        n,
        moments: (0..n * n)
            .map(|e| f32::from(u8::from(e / n == e % n)))
            .collect(),
        row_steps: vec![1.0; m],
    }
}

#[test]
fn the_bound_is_never_below_what_a_fit_captures() {
    for (seed, (m, n)) in [(96, 160), (160, 96), (200, 200), (64, 300)]
        .into_iter()
        .enumerate()
    {
        let scale = |i: usize| 0.2 + (i % 7) as f32;
        let case = Case {
            residual: noise(m * n, seed),
            m,
            n,
            moments: correlated(n, scale),
            row_steps: (0..m).map(|i| 0.5 + (i % 5) as f32).collect(),
        };
        case.check(32);
    }
}

#[test]
fn white_errors_are_excluded_and_a_planted_component_is_not() {
    let (m, n) = (256, 384);
    let mut case = white(m, n, 7);
    let (bound, _) = case.check(16);
    assert!(bound.excludes(m, n, 16), "{bound:?}");
    let (u, v) = (signs(m), noise(n, 3));
    for (e, x) in case.residual.iter_mut().enumerate() {
        *x += 0.6 * u[e / n] * v[e % n];
    }
    let (bound, fit) = case.check(16);
    assert!(!bound.excludes(m, n, 16));
    assert!(fit.best_rank() > 0);
}

#[test]
fn row_steps_and_blocks_of_moments_count_as_in_the_fit() {
    let (m, n, block) = (150, 170, 64);
    let mut moments = vec![0.0; n * block];
    for i in 0..n {
        for j in i - i % block..n.min(i - i % block + block) {
            moments[i * block + j % block] = 0.8f32.powi(i.abs_diff(j) as i32);
        }
    }
    let mut case = Case {
        residual: noise(m * n, 1),
        m,
        n,
        moments,
        row_steps: vec![1.0; m],
    };
    // A few rows with fine steps hold most of the error.
    case.row_steps[3] = 0.02;
    let (bound, fit) = case.check(20);
    assert!(fit.captured_energy(1) > 0.8 && bound.captured(1) > 0.8);
}

#[test]
fn what_needs_no_bound_gets_none() {
    let zero = |m: usize, n: usize, moments: f32| Case {
        residual: vec![0.0; m * n],
        m,
        n,
        moments: vec![moments; n * n],
        row_steps: vec![1.0; m],
    };
    // No error, no moments, neither, and no weights.
    assert_eq!(zero(4, 5, 0.0).bound(3), CaptureBound::NONE);
    assert_eq!(zero(0, 5, 0.0).bound(3), CaptureBound::NONE);
    let dead = Case {
        moments: vec![0.0; 300 * 300],
        ..white(200, 300, 2)
    };
    let (bound, _) = dead.check(16);
    assert!(
        bound.excludes(200, 300, 16),
        "zero moments are factored as the identity"
    );
    for (m, n) in [(1, 1), (1, 40), (40, 1), (2, 3)] {
        let (bound, fit) = white(m, n, 5).check(64);
        assert_eq!(
            bound.excludes(m, n, 64),
            fit.best_rank() == 0 && bound.captured(1) < 0.5
        );
    }
}

#[test]
fn magnitudes_near_the_limits_of_f32_are_left_to_the_fit() {
    for scale in [1e-30, 1e18] {
        let mut case = white(64, 96, 1);
        case.moments.iter_mut().for_each(|x| *x *= scale);
        case.residual.iter_mut().for_each(|x| *x *= scale);
        case.bound(8);
    }
}

#[test]
fn the_eigenvalues_of_many_matrices_are_below_their_bounds() {
    // A flat spectrum, which is where the bound is closest.
    for seed in 0..40 {
        let case = white(96, 128, seed);
        let bound = case.bound(usize::MAX);
        let g: Vec<f64> = case.residual.iter().map(|&x| f64::from(x)).collect();
        let (_, s, _) = thin_svd(&g, 128, 96).unwrap();
        let squares = s.iter().map(|s| s * s);
        let trace: f64 = squares.clone().sum();
        assert!(bound.largest >= s[0] * s[0] / trace);
        let second: f64 = squares.map(|x| x * x).sum();
        assert!(1.0001 * bound.squares >= second / (trace * trace));
        assert!(
            bound.largest < 3.0 * s[0] * s[0] / trace,
            "{bound:?} is too wide"
        );
    }
}

#[test]
fn the_tails_are_those_of_a_chi_square_distribution() {
    // Of 16 degrees of freedom: P(χ² ≤ 16·ε) is about 4·10⁻¹² at the ε whose Chernoff bound is 10⁻¹⁰.
    let quantile = tail_quantile(8.0);
    assert!((quantile - 0.02115).abs() < 1e-4, "{quantile}");
    // Many small eigenvalues: the trace is known well. One large one: not at all from below.
    assert!(trace_below(1.0, 1e-3) > 0.9 && trace_above(1.0, 1e-3) < 1.1);
    assert_eq!(trace_below(1.0, 1.0), 0.0);
    assert!((trace_above(1.0, 1e9) - 1e9).abs() < 1e9);
}

#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    let case = white(130, 70, 4);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(|| case.bound(8))
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn wrong_lengths_and_nan_are_refused() {
    let moments = [1.0, 0.0, 0.0, 1.0];
    let bound = |residual: &[f32], steps: &[f32]| {
        capture_bound(residual, (2, 2), &moments, 0.01, steps, 1).map(|_| ())
    };
    assert!(matches!(
        bound(&[0.0; 3], &[1.0; 2]),
        Err(CodecError::Shape {
            what: "residual",
            ..
        })
    ));
    assert!(matches!(
        bound(&[0.0; 4], &[1.0; 1]),
        Err(CodecError::Shape {
            what: "row steps",
            ..
        })
    ));
    assert!(matches!(
        bound(&[0.0, 0.0, f32::NAN, 0.0], &[1.0; 2]),
        Err(CodecError::NotFinite { index: 2, .. })
    ));
}
