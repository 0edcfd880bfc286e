//! Creates a model folder with random weights for a config.json, to try the pipeline on any architecture.
//!
//! ```text
//! cargo run --release -p uc-examples --bin random-model -- --config examples/small-configs/mixtral.json --out DIR
//! ```
//! The tokenizer is that of the embedded tiny model, so the configuration's `vocab_size` must be at least 1024. Nothing is
//! trained, so predictions are noise, but every tensor of the architecture is present, with the name and layout of
//! published checkpoints.

use std::path::Path;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use clap::{Parser, ValueEnum};
use uc_examples::initial::initial;
use uc_examples::stories::Random;
use uc_model::{ModelConfig, source};
use uc_store::atomic;
use uc_store::tensors::{TensorDecl, TensorDtype, TensorFileWriter};

#[derive(Parser)]
#[command(about = "Creates a model folder with random weights")]
struct Cli {
    /// The config.json of the model
    #[arg(long)]
    config: Utf8PathBuf,
    /// Output folder
    #[arg(long)]
    out: Utf8PathBuf,
    /// Seed of the random weights
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Number of shards; tensors are distributed round-robin, so that every layer spans several shards
    #[arg(long, default_value_t = 1)]
    shards: usize,
    /// Fill shards of about equal size with consecutive layers, as in published models
    #[arg(long)]
    in_order: bool,
    /// Type of the stored weights; values are those of bf16 in either case
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: WeightDtype,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum WeightDtype {
    Bf16,
    F32,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let text = std::fs::read(&cli.config).with_context(|| cli.config.to_string())?;
    let config = ModelConfig::from_json(&text, cli.config.as_std_path(), &|_| false)?;
    atomic::write_bytes(&cli.out.join("config.json"), &text)?;
    let embedded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tiny-stories/tokenizer.json");
    let tokenizer = std::fs::read(&embedded).with_context(|| embedded.display().to_string())?;
    atomic::write_bytes(&cli.out.join("tokenizer.json"), &tokenizer)?;

    let mut random = Random::new(cli.seed);
    let values: Vec<_> = source::expected_tensors(&config)
        .into_iter()
        .map(|(name, shape)| {
            let values = initial(&name, &shape, config.layers.len(), &mut random);
            (name, shape, values)
        })
        .collect();
    let file_name = |shard: usize| match cli.shards {
        1 => "model.safetensors".to_owned(),
        count => format!("model-{:05}-of-{count:05}.safetensors", shard + 1),
    };
    let shard_of = assign_shards(&values, cli.shards, cli.in_order);
    let mut map = serde_json::Map::new();
    for shard in 0..cli.shards {
        let tensors = values.iter().zip(&shard_of);
        let tensors = tensors
            .filter(|(_, assigned)| **assigned == shard)
            .map(|(tensor, _)| tensor);
        write_shard(&cli.out.join(file_name(shard)), tensors.clone(), cli.dtype)?;
        map.extend(tensors.map(|(name, ..)| (name.clone(), file_name(shard).into())));
    }
    if cli.shards > 1 {
        let index = serde_json::json!({"metadata": {}, "weight_map": map});
        atomic::write_json(&cli.out.join("model.safetensors.index.json"), &index)?;
    }
    Ok(())
}

/// The shard of every tensor: round-robin, or with `in_order` by layer, in shards of about equal size.
fn assign_shards(
    values: &[(String, Vec<usize>, Vec<f32>)],
    shards: usize,
    in_order: bool,
) -> Vec<usize> {
    if !in_order {
        return (0..values.len()).map(|index| index % shards).collect();
    }
    let layer = |name: &str| -> Option<u32> { name.split('.').find_map(|part| part.parse().ok()) };
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by_key(|index| layer(&values[*index].0));
    let total: usize = values.iter().map(|(.., values)| values.len()).sum();
    let (mut before, mut shard_of) = (0, vec![0; values.len()]);
    for index in order {
        shard_of[index] = before * shards / total.max(1);
        before += values[index].2.len();
    }
    shard_of
}

/// Writes a file of weights, rounded to bfloat16 and stored as `dtype`.
fn write_shard<'a>(
    path: &Utf8Path,
    tensors: impl Iterator<Item = &'a (String, Vec<usize>, Vec<f32>)> + Clone,
    dtype: WeightDtype,
) -> anyhow::Result<()> {
    let file_dtype = match dtype {
        WeightDtype::Bf16 => TensorDtype::BF16,
        WeightDtype::F32 => TensorDtype::F32,
    };
    let decl =
        |(name, shape, _): &(String, Vec<usize>, _)| TensorDecl::new(name, file_dtype, shape);
    let decls: Vec<_> = tensors.clone().map(decl).collect();
    let mut file = TensorFileWriter::create(path, &decls)?;
    for (_, _, values) in tensors {
        let rounded = values.iter().map(|&x| half::bf16::from_f32(x));
        let bytes: Vec<u8> = match dtype {
            WeightDtype::Bf16 => rounded.flat_map(|x| x.to_le_bytes()).collect(),
            WeightDtype::F32 => rounded.flat_map(|x| x.to_f32().to_le_bytes()).collect(),
        };
        file.append(&bytes)?;
    }
    file.commit()?;
    Ok(())
}
