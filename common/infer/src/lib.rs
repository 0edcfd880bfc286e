//! Runs a model from its pack: the linears stay compressed in memory, and every family is interpreted from its description.
//!
//! Owns the resident form of the weights, the arithmetic of the products, the states of a sequence (keys and values, the states
//! of Mamba), sampling and the loop that generates text. Reads packs through `uc-pack` and descriptions through `uc-model`. It
//! uses no tensor library, starts no process, prints nothing and writes no file.
//!
//! # Arithmetic
//! There are two: `exact`, the weights of the pack's contract (bfloat16, bit for bit those that `uc verify` hashes) times f32
//! activations, and `fast`, levels times activations in 16-bit integers. Every sum has a fixed order that depends on its length
//! alone, or is one of integers. So the logits of a token are the same bits whatever the number of threads, whatever other
//! sequences are in the batch, however the prompt was cut into chunks, and with every instruction set.
//!
//! # Code map
//! - [`model`]: a loaded model and its forward pass; [`sequence`]: the states of one sequence; [`load`]: from a pack to a model;
//!   [`source`]: where tensors come from; [`memory`]: what a model takes; [`reads`]: what a token reads of it;
//!   [`bandwidth`]: how fast this machine reads;
//! - `packed`, `streamed`: the levels of a linear in memory; `integer`: products in `fast`; `kernel`, `vector`: the loops of
//!   `exact`; `matrix`, `coded`, `twelve_bits`: weight matrices; `product`, `tasks`: their products on all threads;
//! - `linear`, `norm`, `mlp`, `experts`, `attention`, `latent`, `mamba`, `layer`: the parts of a layer; `attend`, `scores`:
//!   attention over the `cache` of keys and values; `rotary`: positions;
//! - [`batch`]: requests that join and leave a running batch; [`request`]: what is asked and answered; `running`: a request in
//!   a slot; `prefix`: sequences that others begin with; `writer`: the text that is certain; [`generate()`]: a single request;
//! - [`sampler`]: from logits to a token; [`detokenizer`]: from tokens to text as they
//!   come; [`template`]: the prompt of a conversation; [`stop_tokens`]: what ends a text.

mod arithmetic;
mod attend;
mod attention;
mod awake;
pub mod bandwidth;
pub mod batch;
mod cache;
mod coded;
mod columns;
pub mod detokenizer;
mod error;
mod experts;
mod freed;
pub mod generate;
mod head;
mod huge_pages;
mod integer;
mod kernel;
mod latent;
mod layer;
mod linear;
pub mod load;
mod mamba;
mod matrix;
pub mod memory;
mod mlp;
pub mod model;
mod norm;
mod packed;
mod prefix;
mod product;
pub mod reads;
pub mod request;
mod rotary;
mod running;
pub mod sampler;
mod scores;
pub mod sequence;
pub mod source;
pub mod stop_tokens;
mod streamed;
mod tasks;
pub mod template;
mod twelve_bits;
mod vector;
mod writer;

pub use arithmetic::{Arithmetic, MemoryForm};
pub use batch::{Batch, BatchSettings, Counters};
pub use cache::Precision;
pub use coded::Coded;
pub use error::InferError;
pub use generate::{Generated, generate};
pub use load::{Checks, LoadOptions, load};
pub use matrix::{Dense, Matrix};
pub use model::{Chunk, Model, Wanted};
pub use request::{Constraint, Event, Finish, Progress, Request, RequestId, Token, Usage};
pub use sampler::{Sampler, Sampling};
pub use sequence::Sequence;
pub use source::Source;
pub use stop_tokens::stop_tokens;
pub use template::{Message, Template};
