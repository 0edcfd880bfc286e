//! shard-loader: the source's safetensors shards → one tensor file per layer, and one for the scaffold.
//!
//! Owns the way from a Hugging Face folder to the pipeline's own files: everything about names, shapes, types and
//! finiteness is checked here, once, so that no later stage doubts a weight. It converts nothing: bytes stay as they
//! are in the source. A model of the Hub comes here too: its files before the run, or shard by shard while it goes on.

mod describe;
mod fetch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Parser, Subcommand};
use crossbeam_channel::bounded;
use uc_model::source::SourceError;
use uc_model::{ExactSpec, ModelConfig, SourceFolder, SourceTensor};
use uc_store::ExitCode;
use uc_store::plan::ShardContent;
use uc_store::stage::{self, Job, Program, StageArgs, StageProgram};
use uc_store::tensors::{TensorDecl, TensorDtype};

/// Raised whenever the same source gives other files.
const VERSION: u32 = 1;
/// The files beside the weights that a run uses.
const DESCRIPTION: [&str; 6] = [
    "config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
];
/// Tensors that wait between reader and writer.
const WAITING: usize = 2;

#[derive(Parser)]
#[command(
    name = "shard-loader",
    version,
    about = "Splits a source model into one file per layer"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check a model folder and print its facts as JSON
    Inspect {
        /// The model folder
        model: PathBuf,
    },
    /// Describe a model from its config.json, without weights, as JSON
    Describe {
        /// The config.json
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The model.safetensors.index.json
        #[arg(long, value_name = "FILE")]
        index: Option<PathBuf>,
        /// List every tensor with its shape
        #[arg(long)]
        tensors: bool,
    },
    /// Download a model of the Hub into a folder, verified; a rerun goes on. Prints what it is as JSON
    Fetch(fetch::FetchArgs),
    /// Download one shard of a run whose shards come and go
    Shard(fetch::ShardArgs),
    /// Embeddings, final norm and head → scaffold
    NonLayer(StageArgs),
    /// One layer's tensors → weights
    Layer(StageArgs),
}

fn main() -> std::process::ExitCode {
    match Cli::parse().task {
        Task::Inspect { model } => say(inspect(&model)).into(),
        Task::Describe {
            config,
            index,
            tensors,
        } => {
            let found = describe::describe(&config, index.as_deref(), tensors);
            say(found.and_then(|found| Ok(serde_json::to_value(found)?))).into()
        }
        Task::Fetch(args) => say(fetch::fetch(&args)).into(),
        Task::Shard(args) => fetch::shard(&args).into(),
        Task::NonLayer(args) => run("non-layer", &args, Part::NonLayer),
        Task::Layer(args) => run("layer", &args, Part::Layer),
    }
}

fn run(task: &'static str, args: &StageArgs, part: Part) -> std::process::ExitCode {
    let program = Program {
        name: "shard-loader",
        task,
        version: VERSION,
    };
    stage::main(program, args, Loader { part, source: None }).into()
}

/// Prints facts as JSON on standard output, or why there are none.
fn say(facts: anyhow::Result<serde_json::Value>) -> ExitCode {
    match facts {
        Ok(facts) => {
            println!("{facts}");
            ExitCode::Ok
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            let by_store = ExitCode::of_error(&error);
            let vague = |code: &ExitCode| code.is_vague();
            by_store
                .filter(|code| !vague(code))
                .or_else(|| fetch::class(&error))
                .or(by_store)
                .unwrap_or(ExitCode::BadInput)
        }
    }
}

/// What the driver needs to plan a run; the whole model is checked against its config.json first.
fn inspect(model: &Path) -> anyhow::Result<serde_json::Value> {
    let model = model
        .canonicalize()
        .with_context(|| format!("cannot open the model folder {}", model.display()))?;
    let config = ModelConfig::load(&model)?;
    let source = SourceFolder::open(&model)?;
    source.check(&config)?;
    // A run without a usable tokenizer would fail hours later.
    uc_model::Tokenizer::load(&model)?;
    let mut files: Vec<String> = Vec::new();
    for path in source.files() {
        let name = path.file_name().and_then(|name| name.to_str());
        files.push(name.context("a shard's name is not UTF-8")?.into());
    }
    files.extend(
        DESCRIPTION
            .iter()
            .filter(|name| model.join(name).is_file())
            .map(|name| (*name).into()),
    );
    files.sort();
    files.dedup();
    Ok(serde_json::json!({
        "name": model.file_name().map(|name| name.to_string_lossy()),
        "layers": config.layers.len(),
        "linear_parameters": config.linear_parameters(),
        "total_parameters": config.total_parameters(),
        "files": files,
        "shards": contents(&config, &source),
    }))
}

