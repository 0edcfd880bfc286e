//! The pack format: a compressed model in which every weight can be re-derived and every byte can be checked.
//!
//! This crate owns the format, its writer, its reader and its verification. It creates no file (it returns bytes or
//! writes to a sink that the caller provides), starts no process, and depends on no crate of the workspace except
//! `uc-codec`, so that an auditor can read all of it. `docs/pack-format.md` specifies the same layout, and also the
//! entropy coder and the arithmetic of the reconstruction.
//!
//! A pack is a folder that holds one `layer_NNN.uc` per layer, `scaffold.uc` with the tensors outside the layers,
//! `manifest.json`, `manifest.sha256`, `config.json` and the tokenizer's files. Integers are little-endian. A name is a
//! length byte followed by that many characters of `A-Z a-z 0-9 _ - .`. Padding is zero. Nothing follows the last
//! section of a file.
//!
//! # layer_NNN.uc
//! ```text
//! offset  bytes  content
//! 0       8      magic "UCLAYER\0"
//! 8       2      format version, u16: 7
//! 10      2      layer index, u16
//! 12      2      number of groups, u16
//! 14      2      number of linears, u16
//! 16      2      number of exact tensors, u16
//! 18      2      zero
//! 20      4      length T of the context tables, u32
//! 24      T      context tables (uc_codec::contexts)
//! …       …      groups: name of the input; columns u32; length u32 and packed column logarithms (uc_codec::packed)
//! …       …      linears: name; rows u32; group u16; rank R u16; tensor step f32;
//!                length u32 and packed row sums, each the sum modulo 256 of the row's logarithm and its step logarithm;
//!                length u32 and packed row step logarithms; length u32 of each tile;
//!                if R > 0, the overlay's factors U [rows, R] and V [R, columns] in bfloat16
//! …       …      exact tensors: name; dtype u8 (position in ExactDtype::ALL); number of dimensions u8; dimensions u32 each;
//!                the values
//! …       …      per linear: zero bytes up to a multiple of 8, then its tiles (uc_codec::rans)
//! ```
//! Everything before the payloads is the header of the file. A linear has the columns of its group and
//! `ceil(rows / tile_rows)` tiles, with `tile_rows = min(rows, 256 · max(1, floor(2^20 / (256 · columns))))`. A tile
//! takes at least `4 · min(32, columns)` bytes, which is all that constant weights take. A reader therefore works on pieces of
//! rows ([`LayerFile::reconstruct_pieces`]), whose size does not depend on what the header claims, and a pack as a whole may
//! hold at most [`limits::MAX_WEIGHTS_PER_BYTE`] weights for each of its bytes.
//!
//! # scaffold.uc
//! ```text
//! offset  bytes  content
//! 0       8      magic "UCSCAFF\0"
//! 8       2      format version, u16: 7
//! 10      2      number of tensors, u16
//! 12      4      length of the header (these 16 bytes and the descriptors), u32
//! 16      …      descriptors: name; dtype u8; number of dimensions u8; dimensions u32 each
//! …       …      per tensor: zero bytes up to a multiple of 64, then the values
//! ```
//!
//! # Code map
//! - [`layer`]: layer files, writer and reader;
//! - [`non_layer`]: the file of the tensors outside the layers, writer and reader;
//! - [`overhead`]: what a layer file holds besides indices;
//! - [`exact`]: the type and the descriptor of a tensor that is stored unchanged;
//! - [`limits`]: how many weights a pack of a given size may hold;
//! - [`manifest`] and [`totals`]: the manifest, its canonical text and its sums;
//! - [`pack`]: the folder as a whole; [`verify`]: every check of a pack; [`planned`]: comparison with the model's plan;
//! - [`lookup`]: a tensor by its name; [`statistics`]: what a tensor looks like; [`mod@diff`]: how two packs differ;
//! - [`licence`]: the licence of the source, as far as its files tell;
//! - [`digest`]: SHA-256; [`error`]: the error type.

