//! Exports as GGUF, the format of llama.cpp.

use uc_pack::Pack;

use crate::catalog::Catalog;
use crate::error::{ExportError, unsupported};
use crate::layout::Layout;

/// The element type of the matrices of a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufType {
    /// bfloat16.
    Bf16,
    /// float16.
    F16,
    /// Blocks of 32 values of 8 bits with a common scale.
    Q8_0,
}

impl GgufType {
    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        }
    }
}

/// Where the tensors go, and what the file does not say as the pack does.
///
/// # Errors
/// `Unsupported`.
pub fn layout(
    _pack: &Pack,
    catalog: &Catalog,
    _element: GgufType,
) -> Result<(Layout, Vec<String>), ExportError> {
    Err(unsupported("model_type", &catalog.config.family, "a family that can be exported as GGUF"))
}
