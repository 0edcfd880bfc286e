//! Makes a model folder with random weights for a config.json, to try the pipeline on any architecture.
//!
//! ```text
//! cargo run --release -p uc-examples --bin random-model -- --config examples/small-configs/mixtral.json --out DIR
//! ```
//! The tokenizer is that of the embedded tiny model, so the configuration's `vocab_size` must be at least 1024. Nothing
//! is trained: what such a model says of a text is noise, but every tensor of the architecture is there, named and laid
//! out as in its real checkpoints.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use camino::Utf8PathBuf;
use clap::Parser;
use uc_examples::initial::initial;
use uc_examples::stories::Random;
use uc_model::ModelConfig;
use uc_store::atomic;
use uc_store::tensors::{Dtype, TensorDecl, TensorFileWriter};

#[derive(Parser)]
#[command(about = "Makes a model folder with random weights")]
struct Cli {
    /// The configuration
    #[arg(long)]
    config: Utf8PathBuf,
    /// Folder of the model
    #[arg(long)]
    out: Utf8PathBuf,
    /// Seed of the weights
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let text = std::fs::read(&cli.config).with_context(|| cli.config.to_string())?;
    let config = ModelConfig::from_json(&text, cli.config.as_std_path(), &|_| false)?;
    atomic::write_bytes(&cli.out.join("config.json"), &text)?;
    let embedded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tiny-stories/tokenizer.json");
    let tokenizer = std::fs::read(&embedded).with_context(|| embedded.display().to_string())?;
    atomic::write_bytes(&cli.out.join("tokenizer.json"), &tokenizer)?;

    // A tensor that holds several linears comes once for each.
    let mut tensors: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let of_layers = config.layer_plans();
    let of_layers = of_layers.flat_map(|plan| plan.source_tensors().collect::<Vec<_>>());
    for spec in config.scaffold_plan().into_iter().chain(of_layers) {
        tensors.insert(spec.name, spec.shape);
    }
    let decls: Vec<_> = tensors
        .iter()
        .map(|(name, shape)| TensorDecl::new(name, Dtype::BF16, shape))
        .collect();
    let mut random = Random::new(cli.seed);
    let mut file = TensorFileWriter::create(&cli.out.join("model.safetensors"), &decls)?;
    for (name, shape) in &tensors {
        let values = initial(name, shape, config.layers.len(), &mut random);
        let bytes = values
            .into_iter()
            .flat_map(|x| half::bf16::from_f32(x).to_le_bytes());
        file.append(&bytes.collect::<Vec<u8>>())?;
    }
    file.commit()?;
    Ok(())
}
