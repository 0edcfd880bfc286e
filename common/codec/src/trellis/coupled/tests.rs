//! Tests of the coupled search: agreement with the uncoupled one, its gain, and equal bits with and without vectors.

use super::super::BlockSearch;
use super::super::tests::normals;
use super::portable::Portable;
use super::*;
use uc_simd::Kernel;

/// A coupling that decays with the distance of the rows.
fn decaying(strength: f32) -> Box<Coupling> {
    Coupling::new(|k, i| strength.powi((i - k) as i32))
}

/// How much of the error of row k enters row i > k, as the search knows it.
fn weight(coupling: &Coupling, k: usize, i: usize) -> f64 {
    if i / GROUP == k / GROUP {
        let unit = f64::from(1 << coupling.shift);
        return f64::from(coupling.within[i / GROUP][k % GROUP][i % GROUP]) / unit;
    }
    let chunk = &coupling.later[k / GROUP][i / CHUNK - first_chunk(k / GROUP)];
    f64::from(chunk[k % GROUP][i % CHUNK])
}

fn block(seed: usize, width: f32) -> [f32; BLOCK_ROWS] {
    normals(BLOCK_ROWS * (seed + 1), width)[seed * BLOCK_ROWS..]
        .try_into()
        .unwrap()
}

/// Sum of squares of the error of every row together with what the errors above it add to it.
fn coupled_error(values: &[f32], levels: &[f32], coupling: &Coupling) -> f64 {
    let errors: Vec<f64> = values
        .iter()
        .zip(levels)
        .map(|(v, l)| f64::from(v - l))
        .collect();
    let total = |i: usize| {
        errors[i]
            + (0..i)
                .map(|k| weight(coupling, k, i) * errors[k])
                .sum::<f64>()
    };
    (0..errors.len()).map(|i| total(i).powi(2)).sum()
}

#[test]
fn without_coupling_the_coupled_search_equals_the_uncoupled_one() {
    let (mut baseline, mut coupled) = (BlockSearch::new(), BlockSearch::new());
    let uncoupled = Coupling::new(|_, _| 0.0);
    for seed in 0..50 {
        let values = block(seed, 15.0);
        for rows in [1, 70, BLOCK_ROWS] {
            baseline.quantize(&values, rows);
            coupled.quantize_coupled(&values, rows, &uncoupled);
            let [expected, found] = [&baseline, &coupled]
                .map(|search| coupled_error(&values[..rows], &search.levels, &uncoupled));
            assert!(
                (found / expected - 1.0).abs() < 1e-5,
                "{rows} rows: {found} {expected}"
            );
        }
    }
}

#[test]
fn the_coupled_search_compensates_errors_that_enter_the_rows_below() {
    let coupling = decaying(0.6);
    let (mut baseline, mut coupled) = (BlockSearch::new(), BlockSearch::new());
    let (mut ignored, mut compensated, mut uncoupled) = (0.0, 0.0, 0.0);
    for seed in 0..20 {
        let values = block(seed, 15.0);
        baseline.quantize(&values, BLOCK_ROWS);
        coupled.quantize_coupled(&values, BLOCK_ROWS, &coupling);
        ignored += coupled_error(&values, &baseline.levels, &coupling);
        compensated += coupled_error(&values, &coupled.levels, &coupling);
        uncoupled += coupled_error(&values, &baseline.levels, &Coupling::new(|_, _| 0.0));
    }
    // If the coupling is ignored, the errors add up. If it is compensated for, every row has the error that it would
    // have without coupling.
    assert!(compensated < 0.7 * ignored, "{compensated} of {ignored}");
    assert!(
        compensated < 1.05 * uncoupled,
        "{compensated} against {uncoupled}"
    );
}

#[test]
fn the_coupled_search_has_the_same_bits_with_and_without_vectors() {
    let dense = |k: usize, i: usize| ((7 * k + 13 * i) % 17) as f32 / 8.0 - 1.0;
    let couplings = [
        decaying(0.7),
        decaying(0.97),
        Coupling::new(|k, i| 0.2 * dense(k, i)),
    ];
    for (coupling, rows) in couplings
        .iter()
        .flat_map(|c| [1, 2, 5, 8, 137, 255, 256].map(|n| (c, n)))
    {
        let mut values = block(rows, 900.0);
        values[rows / 2] = 0.5;
        values[0] = 1e9; // saturates
        let run = |search: fn(Search<'_>)| {
            let mut levels = [0.0; BLOCK_ROWS];
            search(Search {
                values: &values[..rows],
                coupling,
                survivors: &mut Survivors::new(),
                levels: &mut levels,
            });
            levels.map(f32::to_bits)
        };
        assert!(
            run(search) == run(|search| Portable(search).run()),
            "{rows} rows"
        );
    }
}
