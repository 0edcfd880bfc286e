//! Trains the tiny models of the examples: text, tokenizer and weights, all from fixed seeds.
//!
//! ```text
//! cargo run --release -p uc-examples --bin train-tiny -- --out examples/tiny-stories
//! cargo run --release -p uc-examples --bin train-tiny -- --family qwen3_moe --out examples/tiny-experts
//! cargo run --release -p uc-examples --bin train-tiny -- --family mamba --out examples/tiny-mamba
//! ```
//! The forward pass is the product's own (`uc_model::forward`) on burn's autodiff backend. This file adds the loss, AdamW
//! (Loshchilov and Hutter 2019), and writes a Hugging Face folder.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow};
use burn::backend::Autodiff;
use burn::tensor::{ElementConversion, Int, Tensor, TensorData, activation};
use camino::{Utf8Path, Utf8PathBuf};
use clap::{Parser, ValueEnum};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerBuilder,
};
use uc_examples::initial::initial;
use uc_examples::stories::{self, Random};
use uc_model::forward::{Embedding, Head, Layer, NoObserver, Weights};
use uc_model::{Cpu, ModelConfig, Tokenizer};
use uc_store::atomic;
use uc_store::tensors::{TensorDecl, TensorDtype, TensorFileWriter};

type Train = Autodiff<Cpu>;

const VOCAB: usize = 1024;
const CONTEXT: usize = 256;
const HIDDEN: usize = 128;
const LAYERS: usize = 4;
const FFN: usize = 384;
/// Seeds of the three texts; the evaluation text is held out from training.
const TRAINING_SEED: u64 = 1;
const CALIBRATION_SEED: u64 = 2;
const EVALUATION_SEED: u64 = 3;
const TEXT_BYTES: usize = 200_000;

/// The architectures that are trained here: a dense transformer, a mixture of experts, a state space model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Family {
    Llama,
    #[value(name = "qwen3_moe")]
    Qwen3Moe,
    Mamba,
}

#[derive(Parser)]
#[command(about = "Trains a tiny model")]
struct Cli {
    /// Architecture
    #[arg(long, value_enum, default_value = "llama")]
    family: Family,
    /// Output folder
    #[arg(long)]
    out: Utf8PathBuf,
    /// Optimizer steps
    #[arg(long, default_value_t = 800)]
    steps: usize,
    /// Windows of 256 tokens per step
    #[arg(long, default_value_t = 10)]
    batch: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 4e-3)]
    rate: f64,
    /// Seed of the initial weights and of the choice of windows
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let training = stories::text(TRAINING_SEED, 40 * TEXT_BYTES);
    let evaluation = stories::text(EVALUATION_SEED, TEXT_BYTES);
    if cli.family == Family::Llama {
        write_texts(&cli.out, &evaluation)?;
    }
    write_config_and_tokenizer(cli.family, &cli.out, &training)?;
    let config = ModelConfig::load(cli.out.as_std_path())?;
    let tokenizer = Tokenizer::load(cli.out.as_std_path())?;
    let ids = tokenizer.encode(&training)?;
    let held_out = tokenizer.encode(&evaluation)?;
    println!(
        "{} training tokens, {} held-out tokens",
        ids.len(),
        held_out.len()
    );

    let mut model = Parameters::new(&config, cli.seed);
    train(&cli, &config, &mut model, &ids)?;
    model.round_to_bf16();
    model.write(&cli.out)?;
    let unigram = unigram_perplexity(&ids, &held_out);
    let perplexity = model.perplexity(&config, &held_out)?;
    println!("held-out perplexity {perplexity:.3}, unigram {unigram:.1}");
    write_readme(&cli, &config, &model, perplexity, unigram)
}

fn write_texts(out: &Utf8Path, evaluation: &str) -> anyhow::Result<()> {
    let calibration = stories::text(CALIBRATION_SEED, TEXT_BYTES);
    atomic::write_bytes(&out.join("calibration.txt"), calibration.as_bytes())?;
    atomic::write_bytes(&out.join("evaluation.txt"), evaluation.as_bytes())?;
    Ok(())
}

