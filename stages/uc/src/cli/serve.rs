//! The options of `uc serve`.

use std::net::IpAddr;

use camino::Utf8PathBuf;
use clap::Args;

use super::runtime::RuntimeArgs;

/// Heading of the options of who may use the server.
const ACCESS: &str = "Access";
/// Heading of the options of how much is done at the same time, and for how long.
const LIMITS: &str = "Limits";

/// `uc serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// The pack's folder
    pub pack: Utf8PathBuf,
    /// Address to listen on; 0.0.0.0 or :: for all [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", hide_default_value = true, help_heading = ACCESS)]
    pub host: IpAddr,
    /// Port to listen on; 0 takes a free one [default: 8080]
    #[arg(long, value_name = "PORT", default_value_t = 8080, hide_default_value = true, help_heading = ACCESS)]
    pub port: u16,
    /// A file with the key that clients have to send, on one line
    #[arg(long, value_name = "FILE", help_heading = ACCESS)]
    pub api_key_file: Option<Utf8PathBuf>,
    /// A name under which browsers may reach the server, beside addresses and localhost; repeatable
    #[arg(long, value_name = "NAME", help_heading = ACCESS)]
    pub allow_host: Vec<String>,
    /// Name of the model in requests and answers [default: the source's name in the pack, or the folder's]
    #[arg(long, value_name = "NAME")]
    pub model_name: Option<String>,
    /// Most tokens of a prompt and its answer [default: the model's context]
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// Most answers that are computed at the same time; others wait [default: 8]
    #[arg(long, value_name = "N", default_value_t = 8, hide_default_value = true, help_heading = LIMITS, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub parallel: u32,
    /// Most answers that wait; further requests are turned away [default: 128]
    #[arg(long, value_name = "N", default_value_t = 128, hide_default_value = true, help_heading = LIMITS, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub queue: u32,
    /// Seconds for an answer, waiting included [default: 600]
    #[arg(long, value_name = "SECONDS", default_value_t = 600, hide_default_value = true, help_heading = LIMITS, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub timeout: u32,
    /// Seconds that running answers get when the server is ended [default: 30]
    #[arg(long, value_name = "SECONDS", default_value_t = 30, hide_default_value = true, help_heading = LIMITS, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub drain: u32,
    /// Mebibytes for the states of prompts that requests have in common; 0 keeps none [default: 512]
    #[arg(long, value_name = "MIB", default_value_t = 512, hide_default_value = true, help_heading = LIMITS, value_parser = clap::value_parser!(u32).range(0..=1_000_000_000))]
    pub prefix_cache: u32,
    /// Most mebibytes of a request [default: 8]
    #[arg(long, value_name = "MIB", default_value_t = 8, hide_default_value = true, help_heading = LIMITS, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub body_limit: u32,
    /// How the model is run.
    #[command(flatten)]
    pub runtime: RuntimeArgs,
    /// Write prompts and answers to the log (with -v)
    #[arg(long)]
    pub log_prompts: bool,
}
