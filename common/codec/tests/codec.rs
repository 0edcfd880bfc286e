//! The codec from weights to bytes and back: gains, budgets, determinism, equal bits on every path, damaged input.

mod random;

use proptest::prelude::*;
use random::{Random, correlated, gradient_moments};
use uc_codec::contexts::{LayerTables, context_entropy, row_log2_eighths};
use uc_codec::rate::{RateProbe, SampledRows};
use uc_codec::steps::Steps;
use uc_codec::{
    LowRank, Matrix, TensorCode, bf16, factor, feedback, output_error, rans, rate, reconstruct,
    steps, trellis,
};

fn sampled(w: &[f32], m: usize, n: usize, rows: usize) -> SampledRows {
    SampledRows::new(&Matrix::new(w, m, n).expect("a matrix"), rows).expect("rows")
}

fn coded(rows: usize, cols: usize, q: Vec<i16>, column_log2_eighths: Vec<u8>) -> TensorCode {
    let row_log2_eighths = row_log2_eighths(&q, rows, &column_log2_eighths).expect("logarithms");
    TensorCode {
        rows,
        cols,
        step: 0.01,
        column_log2_eighths,
        row_log2_eighths,
        row_step_log2_eighths: vec![0; rows],
        q,
        overlay: None,
    }
}

fn values(code: &TensorCode) -> Vec<f32> {
    reconstruct::reconstruct(code)
        .expect("valid")
        .into_iter()
        .map(bf16::to_f32)
        .collect()
}

#[test]
fn error_feedback_has_a_fraction_of_the_error_of_rounding() {
    let (m, n) = (64, 96);
    let mut random = Random(1);
    let h = correlated(n, &mut random);
    let w = random.normals(m * n);
    let factor = factor::factorize(&h, n, 0.01).expect("factor");
    let step = 0.1f32;
    let steps = Steps {
        columns: vec![step; n],
        rows: vec![1.0; m],
    };
    let q = feedback::quantize(&w, m, n, &factor, None, &steps).expect("quantized");
    let levels = trellis::levels(&q, n, &vec![1; m]);
    let with_feedback: Vec<f32> = levels.iter().map(|&level| level as f32 * step).collect();
    let rounded: Vec<f32> = w
        .iter()
        .map(|x| (x / (2.0 * step)).round() * 2.0 * step)
        .collect();
    let error = |approximation: &[f32]| {
        output_error::relative_output_error(&w, approximation, m, n, &h).expect("error")
    };
    let (with_feedback, rounded) = (error(&with_feedback), error(&rounded));
    assert!(
        with_feedback < 0.4 * rounded,
        "{with_feedback} against {rounded}"
    );
}

#[test]
fn a_probe_predicts_the_rate_of_the_whole_tensor() {
    let (m, n) = (512, 128);
    let mut random = Random(2);
    let h = correlated(n, &mut random);
    let w = random.normals(m * n);
    let factor = factor::factorize(&h, n, 0.01).expect("factor");
    let (column_log2_eighths, base) =
        steps::step_log2_eighths(&factor.inv_diag).expect("logarithms");
    for target in [2.5, 4.0, 5.0] {
        let row_step_log2_eighths: Vec<u8> = (0..m).map(|row| (row / 4 % 24) as u8).collect();
        let sampled = sampled(&w, m, n, 256);
        let rate_probe = RateProbe {
            sampled: &sampled,
            factor: &factor,
            column_log2_eighths: &column_log2_eighths,
            row_step_log2_eighths: &row_step_log2_eighths,
            progress: &|| {},
        };
        let choice = rate::choose_step(rate_probe, base, None, target).expect("step");
        let steps = Steps::new(choice.step, &column_log2_eighths, &row_step_log2_eighths);
        let q = feedback::quantize(&w, m, n, &factor, None, &steps).expect("quantized");
        let code = coded(m, n, q, column_log2_eighths.clone());
        let bits = context_entropy(&[&code], 1).expect("entropy") / (m * n) as f64;
        assert!((bits - target).abs() < 0.05, "{bits} for {target}");
    }
}

#[test]
fn the_search_for_rate_and_error_ends_at_both_ends_of_the_range_of_steps() {
    let (m, n) = (64, 32);
    let mut random = Random(12);
    let w = random.normals(m * n);
    let factor = factor::factorize(&correlated(n, &mut random), n, 0.01).expect("factor");
    let (columns, base) = steps::step_log2_eighths(&factor.inv_diag).expect("logarithms");
    // From subnormal weights, below the smallest step, to weights above the largest one.
    for scale in [1e-40f32, 1e-36, 1e-30, 1.0, 1e18, 1e22, 1e37] {
        let w: Vec<f32> = w.iter().map(|x| x * scale).collect();
        let sampled = sampled(&w, m, n, 64);
        let rate_probe = RateProbe {
            sampled: &sampled,
            factor: &factor,
            column_log2_eighths: &columns,
            row_step_log2_eighths: &vec![0; m],
            progress: &|| {},
        };
        let curve = rate::curve::measure(rate_probe, base, 5.0).expect("a curve");
        let lambdas: Vec<f64> = curve.points.iter().map(|point| point.lambda).collect();
        let is_ordered = lambdas.is_sorted_by(|a, b| a > b);
        assert!(is_ordered, "{scale}: {lambdas:?}");
        assert!((1..=14).contains(&lambdas.len()), "{scale}: {lambdas:?}");
    }
}