/// Writes config.json, tokenizer.json and tokenizer_config.json.
fn write_config_and_tokenizer(
    family: Family,
    out: &Utf8Path,
    training: &str,
) -> anyhow::Result<()> {
    let config = tiny_config(family);
    atomic::write_json(&out.join("config.json"), &config)?;

    let byte_level = || ByteLevel::default().add_prefix_space(false);
    let mut tokenizer = TokenizerBuilder::<
        BPE,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >::new()
    .with_model(BPE::default())
    .with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(byte_level())))
    .with_decoder(Some(DecoderWrapper::ByteLevel(byte_level())))
    .build()
    .map_err(|error| anyhow!("tokenizer: {error}"))?;
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(VOCAB)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    let sample = training.split_inclusive("\n\n").take(4000);
    tokenizer
        .train(&mut trainer, sample)
        .map_err(|error| anyhow!("tokenizer: {error}"))?;
    let text = tokenizer
        .to_string(true)
        .map_err(|error| anyhow!("tokenizer: {error}"))?;
    atomic::write_bytes(&out.join("tokenizer.json"), text.as_bytes())?;
    let tokenizer_config = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
    });
    atomic::write_json(&out.join("tokenizer_config.json"), &tokenizer_config)?;
    Ok(())
}

/// The config.json of a family's tiny model.
fn tiny_config(family: Family) -> serde_json::Value {
    let dense = serde_json::json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
    });
    let changes = match family {
        Family::Llama => return dense,
        Family::Mamba => {
            return serde_json::json!({
                "architectures": ["MambaForCausalLM"],
                "model_type": "mamba",
                "hidden_size": HIDDEN,
                "intermediate_size": 2 * HIDDEN,
                "num_hidden_layers": LAYERS,
                "state_size": 16,
                "time_step_rank": 8,
                "conv_kernel": 4,
                "layer_norm_epsilon": 1e-5,
                "vocab_size": VOCAB,
                "hidden_act": "silu",
                "use_bias": false,
                "use_conv_bias": true,
                "tie_word_embeddings": true,
                "torch_dtype": "bfloat16",
            });
        }
        Family::Qwen3Moe => serde_json::json!({
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "head_dim": 32,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 96,
            "norm_topk_prob": true,
            "decoder_sparse_step": 1,
        }),
    };
    let mut config = dense;
    if let (Some(config), Some(changes)) = (config.as_object_mut(), changes.as_object()) {
        config.extend(changes.clone());
    }
    config
}

/// Perplexity on held-out text of the unigram distribution of the training text, with add-one smoothing.
fn unigram_perplexity(training: &[u32], held_out: &[u32]) -> f64 {
    let mut counts = vec![1.0f64; VOCAB];
    training.iter().for_each(|&id| counts[id as usize] += 1.0);
    let total: f64 = counts.iter().sum();
    let sum: f64 = held_out
        .iter()
        .map(|&id| -(counts[id as usize] / total).ln())
        .sum();
    (sum / held_out.len() as f64).exp()
}

/// A tensor of the model: its name in the file, shape, flat values, and the moments of AdamW.
struct Parameter {
    name: String,
    shape: Vec<usize>,
    value: Tensor<Cpu, 1>,
    first_moment: Tensor<Cpu, 1>,
    second_moment: Tensor<Cpu, 1>,
}

struct Parameters(Vec<Parameter>);

/// The leaves of a graph as the weights of a model, or of the layer whose tensor names begin with `prefix`.
struct Leaves<'a> {
    index: &'a BTreeMap<String, usize>,
    leaves: &'a [Tensor<Train, 1>],
    prefix: &'a str,
}

impl Weights<Train> for Leaves<'_> {
    type Error = anyhow::Error;

    fn tensor<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
    ) -> anyhow::Result<Tensor<Train, D>> {
        let full = format!("{}{name}", self.prefix);
        let index = self.index.get(&full);
        let index = *index.with_context(|| format!("no parameter {full}"))?;
        Ok(self.leaves[index].clone().reshape(shape))
    }
}

impl Parameters {
    /// Initial values, drawn from `seed`; see [`initial`].
    fn new(config: &ModelConfig, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut specs = config.non_layer_plan();
        for layer in config.layer_plans() {
            specs.extend(layer.tensors().map(|mut spec| {
                spec.name = format!("{}{}", layer.prefix, spec.name);
                spec
            }));
        }
        let device = Default::default();
        let parameter = |spec: uc_model::ExactSpec| {
            let count: usize = spec.shape.iter().product();
            let values = initial(&spec.name, &spec.shape, config.layers.len(), &mut random);
            let value = Tensor::from_data(TensorData::new(values, [count]), &device);
            let zeros = Tensor::zeros([count], &device);
            Parameter {
                name: spec.name,
                shape: spec.shape,
                value,
                first_moment: zeros.clone(),
                second_moment: zeros,
            }
        };
        Self(specs.into_iter().map(parameter).collect())
    }

