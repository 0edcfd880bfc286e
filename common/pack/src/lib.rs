//! The pack: a compressed model whose every weight can be re-derived and checked.
//!
//! Owns the format, its writer and reader, and verification. It creates no file (it returns bytes or writes into a
//! sink), starts no process, and depends only on `uc-codec`: an auditor should be able to read all of it. The same
//! text, with the entropy coder and the arithmetic, is in `docs/pack-format.md`.
//!
//! A pack is a folder: `layer_NNN.uc` per layer, `scaffold.uc`, `manifest.json`, `manifest.sha256`, `config.json`, the
//! tokenizer's files. Integers are little-endian. Names are a length byte and that many characters of
//! `A-Z a-z 0-9 _ - .`. Padding is zero. Nothing follows the last section.
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
//!                length u32 and packed sums modulo 256 of row logarithms and row step logarithms; length u32 and packed row
//!                step logarithms; length u32 of each tile; with R > 0 the overlay's factors U [rows, R] and V [R, columns]
//!                in bfloat16
//! …       …      exact tensors: name; dtype u8 (position in ExactDtype::ALL); number of dimensions u8; dimensions u32 each;
//!                the values
//! …       …      per linear: zero bytes up to a multiple of 8, then its tiles (uc_codec::rans)
//! ```
//! A linear has `columns` of its group and `ceil(rows / tile_rows)` tiles, `tile_rows = 256 · max(1, 2^20 / (256 ·
//! columns))` but at most `rows`. A tile of `n` weights takes at least 4·min(32, columns) bytes, so that what a reader
//! allocates is bounded by 2^20 times the file's size however it lies.
//!
//! # scaffold.uc
//! ```text
//! 0       8      magic "UCSCAFF\0"
//! 8       2      format version, u16: 7
//! 10      2      number of tensors, u16
//! 12      4      length of the head (this and the descriptors), u32
//! 16      …      descriptors: name; dtype u8; number of dimensions u8; dimensions u32 each
//! …       …      per tensor: zero bytes up to a multiple of 64, then the values
//! ```
//!
//! # Code map
//! [`layer`]: layer files; [`scaffold`]; [`manifest`] and [`totals`]: the manifest; [`pack`]: the folder;
//! [`verify`]: every check of a pack; [`exact`]: tensors stored as they are; [`digest`], [`error`].

pub mod digest;
pub mod error;
pub mod exact;
pub mod layer;
pub mod manifest;
pub mod non_layer;
pub mod pack;
pub mod totals;
pub mod verify;
mod wire;

pub use digest::Digest;
pub use error::PackError;
pub use exact::{ExactDecl, ExactDtype, ExactTensor};
pub use layer::{ColumnGroup, LayerCoder, LayerFile, LinearHeader, Linears, encode_layer};
pub use manifest::{LayerEntry, Manifest};
pub use non_layer::{NonLayerFile, write_non_layer};
pub use pack::Pack;

use wire::Cursor;

/// Version of every file of the format.
pub const FORMAT_VERSION: u16 = 7;
/// First bytes of a layer file.
pub const LAYER_MAGIC: [u8; 8] = *b"UCLAYER\0";
/// First bytes of a scaffold file.
pub const NON_LAYER_MAGIC: [u8; 8] = *b"UCSCAFF\0";
/// Name of the scaffold file.
pub const NON_LAYER_FILE: &str = "scaffold.uc";
/// Name of the manifest.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Name of the file with the manifest's digest.
pub const DIGEST_FILE: &str = "manifest.sha256";
/// Name of the model's configuration.
pub const CONFIG_FILE: &str = "config.json";
/// What may lie beside a pack that was sent: the repository that holds it. No part of the pack.
pub const REMOTE_FILE: &str = "remote.json";
/// Alignment of payloads in a layer file, bytes.
pub const LAYER_ALIGNMENT: usize = 8;
/// Alignment of tensors in the scaffold, bytes.
pub const NON_LAYER_ALIGNMENT: usize = 64;
/// Bytes of the scaffold's fixed part.
pub const NON_LAYER_FIXED: u64 = 16;
/// Most layers of a model: three digits name a layer.
pub const MAX_LAYERS: u64 = 1000;
/// Most groups of a layer.
pub const MAX_GROUPS: u64 = 4096;
/// Most linears of a layer.
pub const MAX_LINEARS: u64 = 16384;
/// Most exact tensors of a file.
pub const MAX_EXACT_TENSORS: u64 = 16384;
/// Most dimensions of an exact tensor.
pub const MAX_EXACT_RANK: usize = 8;
/// Most rows of a coded matrix.
pub const MAX_ROWS: u64 = 1 << 24;
/// Most columns of a coded matrix.
pub const MAX_COLUMNS: u64 = 1 << 18;
/// Largest rank of an overlay.
pub const MAX_RANK: u64 = 4096;
/// Longest head of a scaffold, bytes.
pub const MAX_NON_LAYER_HEAD: u64 = 16 << 20;
/// Longest manifest, bytes.
pub const MAX_MANIFEST: u64 = 256 << 20;

/// `layer_NNN.uc`.
pub fn layer_file_name(layer: u32) -> String {
    format!("layer_{layer:03}.uc")
}

/// Reads magic and version.
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
