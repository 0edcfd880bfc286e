//! Trains the embedded tiny model: text, tokenizer, weights, all from one seed.
//!
//! ```text
//! cargo run --release -p uc-examples --bin train-tiny -- --out examples/tiny-stories
//! ```
//! The forward pass is the product's own (`uc_model::llama`) on burn's autodiff backend; this file adds the loss, AdamW
//! (Loshchilov and Hutter 2019) and the writing of a Hugging Face folder.

use anyhow::{Context, anyhow};
use burn::backend::Autodiff;
use burn::tensor::{ElementConversion, Int, Tensor, TensorData, activation};
use camino::{Utf8Path, Utf8PathBuf};
use clap::Parser;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerBuilder,
};
use uc_examples::stories::{self, Random};
use uc_model::llama::{Embedding, Head, Linear, LlamaLayer};
use uc_model::{Cpu, ModelConfig, Rope, Tokenizer};
use uc_store::atomic;
use uc_store::tensors::{Dtype, TensorDecl, TensorFileWriter};

type Train = Autodiff<Cpu>;

const VOCAB: usize = 1024;
const CONTEXT: usize = 256;
const HIDDEN: usize = 128;
const LAYERS: usize = 4;
const FFN: usize = 384;
/// Seeds of the three texts; evaluation is text that training never saw.
const TRAINING_SEED: u64 = 1;
const CALIBRATION_SEED: u64 = 2;
const EVALUATION_SEED: u64 = 3;
const TEXT_BYTES: usize = 200_000;

#[derive(Parser)]
#[command(about = "Trains the embedded tiny model")]
struct Cli {
    /// Folder of the model
    #[arg(long)]
    out: Utf8PathBuf,
    /// Optimizer steps
    #[arg(long, default_value_t = 800)]
    steps: usize,
    /// Windows of 256 tokens in a step
    #[arg(long, default_value_t = 10)]
    batch: usize,
    /// Largest learning rate
    #[arg(long, default_value_t = 4e-3)]
    rate: f64,
    /// Seed of initial weights and of the order of windows
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let training = stories::text(TRAINING_SEED, 40 * TEXT_BYTES);
    let evaluation = stories::text(EVALUATION_SEED, TEXT_BYTES);
    write_texts(&cli.out, &evaluation)?;
    write_description(&cli.out, &training)?;
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
    let found = model.perplexity(&config, &held_out)?;
    println!("held-out perplexity {found:.3}, unigram {unigram:.1}");
    write_readme(&cli, &config, &model, found, unigram)
}

fn write_texts(out: &Utf8Path, evaluation: &str) -> anyhow::Result<()> {
    let calibration = stories::text(CALIBRATION_SEED, TEXT_BYTES);
    atomic::write_bytes(&out.join("calibration.txt"), calibration.as_bytes())?;
    atomic::write_bytes(&out.join("evaluation.txt"), evaluation.as_bytes())?;
    Ok(())
}

/// config.json, tokenizer.json and tokenizer_config.json.
fn write_description(out: &Utf8Path, training: &str) -> anyhow::Result<()> {
    let config = serde_json::json!({
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
    atomic::write_json(&out.join("config.json"), &config)?;

    let bytes = || ByteLevel::default().add_prefix_space(false);
    let mut tokenizer = TokenizerBuilder::<
        BPE,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >::new()
    .with_model(BPE::default())
    .with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(bytes())))
    .with_decoder(Some(DecoderWrapper::ByteLevel(bytes())))
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
    let described = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
    });
    atomic::write_json(&out.join("tokenizer_config.json"), &described)?;
    Ok(())
}

/// Perplexity of the training text's token frequencies on other text, each count raised by one.
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

/// One tensor of the model: name in the file, shape, flat values and the moments of AdamW.
struct Parameter {
    name: String,
    shape: Vec<usize>,
    value: Tensor<Cpu, 1>,
    first: Tensor<Cpu, 1>,
    second: Tensor<Cpu, 1>,
}

struct Parameters(Vec<Parameter>);