/// What every shard holds that a run reads: tensors of which layers, and of the model's ends.
fn contents(config: &ModelConfig, source: &SourceFolder) -> BTreeMap<String, ShardContent> {
    let mut contents: BTreeMap<String, ShardContent> = BTreeMap::new();
    for path in source.files() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let nothing = ShardContent {
            layers: Vec::new(),
            non_layer: false,
        };
        contents.insert(name.into_owned(), nothing);
    }
    let mut holds = |tensor: &str, note: &dyn Fn(&mut ShardContent)| {
        let Some(info) = source.tensor(tensor) else {
            return;
        };
        let name = source.file_of(info).0.file_name().unwrap_or_default();
        if let Some(content) = contents.get_mut(name.to_string_lossy().as_ref()) {
            note(content);
        }
    };
    for spec in config.non_layer_plan() {
        holds(&spec.name, &|content| content.non_layer = true);
    }
    if config.head.tied {
        // Compared with the embedding where an older file repeats it.
        holds("lm_head.weight", &|content| content.non_layer = true);
    }
    for (layer, plan) in (0..).zip(config.layer_plans()) {
        for spec in plan.source_tensors() {
            holds(&spec.name, &|content| {
                if content.layers.last() != Some(&layer) {
                    content.layers.push(layer);
                }
            });
        }
    }
    contents
}

/// Which tensors a job copies.
enum Part {
    NonLayer,
    Layer,
}

/// The stage; the source stays open between jobs.
struct Loader {
    part: Part,
    source: Option<(ModelConfig, SourceFolder)>,
}

impl StageProgram for Loader {
    fn run(&mut self, job: &mut Job<'_>) -> anyhow::Result<()> {
        let (config, source) = match self.source.take() {
            Some(open) => open,
            None => {
                let path = job.plan().model.path.as_std_path();
                let config = ModelConfig::load(path)?;
                let source = SourceFolder::open(path)?;
                source.check(&config)?;
                (config, source)
            }
        };
        match self.part {
            Part::NonLayer => {
                let read = |name: &str| source.read(name);
                copy(job, "non-layer", &config.non_layer_plan(), read, |name| {
                    source.tensor(name).map(|info| info.dtype)
                })?;
            }
            Part::Layer => {
                let plan = config.layer_plan(job.layer()? as usize);
                let tensors: Vec<ExactSpec> = plan.tensors().collect();
                let read = |name: &str| source.read_planned(&plan, name);
                copy(job, "weights", &tensors, read, |name| {
                    source.planned_dtype(&plan, name)
                })?;
            }
        }
        self.source = Some((config, source));
        Ok(())
    }

    fn classify(&self, error: &anyhow::Error) -> Option<ExitCode> {
        uc_model::error::is_model_error(error.chain()).then_some(ExitCode::BadInput)
    }
}

/// Copies tensors, one thread reading and checking, one writing.
fn copy(
    job: &mut Job<'_>,
    output: &str,
    tensors: &[ExactSpec],
    read: impl Fn(&str) -> Result<SourceTensor, SourceError> + Send,
    dtype: impl Fn(&str) -> Option<uc_model::source::SourceDtype>,
) -> anyhow::Result<()> {
    let mut decls = Vec::with_capacity(tensors.len());
    for spec in tensors {
        let name = &spec.name;
        let dtype = dtype(name).with_context(|| format!("tensor {name} has vanished"))?;
        let dtype = match dtype.name() {
            "F32" => TensorDtype::F32,
            "F16" => TensorDtype::F16,
            "BF16" => TensorDtype::BF16,
            other => anyhow::bail!("tensor {name} is {other}, expected F32, F16 or BF16"),
        };
        decls.push(TensorDecl::new(&spec.name, dtype, &spec.shape));
    }
    let mut file = job.output_tensors(output, &decls)?;
    let (sender, receiver) = bounded(WAITING);
    std::thread::scope(|scope| -> anyhow::Result<()> {
        scope.spawn(move || {
            for spec in tensors {
                let tensor = read(&spec.name).and_then(|tensor| {
                    tensor.to_f32()?; // refuses NaN and infinity by name and index
                    Ok(tensor.bytes)
                });
                let failed = tensor.is_err();
                if sender.send(tensor).is_err() || failed {
                    return;
                }
            }
        });
        for (done, bytes) in receiver.iter().enumerate() {
            file.append(&bytes?)?;
            job.progress(done as u64 + 1, tensors.len() as u64, "tensors");
        }
        Ok(())
    })?;
    job.commit_tensors(output, file)?;
    Ok(())
}
