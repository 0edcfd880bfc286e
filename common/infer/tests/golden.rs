//! Compares the runtime with Hugging Face transformers (the golden files of `tests/parity/parity.py --golden`) on every family,
//! and shows that the logits of a sequence depend on its own tokens alone.
#![allow(clippy::disallowed_methods)]

mod models;

use std::path::Path;

use models::{Linears, cases, model};
use safetensors::SafeTensors;
use uc_infer::{Chunk, InferError, Model, Precision, Sequence, Wanted};

/// Largest accepted error, relative to the largest value: that of the evaluator's own forward pass.
const TOLERANCE: f32 = 3e-6;

/// The token ids of a golden case, and the logits of transformers.
fn golden(folder: &Path) -> (Vec<u32>, Vec<f32>) {
    let bytes = std::fs::read(folder.join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| {
        file.tensor(name)
            .unwrap()
            .data()
            .as_chunks::<4>()
            .0
            .to_vec()
    };
    (
        words("ids").into_iter().map(u32::from_le_bytes).collect(),
        words("logits")
            .into_iter()
            .map(f32::from_le_bytes)
            .collect(),
    )
}

/// All logits of the tokens, computed in chunks of these lengths (the last as often as needed).
fn logits(model: &Model, ids: &[u32], context: usize, chunks: &[usize]) -> Vec<f32> {
    let mut sequence = Sequence::new(model, context, Precision::F32).unwrap();
    let mut rest = ids;
    let mut found = Vec::new();
    let mut lengths = chunks
        .iter()
        .chain(std::iter::repeat(chunks.last().unwrap()));
    while !rest.is_empty() {
        let count = (*lengths.next().unwrap()).min(rest.len());
        let (tokens, after) = rest.split_at(count);
        let chunk = Chunk {
            sequence: &mut sequence,
            tokens,
            wanted: Wanted::All,
        };
        found.extend(model.forward(&mut [chunk]).unwrap().remove(0));
        rest = after;
    }
    assert_eq!(sequence.tokens(), ids);
    found
}

fn assert_close(folder: &Path, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{}", folder.display());
    let largest = expected.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
    let errors = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    let worst = errors.fold(0.0, f32::max) / largest;
    assert!(worst <= TOLERANCE, "{}: {worst:.1e}", folder.display());
}

fn assert_same_bits(what: &str, folder: &Path, found: &[f32], expected: &[f32]) {
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(
        bits(found) == bits(expected),
        "{}: {what}",
        folder.display()
    );
}

fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.unwrap().install(work)
}

#[test]
fn logits_equal_those_of_transformers() {
    assert!(cases().len() > 50, "golden files of every family");
    for folder in cases() {
        let (ids, expected) = golden(&folder);
        let model = model(&folder, Linears::Exact);
        assert_close(
            &folder,
            &logits(&model, &ids, ids.len(), &[ids.len()]),
            &expected,
        );
    }
}

#[test]
fn logits_have_the_same_bits_for_every_chunking_and_number_of_threads_and_from_a_shared_prefix() {
    for (folder, linears) in cases()
        .into_iter()
        .flat_map(|folder| [Linears::Coded, Linears::Fast].map(|linears| (folder.clone(), linears)))
    {
        let (ids, _) = golden(&folder);
        let model = model(&folder, linears);
        let context = ids.len();
        let whole = on_threads(1, || logits(&model, &ids, context, &[context]));
        for chunks in [&[1][..], &[7, 1], &[20, 3, 5]] {
            let found = on_threads(3, || logits(&model, &ids, context, chunks));
            assert_same_bits(&format!("chunks {chunks:?}"), &folder, &found, &whole);
        }
        let mut prefix = Sequence::new(&model, context, Precision::F32).unwrap();
        let (first, rest) = ids.split_at(context / 2);
        let step = |sequence: &mut Sequence, tokens: &[u32]| {
            let chunk = Chunk {
                sequence,
                tokens,
                wanted: Wanted::Last,
            };
            model.forward(&mut [chunk]).unwrap().remove(0)
        };
        step(&mut prefix, first);
        let mut forked = prefix.clone();
        step(&mut prefix, &rest[..1]);
        let found = step(&mut forked, rest);
        let last = &whole[whole.len() - found.len()..];
        assert_same_bits("from a shared prefix", &folder, &found, last);
    }
}