#[test]
fn the_coder_stays_within_a_hundredth_of_a_bit_of_the_entropy_of_its_contexts() {
    let (rows, cols) = (1024, 1024);
    let mut random = Random(3);
    let q: Vec<i16> = (0..rows * cols)
        .map(|_| (random.normal() * 7.7).round() as i16)
        .collect();
    let code = coded(rows, cols, q, vec![0; cols]);
    let tables = LayerTables::build(&[&code]).expect("tables");
    let encoded = rans::encode(&code, &tables).expect("encoded");
    let bits = 8.0
        * (encoded.payload.len() + 8 * encoded.tile_offsets.len() + tables.to_bytes().len()) as f64;
    let entropy = context_entropy(&[&code], tables.granularity()).expect("entropy");
    let overhead = (bits - entropy) / code.weights() as f64;
    assert!((0.0..0.01).contains(&overhead), "{overhead}");
}

#[test]
fn one_and_three_threads_give_the_same_bits() {
    let (m, n) = (200, 160);
    let mut random = Random(4);
    let h = correlated(n, &mut random);
    let w = random.normals(m * n);
    let work = || {
        let factor = factor::factorize(&h, n, 0.01).expect("factor");
        let (column_log2_eighths, base) =
            steps::step_log2_eighths(&factor.inv_diag).expect("logarithms");
        let outputs = factor::factorize(&gradient_moments(m), m, 0.1).expect("outputs");
        let (row_step_log2_eighths, _) =
            steps::step_log2_eighths(&outputs.inv_diag).expect("logarithms");
        let sampled = sampled(&w, m, n, 64);
        let rate_probe = RateProbe {
            sampled: &sampled,
            factor: &factor,
            column_log2_eighths: &column_log2_eighths,
            row_step_log2_eighths: &row_step_log2_eighths,
            progress: &|| {},
        };
        let choice = rate::choose_step(rate_probe, base, None, 4.0).expect("step");
        let steps = Steps::new(choice.step, &column_log2_eighths, &row_step_log2_eighths);
        let q = feedback::quantize(&w, m, n, &factor, Some(&outputs), &steps).expect("quantized");
        let mut code = coded(m, n, q, column_log2_eighths);
        (code.step, code.row_step_log2_eighths) = (choice.step, row_step_log2_eighths);
        let residual = code
            .residual(&Matrix::new(&w, m, n).expect("a matrix"))
            .expect("residual");
        let fit =
            uc_codec::overlay::fit(residual.clone(), m, n, &factor, &steps.rows, 6).expect("fit");
        code.overlay = fit.low_rank(6);
        let tables = LayerTables::build(&[&code]).expect("tables");
        let encoded = rans::encode(&code, &tables).expect("encoded");
        let bits: Vec<u32> = factor.a.iter().map(|x| x.to_bits()).collect();
        (bits, encoded.payload, values(&code))
    };
    let with = |threads: usize| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("pool")
            .install(work)
    };
    let (one, three) = (with(1), with(3));
    assert!(one == three);
}

#[test]
fn a_correction_recovers_a_residual_of_low_rank_and_is_not_worth_its_bits_for_noise() {
    let (m, n) = (96, 80);
    let mut random = Random(5);
    let h = correlated(n, &mut random);
    let factor = factor::factorize(&h, n, 0.01).expect("factor");
    let (u, v) = (random.normals(m * 2), random.normals(2 * n));
    let low_rank: Vec<f32> = (0..m * n)
        .map(|e| {
            (0..2)
                .map(|r| u[(e / n) * 2 + r] * v[r * n + e % n])
                .sum::<f32>()
        })
        .collect();
    let rows: Vec<f32> = (0..m).map(|row| 1.0 + (row % 3) as f32).collect();
    let fit = uc_codec::overlay::fit(low_rank.clone(), m, n, &factor, &rows, 4).expect("fit");
    assert!(fit.captured_energy(2) > 0.999, "{}", fit.captured_energy(2));
    let noise = random.normals(m * n);
    let identity: Vec<f32> = (0..n * n)
        .map(|e| if e / n == e % n { 1.0 } else { 0.0 })
        .collect();
    let unweighted = factor::factorize(&identity, n, 0.01).expect("factor");
    assert_eq!(
        uc_codec::overlay::fit(noise.clone(), m, n, &unweighted, &vec![1.0; m], 16)
            .expect("fit")
            .best_rank(),
        0
    );
}

