#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;

use uc_codec::trellis;

use super::*;
use crate::NON_LAYER_FILE;
use crate::sample::{SamplePack, exact, linear};

const NAME: &str = "layers.0.q.weight";

fn sample() -> SamplePack {
    let linears = [
        linear("q.weight", [300, 40], 1, 2),
        linear("o.weight", [24, 64], 2, 0),
    ];
    let ones = exact("norm.weight", ExactDtype::BF16, [0x80, 0x3f].repeat(40));
    let floats = (0..1000).map(|i| 1.0 + 1e-4 * (i as f32 * 0.7).sin());
    let floats = floats.flat_map(f32::to_le_bytes).collect();
    let scaffold = [exact("embed.weight", ExactDtype::F32, floats)];
    SamplePack::new(&linears, &[ones], &scaffold)
}

fn statistics(pack: &Pack, name: &str) -> TensorStatistics {
    tensor_statistics(pack, name).expect("measured")
}

fn code(statistics: &TensorStatistics) -> &CodeStatistics {
    match &statistics.storage {
        Storage::Coded(code) => code,
        Storage::Exact(dtype) => panic!("stored as {dtype:?}"),
    }
}

fn assert_close(found: f64, expected: f64) {
    let scale = found.abs().max(expected.abs()).max(1e-300);
    assert!(
        (found - expected).abs() <= 1e-11 * scale,
        "{found} {expected}"
    );
}

/// The zero-order entropy of some integers, by its definition.
fn plain_entropy(integers: impl Iterator<Item = i32>) -> f64 {
    let mut counts = BTreeMap::new();
    integers.for_each(|i| *counts.entry(i).or_insert(0.0) += 1.0);
    let total: f64 = counts.values().sum();
    counts
        .values()
        .map(|n| -n / total * (n / total).log2())
        .sum()
}

/// Compares a distribution with one that is computed from a sorted list.
fn assert_distribution(found: &ValueStatistics, mut values: Vec<f64>) {
    values.sort_by(f64::total_cmp);
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let moment = |k| values.iter().map(|x| (x - mean).powi(k)).sum::<f64>() / n;
    let deviation = moment(2).sqrt();
    assert_eq!(
        (found.min, found.max),
        (values[0], values[values.len() - 1])
    );
    assert_close(found.mean, mean);
    assert_close(found.standard_deviation, deviation);
    let kurtosis = found.excess_kurtosis.expect("not constant");
    assert!((kurtosis - (moment(4) / moment(2).powi(2) - 3.0)).abs() < 1e-9);
    let count = |is_such: &dyn Fn(&&f64) -> bool| values.iter().filter(is_such).count() as u64;
    assert_eq!(found.zeros, count(&|x| **x == 0.0));
    assert_eq!(
        found.outliers,
        count(&|x| (**x - mean).abs() > 6.0 * deviation)
    );
    assert_eq!(found.quantiles.len(), PROBABILITIES.len());
    for quantile in &found.quantiles {
        let position = (quantile.probability * n).ceil() as usize - 1;
        assert_eq!(quantile.value, values[position], "{quantile:?}");
    }
}

#[test]
fn statistics_of_a_linear_equal_those_computed_from_its_code() {
    let sample = sample();
    let pack = sample.open();
    let found = statistics(&pack, NAME);
    assert_eq!(found, statistics(&pack, "layers.0.q"));
    assert_eq!(
        (found.layer, found.file.as_str()),
        (Some(0), "layer_000.uc")
    );
    assert_eq!(
        (found.shape.as_slice(), found.parameters),
        (&[300, 40][..], 12_000)
    );
    let (stats, entry) = (code(&found), &sample.manifest.layers[0].linears[0]);
    assert_eq!(found.sha256, entry.reconstructed_sha256);
    assert_eq!(stats.bits, entry.bits);
    assert_close(stats.bits_per_weight, entry.bits as f64 / 12_000.0);
    assert_eq!((stats.rank, stats.step), (2, 0.011));

    let file = pack.layer(0).expect("layer");
    let code = file.codes(0).expect("codes");
    let levels = trellis::levels(&code.q, code.cols, &code.row_log2_eighths);
    assert_eq!(stats.levels.total(), 12_000);
    for (value, count) in stats.levels.values.iter().zip(&stats.levels.counts) {
        let expected = levels.iter().filter(|level| *level == value).count() as u64;
        assert_eq!(*count, expected, "level {value}");
    }
    let zeros = levels.iter().filter(|level| **level == 0).count() as u64;
    assert!(zeros > 40, "the first row and others");
    assert_eq!(stats.zero_levels, zeros);
    assert_close(stats.level_entropy, plain_entropy(levels.into_iter()));
    assert_close(
        stats.index_entropy,
        plain_entropy(code.q.iter().map(|&q| q.into())),
    );
    assert!(stats.index_bits_per_weight < stats.bits_per_weight);
    let payload = 8.0 * file.payload_bytes(0) as f64;
    assert_close(stats.index_bits_per_weight, payload / 12_000.0);

    let steps = code.steps();
    let summary = |mut values: Vec<f32>| {
        values.sort_by(f32::total_cmp);
        Summary {
            min: values[0],
            median: values[values.len() / 2],
            max: values[values.len() - 1],
        }
    };
    assert_eq!(stats.column_steps, summary(steps.columns));
    assert_eq!(stats.row_factors, summary(steps.rows));
    let weights = file.reconstruct(0).expect("weights");
    let weights = weights.iter().map(|&w| f64::from(bf16::to_f32(w)));
    assert_distribution(&found.values, weights.collect());
}