#[test]
fn logits_have_the_same_bits_whatever_else_is_in_the_batch() {
    for folder in cases() {
        let (ids, _) = golden(&folder);
        let model = model(&folder, Linears::Fast);
        let context = ids.len();
        let alone = logits(&model, &ids, context, &[context]);
        let other: Vec<u32> = ids.iter().rev().copied().collect();
        let new = || Sequence::new(&model, context, Precision::F32).unwrap();
        let (mut a, mut b, mut c) = (new(), new(), new());
        let (first, second) = ids.split_at(context / 3);
        let mut found = Vec::new();
        for (tokens, neighbour) in [(first, &other[..4]), (second, &other[4..5])] {
            let chunk = |sequence, tokens, wanted| Chunk {
                sequence,
                tokens,
                wanted,
            };
            let mut batch = [
                chunk(&mut b, neighbour, Wanted::None),
                chunk(&mut a, tokens, Wanted::All),
                chunk(&mut c, &other[1..2], Wanted::Last),
            ];
            let logits = model.forward(&mut batch).unwrap();
            assert!(logits[0].is_empty());
            assert_eq!(logits[2].len(), model.config().vocab);
            found.extend(&logits[1]);
        }
        assert_same_bits("in a batch", &folder, &found, &alone);
    }
}

#[test]
fn compressed_linears_give_the_bits_of_their_reconstruction() {
    for folder in cases() {
        let (ids, _) = golden(&folder);
        let coded = model(&folder, Linears::Coded);
        let memory = coded.memory();
        assert!(memory.linear_weights > 0, "{}", folder.display());
        assert!(memory.linear_bits() > 8.0, "{}", memory.linear_bits());
        let reconstructed = model(&folder, Linears::Reconstructed);
        let context = ids.len();
        let found = logits(&coded, &ids, context, &[5]);
        let expected = logits(&reconstructed, &ids, context, &[context]);
        assert_same_bits("coded", &folder, &found, &expected);
    }
}

#[test]
fn fast_arithmetic_is_close_to_exact() {
    let mut errors = Vec::new();
    for folder in cases() {
        let (ids, _) = golden(&folder);
        let [exact, fast] = [Linears::Coded, Linears::Fast].map(|linears| {
            let model = model(&folder, linears);
            logits(&model, &ids, ids.len(), &[ids.len()])
        });
        let square = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let differences: Vec<f32> = exact.iter().zip(&fast).map(|(a, b)| a - b).collect();
        errors.push((square(&differences) / square(&exact)).sqrt());
    }
    assert!(errors.iter().all(|&error| error > 0.0));
    errors.sort_by(f64::total_cmp);
    // The rounding of weights to bfloat16, mostly. A token that a router sends elsewhere counts in full.
    assert!(errors[errors.len() / 2] < 0.02, "{errors:?}");
    assert!(errors[errors.len() - 1] < 0.2, "{errors:?}");
}

#[test]
fn a_cache_in_half_precision_changes_logits_a_little_and_what_is_out_of_range_is_refused() {
    let folder = cases()
        .into_iter()
        .find(|case| case.ends_with("llama-plain"))
        .unwrap();
    let (ids, expected) = golden(&folder);
    let model = model(&folder, Linears::Exact);
    let other = models::model(&folder, Linears::Exact);
    let largest = expected.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
    for (precision, tolerance) in [(Precision::F16, 2e-3), (Precision::Bf16, 2e-2)] {
        let mut sequence = Sequence::new(&model, ids.len(), precision).unwrap();
        let forward = |sequence: &mut Sequence, tokens: &[u32]| {
            let chunk = Chunk {
                sequence,
                tokens,
                wanted: Wanted::All,
            };
            model
                .forward(&mut [chunk])
                .map(|mut logits| logits.remove(0))
        };
        let found = forward(&mut sequence, &ids).unwrap();
        let errors = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        let worst = errors.fold(0.0, f32::max) / largest;
        assert!(worst > 0.0 && worst < tolerance, "{worst:.1e}");

        let full = forward(&mut sequence, &ids[..1]).unwrap_err();
        assert!(matches!(full, InferError::Context { .. }), "{full}");
        let mut sequence = Sequence::new(&model, 4, precision).unwrap();
        let long = forward(&mut sequence, &ids[..5]).unwrap_err();
        assert!(long.to_string().contains("at most 4"), "{long}");
        let vocab = model.config().vocab as u32;
        let outside = forward(&mut sequence, &[0, vocab]).unwrap_err();
        assert!(matches!(outside, InferError::Token { .. }), "{outside}");
        let empty = forward(&mut sequence, &[]).unwrap_err();
        assert!(matches!(empty, InferError::Empty), "{empty}");
        assert_eq!(
            sequence.tokens().len(),
            0,
            "a refused chunk changes nothing"
        );
        let mut foreign = Sequence::new(&other, 4, precision).unwrap();
        let foreign = forward(&mut foreign, &ids[..1]).unwrap_err();
        assert!(matches!(foreign, InferError::OtherModel), "{foreign}");
    }
    let context = model.config().context;
    for wrong in [0, context + 1] {
        let error = Sequence::new(&model, wrong, Precision::F32).unwrap_err();
        assert!(matches!(error, InferError::ContextRange { .. }), "{error}");
    }
}
