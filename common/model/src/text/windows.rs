//! The seeded selection of non-overlapping token windows, each with its own digest.

use sha2::{Digest, Sha256};

use super::error::TextError;

/// A sequence of tokens that is scored, or used for calibration, as one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Token ids; all windows of one selection have the same length.
    pub ids: Vec<u32>,
    /// SHA-256 of the ids as little-endian u32.
    pub sha256: [u8; 32],
}

impl Window {
    fn new(ids: Vec<u32>) -> Self {
        let mut hasher = Sha256::new();
        for id in &ids {
            hasher.update(id.to_le_bytes());
        }
        Window {
            ids,
            sha256: hasher.finalize().into(),
        }
    }

    /// The digest in lower-case hexadecimal.
    pub fn sha256_hex(&self) -> String {
        hex::encode(self.sha256)
    }
}

/// Splits `tokens` into non-overlapping runs of `length` tokens (with `bos`: of `length - 1` tokens, each after a
/// leading `bos`), drops an incomplete last run, and selects `count` runs by `seed`. The selected runs keep the
/// order of the text. A `count` of 0, or larger than the number of runs, selects all.
///
/// The selection is a partial Fisher–Yates shuffle of the run indices, driven by SplitMix64 (Steele, Lea, Flood
/// 2014) seeded with `seed`: step `i` swaps entry `i` with entry `i + (next * (runs - i)) >> 64`. It must never
/// change, because receipts identify windows by it.
///
/// # Errors
/// [`TextError::WindowLength`] if `length` is below 2; [`TextError::TooShort`] if the text does not fill one window.
pub fn windows(
    tokens: &[u32],
    bos: Option<u32>,
    length: usize,
    count: usize,
    seed: u64,
) -> Result<Vec<Window>, TextError> {
    if length < 2 {
        return Err(TextError::WindowLength { found: length });
    }
    let step = length - usize::from(bos.is_some());
    let runs: Vec<&[u32]> = tokens.chunks_exact(step).collect();
    if runs.is_empty() {
        return Err(TextError::TooShort {
            found: tokens.len(),
            expected: step,
        });
    }
    let selected = select(runs.len(), count, seed);
    Ok(selected
        .into_iter()
        .map(|run| Window::new(bos.into_iter().chain(runs[run].iter().copied()).collect()))
        .collect())
}

/// `count` distinct indices below `n` in ascending order; all of them if `count` is 0 or at least `n`.
fn select(n: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    if count == 0 || count >= n {
        return order;
    }
    for i in 0..count {
        let remaining = (n - i) as u128;
        let pick = i + ((u128::from(splitmix64(seed, i as u64)) * remaining) >> 64) as usize;
        order.swap(i, pick);
    }
    order.truncate(count);
    order.sort_unstable();
    order
}

/// Output number `index`, from 0, of SplitMix64 (Steele, Lea, Flood 2014) seeded with `seed`.
pub fn splitmix64(seed: u64, index: u64) -> u64 {
    let state = seed.wrapping_add((index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Checks that all ids are below the vocabulary size of the model.
///
/// # Errors
/// [`TextError::TokenOutOfRange`] for the first id that is too large.
pub fn check_token_ids(ids: &[u32], vocab: usize) -> Result<(), TextError> {
    match ids.iter().position(|&id| id as usize >= vocab) {
        None => Ok(()),
        Some(position) => Err(TextError::TokenOutOfRange {
            position,
            found: ids[position],
            expected: vocab,
        }),
    }
}
