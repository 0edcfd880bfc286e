//! The execution of a plan: which job starts when, and the loop that carries these decisions out.
//!
//! `scheduler` and `shards` are pure decisions, `source` connects them; only `driver` starts processes and moves files.

pub mod driver;
pub mod limits;
pub mod scheduler;
pub mod shards;
pub mod source;
