//! From text files to windows of token ids.
//!
//! Owns the tokenizer (the model folder's own `tokenizer.json`), the reading of text files and the seeded
//! selection of windows. A selection is a function of its arguments alone: the same text, tokenizer, length,
//! count and seed give the same windows on every machine and in every version.

pub mod bos;
mod error;
mod files;
mod set;
mod tokenizer;
mod windows;

pub use error::TextError;
pub use files::{Document, read_texts};
pub use set::{RecordedWindow, WindowChoice, WindowSet};
pub use tokenizer::Tokenizer;
pub use windows::{Window, check_token_ids, splitmix64, windows};