impl Parameters {
    /// Normal weights scaled by the fan-in, norms at one.
    fn new(config: &ModelConfig, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut specs = config.scaffold_plan();
        for layer in (0..config.layers).map(|index| config.layer_plan(index)) {
            specs.extend(layer.tensors().map(|mut spec| {
                spec.name = format!("{}{}", layer.prefix, spec.name);
                spec
            }));
        }
        let device = Default::default();
        let parameter = |spec: uc_model::ExactSpec| {
            let count: usize = spec.shape.iter().product();
            let residual = spec.name.contains("o_proj") || spec.name.contains("down_proj");
            let scale = match spec.shape.as_slice() {
                [_, _] if spec.name.contains("embed") => 0.05,
                [_, cols] if residual => 1.0 / ((cols * 2 * config.layers) as f32).sqrt(),
                [_, cols] => 1.0 / (*cols as f32).sqrt(),
                _ => 0.0,
            };
            let values: Vec<f32> = match scale {
                0.0 => vec![1.0; count],
                scale => (0..count).map(|_| scale * random.normal()).collect(),
            };
            let value = Tensor::from_data(TensorData::new(values, [count]), &device);
            let zeros = Tensor::zeros([count], &device);
            Parameter {
                name: spec.name,
                shape: spec.shape,
                value,
                first: zeros.clone(),
                second: zeros,
            }
        };
        Self(specs.into_iter().map(parameter).collect())
    }

    /// The parameters as leaves of a new graph.
    fn leaves(&self) -> Vec<Tensor<Train, 1>> {
        self.0
            .iter()
            .map(|p| Tensor::from_inner(p.value.clone()).require_grad())
            .collect()
    }

    /// The model over given leaves.
    fn model(&self, config: &ModelConfig, leaves: &[Tensor<Train, 1>]) -> anyhow::Result<Model> {
        let find = |name: &str| {
            let index = self.0.iter().position(|p| p.name == name);
            index.with_context(|| format!("no parameter {name}"))
        };
        let vector =
            |name: &str| -> anyhow::Result<Tensor<Train, 1>> { Ok(leaves[find(name)?].clone()) };
        let matrix = |name: &str| -> anyhow::Result<Tensor<Train, 2>> {
            let index = find(name)?;
            let shape = &self.0[index].shape;
            Ok(leaves[index].clone().reshape([shape[0], shape[1]]))
        };
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            let name = |part: &str| format!("model.layers.{index}.{part}.weight");
            let linear = |part: &str| -> anyhow::Result<Linear<Train>> {
                Ok(Linear {
                    weight: matrix(&name(part))?,
                    bias: None,
                })
            };
            layers.push(LlamaLayer {
                attn_norm: vector(&name("input_layernorm"))?,
                q: linear("self_attn.q_proj")?,
                k: linear("self_attn.k_proj")?,
                v: linear("self_attn.v_proj")?,
                o: linear("self_attn.o_proj")?,
                mlp_norm: vector(&name("post_attention_layernorm"))?,
                gate: linear("mlp.gate_proj")?,
                up: linear("mlp.up_proj")?,
                down: linear("mlp.down_proj")?,
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
                eps: config.rms_eps,
            });
        }
        let embedding = Embedding {
            weight: matrix("model.embed_tokens.weight")?,
        };
        let head = Head {
            norm: vector("model.norm.weight")?,
            weight: embedding.weight.clone(),
            eps: config.rms_eps,
        };
        let rope = Rope::new(config, CONTEXT, &Default::default())?;
        Ok(Model {
            embedding,
            layers,
            head,
            rope,
        })
    }

    /// Values as the file will hold them.
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
            .map(|p| TensorDecl::new(&p.name, Dtype::BF16, &p.shape))
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
        let model = self.model(config, &self.leaves())?;
        let windows: Vec<&[u32]> = ids.chunks_exact(CONTEXT).collect();
        let losses = windows
            .chunks(16)
            .map(|batch| Ok(batch.len() as f64 * scalar(&model.loss(batch)?)))
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

struct Model {
    embedding: Embedding<Train>,
    layers: Vec<LlamaLayer<Train>>,
    head: Head<Train>,
    rope: Rope<Train>,
}

