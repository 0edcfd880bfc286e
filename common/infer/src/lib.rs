//! Runs a model from its pack: the linears stay compressed in memory, and every family is interpreted from its description.
//!
//! Owns the resident form of the weights, the arithmetic of the products, the states of a sequence (keys and values, the states
//! of Mamba), sampling and the loop that generates text. Reads packs through `uc-pack` and descriptions through `uc-model`. It
//! uses no tensor library, starts no process, prints nothing and writes no file.
//!
//! # Arithmetic
//! There is one arithmetic, `exact`: the weights of the pack's contract (bfloat16, bit for bit those that `uc verify` hashes)
//! times f32 activations. Every sum has a fixed order that depends on its length alone. So the logits of a token are the same
//! bits whatever the number of threads, whatever other sequences are in the batch, however the prompt was cut into chunks, and
//! with every instruction set.
//!
//! # Code map
//! - [`model`]: a loaded model and its forward pass; [`sequence`]: the states of one sequence; [`load`]: from a pack to a model;
//!   [`source`]: where tensors come from; [`memory`]: what a model takes; [`reads`]: what a token reads of it;
//!   [`bandwidth`]: how fast this machine reads;
//! - `kernel`, `vector`: the loops; `matrix`, `coded`: weight matrices; `linear`, `norm`, `mlp`, `experts`, `attention`,
//!   `latent`, `mamba`, `layer`: the parts of a layer; `cache`: keys and values; `rotary`: positions;
//! - [`sampler`]: from logits to a token; [`generate()`]: from a prompt to text; [`detokenizer`]: from tokens to text as they
//!   come; [`template`]: the prompt of a conversation; [`stop_tokens`]: what ends a text.

mod arithmetic;
mod attention;
pub mod bandwidth;
mod cache;
mod coded;
mod columns;
pub mod detokenizer;
mod error;
mod experts;
pub mod generate;
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
pub mod reads;
mod rotary;
pub mod sampler;
pub mod sequence;
pub mod source;
pub mod stop_tokens;
mod streamed;
pub mod template;
mod vector;

pub use arithmetic::{Arithmetic, MemoryForm};
pub use cache::Precision;
pub use coded::Coded;
pub use error::InferError;
pub use generate::{Generated, Request, generate};
pub use load::{Checks, LoadOptions, load};
pub use matrix::{Dense, Matrix};
pub use model::{Chunk, Model, Wanted};
pub use sampler::{Sampler, Sampling};
pub use sequence::Sequence;
pub use source::Source;
pub use stop_tokens::stop_tokens;
pub use template::{Message, Template};
