#![allow(clippy::disallowed_methods)]

use std::sync::atomic::{AtomicU64, Ordering};

use uc_codec::bf16;
use uc_codec::layer::CodedLinear;

use super::*;
use crate::ExactTensor;
use crate::sample::{SamplePack, exact, linear};

fn linears() -> Vec<CodedLinear> {
    vec![
        linear("q.weight", [300, 40], 1, 2),
        linear("k.weight", [24, 40], 2, 0),
        linear("o.weight", [40, 64], 3, 0),
    ]
}

fn norm(scale: u8) -> ExactTensor {
    exact("norm.weight", ExactDtype::BF16, [scale, 0x3f].repeat(40))
}

fn embedding(value: f32) -> ExactTensor {
    let values = [1.0, value, 3.0].repeat(30_000);
    let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
    exact("embed.weight", ExactDtype::F32, bytes)
}

fn compare(a: &SamplePack, b: &SamplePack, options: DiffOptions) -> PackDiff {
    diff(&a.open(), &b.open(), &options, &|_| {}).expect("compared")
}

fn tensor<'a>(found: &'a PackDiff, name: &str) -> &'a TensorDiff {
    let mut tensors = found.tensors.iter();
    tensors.find(|tensor| tensor.name == name).expect("listed")
}

/// Weights of a linear of layer 0.
fn weights(sample: &SamplePack, index: usize) -> Vec<f64> {
    let layer = sample.open().layer(0).expect("layer");
    let weights = layer.reconstruct(index).expect("weights");
    weights
        .iter()
        .map(|&w| f64::from(bf16::to_f32(w)))
        .collect()
}

#[test]
fn a_pack_does_not_differ_from_itself() {
    let sample = SamplePack::new(&linears(), &[norm(0x80)], &[embedding(2.0)]);
    let progress = AtomicU64::new(0);
    let count = |_: Progress| {
        progress.fetch_add(1, Ordering::Relaxed);
    };
    let found = diff(
        &sample.open(),
        &sample.open(),
        &DiffOptions::default(),
        &count,
    );
    let found = found.expect("compared");
    assert!(found.identical && found.same_values() && found.provenance.is_empty());
    assert_eq!((found.summary.identical, found.tensors.len()), (5, 5));
    assert_eq!(found.summary.linears, None);
    // Nothing was decoded.
    assert_eq!(progress.into_inner(), 0);
}

#[test]
fn every_kind_of_difference_is_listed_and_errors_equal_those_of_the_weights() {
    let a = SamplePack::new(&linears(), &[norm(0x80)], &[embedding(2.0)]);
    let mut changed = linears();
    changed[0] = linear("q.weight", [300, 40], 5, 0);
    changed[2] = linear("o.weight", [32, 64], 3, 0);
    changed.push(linear("new.weight", [8, 40], 1, 0));
    let scaffold = [
        embedding(2.5),
        exact("head.weight", ExactDtype::U8, vec![7]),
    ];
    let b = SamplePack::new(&changed, &[norm(0x81)], &scaffold);
    let found = compare(&a, &b, DiffOptions::default());
    let outcomes: Vec<_> = found
        .tensors
        .iter()
        .map(|t| (t.name.as_str(), t.outcome))
        .collect();
    let expected = [
        ("layers.0.q.weight", Outcome::Differs),
        ("layers.0.k.weight", Outcome::Identical),
        ("layers.0.o.weight", Outcome::Incomparable),
        ("layers.0.norm.weight", Outcome::Differs),
        ("embed.weight", Outcome::Differs),
        ("layers.0.new.weight", Outcome::OnlyInB),
        ("head.weight", Outcome::OnlyInB),
    ];
    assert_eq!(outcomes, expected);
    assert!(!found.identical && !found.same_values());
    let summary = &found.summary;
    let counts = [summary.identical, summary.differing, summary.incomparable];
    assert_eq!(
        (counts, summary.only_in_a, summary.only_in_b),
        ([1, 3, 1], 0, 2)
    );

    let (x, y) = (weights(&a, 0), weights(&b, 0));
    let pairs = || x.iter().zip(&y);
    let q = tensor(&found, "layers.0.q.weight");
    let error = q.error.as_ref().expect("decoded");
    let square: f64 = x.iter().map(|x| x * x).sum();
    let squared_error: f64 = pairs().map(|(x, y)| (x - y).powi(2)).sum();
    let relative = error.relative_squared_error.expect("not zero");
    assert!((relative / (squared_error / square) - 1.0).abs() < 1e-12);
    assert_eq!(
        error.max_absolute_error,
        pairs().map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
    );
    assert_eq!(
        error.differing,
        pairs().filter(|(x, y)| x != y).count() as u64
    );
    assert_eq!(summary.linears.as_ref(), Some(error));
    let (left, right) = (q.a.as_ref().expect("a"), q.b.as_ref().expect("b"));
    assert_eq!((left.rank, right.rank), (Some(2), Some(0)));
    let steps = [linears()[0].code.step, changed[0].code.step];
    assert_eq!([left.step, right.step], steps.map(Some));
    assert_eq!(left.bits, a.manifest.layers[0].linears[0].bits);
    assert_eq!(tensor(&found, "layers.0.k.weight").error, None);

    let norm = tensor(&found, "layers.0.norm.weight")
        .error
        .as_ref()
        .expect("read");
    assert_eq!(
        (norm.differing, norm.max_absolute_error),
        (40, 2f64.powi(-7))
    );
    let embedding = tensor(&found, "embed.weight").error.as_ref().expect("read");
    assert_eq!(
        (embedding.differing, embedding.max_absolute_error),
        (30_000, 0.5)
    );
    let exact = summary.exact.as_ref().expect("read");
    assert_eq!((exact.values, exact.differing), (90_040, 30_040));
}