    /// The parameters as the leaves of a new graph.
    fn leaves(&self) -> Vec<Tensor<Train, 1>> {
        self.0
            .iter()
            .map(|p| Tensor::from_inner(p.value.clone()).require_grad())
            .collect()
    }

    /// Mean negative log-likelihood, in nats, of all tokens but the first of each window, with `leaves` as the parameters.
    fn loss(
        &self,
        config: &ModelConfig,
        leaves: &[Tensor<Train, 1>],
        windows: &[&[u32]],
    ) -> anyhow::Result<Tensor<Train, 1>> {
        let names = self.0.iter().map(|p| p.name.clone()).zip(0..);
        let index = names.collect();
        let weights = |prefix| Leaves {
            index: &index,
            leaves,
            prefix,
        };
        let non_layer = weights("");
        let embedding = Embedding::new(config, &non_layer)?;
        let inputs: Vec<&[u32]> = windows.iter().map(|w| &w[..w.len() - 1]).collect();
        let mut hidden = embedding.lookup(&inputs)?;
        for spec in &config.layers {
            let layer_weights = weights(&spec.prefix);
            let layer = Layer::new(spec, inputs[0].len(), &layer_weights, &Default::default())?;
            hidden = layer.forward(hidden, &mut NoObserver)?;
        }
        let head = Head::tied(config, &embedding, &non_layer)?;
        let [count, length, width] = hidden.dims();
        let targets: Vec<i32> = windows
            .iter()
            .flat_map(|w| w[1..].iter().map(|&id| id as i32))
            .collect();
        let targets = TensorData::new(targets, [count * length, 1]);
        let targets = Tensor::<Train, 2, Int>::from_data(targets, &Default::default());
        let logits = head.logits(hidden.reshape([count * length, width]));
        Ok(activation::log_softmax(logits, 1)
            .gather(1, targets)
            .mean()
            .neg())
    }

    /// Rounds the values to the precision of the file.
    fn round_to_bf16(&mut self) {
        for parameter in &mut self.0 {
            let values: Vec<f32> = values(&parameter.value)
                .into_iter()
                .map(|x| half::bf16::from_f32(x).to_f32())
                .collect();
            let count = values.len();
            parameter.value =
                Tensor::from_data(TensorData::new(values, [count]), &Default::default());
        }
    }

    fn write(&self, out: &Utf8Path) -> anyhow::Result<()> {
        let decls: Vec<_> = self
            .0
            .iter()
            .map(|p| TensorDecl::new(&p.name, TensorDtype::BF16, &p.shape))
            .collect();
        let mut file = TensorFileWriter::create(&out.join("model.safetensors"), &decls)?;
        for parameter in &self.0 {
            let bytes = values(&parameter.value)
                .into_iter()
                .flat_map(|x| half::bf16::from_f32(x).to_le_bytes());
            file.append(&bytes.collect::<Vec<u8>>())?;
        }
        file.commit()?;
        Ok(())
    }

    fn perplexity(&self, config: &ModelConfig, ids: &[u32]) -> anyhow::Result<f64> {
        let leaves = self.leaves();
        let windows: Vec<&[u32]> = ids.chunks_exact(CONTEXT).collect();
        let losses = windows
            .chunks(16)
            .map(|batch| Ok(batch.len() as f64 * scalar(&self.loss(config, &leaves, batch)?)))
            .collect::<anyhow::Result<Vec<f64>>>()?;
        Ok((losses.iter().sum::<f64>() / windows.len() as f64).exp())
    }

    fn count(&self) -> usize {
        self.0
            .iter()
            .map(|p| p.shape.iter().product::<usize>())
            .sum()
    }
}

fn values(tensor: &Tensor<Cpu, 1>) -> Vec<f32> {
    tensor
        .to_data()
        .into_vec()
        .expect("the backend computes in f32")
}

fn scalar(loss: &Tensor<Train, 1>) -> f64 {
    loss.clone().into_scalar().elem()
}

