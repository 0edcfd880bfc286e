//! From text files to windows of token ids.
//!
//! Owns the tokenizer (the model folder's own `tokenizer.json`), the reading of text files in pieces, and the seeded
//! selection of windows. Memory and time are bounded by the windows, not by the text: a text is read twice in pieces, and a
//! long one is tokenized in excerpts. A selection is a function of its arguments alone: the same text, tokenizer, length,
//! count and seed give the same windows on every machine and in every version.

pub mod bos;
mod document;
#[cfg(feature = "forward")]
mod draw;
mod error;
#[cfg(feature = "forward")]
mod files;
mod normalizer;
mod pattern;
mod pre_tokenizer;
#[cfg(feature = "forward")]
mod set;
mod tokenizer;
mod vocabulary;
mod windows;

#[cfg(feature = "forward")]
pub use draw::encode_texts;
pub use error::TextError;
#[cfg(feature = "forward")]
pub use files::{Consumer, Piece, read_texts};
#[cfg(feature = "forward")]
pub use set::{RecordedWindow, WindowChoice, WindowSet};
pub use tokenizer::Tokenizer;
pub use vocabulary::TokenBytes;
pub use windows::{Window, check_token_ids, splitmix64, windows};