mod canonical;
mod check;
pub mod diff;
pub mod digest;
pub mod error;
pub mod exact;
pub mod layer;
pub mod licence;
pub mod limits;
pub mod lookup;
pub mod manifest;
pub mod non_layer;
pub mod overhead;
pub mod pack;
pub mod planned;
#[cfg(test)]
mod sample;
pub mod statistics;
pub mod totals;
pub mod verify;
mod wire;

pub use digest::Digest;
pub use error::PackError;
pub use exact::{ExactDecl, ExactDtype, ExactTensor};
pub use layer::{GroupHeader, LayerCoder, LayerFile, LinearHeader, Linears, encode_layer};
pub use manifest::{LayerEntry, Manifest};
pub use non_layer::{NonLayerFile, write_non_layer};
pub use pack::Pack;

use wire::Cursor;

/// Format version of every file of a pack.
pub const FORMAT_VERSION: u16 = 7;
/// First bytes of a layer file.
pub const LAYER_MAGIC: [u8; 8] = *b"UCLAYER\0";
/// First bytes of the file of non-layer tensors.
pub const NON_LAYER_MAGIC: [u8; 8] = *b"UCSCAFF\0";
/// Name of the file of non-layer tensors.
pub const NON_LAYER_FILE: &str = "scaffold.uc";
/// Name of the manifest.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Name of the file with the manifest's digest.
pub const DIGEST_FILE: &str = "manifest.sha256";
/// Name of the model's configuration.
pub const CONFIG_FILE: &str = "config.json";
/// Name of a note next to an uploaded pack that records which repository holds it. The note is not part of the pack.
pub const REMOTE_FILE: &str = "remote.json";
/// Alignment of payloads in a layer file, bytes.
pub const LAYER_ALIGNMENT: usize = 8;
/// Alignment of tensors in the file of non-layer tensors, bytes.
pub const NON_LAYER_ALIGNMENT: usize = 64;
/// Length of the fixed part of that file's header, bytes.
pub const NON_LAYER_FIXED: u64 = 16;
/// Maximum number of layers of a model: file names have three digits for the layer.
pub const MAX_LAYERS: u64 = 1000;
/// Maximum number of groups of a layer.
pub const MAX_GROUPS: u64 = 4096;
/// Maximum number of linears of a layer.
pub const MAX_LINEARS: u64 = 16384;
/// Maximum number of exact tensors of a file.
pub const MAX_EXACT_TENSORS: u64 = 16384;
/// Maximum number of dimensions of an exact tensor.
pub const MAX_EXACT_RANK: usize = 8;
/// Maximum number of rows of a coded matrix.
pub const MAX_ROWS: u64 = 1 << 24;
/// Maximum number of columns of a coded matrix.
pub const MAX_COLUMNS: u64 = 1 << 18;
/// Maximum rank of an overlay.
pub const MAX_RANK: u64 = 4096;
/// Maximum length of the header of the file of non-layer tensors, bytes.
pub const MAX_NON_LAYER_HEADER: u64 = 16 << 20;
/// Maximum length of the context tables of a layer, bytes: 128 tables of at most 4.6 KB each. The zigzags of a side's second
/// differences sum to less than 2^15, which is the length in bits of its Rice codes without a remainder.
pub const MAX_TABLES: u64 = 1 << 20;
/// Maximum length of the manifest, bytes.
pub const MAX_MANIFEST: u64 = 256 << 20;

/// Name of the file of a layer: `layer_NNN.uc`.
pub fn layer_file_name(layer: u32) -> String {
    format!("layer_{layer:03}.uc")
}

/// Reads and checks the magic and the format version.
fn check_magic(
    cursor: &mut Cursor<'_>,
    magic: [u8; 8],
    kind: &'static str,
    origin: &str,
) -> Result<(), PackError> {
    let found = cursor.take(8, "magic")?;
    if found != magic {
        let (found, expected) = (hex::encode(found), hex::encode(magic));
        return Err(PackError::Magic {
            origin: origin.to_owned(),
            kind,
            found,
            expected,
        });
    }
    let found = cursor.u16("format version")?;
    if found != FORMAT_VERSION {
        let (found, supported) = (found.into(), FORMAT_VERSION.into());
        return Err(PackError::Version {
            origin: origin.to_owned(),
            found,
            supported,
        });
    }
    Ok(())
}
