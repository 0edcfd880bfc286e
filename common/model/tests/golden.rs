//! The forward pass against logits that another implementation computed (`tests/parity/parity.py
//! --golden`, Hugging Face transformers), on the CPU kernels and on the tensor formulation.
#![allow(clippy::disallowed_methods)]

use std::path::{Path, PathBuf};

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use safetensors::SafeTensors;
use uc_model::forward::{Embedding, Head, Layer, NoTap, Values};
use uc_model::{Cpu, ModelConfig, ModelError, SourceFolder};

/// Of the largest value; f32 rounding of a two-layer model stays below 1e-6, in long sums a little more.
const TOLERANCE: f32 = 3e-6;

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let entries = std::fs::read_dir(root).unwrap();
    let mut cases: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

/// What a model computes for a window.
struct Computed {
    /// `[layers, tokens, hidden]` the residual stream after each layer.
    hidden: Vec<f32>,
    /// `[tokens, vocab]`
    logits: Vec<f32>,
}

fn computed<B: Backend>(folder: &Path, windows: &[&[u32]]) -> Computed {
    let config = ModelConfig::load(folder).unwrap();
    let source = SourceFolder::open(folder).unwrap();
    source.check(&config).unwrap();
    let device = B::Device::default();
    let read = |name: &str| -> Result<Vec<f32>, ModelError> { Ok(source.read_f32(name)?) };
    let ends = Values::<B, _>::new(&read, &device);
    let mut hidden = Embedding::new(&config, &ends)
        .unwrap()
        .lookup(windows)
        .unwrap();
    let mut states = Vec::new();
    for (spec, plan) in config.layers.iter().zip(config.layer_plans()) {
        let of_layer =
            |name: &str| -> Result<_, ModelError> { Ok(source.read_planned_f32(&plan, name)?) };
        let weights = Values::new(&of_layer, &device);
        let layer = Layer::new(spec, windows[0].len(), &weights, &device).unwrap();
        hidden = layer.forward(hidden, &mut NoTap).unwrap();
        states.extend(hidden.clone().into_data().into_vec::<f32>().unwrap());
    }
    let tokens = windows.len() * windows[0].len();
    let hidden: Tensor<B, 2> = hidden.reshape([tokens, config.hidden]);
    let head = Head::<B>::new(&config, &ends).unwrap();
    Computed {
        hidden: states,
        logits: head.logits(hidden).into_data().into_vec().unwrap(),
    }
}

/// The window's ids, and what transformers computes.
fn golden(folder: &Path) -> (Vec<u32>, Computed) {
    let bytes = std::fs::read(folder.join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| {
        let tensor = file.tensor(name).unwrap();
        let words = tensor.data().as_chunks::<4>().0.to_vec();
        words.into_iter()
    };
    let floats = |name| words(name).map(f32::from_le_bytes).collect();
    let expected = Computed {
        hidden: floats("hidden"),
        logits: floats("logits"),
    };
    (words("ids").map(u32::from_le_bytes).collect(), expected)
}

fn assert_close(folder: &Path, what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(
        found.len(),
        expected.len(),
        "{what} of {}",
        folder.display()
    );
    let largest = expected.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
    let pairs = found.iter().zip(expected);
    let (index, distance) = pairs
        .map(|(found, expected)| (found - expected).abs())
        .enumerate()
        .fold(
            (0, 0.0),
            |worst, new| if new.1 > worst.1 { new } else { worst },
        );
    assert!(
        distance <= TOLERANCE * largest,
        "{}, {what} {index}: {}, expected {} (largest {largest}, ratio {:.1e})",
        folder.display(),
        found[index],
        expected[index],
        distance / largest,
    );
}

#[test]
fn hidden_states_and_logits_equal_those_of_transformers() {
    let families = [
        "deepseek_v3",
        "gemma2",
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "granite",
        "granitemoe",
        "llama",
        "mamba",
        "mamba2",
        "mistral",
        "mixtral",
        "olmo2",
        "phi3",
        "phimoe",
        "qwen2",
        "qwen3",
        "qwen3_moe",
    ];
    for family in families {
        let of_family = |case: &PathBuf| case.to_string_lossy().contains(&format!("/{family}-"));
        assert!(cases().iter().any(of_family), "no golden file of {family}");
    }
    for folder in cases() {
        let (ids, expected) = golden(&folder);
        for found in [
            computed::<Cpu>(&folder, &[&ids]),
            computed::<Autodiff<Cpu>>(&folder, &[&ids]),
        ] {
            assert_close(&folder, "hidden", &found.hidden, &expected.hidden);
            assert_close(&folder, "logit", &found.logits, &expected.logits);
        }
    }
}

#[test]
fn windows_of_a_batch_do_not_see_each_other_and_tokens_do_not_see_later_ones() {
    for folder in cases() {
        let (ids, expected) = golden(&folder);
        let expected = expected.logits;
        let other: Vec<u32> = ids.iter().rev().copied().collect();
        let both = computed::<Cpu>(&folder, &[&other, &ids]).logits;
        assert_close(&folder, "logit", &both[expected.len()..], &expected);
        // Some rotary scalings turn by other angles in a shorter window.
        let stretched = ["longrope", "phi3-partial"];
        let name = folder.to_string_lossy();
        if !stretched.iter().any(|part| name.contains(part)) {
            let vocab = expected.len() / ids.len();
            let head = computed::<Cpu>(&folder, &[&ids[..20]]).logits;
            assert_close(&folder, "logit", &head, &expected[..20 * vocab]);
        }
    }
}
