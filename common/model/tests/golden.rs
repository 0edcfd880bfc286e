//! The forward pass against logits that another implementation computed (`tests/parity/parity.py
//! --golden`, Hugging Face transformers), on the CPU kernels and on the tensor formulation.
#![allow(clippy::disallowed_methods)]

use std::path::{Path, PathBuf};

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use safetensors::SafeTensors;
use uc_model::llama::{Embedding, Head, LlamaLayer};
use uc_model::{Cpu, ModelConfig, ModelError, Rope, SourceFolder};

/// Of the largest logit; f32 rounding of a two-layer model stays below 1e-6.
const TOLERANCE: f32 = 3e-6;

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let entries = std::fs::read_dir(root).unwrap();
    let mut cases: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

fn logits<B: Backend>(folder: &Path, windows: &[&[u32]]) -> Vec<f32> {
    let config = ModelConfig::load(folder).unwrap();
    let source = SourceFolder::open(folder).unwrap();
    source.check(&config).unwrap();
    let device = B::Device::default();
    let read = |name: &str| -> Result<Vec<f32>, ModelError> { Ok(source.read_f32(name)?) };
    let rope = Rope::<B>::new(&config, windows[0].len(), &device).unwrap();
    let embedding = Embedding::<B>::new(&config, &read, &device).unwrap();
    let mut hidden = embedding.lookup(windows).unwrap();
    for index in 0..config.layers {
        let prefix = config.layer_plan(index).prefix;
        let of_layer = |name: &str| read(&format!("{prefix}{name}"));
        hidden = LlamaLayer::new(&config, &of_layer, &device)
            .unwrap()
            .forward(hidden, &rope, None);
    }
    let tokens = windows.len() * windows[0].len();
    let hidden: Tensor<B, 2> = hidden.reshape([tokens, config.hidden]);
    let head = Head::<B>::new(&config, &read, &device).unwrap();
    head.logits(hidden).into_data().into_vec().unwrap()
}

fn golden(folder: &Path) -> (Vec<u32>, Vec<f32>) {
    let bytes = std::fs::read(folder.join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name| {
        let data = file
            .tensor(name)
            .unwrap()
            .data()
            .as_chunks::<4>()
            .0
            .to_vec();
        data.into_iter()
    };
    let ids = words("ids").map(u32::from_le_bytes).collect();
    let expected = words("logits").map(f32::from_le_bytes).collect();
    (ids, expected)
}

fn assert_close(folder: &Path, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{}", folder.display());
    let largest = expected.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found - expected).abs();
        assert!(
            difference <= TOLERANCE * largest,
            "{}, logit {index}: {found}, expected {expected}",
            folder.display()
        );
    }
}

#[test]
fn logits_equal_those_of_transformers() {
    assert!(cases().len() >= 7, "golden files are missing");
    for folder in cases() {
        let (ids, expected) = golden(&folder);
        assert_close(&folder, &logits::<Cpu>(&folder, &[&ids]), &expected);
        assert_close(
            &folder,
            &logits::<Autodiff<Cpu>>(&folder, &[&ids]),
            &expected,
        );
    }
}

#[test]
fn windows_of_a_batch_do_not_see_each_other_and_tokens_do_not_see_later_ones() {
    for folder in cases() {
        let (ids, expected) = golden(&folder);
        let other: Vec<u32> = ids.iter().rev().copied().collect();
        let both = logits::<Cpu>(&folder, &[&other, &ids]);
        assert_close(&folder, &both[expected.len()..], &expected);
        let vocab = expected.len() / ids.len();
        let head = logits::<Cpu>(&folder, &[&ids[..20]]);
        assert_close(&folder, &head, &expected[..20 * vocab]);
    }
}
