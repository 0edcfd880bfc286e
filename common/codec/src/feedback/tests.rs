//! Tests of error feedback: against the definition, across blocks, with coupled rows, and for bad arguments.

use super::*;
use crate::bf16;
use crate::factor::factorize;
use crate::trellis::levels;
use crate::trellis::tests::column_indices;

/// Fixed pseudo-random numbers in −1..1, `[count]`.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(seed | 1);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A Hessian whose inputs are correlated with adjacent ones.
fn correlated(n: usize) -> Vec<f32> {
    (0..n * n)
        .map(|i| 0.95f32.powi((i / n).abs_diff(i % n) as i32))
        .collect()
}

/// Steps that are the same in all rows.
fn column_steps(columns: Vec<f32>, m: usize) -> Steps {
    Steps {
        columns,
        rows: vec![1.0; m],
    }
}

/// The definition, one column after another, for rows that are not zero and not coupled.
fn by_definition(w: &[f32], n: usize, factor: &Factor, steps: &Steps) -> Vec<i16> {
    let m = w.len() / n;
    let (mut q, mut residual) = (vec![0; m * n], vec![0.0f32; m * n]);
    for j in 0..n {
        let target = |row: usize| {
            (0..j).fold(w[row * n + j], |sum, k| {
                residual[row * n + k].mul_add(factor.a[k * n + j], sum)
            })
        };
        let step = |row: usize| steps.columns[j] * steps.rows[row];
        let values: Vec<f32> = (0..m).map(|row| target(row) / step(row)).collect();
        let column = column_indices(&values);
        let levels = levels(&column, 1, &vec![1; m]);
        for row in 0..m {
            let rounded = bf16::round_nearest_even(levels[row] as f32 * step(row));
            q[row * n + j] = column[row];
            residual[row * n + j] = w[row * n + j] - bf16::to_f32(rounded);
        }
    }
    q
}

#[test]
fn within_one_block_the_indices_are_those_of_the_definition() {
    for (m, n) in [(1, 1), (31, 1), (1, 128), (33, 7), (130, 100), (257, 128)] {
        let factor = factorize(&correlated(n), n, 0.01).unwrap();
        let w = noise(m * n, 9);
        let steps = Steps {
            columns: (0..n).map(|j| 0.02 + 0.01 * (j % 5) as f32).collect(),
            rows: (0..m).map(|row| 1.0 + 0.25 * (row % 7) as f32).collect(),
        };
        let indices = quantize(&w, m, n, &factor, None, &steps).unwrap();
        assert!(
            indices == by_definition(&w, n, &factor, &steps),
            "[{m}, {n}]"
        );
    }
}

#[test]
fn across_blocks_few_indices_differ_from_the_definition_because_sums_are_in_another_order() {
    let (m, n) = (140, 300);
    let factor = factorize(&correlated(n), n, 0.01).unwrap();
    let w = noise(m * n, 4);
    let steps = column_steps(vec![0.05; n], m);
    let indices = quantize(&w, m, n, &factor, None, &steps).unwrap();
    let expected = by_definition(&w, n, &factor, &steps);
    // If a near tie is decided differently, the rest of its column's path and of its rows changes.
    let differ = indices
        .iter()
        .zip(&expected)
        .filter(|(a, b)| a != b)
        .count();
    assert!(differ <= m * n / 20, "{differ} of {} differ", m * n);
}

#[test]
fn rows_of_zeros_stay_zero_and_do_not_affect_the_others() {
    let n = 3;
    let factor = factorize(&correlated(n), n, 0.01).unwrap();
    let w = noise(4 * n, 8);
    let mut with_zeros = w.clone();
    with_zeros.splice(n..n, [0.0; 3]);
    let outputs = |m: usize| {
        let mut moments = vec![0.0; m * BLOCK_ROWS];
        for i in 0..m {
            for k in 0..m {
                moments[i * BLOCK_ROWS + k] = 0.7f32.powi(i.abs_diff(k) as i32);
            }
        }
        factorize(&moments, m, 0.1).unwrap()
    };
    let q = quantize(&w, 4, n, &factor, None, &column_steps(vec![0.1; 3], 4)).unwrap();
    let mut expected = q.clone();
    expected.splice(n..n, [0; 3]);
    let steps = column_steps(vec![0.1; 3], 5);
    assert_eq!(
        quantize(&with_zeros, 5, n, &factor, None, &steps).unwrap(),
        expected
    );
    let coupled = quantize(&with_zeros, 5, n, &factor, Some(&outputs(5)), &steps).unwrap();
    assert_eq!(coupled[n..2 * n], [0; 3]);
}

