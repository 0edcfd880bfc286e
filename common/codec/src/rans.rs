//! The entropy coder of the indices: interleaved rANS (Duda 2013; Giesen 2014) in tiles.
//!
//! # Tiles
//! The indices of a tensor [rows, cols] are cut into tiles of `tile_rows` rows (the last may have fewer). A tile holds whole
//! blocks of the trellis ([`crate::trellis`]): `256 · max(1, floor(2^20 / 256 / cols))` rows. Tiles follow one another in the
//! payload without gaps, and each can be decoded independently. A tile of R rows and C columns is:
//! ```text
//! u32 × min(32, C)   the first state of each lane, little endian, 2^16 or more
//! u8 × …             words of 16 bits, little endian, and bytes of escapes, up to the end of the tile
//! ```
//!
//! # Decoding a tile
//! Rows are decoded in order, and in a row groups of 32 columns in order; the last group may have fewer. Column j belongs to
//! lane `j mod 32`. For each group, with the table of each element's context ([`crate::contexts`]: shift k, frequencies f, slots
//! assigned to the symbols −128, −127, …, 127 in this order):
//! 1. every lane, with its state x of 32 bits:
//!    `raw = x mod 2^k`, `slot = (x >> k) mod 4096`, s the symbol that owns the slot, `first` its
//!    first slot; the index is `s·2^k + raw − (2^k >> 1)`; `x = f·(x >> (k+12)) + slot − first`;
//! 2. the lanes whose x is now below 2^16, in order: `x = x·2^16 + next word`;
//! 3. the lanes whose symbol was the escape −128, in order: the next byte, as i8, replaces s in the index; if it is −128 too,
//!    the index is the word that follows, as i16.
//!
//! After the last group every state is 2^16 and every byte is used; anything else is an error. The encoder runs the same
//! steps backwards. With k ≤ 4 one word restores any state, so that 32 lanes need at most 32 words and 96 bytes of escapes
//! per group.
//!
//! # Least size
//! A symbol whose frequency is 4096 of 4096 leaves the state as it is and takes no bits, so the indices of a constant tensor
//! take none. What is left is a tile's states: [`least_tile_bytes`] for [`tile_rows`] rows, 128 bytes for 2^20 indices or, in
//! tensors of more than 4096 columns, for 256 rows.
//!
//! # Cost
//! States are stored in 32 bits and begin at 2^16 in the encoder: the overhead of a full tile of 2^20 indices is
//! less than 128 bytes, 0.001 bits per weight.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod decode;
mod encode;
#[cfg(test)]
mod equality;
mod lookup;

pub use decode::{PieceDecoder, decode, decode_tile};
pub use encode::{TileEncoder, encode};
pub use lookup::LogarithmSet;

use crate::trellis::BLOCK_ROWS;

/// Lanes of a tile.
pub const LANES: usize = 32;
/// Approximate number of indices of a tile; more if a block of the trellis is larger.
pub const TILE_SYMBOLS: usize = 1 << 20;
/// States are at least this between groups.
pub(crate) const LOWEST_STATE: u32 = 1 << 16;

/// The coded indices of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedTensor {
    /// Rows of a tile, at least 1; the last tile may have fewer.
    pub tile_rows: u32,
    /// `[tiles]` first byte of each tile in the payload; the last tile ends where the payload ends.
    pub tile_offsets: Vec<u64>,
    /// The tiles.
    pub payload: Vec<u8>,
}

/// Rows of a tile of a `[rows, cols]` tensor, as [`encode`] uses them.
pub fn tile_rows(rows: usize, cols: usize) -> u32 {
    let blocks = (TILE_SYMBOLS / BLOCK_ROWS / cols.max(1)).max(1);
    let rows = (blocks * BLOCK_ROWS).min(rows).max(1);
    u32::try_from(rows).expect("a tile has at most 2^20 rows")
}

/// Least length of a tile in bytes: the states of its lanes.
pub fn least_tile_bytes(cols: usize) -> u64 {
    4 * cols.min(LANES) as u64
}
