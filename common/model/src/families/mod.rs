//! One file per model family, which turns its `config.json` into a description of its layers.
//!
//! A family's file is a function from the keys of a `config.json` to a [`ModelConfig`]. It reads every
//! key that the forward pass depends on and refuses, by name, whatever is not implemented.
//! `docs/adding-a-model.md` shows how to add a family.
//!
//! Shared parts: [`keys`] reads keys and remembers which were read, [`harmless`] knows the keys that need not be
//! read, [`limits`] the largest accepted numbers, [`floats`] handles non-finite numbers, [`decoder`] has the usual
//! dimensions and tensor names, [`experts`] the layouts of expert weights, [`rope`] the two spellings of the rotary
//! settings.

mod decoder;
mod deepseek_v3;
mod experts;
pub(crate) mod floats;
mod gemma;
mod gpt2;
mod gpt_neox;
mod granite;
mod harmless;
pub(crate) mod keys;
pub(crate) mod limits;
mod llama;
mod mamba;
mod mamba2;
mod mistral;
mod mixtral;
mod olmo2;
mod phi3;
mod phimoe;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod rope;

use crate::config::{ConfigError, ModelConfig};
use keys::Keys;

/// A function from the keys of a `config.json` to a model description.
type Describe = fn(&Keys<'_>) -> Result<ModelConfig, ConfigError>;

/// The supported families by `model_type`.
pub(crate) const FAMILIES: [(&str, Describe); 18] = [
    ("deepseek_v3", deepseek_v3::describe),
    ("gemma2", gemma::gemma2),
    ("gemma3_text", gemma::gemma3_text),
    ("gpt2", gpt2::describe),
    ("gpt_neox", gpt_neox::describe),
    ("granite", granite::dense),
    ("granitemoe", granite::mixture),
    ("llama", llama::describe),
    ("mamba", mamba::describe),
    ("mamba2", mamba2::describe),
    ("mistral", mistral::describe),
    ("mixtral", mixtral::describe),
    ("olmo2", olmo2::describe),
    ("phi3", phi3::describe),
    ("phimoe", phimoe::describe),
    ("qwen2", qwen2::describe),
    ("qwen3", qwen3::describe),
    ("qwen3_moe", qwen3_moe::describe),
];
