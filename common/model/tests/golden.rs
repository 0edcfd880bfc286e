//! Compares the forward pass with the hidden states and logits of another implementation (Hugging Face transformers,
//! via `tests/parity/parity.py --golden`), with the CPU kernels and with the tensor formulation. The same models also
//! test what an observer receives, and the gradients.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::backend::Autodiff;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use safetensors::SafeTensors;
use uc_model::forward::{
    ActivationObserver, Embedding, Head, Layer, NoObserver, PartTrace, WeightsFromFn,
};
use uc_model::spec::{LayerSpec, Mixer};
use uc_model::{Cpu, LayerPlan, ModelConfig, ModelError, SourceFolder, WeightValues};

/// Largest accepted error, relative to the largest value. f32 rounding in a two-layer model stays below 1e-6, and
/// a little above it in long sums.
const TOLERANCE: f32 = 3e-6;

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let entries = std::fs::read_dir(root).unwrap();
    let mut cases: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

/// The results of a forward pass.
struct Computed {
    /// `[layers, tokens, hidden]`: the residual stream after each layer.
    hidden: Vec<f32>,
    /// `[tokens, vocab]`
    logits: Vec<f32>,
}

fn computed<B: Backend>(folder: &Path, windows: &[&[u32]]) -> Computed {
    let config = ModelConfig::load(folder).unwrap();
    let source = SourceFolder::open(folder).unwrap();
    source.check(&config).unwrap();
    let device = B::Device::default();
    let read = |name: &str| -> Result<_, ModelError> { Ok(source.read(name)?.to_values()?) };
    let weights = WeightsFromFn::<B, _>::new(&read, &device);
    let mut hidden = Embedding::new(&config, &weights)
        .unwrap()
        .lookup(windows)
        .unwrap();
    let mut states = Vec::new();
    for (spec, plan) in config.layers.iter().zip(config.layer_plans()) {
        let read_layer = |name: &str| -> Result<_, ModelError> {
            Ok(source.read_planned(&plan, name)?.to_values()?)
        };
        let layer_weights = WeightsFromFn::new(&read_layer, &device);
        let layer = Layer::new(spec, windows[0].len(), &layer_weights, &device).unwrap();
        hidden = layer.forward(hidden, &mut NoObserver).unwrap();
        states.extend(hidden.clone().into_data().into_vec::<f32>().unwrap());
    }
    let tokens = windows.len() * windows[0].len();
    let hidden: Tensor<B, 2> = hidden.reshape([tokens, config.hidden]);
    let head = Head::<B>::new(&config, &weights).unwrap();
    Computed {
        hidden: states,
        logits: head.logits(hidden).into_data().into_vec().unwrap(),
    }
}

/// The token ids of a golden case, and the results of transformers.
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

/// Asserts that no error exceeds `tolerance` times the largest value.
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
            |worst, next| if next.1 > worst.1 { next } else { worst },
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
        let has_family = |case: &PathBuf| case.to_string_lossy().contains(&format!("/{family}-"));
        assert!(cases().iter().any(has_family), "no golden file of {family}");
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
fn windows_of_a_batch_are_independent_and_tokens_do_not_depend_on_later_ones() {
    for folder in cases() {
        let (ids, expected) = golden(&folder);
        let expected = expected.logits;
        let other: Vec<u32> = ids.iter().rev().copied().collect();
        let both = computed::<Cpu>(&folder, &[&other, &ids]).logits;
        assert_close(&folder, "logit", &both[expected.len()..], &expected);
        // Some rotary scalings use other frequencies in a shorter window.
        let length_dependent = ["longrope", "phi3-partial"];
        let name = folder.to_string_lossy();
        if !length_dependent.iter().any(|part| name.contains(part)) {
            let vocab = expected.len() / ids.len();
            let prefix = computed::<Cpu>(&folder, &[&ids[..20]]).logits;
            assert_close(&folder, "logit", &prefix, &expected[..20 * vocab]);
        }
    }
}

/// Records name, width and number of routed tokens of every input in order, and a zero added to every output.
struct Recorder<B: AutodiffBackend> {
    inputs: Vec<(String, usize, Option<usize>)>,
    zeros: BTreeMap<String, Tensor<B, 2>>,
}

