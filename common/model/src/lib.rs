//! What the stages share about models: which tensors a model has and what its layers compute.
//!
//! Owns the reading of a Hugging Face model folder (`config.json`, safetensors shards, tokenizer), the plan of
//! every layer (tensor names, shapes, which linears share an input), the forward and backward passes on burn,
//! the input statistics and the choice of device.
//!
//! It never writes a file, never starts a process, never uses a network, and knows nothing of the pipeline, of
//! codecs or of packs.
//!
//! Without the feature `forward` it only reads configurations, plans tensors and reads their files, and does not need burn; the
//! feature `tokenizer` adds the tokenizer alone.
//!
//! Code map:
//! - [`spec`]: what a model is, as data; [`config`]: the validated [`ModelConfig`]; `load`: reads a
//!   `config.json`; `families`: one file per family turns its `config.json` into a [`ModelConfig`]; [`plan`]:
//!   the tensor names and shapes that follow from it.
//! - [`source`]: the safetensors of a model folder, by positioned reads.
//! - [`text`]: tokenizer, text files, evaluation and calibration windows.
//! - [`forward`]: the forward and backward pass, built from the description; [`rope`]: rotary tables; [`routing`]: which
//!   experts a token is sent to.
//! - `mamba`: the selective scan and its gradient; `matmul`: the matrix product, in f32 on every device.
//! - [`moments`]: second moments of layer inputs; [`rows`]: norms and scaling of activations; [`sampled_loss`]: the loss of sampled
//!   labels; [`metrics`]: how far predictions are apart; [`device`]: CPU or CUDA; [`work`]: what the passes have computed.

pub mod config;
#[cfg(feature = "forward")]
pub mod device;
pub mod error;
mod families;
#[cfg(feature = "forward")]
pub mod forward;
mod load;
#[cfg(feature = "forward")]
mod mamba;
#[cfg(feature = "forward")]
mod matmul;
pub mod metrics;
#[cfg(feature = "forward")]
pub mod moments;
pub mod plan;
pub mod rope;
pub mod routing;
#[cfg(feature = "forward")]
pub mod rows;
#[cfg(feature = "forward")]
pub mod sampled_loss;
pub mod source;
pub mod spec;
#[cfg(feature = "tokenizer")]
pub mod text;
#[cfg(feature = "forward")]
pub mod work;

pub use config::ModelConfig;
#[cfg(feature = "cuda")]
pub use device::Cuda;
#[cfg(feature = "forward")]
pub use device::{Cpu, DeviceKind};
pub use error::ModelError;
pub use plan::{ExactSpec, InputSpec, LayerPlan, LinearSpec};
pub use source::{HalfType, SourceFolder, SourceTensor, WeightValues};
#[cfg(feature = "tokenizer")]
pub use text::{Tokenizer, Window};
