//! The forward pass against logits that another implementation computed (`tests/parity/parity.py
//! --golden`, Hugging Face transformers), on the CPU kernels and on the tensor formulation; and, on the same
//! models, what a tap sees and the gradients.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::backend::Autodiff;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use safetensors::SafeTensors;
use uc_model::forward::{Embedding, Head, Layer, NoTap, Tap, Traced, Values};
use uc_model::spec::{LayerSpec, Mixer};
use uc_model::{Cpu, LayerPlan, ModelConfig, ModelError, SourceFolder};

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
    assert_within(folder, what, found, expected, TOLERANCE);
}

/// Asserts that no value is farther off than `tolerance` of the largest.
fn assert_within(folder: &Path, what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
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
        distance <= tolerance * largest,
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

/// Keeps what passes: inputs by name, width and tokens in order, and for every output a zero added to it.
struct Taps<B: AutodiffBackend> {
    inputs: Vec<(String, usize, Option<usize>)>,
    zeros: BTreeMap<String, Tensor<B, 2>>,
}

impl<B: AutodiffBackend> Tap<B> for Taps<B> {
    fn input(&mut self, name: &str, x: &Tensor<B, 2>, tokens: Option<&[usize]>) {
        let [rows, width] = x.dims();
        if let Some(tokens) = tokens {
            assert_eq!(tokens.len(), rows, "tokens of {name}");
        }
        let tokens = tokens.map(|tokens| tokens.len());
        self.inputs.push((name.to_owned(), width, tokens));
    }

    fn output(&mut self, weight: &str, y: Tensor<B, 2>) -> Tensor<B, 2> {
        let zero = Tensor::zeros(y.dims(), &y.device()).require_grad();
        let before = self.zeros.insert(weight.to_owned(), zero.clone());
        assert!(before.is_none(), "{weight} is applied twice");
        y + zero
    }
}

/// Numbers in -1..1 without a pattern that matters.
fn scattered(count: usize, step: usize) -> Vec<f32> {
    let number = |i: usize| (i * step % 1009) as f32 / 504.5 - 1.0;
    (1..=count).map(number).collect()
}

/// Calls `check` with every layer of every case, the function that reads its weights and its input, `[1, tokens, hidden]`.
fn with_layers(
    mut check: impl FnMut(
        &str,
        &LayerSpec,
        &LayerPlan,
        &dyn Fn(&str) -> Result<Vec<f32>, ModelError>,
        TensorData,
    ),
) {
    for folder in cases() {
        let config = ModelConfig::load(&folder).unwrap();
        let source = SourceFolder::open(&folder).unwrap();
        let device = Default::default();
        let read = |name: &str| -> Result<Vec<f32>, ModelError> { Ok(source.read_f32(name)?) };
        let (ids, expected) = golden(&folder);
        let ends = Values::<Cpu, _>::new(&read, &device);
        let embedding = Embedding::new(&config, &ends).unwrap();
        let mut hidden = embedding.lookup(&[&ids]).unwrap().into_data();
        let outputs = expected.hidden.chunks_exact(ids.len() * config.hidden);
        for ((spec, plan), output) in config.layers.iter().zip(config.layer_plans()).zip(outputs) {
            let read = |name: &str| Ok(source.read_planned_f32(&plan, name)?);
            let what = format!("{}, layer {}", folder.display(), plan.index);
            let next = TensorData::new(output.to_vec(), [1, ids.len(), config.hidden]);
            check(
                &what,
                spec,
                &plan,
                &read,
                std::mem::replace(&mut hidden, next),
            );
        }
    }
}

type Graph = Autodiff<Cpu>;

/// The graph of a layer as one, and the gradients in it.
struct Whole {
    x: Tensor<Graph, 3>,
    above: Tensor<Cpu, 3>,
    taps: Taps<Graph>,
    gradients: <Graph as AutodiffBackend>::Gradients,
}

fn whole(
    spec: &LayerSpec,
    read: &dyn Fn(&str) -> Result<Vec<f32>, ModelError>,
    x: &TensorData,
) -> Whole {
    let device = Default::default();
    let above = scattered(x.shape.iter().product(), 7919);
    let above = Tensor::from_data(TensorData::new(above, x.shape.clone()), &device);
    let weights = Values::<Graph, _>::new(read, &device);
    let layer = Layer::new(spec, x.shape[1], &weights, &device).unwrap();
    let mut taps = Taps {
        inputs: Vec::new(),
        zeros: BTreeMap::new(),
    };
    let x = Tensor::<Graph, 3>::from_data(x.clone(), &device).require_grad();
    let y = layer.forward(x.clone(), &mut taps).unwrap();
    let loss = (y * Tensor::from_inner(above.clone())).sum();
    let gradients = loss.backward();
    Whole {
        x,
        above,
        taps,
        gradients,
    }
}

#[test]
fn every_linear_gets_a_gradient_and_every_input_passes_with_its_planned_width() {
    with_layers(|what, spec, plan, read, x| {
        let Whole {
            mut taps,
            gradients,
            ..
        } = whole(spec, read, &x);

        let mut seen = taps.inputs.into_iter().peekable();
        for input in &plan.inputs {
            match seen.next_if(|(name, ..)| *name == input.name) {
                Some((name, width, of_expert)) => {
                    assert_eq!(width, input.width, "{what}: width of {name}");
                    assert_eq!(of_expert.is_some(), input.routed, "{what}: {name}");
                }
                None => assert!(input.routed, "{what}: {} is not seen", input.name),
            }
        }
        assert_eq!(seen.next(), None, "{what}: an input beside the plan");

        let routed = |name: &str| plan.inputs.iter().any(|i| i.name == name && i.routed);
        for linear in &plan.linears {
            let Some(zero) = taps.zeros.remove(&linear.name) else {
                assert!(routed(&linear.input), "{what}: {} is idle", linear.name);
                continue; // an expert to which no token came
            };
            let found = zero.grad(&gradients).expect(&linear.name);
            assert_eq!(found.dims()[1], linear.rows, "{what}: {}", linear.name);
            let found: Vec<f32> = found.into_data().into_vec().unwrap();
            let name = &linear.name;
            assert!(found.iter().all(|g| g.is_finite()), "{what}: {name}");
            assert!(found.iter().any(|g| *g != 0.0), "{what}: {name} gets none");
        }
        assert!(taps.zeros.is_empty(), "{what}: a linear beside the plan");
    });
}

/// Compares the gradients that `B` finds part by part with those of the whole graph on the CPU.
fn compare_gradients<B: Backend>(tolerance: f32) {
    let device = B::Device::default();
    with_layers(|what, spec, plan, read, x| {
        let Whole {
            x: input,
            above,
            mut taps,
            gradients,
        } = whole(spec, read, &x);
        let tokens = x.shape[1];

        let compare = |name: &str, found: TensorData, expected: TensorData| {
            assert_eq!(found.shape, expected.shape, "{what}: {name}");
            let values = |data: TensorData| data.into_vec::<f32>().unwrap();
            let (found, expected) = (values(found), values(expected));
            let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
            let pairs = found.iter().zip(&expected);
            let error = pairs.fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(
                error <= tolerance * largest,
                "{what}: {name} {error} of {largest}"
            );
        };
        let mut traced = |part: Traced<B>| -> Result<(), ModelError> {
            for (name, found) in part.outputs {
                let zero = taps.zeros.remove(&name).expect(&name);
                let expected = zero.grad(&gradients).expect(&name);
                compare(&name, found.into_data(), expected.into_data());
                let input = &plan.linear(&name).expect(&name).input;
                let (x, own) = &part.inputs[input];
                assert_eq!(x.dims()[0], own.as_ref().map_or(tokens, Vec::len));
            }
            for name in part.inputs.keys() {
                let place = taps.inputs.iter().position(|(seen, ..)| seen == name);
                taps.inputs.remove(place.expect(name));
            }
            Ok(())
        };
        let hidden = Tensor::<B, 3>::from_data(x, &device);
        let above = Tensor::from_data(above.into_data(), &device);
        let weights = Values::<Autodiff<B>, _>::new(read, &device);
        let layer = Layer::new(spec, tokens, &weights, &device).unwrap();
        let found = layer.gradient(hidden, above, &mut traced).unwrap();
        let expected = input.grad(&gradients).unwrap();
        compare("the input", found.into_data(), expected.into_data());
        assert!(taps.zeros.is_empty() && taps.inputs.is_empty(), "{what}");
    });
}

#[test]
fn gradients_part_by_part_are_those_of_the_whole_graph() {
    compare_gradients::<Cpu>(2e-5);
}

#[test]
fn the_gradient_by_a_layers_input_equals_a_difference() {
    with_layers(|what, spec, _, read, x| {
        // A small step may change the choice of experts, over which there is no derivative.
        let chooses = |mixer: &Mixer| matches!(mixer, Mixer::Experts(_));
        if spec.blocks.iter().any(|block| chooses(&block.mixer)) {
            return;
        }
        let shape = x.shape.clone();
        let (tokens, count) = (shape[1], shape.iter().product());
        let x: Vec<f32> = x.into_vec().unwrap();
        let above = scattered(count, 7919);
        let along = scattered(count, 6421);
        let mean_square = x.iter().map(|x| x * x).sum::<f32>() / count as f32;
        let step = 1e-3 * mean_square.sqrt();

        let device = Default::default();
        let weights = Values::<Cpu, _>::new(read, &device);
        let layer = Layer::new(spec, tokens, &weights, &device).unwrap();
        let loss = |step: f32| -> f64 {
            let moved = x.iter().zip(&along).map(|(x, a)| x + step * a).collect();
            let moved = Tensor::from_data(TensorData::new::<f32, _>(moved, shape.clone()), &device);
            let y = layer.forward(moved, &mut NoTap).unwrap();
            let y: Vec<f32> = y.into_data().into_vec().unwrap();
            let products = y.iter().zip(&above);
            products.map(|(y, g)| f64::from(*y) * f64::from(*g)).sum()
        };
        let expected = (loss(step) - loss(-step)) / (2.0 * f64::from(step));

        let device = Default::default();
        let weights = Values::<Autodiff<Cpu>, _>::new(read, &device);
        let layer = Layer::new(spec, tokens, &weights, &device).unwrap();
        let tensor = |values: &[f32]| {
            let data = TensorData::new(values.to_vec(), shape.clone());
            Tensor::<Autodiff<Cpu>, 3>::from_data(data, &device)
        };
        let x = tensor(&x).require_grad();
        let y = layer.forward(x.clone(), &mut NoTap).unwrap();
        let gradients = (y * tensor(&above)).sum().backward();
        let found: Vec<f32> = x.grad(&gradients).unwrap().into_data().into_vec().unwrap();
        let squares: f64 = found.iter().map(|g| f64::from(*g).powi(2)).sum();
        let products = found.iter().zip(&along);
        let found: f64 = products.map(|(g, a)| f64::from(*g) * f64::from(*a)).sum();
        let error = (found - expected).abs() / squares.sqrt();
        println!("{error:.1e} {what}");
        assert!(error < 2e-3, "{what}: {found} for {expected}, {error:.1e}");
    });
}

#[test]
fn pairs_that_are_halves_apart_turn_as_neighbours_do() {
    let folder = cases()
        .into_iter()
        .find(|case| case.ends_with("deepseek_v3-plain"));
    let folder = folder.unwrap();
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let text = text.replacen('{', "{\"rope_interleave\": false,", 1);
    let config = ModelConfig::from_json(text.as_bytes(), &folder, &|_| false).unwrap();
    let source = SourceFolder::open(&folder).unwrap();
    let device = Default::default();
    let (ids, expected) = golden(&folder);
    let read = |name: &str| -> Result<Vec<f32>, ModelError> { Ok(source.read_f32(name)?) };
    let ends = Values::<Cpu, _>::new(&read, &device);
    let hidden = Embedding::new(&config, &ends)
        .unwrap()
        .lookup(&[&ids])
        .unwrap();
    // The rows of turned elements of every head, even ones first: what such a model would have in its file.
    let moved = |name: &str| -> Result<Vec<f32>, ModelError> {
        let values = source.read_f32(&format!("model.layers.0.{name}"))?;
        let (before, cols, all) = match name {
            "self_attn.q_b_proj.weight" => (6, 12, 14),
            "self_attn.kv_a_proj_with_mqa.weight" => (10, 24, 18),
            _ => return Ok(values),
        };
        let order = (0..before)
            .chain((before..all).step_by(2))
            .chain((before + 1..all).step_by(2));
        let order: Vec<usize> = order.collect();
        let heads = values.chunks_exact(all * cols);
        let rows = heads.flat_map(|head| order.iter().map(|&row| &head[row * cols..][..cols]));
        Ok(rows.flatten().copied().collect())
    };
    let weights = Values::new(&moved, &device);
    let layer = Layer::new(&config.layers[0], ids.len(), &weights, &device).unwrap();
    let found = layer.forward(hidden, &mut NoTap).unwrap();
    let found: Vec<f32> = found.into_data().into_vec().unwrap();
    assert_close(&folder, "hidden", &found, &expected.hidden[..found.len()]);
}

/// On the GPU, whose sums and elementary functions round in other places than the CPU's.
#[cfg(feature = "cuda")]
mod cuda {
    use uc_model::{Cuda, DeviceKind};

    use super::*;

    /// Of the largest value.
    const TOLERANCE: f32 = 1e-5;

    #[test]
    fn hidden_states_and_logits_equal_those_of_transformers() {
        DeviceKind::Cuda.check().unwrap();
        for folder in cases() {
            let (ids, expected) = golden(&folder);
            for found in [
                computed::<Cuda>(&folder, &[&ids]),
                computed::<Autodiff<Cuda>>(&folder, &[&ids]),
            ] {
                let close = |what, found: &[f32], expected: &[f32]| {
                    assert_within(&folder, what, found, expected, TOLERANCE);
                };
                close("hidden", &found.hidden, &expected.hidden);
                close("logit", &found.logits, &expected.logits);
            }
        }
    }

    #[test]
    fn gradients_are_those_of_the_cpu() {
        DeviceKind::Cuda.check().unwrap();
        compare_gradients::<Cuda>(1e-4);
    }
}
