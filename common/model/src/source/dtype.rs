//! The element types of the safetensors format, and the three of them that weights may have.

use std::fmt;

/// Element type, named as in the header of a safetensors file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[allow(missing_docs)]
pub enum SourceDtype {
    BOOL,
    U8,
    I8,
    #[serde(rename = "F8_E4M3")]
    F8E4M3,
    #[serde(rename = "F8_E5M2")]
    F8E5M2,
    #[serde(rename = "F8_E8M0")]
    F8E8M0,
    U16,
    I16,
    F16,
    BF16,
    U32,
    I32,
    F32,
    U64,
    I64,
    F64,
}

impl SourceDtype {
    /// Bytes of one element.
    pub fn size(self) -> u64 {
        match self {
            SourceDtype::BOOL | SourceDtype::U8 | SourceDtype::I8 => 1,
            SourceDtype::F8E4M3 | SourceDtype::F8E5M2 | SourceDtype::F8E8M0 => 1,
            SourceDtype::U16 | SourceDtype::I16 | SourceDtype::F16 | SourceDtype::BF16 => 2,
            SourceDtype::U32 | SourceDtype::I32 | SourceDtype::F32 => 4,
            SourceDtype::U64 | SourceDtype::I64 | SourceDtype::F64 => 8,
        }
    }

    /// Whether weights may have this type: F32, F16 or BF16.
    pub fn is_weight(self) -> bool {
        matches!(
            self,
            SourceDtype::F32 | SourceDtype::F16 | SourceDtype::BF16
        )
    }

    /// The name in the header of a safetensors file.
    pub fn name(self) -> &'static str {
        match self {
            SourceDtype::BOOL => "BOOL",
            SourceDtype::U8 => "U8",
            SourceDtype::I8 => "I8",
            SourceDtype::F8E4M3 => "F8_E4M3",
            SourceDtype::F8E5M2 => "F8_E5M2",
            SourceDtype::F8E8M0 => "F8_E8M0",
            SourceDtype::U16 => "U16",
            SourceDtype::I16 => "I16",
            SourceDtype::F16 => "F16",
            SourceDtype::BF16 => "BF16",
            SourceDtype::U32 => "U32",
            SourceDtype::I32 => "I32",
            SourceDtype::F32 => "F32",
            SourceDtype::U64 => "U64",
            SourceDtype::I64 => "I64",
            SourceDtype::F64 => "F64",
        }
    }
}

impl fmt::Display for SourceDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