#[test]
fn indices_beyond_the_tables_are_counted_as_escapes() {
    let mut narrow = linear("q.weight", [256, 64], 1, 0);
    for at in [77, 5000, 16_000] {
        narrow.code.q[at] = 30_000;
    }
    let sample = SamplePack::new(&[narrow], &[], &[exact("e", ExactDtype::U8, vec![1])]);
    let found = statistics(&sample.open(), NAME);
    assert_eq!(code(&found).escapes, 3);
    assert_eq!(code(&statistics(&self::sample().open(), NAME)).escapes, 0);
}

#[test]
fn statistics_of_exact_tensors_equal_those_computed_from_their_values() {
    let sample = sample();
    let pack = sample.open();
    let norm = statistics(&pack, "layers.0.norm").values;
    assert_eq!((norm.min, norm.max, norm.mean), (1.0, 1.0, 1.0));
    assert_eq!((norm.standard_deviation, norm.outliers), (0.0, 0));
    assert_eq!(norm.excess_kurtosis, None);

    // Values near 1 that differ in the last bits: sums of powers about 0 would lose everything.
    let embedding = statistics(&pack, "embed");
    assert_eq!(embedding.storage, Storage::Exact(ExactDtype::F32));
    assert_eq!(
        (embedding.layer, embedding.file.as_str()),
        (None, NON_LAYER_FILE)
    );
    let floats: Vec<f64> = (0..1000)
        .map(|i| f64::from(1.0 + 1e-4 * (i as f32 * 0.7).sin()))
        .collect();
    let mean = floats.iter().sum::<f64>() / 1000.0;
    let moment = |k| floats.iter().map(|x| (x - mean).powi(k)).sum::<f64>() / 1000.0;
    let values = &embedding.values;
    assert!((values.mean - mean).abs() < 1e-12);
    assert!((values.standard_deviation / moment(2).sqrt() - 1.0).abs() < 1e-9);
    let kurtosis = values.excess_kurtosis.expect("not constant");
    assert!((kurtosis - (moment(4) / moment(2).powi(2) - 3.0)).abs() < 1e-6);
    let in_range = |q: &Quantile| (values.min..=values.max).contains(&q.value);
    assert!(values.quantiles.iter().all(in_range));
}

#[test]
fn values_of_every_element_type_are_understood() {
    let cases: [(ExactDtype, &[u8], f64); 14] = [
        (ExactDtype::F16, &[0x00, 0x3c], 1.0),
        (ExactDtype::F16, &[0x01, 0x00], 2f64.powi(-24)),
        (ExactDtype::F16, &[0xff, 0xfb], -65504.0),
        (ExactDtype::BF16, &[0x80, 0xbf], -1.0),
        (ExactDtype::F8_E4M3, &[0x7e], 448.0),
        (ExactDtype::F8_E4M3, &[0x01], 2f64.powi(-9)),
        (ExactDtype::F8_E5M2, &[0xfb], -57344.0),
        (ExactDtype::I8, &[0xff], -1.0),
        (ExactDtype::BOOL, &[1], 1.0),
        (ExactDtype::I16, &[0, 0x80], -32768.0),
        (ExactDtype::U32, &[255; 4], 4_294_967_295.0),
        (ExactDtype::I64, &[255; 8], -1.0),
        (ExactDtype::F64, &[0, 0, 0, 0, 0, 0, 0xf8, 0x3f], 1.5),
        (ExactDtype::F32, &[0, 0, 0xc0, 0x3f], 1.5),
    ];
    for (dtype, bytes, expected) in cases {
        let found: Vec<_> = values(dtype, bytes).collect();
        assert_eq!(found, [expected], "{dtype:?}");
        let mut counter = ValueCounter::new(dtype);
        counter.bytes(bytes);
        let counted = counter.finish("test", "t").expect("finite");
        assert_eq!(
            (counted.min, counted.max, counted.mean),
            (expected, expected, expected)
        );
    }
    for (dtype, bad) in [
        (ExactDtype::BF16, &[0x80, 0x7f][..]),
        (ExactDtype::F16, &[0x01, 0x7c]),
        (ExactDtype::F8_E4M3, &[0xff]),
        (ExactDtype::F32, &[0, 0, 0x80, 0x7f]),
    ] {
        let mut counter = ValueCounter::new(dtype);
        counter.bytes(&[0; 8]);
        counter.bytes(bad);
        let refused = counter.finish("test", "t").expect_err("not finite");
        assert!(
            refused.to_string().contains("expected finite values"),
            "{refused}"
        );
    }
}