#[test]
fn the_result_is_the_same_for_any_number_of_threads_and_the_progress_ends_at_its_total() {
    let a = SamplePack::new(&linears(), &[norm(0x80)], &[embedding(2.0)]);
    let mut changed = linears();
    changed[0].code.step = 0.02;
    changed[1].code.step = 0.02;
    let b = SamplePack::new(&changed, &[norm(0x81)], &[embedding(2.5)]);
    let with = |threads| {
        compare(
            &a,
            &b,
            DiffOptions {
                threads,
                ..DiffOptions::default()
            },
        )
    };
    assert_eq!(with(1), with(3));
    let largest = AtomicU64::new(0);
    let options = DiffOptions::default();
    diff(&a.open(), &b.open(), &options, &|progress| {
        assert_eq!(progress.total, 4 * (12_000 + 960 + 40 + 90_000));
        largest.fetch_max(progress.done, Ordering::Relaxed);
    })
    .expect("compared");
    assert_eq!(largest.into_inner(), 4 * (12_000 + 960 + 40 + 90_000));
}

#[test]
fn without_decoding_only_manifests_are_read() {
    let a = SamplePack::new(&linears(), &[norm(0x80)], &[embedding(2.0)]);
    let mut changed = linears();
    changed[0].code.step = 0.02;
    let b = SamplePack::new(&changed, &[norm(0x80)], &[embedding(2.0)]);
    std::fs::remove_file(a.path("layer_000.uc")).expect("removed");
    let options = DiffOptions {
        decode: false,
        ..DiffOptions::default()
    };
    let found = compare(&a, &b, options);
    assert_eq!(
        (found.summary.differing, &found.summary.linears),
        (1, &None)
    );
    let q = tensor(&found, "layers.0.q.weight");
    assert_eq!((q.outcome, &q.error), (Outcome::Differs, &None));
    let refused = diff(&a.open(), &b.open(), &DiffOptions::default(), &|_| {});
    assert!(matches!(refused, Err(PackError::Io { .. })));
}

#[test]
fn a_layer_can_be_asked_for_and_one_that_no_pack_has_is_refused() {
    let sample = SamplePack::new(&linears(), &[norm(0x80)], &[embedding(2.0)]);
    let of = |layer| DiffOptions {
        layer: Some(layer),
        ..DiffOptions::default()
    };
    assert_eq!(compare(&sample, &sample, of(0)).tensors.len(), 4);
    let refused = diff(&sample.open(), &sample.open(), &of(1), &|_| {});
    assert!(matches!(refused, Err(PackError::NoLayer { layer: 1, .. })));
}

#[test]
fn packs_of_different_models_are_refused_by_name_and_damaged_ones_by_file() {
    let a = SamplePack::new(&linears(), &[], &[embedding(2.0)]);
    let mut b = SamplePack::new(&[linear("q.weight", [8, 8], 1, 0)], &[], &[embedding(2.0)]);
    b.manifest.source.name = "another".into();
    b.seal();
    let refused = diff(&a.open(), &b.open(), &DiffOptions::default(), &|_| {});
    let message = refused.expect_err("different models").to_string();
    assert!(
        message.contains("(of model: 1 layers, 15520 weights"),
        "{message}"
    );
    assert!(
        message.contains("(of another: 1 layers, 64 weights"),
        "{message}"
    );

    let mut changed = linears();
    changed[0].code.step = 0.02;
    let b = SamplePack::new(&changed, &[], &[embedding(2.0)]);
    let path = b.path("layer_000.uc");
    let mut bytes = std::fs::read(&path).expect("read");
    *bytes.last_mut().expect("bytes") ^= 1;
    std::fs::write(&path, bytes).expect("written");
    let refused = diff(&a.open(), &b.open(), &DiffOptions::default(), &|_| {});
    assert!(matches!(refused, Err(PackError::Digest { .. })));
}

#[test]
fn provenance_names_every_field_that_differs_also_those_that_an_older_encoder_did_not_record() {
    let a = SamplePack::new(&linears(), &[], &[embedding(2.0)]);
    let mut b = SamplePack::new(&linears(), &[], &[embedding(2.0)]);
    b.manifest.tool.version = "0.1".into();
    b.manifest.codec.arithmetic = None;
    b.manifest
        .codec
        .settings
        .insert("quantize.bpw".into(), "4.0".into());
    b.seal();
    let found = compare(&a, &b, DiffOptions::default());
    let some = |text: &str| Some(text.to_owned());
    let expected = [
        ("tool.version", some("0"), some("0.1")),
        ("codec.arithmetic", some("f32 on cpu"), None),
        ("codec.settings.quantize.bpw", some("5.0"), some("4.0")),
    ];
    let expected = expected.map(|(field, a, b)| FieldDiff {
        field: field.to_owned(),
        a,
        b,
    });
    assert_eq!(found.provenance, expected);
    assert!(!found.identical && found.same_values());
}
