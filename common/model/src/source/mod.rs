//! The weights of a Hugging Face model folder, read by position.
//!
//! A folder has either `model.safetensors` or `model.safetensors.index.json` with shards. All headers are
//! validated when the folder is opened. After that, reading a tensor is one positioned read of its own
//! bytes; no file is ever loaded as a whole. Nothing is written and nothing is cached.
//!
//! In place of a shard, its first bytes, the header, may be there as `NAME.header` ([`header_path`]). The folder
//! then opens without the shard, whose size follows from the header, and the shard may be added and deleted while the
//! folder is open. A file is only open while a tensor is read, so a shard that is deleted takes no space. Such headers
//! belong to the source folder of a run, whose plan has their digests; beside a shard that is there, a header is not
//! read.

mod check;
pub mod contents;
mod dtype;
mod error;
mod folder;
mod header;
mod index;
mod values;

pub use check::{IndexComparison, expected_tensors};
pub use dtype::SourceDtype;
pub use error::{Finding, SourceError};
pub(crate) use folder::tensor_names;
pub use folder::{SourceFolder, SourceTensor, TensorInfo, header_path};
pub use header::{MAX_HEADER, length_of as header_length};
pub use index::{Index, read as read_index};
pub use values::{HalfType, WeightValues};
