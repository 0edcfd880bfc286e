//! The execution of a plan: which job starts when, and the loop that carries the decisions out.
//!
//! `scheduler` and `shards` are pure decisions; only `driver` starts processes and touches files.

pub mod driver;
pub mod scheduler;
pub mod shards;
