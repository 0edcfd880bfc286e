//! The command line. `docs/cli.md` describes it; a test compares the two.

use camino::Utf8PathBuf;
use clap::{ArgGroup, Args, Parser, Subcommand};
use uc_store::logging::LogFormat;

use crate::report::packs::parse_fingerprint;

/// Compress language models into packs that reconstruct bit for bit, verify and evaluate them.
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
pub struct OutputArgs {
    /// Print nothing but errors; results still go to standard output
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print more: why jobs run, the logs of the stages; repeat for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Format of progress and log lines on standard error
    #[arg(long, global = true, value_enum, default_value_t)]
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
    /// Show the contents of a pack
    Inspect(InspectArgs),
    /// Compare a pack with its model on text
    Eval(EvalArgs),
}

/// Options of verbs that plan a run.
#[derive(Debug, Clone, Default, Args)]
pub struct PlanningArgs {
    /// A pipeline file in place of the built-in one
    #[arg(long, value_name = "FILE")]
    pub pipeline: Option<Utf8PathBuf>,
    /// Override a setting, for example quantize.damping=0.02; repeatable
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// CPU cores to use; all by default. The result does not depend on the number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
}

/// Options of verbs that upload a pack.
#[derive(Debug, Clone, Default, Args)]
pub struct UploadOptions {
    /// Make the repository private if it has to be created
    #[arg(long, requires = "repository")]
    pub private: bool,
    /// Consecutive attempts without progress before the upload gives up
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
    /// Folder of the pack; by default `pack` in the run directory
    #[arg(long, value_name = "PACK")]
    pub out: Option<Utf8PathBuf>,
    /// The run directory; by default runs/NAME-DIGEST of model and settings
    #[arg(long, value_name = "DIR")]
    pub run: Option<Utf8PathBuf>,
    /// Bits per weight of the linears, including every byte of the layer files: 2 to 8
    #[arg(long, value_name = "BITS")]
    pub bpw: Option<String>,
    /// Rank of the low-rank correction, or auto
    #[arg(long, value_name = "R")]
    pub rank: Option<String>,
    /// Calibration text (.txt .utf8 .raw .jsonl); repeatable
    #[arg(long, value_name = "FILE")]
    pub calibration: Vec<Utf8PathBuf>,
    /// Evaluation text; repeatable
    #[arg(long, value_name = "FILE")]
    pub evaluation: Vec<Utf8PathBuf>,
    /// Skip the evaluation
    #[arg(long)]
    pub no_eval: bool,
    /// Upload every layer to this Hub repository as soon as it is written, then the rest
    #[arg(long = "upload", id = "repository", value_name = "OWNER/NAME[@BRANCH]")]
    pub repository: Option<String>,
    /// How it is uploaded.
    #[command(flatten)]
    pub upload: UploadOptions,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
    /// How the run is planned.
    #[command(flatten)]
    pub planning: PlanningArgs,
}

/// `uc resume`.
#[derive(Debug, Clone, Args)]
pub struct ResumeArgs {
    /// The run directory
    pub run: Utf8PathBuf,
    /// Change a setting of the run; repeatable
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// CPU cores to use; all by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
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
    /// CPU cores to use; all by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
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
    #[arg(long)]
    pub json: bool,
}

/// `uc plan`: for a run, or for a model by its configuration.
#[derive(Debug, Clone, Args)]
#[command(group(ArgGroup::new("subject").required(true).args(["run", "config"])))]
pub struct PlanArgs {
    /// The run directory
    pub run: Option<Utf8PathBuf>,
    /// The config.json of a model, in place of a run; needs no weights
    #[arg(long, value_name = "FILE")]
    pub config: Option<Utf8PathBuf>,
    /// The model.safetensors.index.json of the model, to compare with the plan
    #[arg(long, value_name = "FILE", conflicts_with = "run")]
    pub index: Option<Utf8PathBuf>,
    /// Bits per weight of the linears, including every byte of the layer files: 2 to 8
    #[arg(long, value_name = "BITS", conflicts_with = "run")]
    pub bpw: Option<String>,
    /// Memory that jobs may claim together, for example "64 GiB"
    #[arg(long, value_name = "SIZE", conflicts_with = "run")]
    pub memory: Option<String>,
    /// Sustained rate of matrix products, 10⁹ operations per second, for the estimate of time
    #[arg(long, value_name = "N", conflicts_with = "run")]
    pub gflops: Option<f64>,
    /// CPU cores, for the estimate of time; by default those of the measured machine
    #[arg(long, value_name = "N", conflicts_with = "run", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// A pipeline file in place of the built-in one
    #[arg(long, value_name = "FILE", conflicts_with = "run")]
    pub pipeline: Option<Utf8PathBuf>,
    /// Print the plan as JSON
    #[arg(long, conflicts_with = "run")]
    pub json: bool,
    /// Plan as if this setting were changed; nothing is written; repeatable
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
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
    /// CPU cores to use; all by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
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
    #[arg(long)]
    pub json: bool,
    /// CPU cores to use; all by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
}

