//! The options of the verbs that run a model from its pack.

use clap::{Args, ValueEnum};
use uc_infer::{Arithmetic, Checks, LoadOptions, MemoryForm, Precision};
use uc_pack::Pack;
use uc_pack::manifest::LayerEntry;
use uc_store::resources::available_memory_bytes;

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
    /// How the compressed linears are kept: resident at about 6 bits per weight, streamed at the bits of the pack and decoded
    /// at each use, or auto: resident if there is enough memory [default: auto]
    #[arg(
        long,
        value_enum,
        value_name = "FORM",
        default_value_t,
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub memory: MemoryArg,
    /// Number format of cached keys and values: f32, f16 or bf16 [default: f32]
    #[arg(
        long,
        value_enum,
        value_name = "TYPE",
        default_value_t,
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub cache: CacheType,
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

/// See [`MemoryForm`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum MemoryArg {
    /// Resident if the machine has enough memory for it.
    #[default]
    Auto,
    /// Fields of a few bits.
    Resident,
    /// Entropy-coded tiles.
    Streamed,
}

/// Number format of cached keys and values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum CacheType {
    /// As computed.
    #[default]
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl From<CacheType> for Precision {
    fn from(cache: CacheType) -> Self {
        match cache {
            CacheType::F32 => Precision::F32,
            CacheType::F16 => Precision::F16,
            CacheType::Bf16 => Precision::Bf16,
        }
    }
}

/// Bits per weight of a linear in the resident form, at most; see `docs/runtime.md`.
const RESIDENT_BITS: u64 = 7;

impl RuntimeArgs {
    /// How the pack is loaded.
    pub fn load_options(&self, pack: &Pack) -> LoadOptions {
        LoadOptions {
            checks: self.checks(),
            arithmetic: match self.arithmetic {
                ArithmeticArg::Fast => Arithmetic::Fast,
                ArithmeticArg::Exact => Arithmetic::Exact,
            },
            memory: match self.memory {
                MemoryArg::Resident => MemoryForm::Resident,
                MemoryArg::Streamed => MemoryForm::Streamed,
                MemoryArg::Auto => fitting_form(pack, available_memory_bytes()),
            },
        }
    }

    /// What is compared with the manifest.
    pub fn checks(&self) -> Checks {
        match self.no_verify {
            true => Checks::Structure,
            false => Checks::Digests,
        }
    }
}

/// The resident form, unless it takes more than nine tenths of the memory that is available; 0 stands for an unknown amount.
fn fitting_form(pack: &Pack, available: u64) -> MemoryForm {
    let manifest = pack.manifest();
    let weights: u64 = manifest.layers.iter().map(LayerEntry::weights).sum();
    let resident = weights * RESIDENT_BITS / 8 + manifest.non_layer.size;
    match available == 0 || resident <= available / 10 * 9 {
        true => MemoryForm::Resident,
        false => MemoryForm::Streamed,
    }
}
