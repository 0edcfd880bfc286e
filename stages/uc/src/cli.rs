//! The command line: verbs and options, each with its help. `help` arranges the overview of the verbs.
//!
//! `docs/cli.md` describes the same; a test compares the two. Options are grouped by headings, and the help of an option
//! with a default names it.

use camino::Utf8PathBuf;
use clap::{ArgGroup, Args, Parser, Subcommand};
use uc_store::logging::LogFormat;

use crate::report::packs::parse_fingerprint;

mod bench;
mod generate;
mod help;
mod runtime;
mod serve;
#[cfg(test)]
mod tests;

pub use bench::BenchArgs;
pub use generate::GenerateArgs;
pub use help::{command, parse};
pub use serve::ServeArgs;

/// Heading of the options of what is printed, common to all verbs.
const OUTPUT: &str = "Output";
/// Heading of the options that say where files go.
const FILES: &str = "Files";
/// Heading of the options that change the pipeline or its settings.
const SETTINGS: &str = "Settings";
/// Heading of the options for texts.
const TEXTS: &str = "Texts";
/// Heading of the options of an upload.
const UPLOAD: &str = "Upload";

/// Compress language models into packs that reconstruct bit for bit, verify and evaluate them
#[derive(Debug, Parser)]
#[command(name = "uc", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
    /// Verbosity and format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Options of every verb for the output on standard error.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = OUTPUT)]
pub struct OutputArgs {
    /// Print nothing but errors; results still go to standard output
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print more: why jobs run, the logs of the stages; repeat for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Format of progress and log lines on standard error, text or json
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_possible_values = true
    )]
    pub log_format: LogFormat,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Compress a model folder, verify the pack and evaluate it
    Compress(CompressArgs),
    /// Continue an interrupted run, or bring it up to date after a setting changed
    Resume(ResumeArgs),
    /// Upload the pack of a run to a Hub repository; run it again to continue after an interruption
    Upload(UploadArgs),
    /// Show the state of a run: what is done, what is running, how fast, what failed
    Status(StatusArgs),
    /// Show what is stale in a run and why; or, without weights, what a run of a model would cost
    Plan(PlanArgs),
    /// Run a single job of one stage, with its log on the terminal
    Stage(StageArgs),
    /// Recompute every hash of a pack and of every tensor that it reconstructs
    Verify(VerifyArgs),
    /// Show the contents of a pack, or what one of its tensors looks like
    Inspect(InspectArgs),
    /// Compare two packs: what they were made from, their sizes, and every tensor
    Diff(DiffArgs),
    /// Compare a pack, or an export of one, with its model on text
    Eval(EvalArgs),
    /// Write the weights of a pack for transformers, vLLM or llama.cpp
    Export(ExportArgs),
    /// Continue a text, or converse, with the model of a pack
    Generate(Box<GenerateArgs>),
    /// Measure how fast the model of a pack runs, what memory it takes and reads
    Bench(BenchArgs),
    /// Answer requests of the OpenAI API, and of browsers, with the model of a pack
    Serve(Box<ServeArgs>),
    /// Print the completions of a shell
    Completions(CompletionsArgs),
    /// Write the manual pages
    Man(ManArgs),
}

/// Options of verbs that plan a run.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = SETTINGS)]
pub struct PlanningArgs {
    /// A pipeline file [default: the built-in one]
    #[arg(long, value_name = "FILE")]
    pub pipeline: Option<Utf8PathBuf>,
    /// Override a setting, for example quantize.damping=0.02; repeatable [default: as in the pipeline]
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// CPU cores to use; the result does not depend on the number [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// Memory that jobs may take together, for example "64 GiB" [default: what the machine has left, less a tenth]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Allow a stage program that is not part of uc, by its name in the pipeline; repeatable
    #[arg(long, value_name = "NAME")]
    pub allow_program: Vec<String>,
}

/// Options of verbs that continue a run: what the run directory may do outside of itself.
#[derive(Debug, Clone, Default, Args)]
pub struct TrustOptions {
    /// Allow a stage program that is not part of uc, by its name in the run's plan; repeatable
    #[arg(long, value_name = "NAME")]
    pub allow_program: Vec<String>,
    /// The folder of the pack, if it lies outside the run directory
    #[arg(long, value_name = "PACK")]
    pub out: Option<Utf8PathBuf>,
}