/// `uc inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// The pack's folder
    pub pack: Utf8PathBuf,
    /// Show the tensors of this layer
    #[arg(long, value_name = "N")]
    pub layer: Option<u32>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `uc eval`.
#[derive(Debug, Clone, Args)]
pub struct EvalArgs {
    /// The pack's folder
    pub pack: Utf8PathBuf,
    /// The model that the pack was made from: a folder, or `OWNER/NAME[@REVISION]` of the Hub
    #[arg(long, value_name = "MODEL")]
    pub model: Utf8PathBuf,
    /// Evaluation text (.txt .utf8 .raw .jsonl); repeatable
    #[arg(long, value_name = "FILE")]
    pub text: Vec<Utf8PathBuf>,
    /// The run directory; by default runs/eval-NAME-DIGEST
    #[arg(long, value_name = "DIR")]
    pub run: Option<Utf8PathBuf>,
    /// Print the summary with all metrics as JSON
    #[arg(long)]
    pub json: bool,
    /// How the run is planned.
    #[command(flatten)]
    pub planning: PlanningArgs,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;

    /// Every long option of a command.
    fn long_options(command: &clap::Command) -> BTreeSet<String> {
        command
            .get_arguments()
            .filter_map(|argument| argument.get_long())
            .map(|long| format!("--{long}"))
            .collect()
    }

    /// The words of a text that look like long options.
    fn mentioned_options(text: &str) -> BTreeSet<String> {
        text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
            .filter(|word| word.starts_with("--") && !word.starts_with("---"))
            .filter(|word| word.len() > 2)
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_documentation_describes_exactly_the_existing_verbs_and_options() {
        let document = include_str!("../../../docs/cli.md");
        let command = Cli::command();
        let global = long_options(&command);
        let mut sections: Vec<(String, &str)> = Vec::new();
        for part in document.split("\n## `uc ").skip(1) {
            let name = part.split([' ', '`']).next().expect("verb");
            let body = part.split("\n## ").next().expect("body");
            sections.push((name.to_owned(), body));
        }
        let verbs: Vec<&str> = command
            .get_subcommands()
            .map(clap::Command::get_name)
            .collect();
        let described: Vec<&str> = sections.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(described, verbs);
        for verb in command.get_subcommands() {
            let (_, body) = sections
                .iter()
                .find(|(name, _)| name == verb.get_name())
                .expect("section");
            let existing = long_options(verb);
            let mut documented = mentioned_options(body);
            assert_eq!(
                existing.difference(&documented).count(),
                0,
                "{}: {existing:?}",
                verb.get_name()
            );
            documented.retain(|option| !existing.contains(option) && !global.contains(option));
            assert!(
                documented.is_empty(),
                "{} has no {documented:?}",
                verb.get_name()
            );
        }
        let general = document.split("\n## `uc ").next().expect("head");
        assert_eq!(
            global.difference(&mentioned_options(general)).count(),
            0,
            "{global:?}"
        );
    }

    #[test]
    fn the_documentation_lists_every_exit_code() {
        let document = include_str!("../../../docs/cli.md");
        for code in uc_store::ExitCode::ALL {
            let row = format!("| {} | {} |", code.code(), code.class());
            assert!(document.contains(&row), "{row}");
        }
    }
}
