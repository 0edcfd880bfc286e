//! The error of this crate: one variant per module, each wrapping that module's own error.
//!
//! Also owns the errors of the forward pass: a weight of the wrong length, windows of unequal length, too many
//! positions. It does not decide exit codes; the stages do.

use crate::config::ConfigError;
#[cfg(feature = "forward")]
use crate::device::DeviceError;
#[cfg(feature = "forward")]
use crate::moments::MomentsError;
use crate::source::SourceError;
#[cfg(feature = "tokenizer")]
use crate::text::TextError;

/// Any error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// `config.json` is missing, invalid or describes a model that is not supported.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights on disk are missing, damaged or not those of the configured model.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The tokenizer or a text cannot be used.
    #[cfg(feature = "tokenizer")]
    #[error(transparent)]
    Text(#[from] TextError),
    /// The device cannot be used.
    #[cfg(feature = "forward")]
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Second moments cannot be accumulated or finished.
    #[cfg(feature = "forward")]
    #[error(transparent)]
    Moments(#[from] MomentsError),
    /// A weight for the forward pass has the wrong number of elements.
    #[error("tensor {name}: found {found} elements, expected {expected}")]
    WeightLength {
        /// Requested name of the tensor.
        name: String,
        /// Elements found.
        found: usize,
        /// Elements of the expected shape.
        expected: usize,
    },
    /// Hidden states overflow.
    #[error(
        "layer {layer}: the forward pass of {model} overflows: found {found} in the hidden states, expected values whose \
         squares can be summed in f32; the weights of this layer or of one before it are damaged or too large"
    )]
    Overflow {
        /// The layer after which it is seen.
        layer: usize,
        /// Whose pass it is.
        model: &'static str,
        /// The value that is largest, or not a number.
        found: f32,
    },
    /// The token windows of a batch do not all have the same, non-zero length.
    #[error(
        "window {index}: found {found} tokens, expected {expected} as in the first window, and at least 1"
    )]
    UnevenWindows {
        /// Index of the window in the batch.
        index: usize,
        /// Its length in tokens.
        found: usize,
        /// Length of the first window.
        expected: usize,
    },
    /// A window is longer than the table of learned positions.
    #[error(
        "windows of {found} tokens, expected at most {expected} (the number of learned positions)"
    )]
    TooManyPositions {
        /// Tokens of a window.
        found: usize,
        /// Positions in the table.
        expected: usize,
    },
}

/// Whether an error chain contains an error of this crate.
pub fn is_model_error<'a>(
    chain: impl IntoIterator<Item = &'a (dyn std::error::Error + 'static)>,
) -> bool {
    chain.into_iter().any(|cause| {
        let of_model = cause.is::<ModelError>() || cause.is::<ConfigError>();
        of_model || cause.is::<SourceError>() || is_forward_error(cause)
    })
}

/// Whether an error is one of the parts that compute.
#[cfg(feature = "forward")]
fn is_forward_error(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.is::<TextError>() || cause.is::<DeviceError>() || cause.is::<MomentsError>()
}

/// Those parts are not built.
#[cfg(not(feature = "forward"))]
fn is_forward_error(_: &(dyn std::error::Error + 'static)) -> bool {
    false
}
