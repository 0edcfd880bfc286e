//! The options of `uc bench`.

use camino::Utf8PathBuf;
use clap::Args;

use super::OUTPUT;
use super::runtime::RuntimeArgs;

/// Heading of the options that say what is measured.
const WORK: &str = "What is measured";
/// Most sequences of a batch.
const MAX_BATCH: u64 = 1 << 10;
/// Most tokens of a prompt or of a text.
const MAX_TOKENS: u64 = 1 << 20;

/// `uc bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// The pack's folder
    pub pack: Utf8PathBuf,
    /// Lengths of the prompts, tokens; longer ones than the model's context are cut to it [default: 16,128,512]
    #[arg(
        long,
        value_name = "N,…",
        value_delimiter = ',',
        default_value = "16,128,512",
        hide_default_value = true,
        help_heading = WORK,
        value_parser = clap::value_parser!(u64).range(1..=MAX_TOKENS)
    )]
    pub prompts: Vec<u64>,
    /// Sequences that are generated together [default: 1,4,16]
    #[arg(
        long,
        value_name = "N,…",
        value_delimiter = ',',
        default_value = "1,4,16",
        hide_default_value = true,
        help_heading = WORK,
        value_parser = clap::value_parser!(u64).range(1..=MAX_BATCH)
    )]
    pub batches: Vec<u64>,
    /// Tokens to generate, for each sequence [default: 32]
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value_t = 32,
        hide_default_value = true,
        help_heading = WORK,
        value_parser = clap::value_parser!(u64).range(1..=MAX_TOKENS)
    )]
    pub tokens: u64,
    /// Measurements of each kind, after one that does not count [default: 5]
    #[arg(
        long,
        value_name = "N",
        default_value_t = 5,
        hide_default_value = true,
        help_heading = WORK,
        value_parser = clap::value_parser!(u32).range(1..=1000)
    )]
    pub runs: u32,
    /// Seed of the tokens, which are random: speed does not depend on the text [default: 0]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, help_heading = WORK)]
    pub seed: u64,
    /// How the model is run.
    #[command(flatten)]
    pub runtime: RuntimeArgs,
    /// Print all measurements as JSON (docs/bench-schema.json)
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
}