#[test]
fn blocks_of_inputs_are_quantized_like_separate_matrices() {
    let (m, n, block) = (40, 300, 170);
    let whole = correlated(n);
    let mut h = vec![0.0; n * block];
    for j in 0..n {
        let start = j - j % block;
        for k in start..n.min(start + block) {
            h[j * block + k - start] = whole[j * n + k];
        }
    }
    let factor = factorize(&h, n, 0.01).unwrap();
    let w = noise(m * n, 6);
    let indices = quantize(&w, m, n, &factor, None, &column_steps(vec![0.05; n], m)).unwrap();
    for (start, size) in factor.blocks() {
        let part = |values: &[f32]| -> Vec<f32> {
            values
                .chunks(n)
                .flat_map(|row| &row[start..start + size])
                .copied()
                .collect()
        };
        let block_factor = factorize(&correlated(size), size, 0.01).unwrap();
        let steps = column_steps(vec![0.05; size], m);
        let separate = quantize(&part(&w), m, size, &block_factor, None, &steps).unwrap();
        let indices: Vec<i16> = indices
            .chunks(n)
            .flat_map(|row| &row[start..start + size])
            .copied()
            .collect();
        assert!(indices == separate, "block at {start}");
    }
}

#[test]
fn coupling_rows_lowers_the_error_weighted_by_both_factors() {
    let (m, n) = (160, 40);
    let factor = factorize(&correlated(n), n, 0.01).unwrap();
    // Correlated outputs within a block: G_ik = 0.9^|i−k|.
    let mut moments = vec![0.0f32; m * BLOCK_ROWS];
    for i in 0..m {
        for k in (i - i % BLOCK_ROWS..m).take(BLOCK_ROWS) {
            moments[i * BLOCK_ROWS + k % BLOCK_ROWS] = 0.9f32.powi(i.abs_diff(k) as i32);
        }
    }
    let outputs = factorize(&moments, m, 0.01).unwrap();
    let w = noise(m * n, 5);
    let steps = column_steps(vec![0.05; n], m);
    let loss = |outputs: Option<&Factor>| -> f64 {
        let q = quantize(&w, m, n, &factor, outputs, &steps).unwrap();
        let levels = levels(&q, n, &vec![1; m]);
        let residual =
            |i: usize, j: usize| f64::from(w[i * n + j] - 0.05 * levels[i * n + j] as f32);
        let h = correlated(n);
        let mut loss = 0.0;
        for i in 0..m {
            for k in (i - i % BLOCK_ROWS..m).take(BLOCK_ROWS) {
                let g = f64::from(moments[i * BLOCK_ROWS + k % BLOCK_ROWS]);
                for j in 0..n {
                    let weighted: f64 = (0..n)
                        .map(|l| f64::from(h[j * n + l]) * residual(k, l))
                        .sum();
                    loss += g * residual(i, j) * weighted;
                }
            }
        }
        loss
    };
    let (coupled, uncoupled) = (loss(Some(&outputs)), loss(None));
    assert!(coupled < 0.5 * uncoupled, "{coupled} of {uncoupled}");
}