fn train(
    cli: &Cli,
    config: &ModelConfig,
    model: &mut Parameters,
    ids: &[u32],
) -> anyhow::Result<()> {
    let mut random = Random::new(cli.seed ^ 0x7461_6c65);
    println!(
        "{} parameters, {} steps of {} tokens",
        model.count(),
        cli.steps,
        cli.batch * CONTEXT
    );
    let start = std::time::Instant::now();
    let mut smoothed = f64::NAN;
    for step in 0..cli.steps {
        let windows: Vec<&[u32]> = (0..cli.batch)
            .map(|_| {
                let first = random.below(ids.len() - CONTEXT);
                &ids[first..first + CONTEXT]
            })
            .collect();
        let leaves = model.leaves();
        let loss = model.loss(config, &leaves, &windows)?;
        let value = scalar(&loss);
        smoothed = if smoothed.is_nan() {
            value
        } else {
            0.95 * smoothed + 0.05 * value
        };
        let gradients = loss.backward();
        let warmup = ((step + 1) as f64 / 40.0).min(1.0);
        let decay = 0.5 + 0.5 * (std::f64::consts::PI * step as f64 / cli.steps as f64).cos();
        let rate = cli.rate * warmup * (0.05 + 0.95 * decay);
        for (parameter, leaf) in model.0.iter_mut().zip(&leaves) {
            // An expert that no token reached has no gradient.
            if let Some(gradient) = leaf.grad(&gradients) {
                adamw(parameter, gradient, rate, step + 1);
            }
        }
        if step % 20 == 0 || step + 1 == cli.steps {
            println!(
                "step {step:5}  loss {smoothed:.4}  {:.0} s",
                start.elapsed().as_secs_f64()
            );
        }
    }
    Ok(())
}

/// One step of AdamW, with weight decay of 0.1 on matrices.
fn adamw(parameter: &mut Parameter, gradient: Tensor<Cpu, 1>, rate: f64, step: usize) {
    const BETA1: f64 = 0.9;
    const BETA2: f64 = 0.98;
    let first = parameter.first_moment.clone() * BETA1 + gradient.clone() * (1.0 - BETA1);
    let second =
        parameter.second_moment.clone() * BETA2 + gradient.powf_scalar(2.0) * (1.0 - BETA2);
    let corrected_first = first.clone() / (1.0 - BETA1.powi(step as i32));
    let denominator = (second.clone() / (1.0 - BETA2.powi(step as i32))).sqrt() + 1e-8;
    let decay = if parameter.shape.len() == 2 { 0.1 } else { 0.0 };
    parameter.value =
        parameter.value.clone() * (1.0 - rate * decay) - corrected_first / denominator * rate;
    parameter.first_moment = first;
    parameter.second_moment = second;
}

fn write_readme(
    cli: &Cli,
    config: &ModelConfig,
    model: &Parameters,
    perplexity: f64,
    unigram: f64,
) -> anyhow::Result<()> {
    let name = cli.out.file_name().unwrap_or("tiny");
    let (purpose, family) = match cli.family {
        Family::Llama => (
            "The embedded model that `make run` compresses when no MODEL is given",
            "Llama",
        ),
        Family::Qwen3Moe => (
            "A tiny mixture of 8 experts, 2 of them active per token",
            "Qwen3-MoE",
        ),
        Family::Mamba => ("A tiny selective state space model", "Mamba"),
    };
    let option = match cli.family {
        Family::Llama => "",
        Family::Qwen3Moe => "--family qwen3_moe ",
        Family::Mamba => "--family mamba ",
    };
    let text = format!(
        "# {name}\n\n\
         {purpose}: {} parameters, {} layers, width {}, \
         context {CONTEXT}, byte-level BPE vocabulary {VOCAB}, bfloat16, {family} layout. Apache-2.0, like the project.\n\n\
         Everything here was made by one command, with no data from outside:\n\n\
         ```\ncargo run --release -p uc-examples --bin train-tiny -- {option}--out examples/{name}\n```\n\n\
         The text is the story grammar of `examples/src/stories.rs`: seed {TRAINING_SEED} for training, \
         {CALIBRATION_SEED} for `tiny-stories/calibration.txt`, {EVALUATION_SEED} for `tiny-stories/evaluation.txt` \
         (never trained on). {} steps of {} tokens, AdamW, seed {}.\n\n\
         | on held-out text | perplexity |\n|---|---|\n| this model | {perplexity:.3} |\n| token frequencies (unigram) | {unigram:.1} |\n",
        model.count(),
        config.layers.len(),
        config.hidden,
        cli.steps,
        cli.batch * CONTEXT,
        cli.seed,
    );
    atomic::write_bytes(&cli.out.join("README.md"), text.as_bytes())?;
    Ok(())
}