#[test]
fn the_error_against_a_source_equals_that_computed_plainly() {
    let sample = sample();
    let pack = sample.open();
    let weights = pack
        .layer(0)
        .expect("layer")
        .reconstruct(0)
        .expect("weights");
    let weights: Vec<f32> = weights.iter().map(|&w| bf16::to_f32(w)).collect();
    let noise = |i: usize| {
        if i.is_multiple_of(3) {
            0.001 * (i % 7) as f32
        } else {
            0.0
        }
    };
    let reference: Vec<f32> = weights
        .iter()
        .enumerate()
        .map(|(i, w)| w + noise(i))
        .collect();
    let rows_of = |source: &[f32], rows: Range<usize>, out: &mut [f32]| {
        out.copy_from_slice(&source[40 * rows.start..40 * rows.end]);
    };
    let found = error_against::<PackError>(&pack, NAME, |rows, out| {
        rows_of(&reference, rows, out);
        Ok(())
    });
    let found = found.expect("measured");
    let pairs = || {
        reference
            .iter()
            .zip(&weights)
            .map(|(x, y)| (f64::from(*x), f64::from(*y)))
    };
    let error: f64 = pairs().map(|(x, y)| (x - y) * (x - y)).sum();
    let square: f64 = pairs().map(|(x, _)| x * x).sum();
    let other: f64 = pairs().map(|(_, y)| y * y).sum();
    let product: f64 = pairs().map(|(x, y)| x * y).sum();
    let max = pairs().map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
    assert_eq!(found.values, 12_000);
    assert_eq!(
        found.differing,
        pairs().filter(|(x, y)| x != y).count() as u64
    );
    assert_close(
        found.relative_squared_error.expect("not zero"),
        error / square,
    );
    assert_close(
        found.signal_to_noise_db.expect("not zero"),
        10.0 * (square / error).log10(),
    );
    assert_close(found.root_mean_square_error, (error / 12_000.0).sqrt());
    assert_eq!(found.max_absolute_error, max);
    assert_close(
        found.cosine.expect("not zero"),
        product / (square * other).sqrt(),
    );

    let exactly = error_against::<PackError>(&pack, NAME, |rows, out| {
        rows_of(&weights, rows, out);
        Ok(())
    });
    let exactly = exactly.expect("measured");
    assert_eq!(
        (exactly.relative_squared_error, exactly.differing),
        (Some(0.0), 0)
    );
    assert_eq!(exactly.signal_to_noise_db, None);
}

#[test]
fn a_source_that_fails_and_a_tensor_without_error_are_reported() {
    let sample = sample();
    let pack = sample.open();
    let fails = |_: Range<usize>, _: &mut [f32]| Err(invalid("source", "row", "x", "y"));
    let error = error_against::<PackError>(&pack, NAME, fails).expect_err("fails");
    assert_eq!(error.to_string(), "source: row: found x, expected y");
    let error = error_against::<PackError>(&pack, "embed", fails).expect_err("exact");
    assert!(error.to_string().contains("stored exactly"), "{error}");
}

#[test]
fn unknown_names_and_damaged_values_are_refused() {
    let mut sample = sample();
    let error = tensor_statistics(&sample.open(), "layers.0.g.weight").expect_err("unknown");
    assert!(
        error.to_string().contains("did you mean layers.0.q.weight"),
        "{error}"
    );

    let path = sample.path(NON_LAYER_FILE);
    let mut bytes = std::fs::read(&path).expect("read");
    *bytes.last_mut().expect("bytes") ^= 1;
    std::fs::write(&path, bytes).expect("written");
    let error = tensor_statistics(&sample.open(), "embed.weight").expect_err("damaged");
    assert!(matches!(error, PackError::Digest { .. }), "{error}");

    sample.manifest.layers[0].linears[0].reconstructed_sha256 = Digest::hash_bytes(b"other");
    sample.seal();
    let error = tensor_statistics(&sample.open(), NAME).expect_err("not what was recorded");
    assert!(matches!(error, PackError::Digest { .. }), "{error}");
}