#[test]
fn the_residual_is_white_in_the_metric_of_both_factors_across_all_row_blocks() {
    let (m, n) = (300, 200);
    let input = factorize(&correlated(n), n, 0.01).unwrap();
    let outputs = factorize(&correlated(m), m, 0.01).unwrap();
    let mut w = noise(m * n, 5);
    w[140 * n..141 * n].fill(0.0); // a row of zeros among those that feed back
    let steps = Steps {
        columns: input.inv_diag.iter().map(|x| 0.01 * x).collect(),
        rows: outputs.inv_diag.clone(),
    };
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| quantize(&w, m, n, &input, Some(&outputs), &steps).unwrap())
    };
    let q = with(1);
    for threads in [2, 3, 8] {
        assert!(with(threads) == q, "{threads} threads");
    }
    let logs: Vec<u8> = (0..m).map(|row| u8::from(row != 140)).collect();
    let levels = levels(&q, n, &logs);
    let mut residual = vec![0.0f64; m * n];
    for (at, residual) in residual.iter_mut().enumerate() {
        let step = steps.columns[at % n] * steps.rows[at / n];
        let rounded = bf16::to_f32(bf16::round_nearest_even(levels[at] as f32 * step));
        *residual = f64::from(w[at]) - f64::from(rounded);
    }
    // Bᵀ·E·A in units of the steps.
    let mut mean = vec![0.0f64; m];
    for j in 0..n {
        let column: Vec<f64> = (0..m)
            .map(|i| {
                (0..=j)
                    .map(|l| residual[i * n + l] * f64::from(input.a[l * n + j]))
                    .sum()
            })
            .collect();
        for (i, mean) in mean.iter_mut().enumerate() {
            let products = (0..=i).map(|k| f64::from(outputs.a[k * m + i]) * column[k]);
            let step = f64::from(steps.columns[j] * steps.rows[i]);
            *mean += (products.sum::<f64>() / step).powi(2) / n as f64;
        }
    }
    let block = |rows: std::ops::Range<usize>| {
        let count = rows.len() as f64;
        rows.map(|row| mean[row]).sum::<f64>() / count
    };
    let (first, second, third) = (block(0..128), block(141..256), block(256..300));
    assert!(first < 0.4, "{first}");
    assert!((second / first - 1.0).abs() < 0.1, "{second} after {first}");
    assert!((third / first - 1.0).abs() < 0.15, "{third} after {first}");
}

#[test]
fn output_blocks_smaller_than_those_of_the_trellis_feed_back_within_themselves_only() {
    let (m, n, block) = (300, 5, 128);
    let w = noise(m * n, 3);
    let (mut narrow, mut whole) = (vec![0.0; m * block], vec![0.0; m * m]);
    for i in 0..m {
        for k in (i - i % block..m).take(block) {
            let moment = 0.8f32.powi(i.abs_diff(k) as i32);
            (narrow[i * block + k % block], whole[i * m + k]) = (moment, moment);
        }
    }
    let input = factorize(&correlated(n), n, 0.01).unwrap();
    let [narrow, whole] = [narrow, whole].map(|moments| factorize(&moments, m, 0.01).unwrap());
    let steps = column_steps(vec![0.05; n], m);
    let with = |outputs| quantize(&w, m, n, &input, Some(outputs), &steps).unwrap();
    assert!(with(&narrow) == with(&whole));
    assert!(with(&narrow) != quantize(&w, m, n, &input, None, &steps).unwrap());
}

#[test]
fn values_out_of_range_saturate() {
    let factor = factorize(&[1.0], 1, 0.01).unwrap();
    let q = quantize(
        &[1e6, -1e6],
        2,
        1,
        &factor,
        None,
        &column_steps(vec![1e-3], 2),
    )
    .unwrap();
    assert!(q[0] > 32_700 && q[1] < -32_700, "{q:?}");
}

#[test]
fn nan_weights_bad_steps_and_wrong_lengths_are_refused() {
    let factor = factorize(&correlated(2), 2, 0.01).unwrap();
    let with = |w: &[f32], steps: &[f32]| {
        let steps = column_steps(steps.to_vec(), 1);
        quantize(w, 1, 2, &factor, None, &steps).unwrap_err()
    };
    let nan = with(&[0.0, f32::NAN], &[1.0; 2]);
    assert!(matches!(
        nan,
        CodecError::NotFinite {
            what: "weights",
            index: 1,
            ..
        }
    ));
    let infinite = with(&[0.0; 2], &[1.0, f32::INFINITY]);
    assert!(matches!(
        infinite,
        CodecError::NotFinite {
            what: "column step",
            index: 1,
            ..
        }
    ));
    assert!(matches!(
        with(&[0.0; 2], &[1.0, 0.0]),
        CodecError::Range { .. }
    ));
    assert!(matches!(
        with(&[0.0; 3], &[1.0; 2]),
        CodecError::Shape {
            what: "weights",
            ..
        }
    ));
    assert!(matches!(
        with(&[0.0; 2], &[1.0; 3]),
        CodecError::Shape {
            what: "column step",
            ..
        }
    ));
}
