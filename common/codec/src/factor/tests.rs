//! Tests of the factorization and of the numbers derived from a factor.

use super::*;

/// `X·Xᵀ/t` of a fixed pseudo-random `[n, t]`: positive definite for t > n.
fn hessian(n: usize, t: usize) -> Vec<f32> {
    let x: Vec<f64> = (0..n * t)
        .map(|i| ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f64 / 8388608.0 - 1.0)
        .collect();
    let dot = |i: usize, j: usize| -> f64 {
        (0..t).map(|s| x[i * t + s] * x[j * t + s]).sum::<f64>() / t as f64
    };
    (0..n * n).map(|i| dot(i / n, i % n) as f32).collect()
}

/// Largest difference between `H' = A·Aᵀ` and the damped Hessian.
fn distance(factor: &Factor, h: &[f32]) -> f64 {
    let n = factor.n;
    let mean = (0..n).map(|j| f64::from(h[j * n + j])).sum::<f64>() / n as f64;
    let at = |k: usize, j: usize| f64::from(factor.a[k * n + j]) / f64::from(factor.inv_diag[j]);
    let mut worst = 0.0f64;
    for i in 0..n {
        for k in 0..n {
            let product: f64 = (0..n).map(|j| at(i, j) * at(k, j)).sum();
            let damped = f64::from(h[i.min(k) * n + i.max(k)])
                + if i == k { factor.damping * mean } else { 0.0 };
            worst = worst.max((product - damped).abs());
        }
    }
    worst
}

#[test]
fn the_factor_times_its_transpose_is_the_damped_hessian() {
    for n in [1, 2, 63, 64, 65, 130] {
        let h = hessian(n, 2 * n + 3);
        let factor = factorize(&h, n, 0.01).unwrap();
        assert_eq!((factor.damping, factor.dead_inputs), (0.01, 0));
        assert!(
            distance(&factor, &h) < 1e-6,
            "width {n}: {}",
            distance(&factor, &h)
        );
        assert!((0..n).all(|j| factor.a[j * n + j] == 1.0));
        assert!((0..n).all(|k| (0..k).all(|j| factor.a[k * n + j] == 0.0)));
    }
}

#[test]
fn leverages_are_those_of_the_damped_matrix_and_add_up_over_blocks() {
    let (n, t) = (130, 70);
    let h = hessian(n, 2 * n + 3);
    let factor = factorize(&h, n, 0.01).unwrap();
    let rows: Vec<f32> = (0..t * n)
        .map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0)
        .collect();
    let found = factor.leverages(&rows).unwrap();
    let mean = (0..n).map(|j| f64::from(h[j * n + j])).sum::<f64>() / n as f64;
    for (row, found) in rows.chunks_exact(n).zip(&found) {
        // H'·y = x by conjugate gradients in f64.
        let x: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
        let damped = |v: &[f64]| -> Vec<f64> {
            let entry = |i: usize, k: usize| f64::from(h[i.max(k) * n + i.min(k)]);
            let product = |i: usize| (0..n).map(|k| entry(i, k) * v[k]).sum::<f64>();
            (0..n).map(|i| product(i) + 0.01 * mean * v[i]).collect()
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (mut y, mut r, mut p) = (vec![0.0; n], x.clone(), x.clone());
        for _ in 0..4 * n {
            let image = damped(&p);
            let (before, along) = (dot(&r, &r), dot(&p, &image));
            if before < 1e-24 {
                break;
            }
            let step = before / along;
            y.iter_mut().zip(&p).for_each(|(y, p)| *y += step * p);
            r.iter_mut().zip(&image).for_each(|(r, i)| *r -= step * i);
            let ratio = dot(&r, &r) / before;
            p = r.iter().zip(&p).map(|(r, p)| r + ratio * p).collect();
        }
        let expected = dot(&x, &y);
        let error = (f64::from(*found) - expected).abs() / expected;
        assert!(error < 1e-4, "{found} for {expected}");
    }

    let halves: Vec<f32> = (0..n)
        .flat_map(|i| (0..65).map(move |k| (i, i - i % 65 + k)))
        .map(|(i, k)| h[i * n + k])
        .collect();
    let factor = factorize(&halves, n, 0.01).unwrap();
    assert_eq!(factor.block, 65);
    let both = factor.leverages(&rows).unwrap();
    let half_leverages = |first: usize| {
        let only = rows.iter().enumerate();
        let only = only.map(|(i, &x)| if (i % n) / 65 == first { x } else { 0.0 });
        factor.leverages(&only.collect::<Vec<_>>()).unwrap()
    };
    for ((both, low), high) in both.iter().zip(half_leverages(0)).zip(half_leverages(1)) {
        assert!((both - low - high).abs() <= 1e-5 * both);
    }
    assert!(factor.leverages(&rows[1..]).is_err());
}

