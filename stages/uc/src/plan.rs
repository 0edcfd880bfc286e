//! From what the user asks for to the plan of a run: the pipeline file, the model, the external inputs, the options.
//!
//! Everything is read and checked here before anything starts. Nothing here runs a job.

pub mod model;
pub mod pipeline;
pub mod planning;
pub mod sources;
