//! Verification of tensors: every coded matrix is reconstructed, every exact tensor read, and their digests are compared.
//!
//! One thread works on a tensor, in pieces. Weights must be finite: the compressor refuses sources that are not, so that a
//! pack with other weights was not made from any source.

use std::io::Read;

use super::findings::FindingLog;
use super::{Severity, SpotCheck};
use crate::check::{check_digest, check_equal};
use crate::digest::{Digest, Hasher};
use crate::error::{self, PackError};
use crate::exact::ExactDecl;
use crate::layer::{LayerFile, PieceBuffers};
use crate::manifest::{ExactEntry, LayerEntry};
use crate::non_layer::NonLayerFile;

/// Reconstructs linear `index` and checks its digest. Returns the spot check if it is the first of layer 0.
pub(super) fn verify_linear(
    file: &LayerFile,
    entry: &LayerEntry,
    index: usize,
    buffers: &mut PieceBuffers,
    log: &mut FindingLog,
) -> Option<SpotCheck> {
    let linear = &entry.linears[index];
    let tensor = format!("{}{}", entry.prefix, linear.name);
    let (mut hasher, mut finite) = (Hasher::default(), true);
    let mut sink = |weights: &[u16]| {
        hasher.words(weights);
        // Without an early exit the loop is vectorized.
        finite &= weights
            .iter()
            .fold(true, |all, &w| all & uc_codec::bf16::is_finite(w));
    };
    let reconstructed = file.reconstruct_pieces(index, buffers, &mut sink);
    log.record(Some(&tensor), reconstructed)?;
    check_finite(finite, &tensor, log);
    let (found, expected) = (hasher.finish(), linear.reconstructed_sha256);
    let compared = check_digest(file.origin(), &tensor, found, expected);
    log.record(Some(&tensor), compared);
    (index == 0 && entry.index == 0).then(|| SpotCheck {
        tensor,
        sha256: found,
        matches: found == expected,
    })
}

/// Checks the digest of exact tensor `index` of a layer.
pub(super) fn verify_layer_exact(
    file: &LayerFile,
    entry: &LayerEntry,
    index: usize,
    log: &mut FindingLog,
) {
    let decl = &file.exact()[index];
    let tensor = format!("{}{}", entry.prefix, decl.name);
    let source = Source {
        origin: file.origin(),
        tensor: &tensor,
        decl,
        entry: &entry.exact[index],
    };
    source.verify(file.exact_reader(index), log);
}

/// Checks the digest of tensor `index` of the file of non-layer tensors.
pub(super) fn verify_non_layer_tensor(
    file: &NonLayerFile,
    entry: &ExactEntry,
    index: usize,
    origin: &str,
    log: &mut FindingLog,
) {
    let decl = &file.tensors()[index];
    let Some(reader) = log.record(Some(&decl.name), file.reader(index)) else {
        return;
    };
    let source = Source {
        origin,
        tensor: &decl.name,
        decl,
        entry,
    };
    source.verify(reader, log);
}

/// An exact tensor in a file.
struct Source<'a> {
    origin: &'a str,
    /// Full name.
    tensor: &'a str,
    decl: &'a ExactDecl,
    entry: &'a ExactEntry,
}

impl Source<'_> {
    fn verify(&self, reader: impl Read, log: &mut FindingLog) {
        let mut finite = true;
        let hashed = Digest::hash_pieces(reader, &mut |bytes| {
            finite &= self.decl.dtype.all_finite(bytes);
        });
        let hashed = hashed.map_err(error::io(self.origin));
        let Some((bytes, found)) = log.record(Some(self.tensor), hashed) else {
            return;
        };
        let compared = self.compare(bytes, found);
        log.record(Some(self.tensor), compared);
        check_finite(finite, self.tensor, log);
    }

    fn compare(&self, bytes: u64, found: Digest) -> Result<(), PackError> {
        let expected = self.decl.byte_len(self.origin)?;
        check_equal(self.origin, "bytes of the tensor", bytes, expected)?;
        check_digest(self.origin, self.tensor, found, self.entry.sha256)
    }
}

fn check_finite(finite: bool, tensor: &str, log: &mut FindingLog) {
    if !finite {
        let message = "a weight is infinite or not a number, expected finite weights";
        log.add(Severity::Error, Some(tensor), message);
    }
}