impl<B: AutodiffBackend> ActivationObserver<B> for Recorder<B> {
    fn observe_input(&mut self, name: &str, x: &Tensor<B, 2>, tokens: Option<&[usize]>) {
        let [rows, width] = x.dims();
        if let Some(tokens) = tokens {
            assert_eq!(tokens.len(), rows, "tokens of {name}");
        }
        let tokens = tokens.map(|tokens| tokens.len());
        self.inputs.push((name.to_owned(), width, tokens));
    }

    fn observe_output(&mut self, weight: &str, y: Tensor<B, 2>) -> Tensor<B, 2> {
        let zero = Tensor::zeros(y.dims(), &y.device()).require_grad();
        let before = self.zeros.insert(weight.to_owned(), zero.clone());
        assert!(before.is_none(), "{weight} is applied twice");
        y + zero
    }
}

/// Pseudo-random numbers in -1..1.
fn pseudo_random(count: usize, step: usize) -> Vec<f32> {
    let number = |i: usize| (i * step % 1009) as f32 / 504.5 - 1.0;
    (1..=count).map(number).collect()
}

/// Calls `check` with a description, the spec and the plan of every layer of every case, the function that reads its
/// weights, and its input `[1, tokens, hidden]`.
fn with_layers(
    mut check: impl FnMut(
        &str,
        &LayerSpec,
        &LayerPlan,
        &dyn Fn(&str) -> Result<WeightValues, ModelError>,
        TensorData,
    ),
) {
    for folder in cases() {
        let config = ModelConfig::load(&folder).unwrap();
        let source = SourceFolder::open(&folder).unwrap();
        let device = Default::default();
        let read = |name: &str| -> Result<_, ModelError> { Ok(source.read(name)?.to_values()?) };
        let (ids, expected) = golden(&folder);
        let weights = WeightsFromFn::<Cpu, _>::new(&read, &device);
        let embedding = Embedding::new(&config, &weights).unwrap();
        let mut hidden = embedding.lookup(&[&ids]).unwrap().into_data();
        let outputs = expected.hidden.chunks_exact(ids.len() * config.hidden);
        for ((spec, plan), output) in config.layers.iter().zip(config.layer_plans()).zip(outputs) {
            let read = |name: &str| Ok(source.read_planned(&plan, name)?.to_values()?);
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

/// A layer computed as a single graph, with its gradients.
struct WholeGraph {
    x: Tensor<Graph, 3>,
    grad_output: Tensor<Cpu, 3>,
    recorder: Recorder<Graph>,
    gradients: <Graph as AutodiffBackend>::Gradients,
}

fn whole_graph(
    spec: &LayerSpec,
    read: &dyn Fn(&str) -> Result<WeightValues, ModelError>,
    x: &TensorData,
) -> WholeGraph {
    let device = Default::default();
    let grad_output = pseudo_random(x.shape.iter().product(), 7919);
    let grad_output = Tensor::from_data(TensorData::new(grad_output, x.shape.clone()), &device);
    let weights = WeightsFromFn::<Graph, _>::new(read, &device);
    let layer = Layer::new(spec, x.shape[1], &weights, &device).unwrap();
    let mut recorder = Recorder {
        inputs: Vec::new(),
        zeros: BTreeMap::new(),
    };
    let x = Tensor::<Graph, 3>::from_data(x.clone(), &device).require_grad();
    let y = layer.forward(x.clone(), &mut recorder).unwrap();
    let loss = (y * Tensor::from_inner(grad_output.clone())).sum();
    let gradients = loss.backward();
    WholeGraph {
        x,
        grad_output,
        recorder,
        gradients,
    }
}

#[test]
fn every_linear_has_a_gradient_and_every_input_its_planned_width() {
    with_layers(|what, spec, plan, read, x| {
        let WholeGraph {
            mut recorder,
            gradients,
            ..
        } = whole_graph(spec, read, &x);

        let mut observed = recorder.inputs.into_iter().peekable();
        for input in &plan.inputs {
            match observed.next_if(|(name, ..)| *name == input.name) {
                Some((name, width, routed_tokens)) => {
                    assert_eq!(width, input.width, "{what}: width of {name}");
                    assert_eq!(routed_tokens.is_some(), input.routed, "{what}: {name}");
                }
                None => assert!(input.routed, "{what}: {} is not observed", input.name),
            }
        }
        assert_eq!(
            observed.next(),
            None,
            "{what}: an input that is not in the plan"
        );

        let routed = |name: &str| plan.inputs.iter().any(|i| i.name == name && i.routed);
        for linear in &plan.linears {
            let Some(zero) = recorder.zeros.remove(&linear.name) else {
                assert!(
                    routed(&linear.input),
                    "{what}: {} is not applied",
                    linear.name
                );
                continue; // an expert without tokens
            };
            let found = zero.grad(&gradients).expect(&linear.name);
            assert_eq!(found.dims()[1], linear.rows, "{what}: {}", linear.name);
            let found: Vec<f32> = found.into_data().into_vec().unwrap();
            let name = &linear.name;
            assert!(found.iter().all(|g| g.is_finite()), "{what}: {name}");
            assert!(
                found.iter().any(|g| *g != 0.0),
                "{what}: the gradient of {name} is zero"
            );
        }
        assert!(
            recorder.zeros.is_empty(),
            "{what}: a linear that is not in the plan"
        );
    });
}

/// Compares the gradients computed part by part on `B` with those of a single graph on the CPU.
fn compare_gradients<B: Backend>(tolerance: f32) {
    let device = B::Device::default();
    with_layers(|what, spec, plan, read, x| {
        let WholeGraph {
            x: input,
            grad_output,
            mut recorder,
            gradients,
        } = whole_graph(spec, read, &x);
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
        let mut on_trace = |part: PartTrace<B>| -> Result<(), ModelError> {
            for (name, found) in part.output_gradients {
                let zero = recorder.zeros.remove(&name).expect(&name);
                let expected = zero.grad(&gradients).expect(&name);
                compare(&name, found.into_data(), expected.into_data());
                let input = &plan.linear(&name).expect(&name).input;
                let (x, routed_tokens) = &part.inputs[input];
                assert_eq!(x.dims()[0], routed_tokens.as_ref().map_or(tokens, Vec::len));
            }
            for name in part.inputs.keys() {
                let index = recorder
                    .inputs
                    .iter()
                    .position(|(observed, ..)| observed == name);
                recorder.inputs.remove(index.expect(name));
            }
            Ok(())
        };
        let hidden = Tensor::<B, 3>::from_data(x, &device);
        let grad_output = Tensor::from_data(grad_output.into_data(), &device);
        let weights = WeightsFromFn::<Autodiff<B>, _>::new(read, &device);
        let layer = Layer::new(spec, tokens, &weights, &device).unwrap();
        let found = layer.gradient(hidden, grad_output, &mut on_trace).unwrap();
        let expected = input.grad(&gradients).unwrap();
        compare("the input", found.into_data(), expected.into_data());
        assert!(
            recorder.zeros.is_empty() && recorder.inputs.is_empty(),
            "{what}"
        );
    });
}

#[test]
fn gradients_computed_part_by_part_equal_those_of_a_single_graph() {
    compare_gradients::<Cpu>(2e-5);
}

#[test]
fn the_gradient_at_a_layers_input_equals_a_central_difference() {
    with_layers(|what, spec, _, read, x| {
        // A small step may change the selection of experts, which is not differentiable.
        let has_experts = |mixer: &Mixer| matches!(mixer, Mixer::Experts(_));
        if spec.blocks.iter().any(|block| has_experts(&block.mixer)) {
            return;
        }
        let shape = x.shape.clone();
        let (tokens, count) = (shape[1], shape.iter().product());
        let x: Vec<f32> = x.into_vec().unwrap();
        let grad_output = pseudo_random(count, 7919);
        let direction = pseudo_random(count, 6421);
        let mean_square = x.iter().map(|x| x * x).sum::<f32>() / count as f32;
        let step = 1e-3 * mean_square.sqrt();

        let device = Default::default();
        let weights = WeightsFromFn::<Cpu, _>::new(read, &device);
        let layer = Layer::new(spec, tokens, &weights, &device).unwrap();
        let loss = |step: f32| -> f64 {
            let moved = x
                .iter()
                .zip(&direction)
                .map(|(x, a)| x + step * a)
                .collect();
            let moved = Tensor::from_data(TensorData::new::<f32, _>(moved, shape.clone()), &device);
            let y = layer.forward(moved, &mut NoObserver).unwrap();
            let y: Vec<f32> = y.into_data().into_vec().unwrap();
            let products = y.iter().zip(&grad_output);
            products.map(|(y, g)| f64::from(*y) * f64::from(*g)).sum()
        };
        let expected = (loss(step) - loss(-step)) / (2.0 * f64::from(step));

        let device = Default::default();
        let weights = WeightsFromFn::<Autodiff<Cpu>, _>::new(read, &device);
        let layer = Layer::new(spec, tokens, &weights, &device).unwrap();
        let tensor = |values: &[f32]| {
            let data = TensorData::new(values.to_vec(), shape.clone());
            Tensor::<Autodiff<Cpu>, 3>::from_data(data, &device)
        };
        let x = tensor(&x).require_grad();
        let y = layer.forward(x.clone(), &mut NoObserver).unwrap();
        let gradients = (y * tensor(&grad_output)).sum().backward();
        let found: Vec<f32> = x.grad(&gradients).unwrap().into_data().into_vec().unwrap();
        let squares: f64 = found.iter().map(|g| f64::from(*g).powi(2)).sum();
        let products = found.iter().zip(&direction);
        let found: f64 = products.map(|(g, a)| f64::from(*g) * f64::from(*a)).sum();
        let error = (found - expected).abs() / squares.sqrt();
        println!("{error:.1e} {what}");
        assert!(error < 2e-3, "{what}: {found} for {expected}, {error:.1e}");
    });
}

#[test]
fn non_interleaved_rope_equals_interleaved_rope_with_reordered_weights() {
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
    let read = |name: &str| -> Result<_, ModelError> { Ok(source.read(name)?.to_values()?) };
    let weights = WeightsFromFn::<Cpu, _>::new(&read, &device);
    let hidden = Embedding::new(&config, &weights)
        .unwrap()
        .lookup(&[&ids])
        .unwrap();
    // Rotary rows of every head reordered, even ones first: the weights of an equivalent model without interleaving.
    let reordered = |name: &str| -> Result<WeightValues, ModelError> {
        let values = source.read_f32(&format!("model.layers.0.{name}"))?;
        let (nope, cols, all) = match name {
            "self_attn.q_b_proj.weight" => (6, 12, 14),
            "self_attn.kv_a_proj_with_mqa.weight" => (10, 24, 18),
            _ => return Ok(values.into()),
        };
        let order = (0..nope)
            .chain((nope..all).step_by(2))
            .chain((nope + 1..all).step_by(2));
        let order: Vec<usize> = order.collect();
        let heads = values.chunks_exact(all * cols);
        let rows = heads.flat_map(|head| order.iter().map(|&row| &head[row * cols..][..cols]));
        Ok(rows.flatten().copied().collect::<Vec<f32>>().into())
    };
    let weights = WeightsFromFn::new(&reordered, &device);
    let layer = Layer::new(&config.layers[0], ids.len(), &weights, &device).unwrap();
    let found = layer.forward(hidden, &mut NoObserver).unwrap();
    let found: Vec<f32> = found.into_data().into_vec().unwrap();
    assert_close(&folder, "hidden", &found, &expected.hidden[..found.len()]);
}

/// The same tests on the GPU, where sums and elementary functions round differently than on the CPU.
#[cfg(feature = "cuda")]
mod cuda {
    use uc_model::{Cuda, DeviceKind};

    use super::*;

    /// Largest accepted error, relative to the largest value.
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
    fn gradients_equal_those_of_the_cpu() {
        DeviceKind::Cuda.check().unwrap();
        compare_gradients::<Cuda>(1e-4);
    }
}
