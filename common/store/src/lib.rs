//! What the processes of a run share on disk: the run directory with its plan, checkpoints and receipts.
//!
//! Owns the atomic publication of files, hashes, locks, freshness, retention, events, exit codes and the runtime of stage
//! programs. It never computes on tensors, draws a display, starts a process or uses a network.
//!
//! | module | what it owns |
//! |---|---|
//! | [`atomic`] | the creation of files |
//! | [`sha`], [`framed`], [`tensors`], [`stream`] | digests, typed binary files, tensor files, batches of a tensor file |
//! | [`spill`] | temporary data on disk |
//! | [`plan`], [`run`], [`source`] | what a run consists of, and where its files are |
//! | [`receipt`], [`freshness`] | which jobs are done, which are stale, and why |
//! | [`events`], [`stage`] | the protocol between driver and stage, and its implementation in a stage |
//! | [`model_summary`] | what shard-loader reports about a model, for the forecast |
//! | [`exit`], [`error`] | exit codes and errors |
//! | [`output`], [`logging`] | printing and log lines |
//! | [`resources`], [`signals`] | memory and CPUs, signals |

pub mod atomic;
pub mod error;
pub mod events;
pub mod exit;
pub mod framed;
pub mod freshness;
pub mod logging;
pub mod model_summary;
pub mod output;
pub mod plan;
pub mod receipt;
pub mod resources;
pub mod run;
pub mod sha;
pub mod signals;
pub mod source;
pub mod spill;
pub mod stage;
pub mod stream;
pub mod tensors;

pub use error::StoreError;
pub use exit::ExitCode;