#[test]
fn a_dead_input_gets_the_energy_of_the_damping_and_no_feedback() {
    let n = 5;
    let mut h = hessian(n, 40);
    for i in 0..n {
        h[2 * n + i] = 0.0;
        h[i * n + 2] = 0.0;
    }
    let mean = (0..n).map(|j| f64::from(h[j * n + j])).sum::<f64>() / n as f64;
    let factor = factorize(&h, n, 0.01).unwrap();
    assert_eq!(factor.dead_inputs, 1);
    assert!((f64::from(factor.inv_diag[2]) - 1.0 / (0.01 * mean).sqrt()).abs() < 1e-3);
    assert!((0..n).all(|k| k == 2 || factor.a[k * n + 2] == 0.0));
    assert!((0..n).all(|j| j == 2 || factor.a[2 * n + j] == 0.0));
}

#[test]
fn second_moments_of_zero_are_factored_as_the_identity_and_no_error_counts() {
    let factor = factorize(&[0.0; 9], 3, 0.01).unwrap();
    assert!(factor.is_zero);
    assert_eq!(factor.row_errors(&[1.0; 6]).unwrap(), [0.0; 2]);
    assert_eq!(factor.a, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
    assert_eq!((factor.inv_diag, factor.dead_inputs), (vec![1.0; 3], 3));
}

#[test]
fn the_error_of_a_row_is_its_quadratic_form_under_the_damped_moments() {
    let n = 150;
    let h = hessian(n, 2 * n + 3);
    let factor = factorize(&h, n, 0.01).unwrap();
    let mean = (0..n).map(|j| f64::from(h[j * n + j])).sum::<f64>() / n as f64;
    let errors: Vec<f32> = (0..3 * n).map(|i| (i * 37 % 101) as f32 / 50.0).collect();
    let found = factor.row_errors(&errors).unwrap();
    for (e, found) in errors.chunks(n).zip(found) {
        let e: Vec<f64> = e.iter().map(|&x| f64::from(x)).collect();
        let product = |i: usize| -> f64 {
            let entries = (0..n).map(|j| f64::from(h[i.max(j) * n + i.min(j)]));
            entries.zip(&e).map(|(h, e)| h * e).sum()
        };
        let form: f64 = (0..n).map(|i| e[i] * product(i)).sum();
        let expected = form + 0.01 * mean * e.iter().map(|x| x * x).sum::<f64>();
        assert!(
            (found / expected - 1.0).abs() < 1e-4,
            "{found} for {expected}"
        );
    }
    assert!(factor.row_errors(&errors[1..]).is_err());
}

#[test]
fn damping_is_raised_for_a_singular_hessian_and_reported() {
    let n = 8;
    let factor = factorize(&vec![1.0; n * n], n, 0.0).unwrap();
    assert!(
        factor.damping > 0.0 && factor.damping <= 1e-5,
        "{}",
        factor.damping
    );
}

#[test]
fn an_indefinite_hessian_is_refused_with_the_last_damping() {
    let h = [1.0, 1e9, 1e9, 1.0];
    let refused = factorize(&h, 2, 0.01).unwrap_err();
    let CodecError::NotPositiveDefinite { n, damping } = refused else {
        panic!("{refused}")
    };
    assert_eq!(n, 2);
    assert!((damping / 0.01 - 1e6).abs() < 1.0, "{damping}");
}

#[test]
fn wrong_lengths_and_numbers_without_meaning_are_refused() {
    assert!(matches!(
        factorize(&[1.0; 3], 2, 0.1),
        Err(CodecError::Shape { .. })
    ));
    assert!(matches!(
        factorize(&[], 2, 0.1),
        Err(CodecError::Shape { .. })
    ));
    let nan = factorize(&[1.0, f32::NAN, 0.0, 1.0], 2, 0.1);
    assert!(matches!(nan, Err(CodecError::NotFinite { index: 1, .. })));
    assert!(matches!(
        factorize(&[-1.0], 1, 0.1),
        Err(CodecError::Range { .. })
    ));
    assert!(matches!(
        factorize(&[1.0], 1, f64::NAN),
        Err(CodecError::Range { .. })
    ));
    assert!(matches!(
        factorize(&[1.0], 1, -0.5),
        Err(CodecError::Range { .. })
    ));
}

#[test]
fn blocks_are_factored_separately_with_one_damping_for_all() {
    let (block, last) = (70, 5);
    let (upper, lower) = (hessian(block, 300), hessian(last, 40));
    let mut h = upper.clone();
    for row in lower.chunks(last) {
        h.extend(row);
        h.extend(vec![0.0; block - last]);
    }
    let blockwise = factorize(&h, block + last, 0.1).unwrap();
    assert_eq!(
        blockwise.blocks().collect::<Vec<_>>(),
        [(0, block), (block, last)]
    );
    let trace = |h: &[f32], n: usize| (0..n).map(|i| f64::from(h[i * n + i])).sum::<f64>();
    let mean = (trace(&upper, block) + trace(&lower, last)) / (block + last) as f64;
    for (h, n, first) in [(upper, block, 0), (lower, last, block)] {
        let factor = factorize(&h, n, 0.1 * mean * n as f64 / trace(&h, n)).unwrap();
        for k in 0..n {
            let near = |a: f32, b: f32| (a - b).abs() <= 1e-6 * (1.0 + b.abs());
            assert!(near(blockwise.inv_diag[first + k], factor.inv_diag[k]));
            let row = &blockwise.a[(first + k) * block..(first + k + 1) * block];
            assert!(
                row[..n]
                    .iter()
                    .zip(&factor.a[k * n..])
                    .all(|(&a, &b)| near(a, b))
            );
            assert!(row[n..].iter().all(|&a| a == 0.0));
        }
    }
}

#[test]
fn shrinkage_spares_the_diagonal_and_is_stronger_outside_the_blocks() {
    let (n, block) = (300, 200);
    let mut h = vec![8.0; n * block];
    shrink_off_diagonal(&mut h, n, 0.25, 0.5).unwrap();
    for i in 0..n {
        for k in 0..block {
            let expected = match i % block {
                diagonal if diagonal == k => 8.0,
                diagonal if diagonal / SHRINKAGE_BLOCK == k / SHRINKAGE_BLOCK => 6.0,
                _ => 4.0,
            };
            assert_eq!(h[i * block + k], expected, "[{i}, {k}]");
        }
    }
    assert!(shrink_off_diagonal(&mut h[1..], n, 0.0, 0.0).is_err());
}

#[test]
fn damping_grows_below_five_bits_and_is_unchanged_above() {
    let rates = [2.0, 4.0, 4.5, 5.0, 8.0];
    assert_eq!(
        rates.map(|bits| damping_at_rate(0.25, bits)),
        [16.0, 1.0, 0.5, 0.25, 0.25]
    );
}

#[test]
fn the_sensitivity_is_the_geometric_mean_of_the_factors_diagonal() {
    let factor = factorize(&[4.0, 0.0, 0.0, 16.0], 2, 0.0).unwrap();
    assert!((factor.sensitivity() - 8.0).abs() < 1e-5);
    assert_eq!(factorize(&[0.0; 4], 2, 0.1).unwrap().sensitivity(), 0.0);
}

#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    let n = 700;
    let h = hessian(n, 16);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| factorize(&h, n, 0.01).unwrap())
    };
    let one = with(1);
    for threads in [2, 3, 5] {
        assert!(with(threads) == one, "{threads} threads");
    }
}
