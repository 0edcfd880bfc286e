//! One file per model family: its `config.json` keys and what they mean.
//!
//! A family's file owns the wire type of its configuration and refuses, by name, every value that
//! would change the forward pass in a way that is not implemented.

pub mod llama;