impl Model {
    /// Mean negative log-likelihood of every token but the first of each window, nats.
    fn loss(&self, windows: &[&[u32]]) -> anyhow::Result<Tensor<Train, 1>> {
        let inputs: Vec<&[u32]> = windows.iter().map(|w| &w[..w.len() - 1]).collect();
        let mut hidden = self.embedding.lookup(&inputs)?;
        for layer in &self.layers {
            hidden = layer.forward(hidden, &self.rope, None);
        }
        let [count, length, width] = hidden.dims();
        let targets: Vec<i32> = windows
            .iter()
            .flat_map(|w| w[1..].iter().map(|&id| id as i32))
            .collect();
        let targets = TensorData::new(targets, [count * length, 1]);
        let targets = Tensor::<Train, 2, Int>::from_data(targets, &Default::default());
        let logits = self.head.logits(hidden.reshape([count * length, width]));
        Ok(activation::log_softmax(logits, 1)
            .gather(1, targets)
            .mean()
            .neg())
    }
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
    let mut smooth = f64::NAN;
    for step in 0..cli.steps {
        let windows: Vec<&[u32]> = (0..cli.batch)
            .map(|_| {
                let first = random.below(ids.len() - CONTEXT);
                &ids[first..first + CONTEXT]
            })
            .collect();
        let leaves = model.leaves();
        let loss = model.model(config, &leaves)?.loss(&windows)?;
        let value = scalar(&loss);
        smooth = if smooth.is_nan() {
            value
        } else {
            0.95 * smooth + 0.05 * value
        };
        let gradients = loss.backward();
        let warm = ((step + 1) as f64 / 40.0).min(1.0);
        let decay = 0.5 + 0.5 * (std::f64::consts::PI * step as f64 / cli.steps as f64).cos();
        let rate = cli.rate * warm * (0.05 + 0.95 * decay);
        for (parameter, leaf) in model.0.iter_mut().zip(&leaves) {
            let gradient = leaf
                .grad(&gradients)
                .context("a parameter without gradient")?;
            adamw(parameter, gradient, rate, step + 1);
        }
        if step % 20 == 0 || step + 1 == cli.steps {
            println!(
                "step {step:5}  loss {smooth:.4}  {:.0} s",
                start.elapsed().as_secs_f64()
            );
        }
    }
    Ok(())
}

/// One step of AdamW with weight decay 0.1 on matrices.
fn adamw(parameter: &mut Parameter, gradient: Tensor<Cpu, 1>, rate: f64, step: usize) {
    const BETA1: f64 = 0.9;
    const BETA2: f64 = 0.98;
    let first = parameter.first.clone() * BETA1 + gradient.clone() * (1.0 - BETA1);
    let second = parameter.second.clone() * BETA2 + gradient.powf_scalar(2.0) * (1.0 - BETA2);
    let mean = first.clone() / (1.0 - BETA1.powi(step as i32));
    let spread = (second.clone() / (1.0 - BETA2.powi(step as i32))).sqrt() + 1e-8;
    let decay = if parameter.shape.len() == 2 { 0.1 } else { 0.0 };
    parameter.value = parameter.value.clone() * (1.0 - rate * decay) - mean / spread * rate;
    parameter.first = first;
    parameter.second = second;
}

fn write_readme(
    cli: &Cli,
    config: &ModelConfig,
    model: &Parameters,
    perplexity: f64,
    unigram: f64,
) -> anyhow::Result<()> {
    let text = format!(
        "# tiny-stories\n\n\
         The embedded model that `make run` compresses when no MODEL is given: {} parameters, {} layers, width {}, \
         context {CONTEXT}, byte-level BPE vocabulary {VOCAB}, bfloat16, Llama layout. Apache-2.0, like the project.\n\n\
         Everything here was made by one command, with no data from outside:\n\n\
         ```\ncargo run --release -p uc-examples --bin train-tiny -- --out examples/tiny-stories\n```\n\n\
         The text is the story grammar of `examples/src/stories.rs`: seed {TRAINING_SEED} for training, \
         {CALIBRATION_SEED} for `calibration.txt`, {EVALUATION_SEED} for `evaluation.txt` (never trained on). \
         {} steps of {} tokens, AdamW, seed {}.\n\n\
         | on held-out text | perplexity |\n|---|---|\n| this model | {perplexity:.3} |\n| token frequencies (unigram) | {unigram:.1} |\n",
        model.count(),
        config.layers,
        config.hidden,
        cli.steps,
        cli.batch * CONTEXT,
        cli.seed,
    );
    atomic::write_bytes(&cli.out.join("README.md"), text.as_bytes())?;
    Ok(())
}
