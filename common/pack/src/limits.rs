//! How many weights a pack may hold for each of its bytes.
//!
//! The time of a verification grows with the weights that a pack declares, and constant weights take nearly no bytes: the
//! symbol that a context always has costs nothing, so that what remains is what a tile costs, the 4 bytes of its length and
//! [`uc_codec::rans::least_tile_bytes`], at most 132 bytes. A tile holds `max(2^20, 256 · columns)` weights. A linear of up to
//! 4096 columns therefore holds at most 7943 weights for each byte, the widest that the format allows (2^18 columns) 508,400.
//!
//! Such linears are legal: a block that was cut off holds nothing but zeros. A model of nothing else is not a model. A pack
//! stores embeddings and norms exactly, so that the weights of all its linears stay far below [`MAX_WEIGHTS_PER_BYTE`] times its
//! size, however many of them are constant: with the vocabulary V, the width C and L layers of 12·C² weights, the linears hold
//! less than 1024 weights for each byte of an embedding of 16 bits while L·C < 170·V.

use crate::error::{PackError, invalid};
use crate::manifest::{LayerEntry, LinearEntry, Manifest};
use crate::{MAX_EXACT_TENSORS, MAX_LAYERS, MAX_LINEARS};

/// Largest number of weights of linears for each byte of a pack: 1/128 bit per weight.
pub const MAX_WEIGHTS_PER_BYTE: u64 = 1024;

/// Checks that `weights` weights of linears may come from `bytes` bytes of a pack.
///
/// # Errors
/// `Invalid`.
pub(crate) fn check_weights(origin: &str, weights: u64, bytes: u64) -> Result<(), PackError> {
    if weights <= bytes.saturating_mul(MAX_WEIGHTS_PER_BYTE) {
        return Ok(());
    }
    Err(invalid(
        origin,
        "weights of the linears",
        format!("{weights} in {bytes} bytes of files"),
        format!("at most {MAX_WEIGHTS_PER_BYTE} for each byte"),
    ))
}

impl LayerEntry {
    /// Number of weights of the linears; the largest integer if they are more.
    pub fn weights(&self) -> u64 {
        let weights = |linear: &LinearEntry| linear.shape[0].saturating_mul(linear.shape[1]);
        let weights = self.linears.iter().map(weights);
        weights.fold(0, u64::saturating_add)
    }
}

/// Checks that no list is longer than the format allows.
pub(crate) fn check_counts(manifest: &Manifest, origin: &str) -> Result<(), PackError> {
    let longest = |counts: &mut dyn Iterator<Item = usize>| counts.max().unwrap_or(0) as u64;
    let layers = &manifest.layers;
    let non_layer = manifest.non_layer.tensors.len();
    let exact = layers.iter().map(|layer| layer.exact.len());
    let counts = [
        ("layers", layers.len() as u64, MAX_LAYERS),
        (
            "linears of a layer",
            longest(&mut layers.iter().map(|layer| layer.linears.len())),
            MAX_LINEARS,
        ),
        (
            "exact tensors of a file",
            longest(&mut exact.chain([non_layer])),
            MAX_EXACT_TENSORS,
        ),
    ];
    for (what, found, limit) in counts {
        if found > limit {
            return Err(invalid(origin, what, found, format!("at most {limit}")));
        }
    }
    Ok(())
}
