//! An OpenAI-compatible HTTP server for the model of a pack. `docs/serving.md` describes it to its users, `docs/openapi.json` to
//! programs.
//!
//! Owns the requests and answers of the API, the limits of what clients may do, and the thread that steps the batch of
//! `uc-infer`. It reads no pack, prints nothing, writes no file, and knows no model family.
//!
//! # Code map
//! - [`server`]: connections, and the end in order; `stalling`: clients that do not read; `phase`: open, ending, cut;
//! - `router`: the paths, and what is done around every request; [`access`]: keys and browsers; [`error`]: errors of the API;
//!   `wire`: bodies; `metrics`: numbers for Prometheus; `page.html`: the page for browsers;
//! - `completions`, `chat`, `tokens`, `models`: the paths; `params`, `format`, `messages`, `choice`: the fields of requests;
//!   `logprobs`, `usage`, `stream`: parts of answers;
//! - [`served`]: the model; `apart`: threads for templates, tokenizers and grammars; `engine`: the thread that computes; `running`: the sequences of a request; `constraint`: grammars; `tools`:
//!   calls of tools in the text of an answer.
//!
//! # What an answer depends on
//! On the request and the pack alone: the runtime computes the same bits whatever else is in the batch. A request without a
//! seed gets one of the server; choice `i` of a request has the seed of the request plus `i`.

pub mod access;
mod apart;
mod chat;
mod choice;
mod completions;
mod constraint;
mod engine;
pub mod error;
mod format;
mod logprobs;
mod messages;
mod metrics;
mod models;
mod params;
mod phase;
mod router;
mod running;
pub mod served;
pub mod server;
mod stalling;
mod state;
mod stream;
mod tokens;
mod tools;
mod usage;
mod wire;

pub use access::Access;
pub use served::Served;
pub use server::{Control, Ended, Server};
pub use state::Settings;