/// Options of verbs that upload a pack.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = UPLOAD)]
pub struct UploadOptions {
    /// Make the repository private if it has to be created
    #[arg(long, requires = "repository")]
    pub private: bool,
    /// Consecutive attempts without progress before the upload gives up, 1 to 1000 [default: 8]
    #[arg(long, value_name = "N", requires = "repository", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub attempts: Option<u32>,
    /// Delete a local layer once the repository holds it and no job reads it any more
    #[arg(long, requires = "repository")]
    pub delete_uploaded: bool,
}

/// `uc compress`.
#[derive(Debug, Clone, Args)]
pub struct CompressArgs {
    /// A Hugging Face model folder (config.json, tokenizer.json, safetensors), or `OWNER/NAME[@REVISION]` of the Hub
    pub model: Utf8PathBuf,
    /// Bits per weight of the linears, including every byte of the layer files, 2 to 8 [default: 5.0]
    #[arg(long, value_name = "BITS", help_heading = SETTINGS)]
    pub bpw: Option<String>,
    /// Rank of the low-rank correction, or auto, which may choose 0 [default: auto]
    #[arg(long, value_name = "R", help_heading = SETTINGS)]
    pub rank: Option<String>,
    /// How the run is planned.
    #[command(flatten)]
    pub planning: PlanningArgs,
    /// Calibration text (.txt .utf8 .raw .jsonl, also .gz or .zst, or .parquet); repeatable [default: calibration.txt of the model, else built-in stories]
    #[arg(long, value_name = "FILE", help_heading = TEXTS)]
    pub calibration: Vec<Utf8PathBuf>,
    /// Evaluation text; repeatable [default: evaluation.txt of the model, else built-in stories]
    #[arg(long, value_name = "FILE", help_heading = TEXTS)]
    pub evaluation: Vec<Utf8PathBuf>,
    /// Key of the text in .jsonl files, column in .parquet files [default: text]
    #[arg(long, value_name = "NAME", help_heading = TEXTS)]
    pub field: Option<String>,
    /// Skip the evaluation
    #[arg(long, help_heading = TEXTS)]
    pub no_eval: bool,
    /// Folder of the pack [default: `pack` in the run directory]
    #[arg(long, value_name = "PACK", help_heading = FILES)]
    pub out: Option<Utf8PathBuf>,
    /// The run directory [default: runs/NAME-DIGEST, by model and settings]
    #[arg(long, value_name = "DIR", help_heading = FILES)]
    pub run: Option<Utf8PathBuf>,
    /// Replace a finished pack that has other settings, inputs or origin
    #[arg(long, help_heading = FILES)]
    pub force: bool,
    /// Show what would be done, and what it would take; write nothing
    #[arg(long, help_heading = FILES, conflicts_with = "repository")]
    pub dry_run: bool,
    /// Upload every layer to this Hub repository as soon as it is written, then the rest
    #[arg(long = "upload", id = "repository", value_name = "OWNER/NAME[@BRANCH]", help_heading = UPLOAD)]
    pub repository: Option<String>,
    /// How it is uploaded.
    #[command(flatten)]
    pub upload: UploadOptions,
    /// Print the summary as JSON
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
}

/// `uc resume`.
#[derive(Debug, Clone, Args)]
pub struct ResumeArgs {
    /// The run directory
    pub run: Utf8PathBuf,
    /// Change a setting of the run; repeatable [default: as before]
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Replace the finished pack if settings, texts or programs have changed since it was made
    #[arg(long)]
    pub force: bool,
    /// CPU cores to use [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// Memory that jobs may take together, for example "64 GiB" [default: what the machine has left, less a tenth]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Print the summary as JSON
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
    /// What the run may do outside of its directory.
    #[command(flatten)]
    pub trust: TrustOptions,
}

/// `uc upload`.
#[derive(Debug, Clone, Args)]
pub struct UploadArgs {
    /// The run directory
    pub run: Utf8PathBuf,
    /// The repository; created if it does not exist
    #[arg(long = "repo", id = "repository", value_name = "OWNER/NAME[@BRANCH]")]
    pub repo: String,
    /// How it is uploaded.
    #[command(flatten)]
    pub upload: UploadOptions,
    /// Only list what would be uploaded; nothing is written or sent
    #[arg(long)]
    pub dry_run: bool,
    /// CPU cores to use [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// Print the summary as JSON
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
    /// What the run may do outside of its directory.
    #[command(flatten)]
    pub trust: TrustOptions,
}

