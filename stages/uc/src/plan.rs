//! Turns a user's request into the plan of a run: pipeline file, model, external inputs, options.
//!
//! Everything is read and checked here before any job starts. Nothing here runs a job.

pub mod embedded_texts;
pub mod model;
pub mod overhead;
pub mod pipeline;
pub mod planning;
pub mod sources;
#[cfg(test)]
pub mod test_stage;