/// Weights `[m, n]` and second moments `[n, n]` of a difficult layer.
struct HardCase {
    name: &'static str,
    m: usize,
    n: usize,
    w: Vec<f32>,
    h: Vec<f32>,
}

fn hard_cases() -> Vec<HardCase> {
    let mut random = Random(7);
    let diagonal = |n: usize, at: &dyn Fn(usize) -> f32| -> Vec<f32> {
        (0..n * n)
            .map(|e| if e / n == e % n { at(e / n) } else { 0.0 })
            .collect()
    };
    let mut cases = Vec::new();
    let mut case = |name, m, n, w, h| cases.push(HardCase { name, m, n, w, h });
    let (m, n) = (160, 64);
    let w = random.normals(m * n);
    let tokens: Vec<Vec<f32>> = (0..3).map(|_| random.normals(n)).collect();
    let three_tokens = (0..n * n)
        .map(|e| tokens.iter().map(|x| x[e / n] * x[e % n]).sum::<f32>() / 3.0)
        .collect();
    case(
        "an expert that saw three tokens",
        m,
        n,
        w.clone(),
        three_tokens,
    );
    case("an expert that saw none", m, n, w.clone(), vec![0.0; n * n]);
    let outlier = diagonal(n, &|j| if j == 5 { 1e8 } else { 1.0 });
    case("a massive input channel", m, n, w.clone(), outlier);
    let dead = diagonal(n, &|j| if j % 4 == 0 { 0.0 } else { 1.0 });
    case("dead inputs", m, n, w.clone(), dead);
    let constant = (0..m * n)
        .map(|e| if e / n % 2 == 0 { 0.3 } else { w[e] })
        .collect();
    case("constant rows", m, n, constant, diagonal(n, &|_| 1.0));
    let spread = (0..m * n)
        .map(|e| w[e] * 10f32.powi((e / n % 7) as i32 - 4))
        .collect();
    case(
        "rows of very different size",
        m,
        n,
        spread,
        diagonal(n, &|_| 1.0),
    );
    case("one row", 1, n, w[..n].to_vec(), diagonal(n, &|_| 1.0));
    case("one column", m, 1, w[..m].to_vec(), vec![2.0]);
    case("one weight", 1, 1, vec![0.7], vec![1.0]);
    let wide = 3000;
    let values = random.normals(4 * wide);
    case(
        "a wide layer of four rows",
        4,
        wide,
        values,
        diagonal(wide, &|j| 1.0 + (j % 9) as f32),
    );
    cases
}

#[test]
fn difficult_layers_are_quantized_within_the_error_that_their_bits_allow() {
    for HardCase { name, m, n, w, h } in hard_cases() {
        let factor = factor::factorize(&h, n, 0.001).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (mut column_log2_eighths, base) =
            steps::step_log2_eighths(&factor.inv_diag).expect("logarithms");
        let row_step_log2_eighths = vec![0; m];
        let sampled = sampled(&w, m, n, 64);
        let rate_probe = RateProbe {
            sampled: &sampled,
            factor: &factor,
            column_log2_eighths: &column_log2_eighths,
            row_step_log2_eighths: &row_step_log2_eighths,
            progress: &|| {},
        };
        let choice = rate::choose_step(rate_probe, base, None, 6.0).expect("step");
        let peaks = steps::column_peaks(&w, n, &row_step_log2_eighths);
        steps::bound_levels(&peaks, choice.step, &mut column_log2_eighths);
        let steps = Steps::new(choice.step, &column_log2_eighths, &row_step_log2_eighths);
        let q = feedback::quantize(&w, m, n, &factor, None, &steps).expect("quantized");
        let mut code = coded(m, n, q, column_log2_eighths);
        code.step = choice.step;
        let tables = LayerTables::build(&[&code]).expect("tables");
        let e = rans::encode(&code, &tables).expect("encoded");
        let decoded = rans::decode(
            m,
            n,
            &code.row_log2_eighths,
            &code.column_log2_eighths,
            &tables,
            e.tile_rows,
            &e.tile_offsets,
            &e.payload,
        );
        assert!(decoded.as_ref() == Ok(&code.q), "{name}");
        let values = values(&code);
        assert!(values.iter().all(|value| value.is_finite()), "{name}");
        let error = output_error::relative_output_error(&w, &values, m, n, &h).expect("error");
        // At six bits, 2^-12 of the energy of white weights remains as error; with few weights the step may be coarser.
        assert!(error < 0.004 || m * n <= n.max(m), "{name}: {error}");
    }
}

