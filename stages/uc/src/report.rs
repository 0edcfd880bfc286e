//! What the user gets to see and what is recorded: progress, errors, the event log, summaries.
//!
//! Decides nothing about a run.

pub mod event_log_replay;
pub mod event_log_writer;
pub mod failure;
pub mod packs;
pub mod progress;
pub mod summary;