/// `uc status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// The run directory
    pub run: Utf8PathBuf,
    /// Refresh until no driver works on the run any more
    #[arg(long)]
    pub watch: bool,
    /// Seconds between refreshes of --watch
    #[arg(long, value_name = "S", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub interval: u32,
    /// Print JSON
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
}

/// `uc plan`: for a run, or for a model by its configuration.
#[derive(Debug, Clone, Args)]
#[command(group(ArgGroup::new("subject").required(true).multiple(true).args(["run", "config", "measure"])))]
pub struct PlanArgs {
    /// The run directory
    pub run: Option<Utf8PathBuf>,
    /// The config.json of a model, in place of a run; needs no weights
    #[arg(long, value_name = "FILE", conflicts_with = "run")]
    pub config: Option<Utf8PathBuf>,
    /// Measure this machine for forecasts, in at most two minutes: products, codec, memory and the disk of the current folder
    #[arg(long, conflicts_with = "run")]
    pub measure: bool,
    /// The model.safetensors.index.json of the model, to compare with the plan
    #[arg(long, value_name = "FILE", conflicts_with = "run")]
    pub index: Option<Utf8PathBuf>,
    /// Bits per weight of the linears, including every byte of the layer files, 2 to 8 [default: 5.0]
    #[arg(long, value_name = "BITS", conflicts_with = "run")]
    pub bpw: Option<String>,
    /// Memory that jobs may take together, for example "64 GiB" [default: what this machine has left, less a tenth]
    #[arg(long, value_name = "SIZE", conflicts_with = "run")]
    pub memory: Option<String>,
    /// Speeds of another machine, the output of uc plan --measure --json there, for the estimate of time
    #[arg(long, value_name = "FILE", conflicts_with_all = ["run", "measure"])]
    pub speeds: Option<Utf8PathBuf>,
    /// Sustained rate of matrix products in 10⁹ operations per second, for the estimate of time [default: as measured]
    #[arg(long, value_name = "N", conflicts_with = "run")]
    pub gflops: Option<f64>,
    /// CPU cores, for the estimate of time [default: those that were measured]
    #[arg(long, value_name = "N", conflicts_with = "run", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// A pipeline file [default: the built-in one]
    #[arg(long, value_name = "FILE", conflicts_with = "run")]
    pub pipeline: Option<Utf8PathBuf>,
    /// Print the plan as JSON
    #[arg(long, conflicts_with = "run", help_heading = OUTPUT)]
    pub json: bool,
    /// Plan as if this setting were changed; nothing is written; repeatable
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Ask a stage program that is not part of uc for its version, by its name in the run's plan; repeatable
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub allow_program: Vec<String>,
}

/// `uc stage`.
#[derive(Debug, Clone, Args)]
pub struct StageArgs {
    /// The stage, by its name in pipeline.toml
    pub name: String,
    /// The run directory
    #[arg(long, value_name = "DIR")]
    pub run: Utf8PathBuf,
    /// The layer, for a stage that works per layer
    #[arg(long, value_name = "N")]
    pub layer: Option<u32>,
    /// First make inputs that were deleted after their last use
    #[arg(long)]
    pub with_inputs: bool,
    /// CPU cores to use [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// What the run may do outside of its directory.
    #[command(flatten)]
    pub trust: TrustOptions,
}

/// `uc verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// The pack's folder
    pub pack: Utf8PathBuf,
    /// Fail unless the pack has this fingerprint: all 64 hexadecimal digits of the SHA-256 of manifest.json
    #[arg(long, value_name = "FINGERPRINT", value_parser = parse_fingerprint)]
    pub expect: Option<uc_pack::Digest>,
    /// Print the report as JSON
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
    /// CPU cores to use [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
}

/// `uc inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// The pack's folder
    pub pack: Utf8PathBuf,
    /// Show the tensors of this layer
    #[arg(long, value_name = "N", conflicts_with = "tensor")]
    pub layer: Option<u32>,
    /// Show what this tensor looks like, for example model.layers.0.self_attn.q_proj.weight
    #[arg(long, value_name = "NAME")]
    pub tensor: Option<String>,
    /// The folder of the model that the pack was made from, for the error of the tensor
    #[arg(long, value_name = "MODEL", requires = "tensor")]
    pub model: Option<Utf8PathBuf>,
    /// Accept a model that the pack was not made from
    #[arg(long, requires = "model")]
    pub other_model: bool,
    /// Print JSON
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
    /// Print the tensor as CSV, with a line for each number
    #[arg(long, help_heading = OUTPUT, requires = "tensor", conflicts_with = "json")]
    pub csv: bool,
}