/// The weights of a tensor, reconstructed in pieces of `piece` rows.
fn in_pieces(code: &TensorCode, piece: usize) -> Vec<u16> {
    let overlay = code.overlay.as_ref();
    let (rank, u, v) = overlay.map_or((0, &[][..], &[][..]), |o| (o.rank, &o.u[..], &o.v[..]));
    let columns = &code.column_log2_eighths;
    let mut pieces =
        reconstruct::PieceReconstructor::new(code.step, columns, rank, v).expect("valid");
    let mut out = vec![0; code.q.len()];
    for (number, out) in out.chunks_mut(piece * code.cols).enumerate() {
        let rows = number * piece..code.rows.min((number + 1) * piece);
        let q = &code.q[rows.start * code.cols..rows.end * code.cols];
        let logs = &code.row_log2_eighths[rows.clone()];
        let steps = &code.row_step_log2_eighths[rows.clone()];
        let u = &u[rows.start * rank..rows.end * rank];
        pieces.rows(q, logs, steps, u, out).expect("valid");
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn indices_of_any_shape_and_width_are_decoded_unchanged(
        rows in 1usize..40, cols in 1usize..100, width in 0.0f32..3000.0, seed in any::<u64>(), outliers in any::<bool>()
    ) {
        let mut random = Random(seed);
        let mut q: Vec<i16> = (0..rows * cols).map(|_| (random.normal() * width) as i16).collect();
        if outliers {
            q[0] = i16::MAX;
            q[rows * cols - 1] = -i16::MAX;
        }
        let column_log2_eighths = (0..cols).map(|_| (random.bits() % 20) as u8).collect();
        let code = coded(rows, cols, q, column_log2_eighths);
        let tables = LayerTables::build(&[&code]).expect("tables");
        let tables = LayerTables::from_bytes(&tables.to_bytes()).expect("tables are read back");
        let e = rans::encode(&code, &tables).expect("encoded");
        let found = rans::decode(
            rows, cols, &code.row_log2_eighths, &code.column_log2_eighths, &tables, e.tile_rows, &e.tile_offsets, &e.payload,
        );
        prop_assert_eq!(found.expect("decoded"), code.q);
    }

    #[test]
    fn damaged_payloads_and_tables_are_refused_or_decode_to_other_indices_but_never_panic(
        at in any::<usize>(), bit in 0u8..8, cut in any::<bool>()
    ) {
        let mut random = Random(9);
        let q: Vec<i16> = (0..60 * 50).map(|_| (random.normal() * 8.0) as i16).collect();
        let code = coded(60, 50, q, vec![3; 50]);
        let tables = LayerTables::build(&[&code]).expect("tables");
        let e = rans::encode(&code, &tables).expect("encoded");
        let damage = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            let at = at % bytes.len();
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            bytes
        };
        let payload = damage(&e.payload);
        let found = rans::decode(
            60, 50, &code.row_log2_eighths, &code.column_log2_eighths, &tables, e.tile_rows, &e.tile_offsets, &payload,
        );
        // The coder is a bijection: damaged bytes are invalid, or the code of other indices.
        prop_assert!(found.as_ref() != Ok(&code.q));
        prop_assert!(!cut || found.is_err());
        if let Ok(other) = LayerTables::from_bytes(&damage(&tables.to_bytes())) {
            let _ = rans::decode(
                60, 50, &code.row_log2_eighths, &code.column_log2_eighths, &other, e.tile_rows, &e.tile_offsets, &e.payload,
            );
        }
    }

    #[test]
    fn the_fast_reconstruction_has_the_bits_of_the_specification(
        rows in 1usize..300, cols in 1usize..600, rank in 0usize..5, zero in 0usize..300, seed in any::<u64>()
    ) {
        let mut random = Random(seed);
        let q = (0..rows * cols).map(|_| (random.normal() * 9.0) as i16).collect();
        let mut code = coded(rows, cols, q, (0..cols).map(|_| (random.bits() % 60) as u8).collect());
        code.row_log2_eighths[zero % rows] = 0;
        let mut words = |count: usize| -> Vec<u16> {
            random.normals(count).into_iter().map(bf16::round_nearest_even).collect()
        };
        if rank > 0 {
            code.overlay = Some(LowRank { rank, u: words(rows * rank), v: words(rank * cols) });
        }
        let fast = reconstruct::reconstruct(&code).expect("fast");
        for row in (0..rows).step_by(1 + rows / 8) {
            let specified = reconstruct::reconstruct_row(&code, row).expect("specified");
            prop_assert_eq!(&fast[row * cols..(row + 1) * cols], specified.as_slice());
        }
        for piece in [1, 7, 300] {
            prop_assert_eq!(&in_pieces(&code, piece), &fast, "pieces of {} rows", piece);
        }
    }
}
