//! Measures the speed of one layer with the dimensions of SmolLM2-135M: its matrix products alone, the whole layer, and
//! the layer with its statistics.
//!
//! ```text
//! RAYON_NUM_THREADS=2 layer_speed [LENGTH [WINDOWS]]
//! ```
//! Prints milliseconds (best of 7) and GFLOP/s. A multiply-add counts as two operations; only the causal half of
//! attention and one triangle of the statistics count.

use std::time::Instant;

use burn::tensor::{Distribution, Tensor};
use uc_model::forward::{ActivationObserver, Layer, NoObserver, WeightsFromFn};
use uc_model::moments::Moments;
use uc_model::{Cpu, ModelConfig, ModelError, WeightValues};

const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 1, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 512,
    "max_position_embeddings": 8192, "hidden_act": "silu"}"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let argument = |n: usize, default| std::env::args().nth(n).map_or(Ok(default), |t| t.parse());
    let (length, windows): (usize, usize) = (argument(1, 1024)?, argument(2, 1)?);
    let tokens = length * windows;
    let config = ModelConfig::from_json(CONFIG.as_bytes(), "config.json".as_ref(), &|_| false)?;
    let device = Default::default();
    let random = |rows, cols| {
        Tensor::<Cpu, 2>::random([rows, cols], Distribution::Normal(0.0, 0.05), &device)
    };
    let plan = config.layer_plan(0);
    let weights = |name: &str| -> Result<WeightValues, ModelError> {
        let spec = plan.tensors().find(|spec| spec.name == name);
        let count = spec.map_or(0, |spec| spec.parameters() as usize);
        let values: Vec<f32> = random(1, count).into_data().into_vec().unwrap_or_default();
        Ok(values.into())
    };
    let weights = WeightsFromFn::<Cpu, _>::new(&weights, &device);
    let layer = Layer::new(&config.layers[0], length, &weights, &device)?;
    let hidden = random(tokens, config.hidden);
    let batch = hidden.clone().reshape([windows, length, config.hidden]);

    let products = 2.0 * tokens as f64 * config.linear_parameters() as f64;
    let scores = 2.0 * (tokens * length * config.hidden) as f64;
    let inputs: Vec<_> = plan
        .linears
        .iter()
        .map(|l| random(tokens, l.cols))
        .collect();
    let matrices: Vec<_> = plan
        .linears
        .iter()
        .map(|l| random(l.rows, l.cols))
        .collect();
    report("matrix products", products, || {
        for (x, w) in inputs.iter().zip(&matrices) {
            x.clone().matmul(w.clone().transpose());
        }
    });
    report("layer", products + scores, || {
        layer
            .forward(batch.clone(), &mut NoObserver)
            .expect("weights");
    });
    let squares: usize = plan
        .inputs
        .iter()
        .map(|input| input.width * input.width)
        .sum();
    let statistics = (tokens * squares) as f64;
    report(
        "layer and statistics",
        products + scores + statistics,
        || {
            let new = |input: &uc_model::InputSpec| Moments::new(input.width, input.width);
            let mut all = InputMoments(plan.inputs.iter().map(new).collect());
            layer.forward(batch.clone(), &mut all).expect("weights");
        },
    );
    Ok(())
}

/// Moments of the inputs, in the order of the plan.
struct InputMoments(Vec<Moments>);

impl ActivationObserver<Cpu> for InputMoments {
    fn observe_input(&mut self, _: &str, x: &Tensor<Cpu, 2>, _: Option<&[usize]>) {
        let index = self
            .0
            .iter()
            .position(|moments| moments.count == 0 && moments.n == x.dims()[1]);
        self.0[index.expect("one per input")]
            .add(x.clone())
            .expect("dims of the plan");
    }
}

fn report(name: &str, operations: f64, mut work: impl FnMut()) {
    let seconds = (0..7).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    });
    let best = seconds.fold(f64::INFINITY, f64::min);
    println!(
        "{name}: {:.1} ms, {:.0} GFLOP/s",
        best * 1e3,
        operations / best / 1e9
    );
}