/// `uc diff`.
#[derive(Debug, Clone, Args)]
pub struct DiffArgs {
    /// The folder of the first pack, the reference of every error
    pub a: Utf8PathBuf,
    /// The folder of the second pack
    pub b: Utf8PathBuf,
    /// Compare only the tensors of this layer
    #[arg(long, value_name = "N")]
    pub layer: Option<u32>,
    /// Compare only the manifests: which tensors differ, but not by how much
    #[arg(long)]
    pub manifest: bool,
    /// End with exit status 13 if the packs differ
    #[arg(long)]
    pub exit_code: bool,
    /// List every difference, and also the tensors that do not differ
    #[arg(long, help_heading = OUTPUT)]
    pub all: bool,
    /// Print JSON
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
    /// Print the tensors as CSV, with a line for each
    #[arg(long, help_heading = OUTPUT, conflicts_with = "json")]
    pub csv: bool,
    /// CPU cores to use [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
}

/// `uc eval`.
#[derive(Debug, Clone, Args)]
pub struct EvalArgs {
    /// The folder of the pack, or of an export of it
    pub pack: Utf8PathBuf,
    /// The model that the pack was made from: a folder, or `OWNER/NAME[@REVISION]` of the Hub; or a pack, to measure what an export of it adds
    #[arg(long, value_name = "MODEL")]
    pub model: Utf8PathBuf,
    /// Evaluation text (.txt .utf8 .raw .jsonl, also .gz or .zst, or .parquet); repeatable [default: evaluation.txt of the model,
    /// else built-in stories]
    #[arg(long, value_name = "FILE")]
    pub text: Vec<Utf8PathBuf>,
    /// Key of the text in .jsonl files, column in .parquet files [default: text]
    #[arg(long, value_name = "NAME")]
    pub field: Option<String>,
    /// The run directory [default: runs/eval-NAME-DIGEST]
    #[arg(long, value_name = "DIR")]
    pub run: Option<Utf8PathBuf>,
    /// Print the summary with all metrics as JSON
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
    /// How the run is planned.
    #[command(flatten)]
    pub planning: PlanningArgs,
}

/// `uc export`.
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// The pack's folder
    pub pack: Utf8PathBuf,
    /// The format: safetensors (transformers, vLLM) or gguf (llama.cpp)
    #[arg(long, value_name = "FORMAT", value_enum, hide_possible_values = true)]
    pub to: ExportFormat,
    /// Type of the matrices in a GGUF file: bf16, f16, q8_0 or f32 [default: bf16]
    #[arg(
        long = "type",
        value_name = "TYPE",
        value_enum,
        hide_possible_values = true
    )]
    pub element_type: Option<ExportType>,
    /// The folder of the export; it grows beside it and appears whole
    #[arg(long, value_name = "DIR", help_heading = FILES)]
    pub out: Utf8PathBuf,
    /// Replace an earlier export of that name
    #[arg(long, help_heading = FILES)]
    pub force: bool,
    /// Show which files would be written, with their sizes; write nothing
    #[arg(long, help_heading = FILES)]
    pub dry_run: bool,
    /// Fail unless the pack has this fingerprint: all 64 hexadecimal digits of the SHA-256 of manifest.json
    #[arg(long, value_name = "FINGERPRINT", value_parser = parse_fingerprint)]
    pub expect: Option<uc_pack::Digest>,
    /// CPU cores to use [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// Print the report as JSON
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
}

/// A format of exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportFormat {
    /// A model folder of transformers.
    Safetensors,
    /// A file of llama.cpp.
    Gguf,
}

/// The type of the matrices in a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportType {
    /// bfloat16.
    Bf16,
    /// float16.
    F16,
    /// float32.
    F32,
    /// 8 bits in blocks of 32.
    #[value(name = "q8_0")]
    Q8_0,
}

/// `uc completions`.
#[derive(Debug, Clone, Copy, Args)]
pub struct CompletionsArgs {
    /// The shell: bash, zsh or fish
    #[arg(value_enum, hide_possible_values = true)]
    pub shell: CompletionShell,
}

/// A shell with completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum CompletionShell {
    /// GNU Bash.
    Bash,
    /// Z shell.
    Zsh,
    /// Fish.
    Fish,
}

/// `uc man`.
#[derive(Debug, Clone, Args)]
pub struct ManArgs {
    /// The folder for the pages, one for `uc` and one for each verb
    #[arg(long, value_name = "DIR")]
    pub out: Utf8PathBuf,
}
