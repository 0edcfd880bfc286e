//! What the processes of a run share on disk: the run directory with its plan, checkpoints and receipts.
//!
//! Owns atomic publication of files, hashes, locks, freshness, retention, events, exit codes and the runtime of stage
//! programs. It never computes on tensors, never draws, never starts a process and never talks to a network.
//!
//! | module | what it owns |
//! |---|---|
//! | [`atomic`] | the creation of files |
//! | [`sha`], [`framed`], [`tensors`], [`stream`] | digests, typed binary files, tensor files, their batches |
//! | [`spill`] | bytes that wait on disk |
//! | [`settings`], [`plan`], [`run`], [`source`] | what a run is, and where |
//! | [`receipt`], [`freshness`] | what is done, what is stale and why |
//! | [`events`], [`stage`] | the protocol between driver and stage, and the stage's side of it |
//! | [`exit`], [`error`], [`logging`], [`resources`] | outcomes, errors, logs, the machine |

pub mod atomic;
pub mod error;
pub mod events;
pub mod exit;
pub mod framed;
pub mod freshness;
pub mod logging;
pub mod model_summary;
pub mod plan;
pub mod receipt;
pub mod resources;
pub mod run;
pub mod settings;
pub mod sha;
pub mod size;
pub mod source;
pub mod spill;
pub mod stage;
pub mod stream;
pub mod tensors;

pub use error::StoreError;
pub use exit::ExitCode;
