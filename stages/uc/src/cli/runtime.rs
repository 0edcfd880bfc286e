//! The options of the verbs that run a model from its pack.

use clap::{Args, ValueEnum};
use uc_infer::{Arithmetic, Checks, LoadOptions};

/// Heading of these options.
const RUNTIME: &str = "Runtime";

/// How a model is run.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = RUNTIME)]
pub struct RuntimeArgs {
    /// Arithmetic of the compressed linears: fast or exact, which computes with the weights of the contract, bit for bit
    /// [default: fast]
    #[arg(
        long,
        value_enum,
        value_name = "NAME",
        default_value_t,
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub arithmetic: ArithmeticArg,
    /// Do not compare what is read with the digests of the manifest
    #[arg(long)]
    pub no_verify: bool,
    /// CPU cores to use; the text does not depend on the number [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
}

/// See [`Arithmetic`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ArithmeticArg {
    /// Integers.
    #[default]
    Fast,
    /// The weights of the contract.
    Exact,
}

impl RuntimeArgs {
    /// How the pack is loaded.
    pub fn load_options(&self) -> LoadOptions {
        LoadOptions {
            checks: match self.no_verify {
                true => Checks::Structure,
                false => Checks::Digests,
            },
            arithmetic: match self.arithmetic {
                ArithmeticArg::Fast => Arithmetic::Fast,
                ArithmeticArg::Exact => Arithmetic::Exact,
            },
        }
    }
}
