//! What the user sees and what is recorded: progress, errors, the event log, summaries.
//!
//! Decides nothing about a run.

pub mod colour;
pub mod completion;
pub mod csv;
pub mod event_log;
pub mod event_log_replay;
pub mod event_log_writer;
pub mod failure;
pub mod json;
pub mod outlook;
pub mod packs;
pub mod progress;
pub mod staleness;
pub mod suggestion;
pub mod summary;
pub mod terminal;
