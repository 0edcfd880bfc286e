//! The error of this crate: one variant per part, each carrying that part's own error.
//!
//! Owns also the two errors of the forward pass (a weight of the wrong length, a token outside the
//! vocabulary). It does not decide exit codes; the stages do.

use crate::config::ConfigError;
use crate::device::DeviceError;
use crate::moments::MomentsError;
use crate::source::SourceError;
use crate::text::TextError;

/// Anything that this crate can refuse.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// `config.json` is absent, broken or describes a model that is not supported.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights on disk are absent, damaged or not those of the configured model.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The tokenizer or a text cannot be used.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Input statistics were asked for with the wrong shapes.
    #[error(transparent)]
    Moments(#[from] MomentsError),
    /// A weight given to the forward pass has the wrong number of elements.
    #[error("tensor {name}: {found} elements given, expected {expected}")]
    WeightLength {
        /// Tensor name as asked for.
        name: String,
        /// Elements given.
        found: usize,
        /// Elements that the configuration asks for.
        expected: usize,
    },
    /// A batch of token windows that do not all have the same, non-zero length.
    #[error("window {index}: {found} tokens, expected {expected} (the first window's; at least 1)")]
    UnevenWindows {
        /// Which window of the batch.
        index: usize,
        /// Its length in tokens.
        found: usize,
        /// Length of the first window.
        expected: usize,
    },
    /// More tokens than the rotary tables hold.
    #[error("{found} positions asked for, but the position tables hold {expected}")]
    TooManyPositions {
        /// Positions asked for.
        found: usize,
        /// Positions in the tables.
        expected: usize,
    },
}

/// Whether an error chain holds anything that this crate refused.
pub fn is_model_error<'a>(
    chain: impl IntoIterator<Item = &'a (dyn std::error::Error + 'static)>,
) -> bool {
    chain.into_iter().any(|cause| {
        cause.is::<ModelError>()
            || cause.is::<ConfigError>()
            || cause.is::<SourceError>()
            || cause.is::<TextError>()
            || cause.is::<DeviceError>()
            || cause.is::<MomentsError>()
    })
}
