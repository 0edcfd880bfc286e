//! From text files to windows of token ids.
//!
//! Owns the tokenizer (the model folder's own `tokenizer.json`), the reading of text files in pieces, and the seeded
//! selection of windows. Memory and time are bounded by the windows, not by the text: a text is read twice in pieces, and a
//! long one is tokenized in excerpts. A selection is a function of its arguments alone: the same text, tokenizer, length,
//! count and seed give the same windows on every machine and in every version.

pub mod bos;
mod document;
mod draw;
mod error;
mod files;
mod normalizer;
mod pattern;
mod pre_tokenizer;
mod set;
mod tokenizer;
mod windows;

pub use draw::encode_texts;
pub use error::TextError;
pub use files::{Consumer, Piece, read_texts};
pub use set::{RecordedWindow, WindowChoice, WindowSet};
pub use tokenizer::Tokenizer;
pub use windows::{Window, check_token_ids, splitmix64, windows};
