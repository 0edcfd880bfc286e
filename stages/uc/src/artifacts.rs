//! Names of artifacts and external inputs of the pipeline that the driver itself refers to.

/// The external input with the texts that the moments are taken on.
pub const CALIBRATION_TEXT: &str = "calibration-text";
/// The pack's manifest: a run that writes it writes a pack.
pub const MANIFEST: &str = "manifest";
/// What the evaluator measured.
pub const METRICS: &str = "metrics";
/// The goal of an upload: it records where the pack is once the repository holds all of it.
pub const REMOTE_PACK: &str = "remote-pack";
/// One layer of the pack, which an upload may delete locally.
pub const PACK_LAYER: &str = "pack-layer";
