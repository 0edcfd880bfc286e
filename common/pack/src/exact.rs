//! Tensors that are stored unchanged: norms, biases, routers, embeddings, the output head.
//!
//! Owns the dtype codes and the descriptor (name, dtype, shape), which layer files and `scaffold.uc` share. The values are
//! opaque bytes: nothing here converts or interprets them.

use serde::{Deserialize, Serialize};

use crate::MAX_EXACT_RANK;
use crate::error::{PackError, invalid};
use crate::wire::{Cursor, put_name};

/// Element type of an exact tensor. Its code in a file is its position in [`ExactDtype::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    missing_docs,
    reason = "the names are the usual ones of tensor formats"
)]
#[expect(
    non_camel_case_types,
    reason = "the variants are written to the manifest under these names"
)]
pub enum ExactDtype {
    F32,
    F16,
    BF16,
    F64,
    F8_E4M3,
    F8_E5M2,
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    BOOL,
}

impl ExactDtype {
    /// Every dtype, in the order of the codes 0, 1, 2, ...
    pub const ALL: [ExactDtype; 15] = [
        ExactDtype::F32,
        ExactDtype::F16,
        ExactDtype::BF16,
        ExactDtype::F64,
        ExactDtype::F8_E4M3,
        ExactDtype::F8_E5M2,
        ExactDtype::I8,
        ExactDtype::U8,
        ExactDtype::I16,
        ExactDtype::U16,
        ExactDtype::I32,
        ExactDtype::U32,
        ExactDtype::I64,
        ExactDtype::U64,
        ExactDtype::BOOL,
    ];

    /// Bytes per element.
    pub fn width(self) -> u64 {
        match self {
            ExactDtype::F8_E4M3
            | ExactDtype::F8_E5M2
            | ExactDtype::I8
            | ExactDtype::U8
            | ExactDtype::BOOL => 1,
            ExactDtype::F16 | ExactDtype::BF16 | ExactDtype::I16 | ExactDtype::U16 => 2,
            ExactDtype::F32 | ExactDtype::I32 | ExactDtype::U32 => 4,
            ExactDtype::F64 | ExactDtype::I64 | ExactDtype::U64 => 8,
        }
    }

    /// Whether every value is finite: no NaN, no infinity. `bytes` are whole values.
    pub fn all_finite(self, bytes: &[u8]) -> bool {
        /// Whether no value has all bits of `exponent` set.
        fn none_full<const N: usize>(bytes: &[u8], exponent: u64) -> bool {
            let full = |value: &[u8; N]| {
                let mut wide = [0; 8];
                wide[..N].copy_from_slice(value);
                u64::from_le_bytes(wide) & exponent == exponent
            };
            // Without an early exit the loop is vectorized.
            let (values, _) = bytes.as_chunks::<N>();
            !values.iter().fold(false, |any, value| any | full(value))
        }
        match self {
            ExactDtype::F32 => none_full::<4>(bytes, 0x7f80_0000),
            ExactDtype::F16 => none_full::<2>(bytes, 0x7c00),
            ExactDtype::BF16 => none_full::<2>(bytes, 0x7f80),
            ExactDtype::F64 => none_full::<8>(bytes, 0x7ff0_0000_0000_0000),
            // This format has no infinity; all bits but the sign are set in NaN.
            ExactDtype::F8_E4M3 => none_full::<1>(bytes, 0x7f),
            ExactDtype::F8_E5M2 => none_full::<1>(bytes, 0x7c),
            _ => true,
        }
    }

    /// The dtype's code in a file.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The dtype with the given code, if any.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

/// The descriptor of an exact tensor: everything but its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExactDecl {
    /// Name: relative to the layer's prefix in a layer file, the full name in `scaffold.uc`.
    pub name: String,
    /// Element type.
    pub dtype: ExactDtype,
    /// Dimensions, outermost first; empty for a scalar. Zero is not a valid dimension.
    pub shape: Vec<u64>,
}

/// An exact tensor with its values (row-major, little-endian).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExactTensor {
    /// Name relative to the layer's prefix.
    pub name: String,
    /// Element type.
    pub dtype: ExactDtype,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// The values: `product(shape) * dtype.width()` bytes.
    pub bytes: Vec<u8>,
}

impl ExactTensor {
    /// The tensor's descriptor.
    pub fn decl(&self) -> ExactDecl {
        ExactDecl {
            name: self.name.clone(),
            dtype: self.dtype,
            shape: self.shape.clone(),
        }
    }
}

impl ExactDecl {
    /// Number of elements.
    ///
    /// # Errors
    /// `Invalid` for a zero dimension, one of more than 32 bits, too many dimensions or elements.
    pub fn elements(&self, origin: &str) -> Result<u64, PackError> {
        let invalid_shape = |expected| {
            invalid(
                origin,
                format!("shape of {}", self.name),
                format!("{:?}", self.shape),
                expected,
            )
        };
        if self.shape.len() > MAX_EXACT_RANK {
            return Err(invalid_shape("at most 8 dimensions"));
        }
        if self
            .shape
            .iter()
            .any(|d| *d == 0 || *d > u64::from(u32::MAX))
        {
            return Err(invalid_shape("dimensions from 1 to 2^32-1"));
        }
        let product = self
            .shape
            .iter()
            .try_fold(1u64, |product, d| product.checked_mul(*d));
        // The limit leaves room for the width of the dtype and for file offsets.
        product
            .filter(|n| *n < 1 << 56)
            .ok_or_else(|| invalid_shape("fewer than 2^56 elements"))
    }

    /// Length of the tensor's values in bytes.
    ///
    /// # Errors
    /// Those of [`ExactDecl::elements`].
    pub fn byte_len(&self, origin: &str) -> Result<u64, PackError> {
        Ok(self.elements(origin)? * self.dtype.width())
    }

    /// Checks and appends the descriptor: name, dtype u8, number of dimensions u8, dimensions u32 each.
    pub(crate) fn put(&self, out: &mut Vec<u8>, origin: &str) -> Result<(), PackError> {
        self.elements(origin)?;
        put_name(out, &self.name, "exact tensor", origin)?;
        out.extend([self.dtype.code(), self.shape.len() as u8]);
        for dim in &self.shape {
            out.extend((*dim as u32).to_le_bytes());
        }
        Ok(())
    }

    /// Reads and checks a descriptor.
    pub(crate) fn take(cursor: &mut Cursor<'_>, origin: &str) -> Result<Self, PackError> {
        let name = cursor.name("exact tensor")?;
        let code = cursor.u8("dtype")?;
        let dtype = ExactDtype::from_code(code)
            .ok_or_else(|| invalid(origin, format!("dtype of {name}"), code, "a code below 15"))?;
        let rank = usize::from(cursor.u8("number of dimensions")?);
        let mut shape = Vec::with_capacity(rank);
        for _ in 0..rank {
            shape.push(u64::from(cursor.u32("dimension")?));
        }
        let decl = Self { name, dtype, shape };
        decl.elements(origin)?;
        Ok(decl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_and_infinity_of_every_float_type_are_found_and_the_largest_numbers_are_not() {
        let cases: [(ExactDtype, &[u8], &[u8]); 6] = [
            (
                ExactDtype::F32,
                &[0, 0, 0x80, 0x7f],
                &[255, 255, 0x7f, 0x7f],
            ),
            (ExactDtype::F16, &[0, 0xfc], &[255, 0xfb]),
            (ExactDtype::BF16, &[0xc0, 0x7f], &[0x7f, 0xff]),
            (
                ExactDtype::F64,
                &[1, 0, 0, 0, 0, 0, 0xf0, 0x7f],
                &[255, 255, 255, 255, 255, 255, 0xef, 0x7f],
            ),
            (ExactDtype::F8_E4M3, &[0xff], &[0xfe]),
            (ExactDtype::F8_E5M2, &[0x7c], &[0x7b]),
        ];
        for (dtype, bad, largest) in cases {
            let mut values = largest.repeat(37);
            assert!(dtype.all_finite(&values), "{dtype:?}");
            values.extend(bad);
            assert!(!dtype.all_finite(&values), "{dtype:?}");
        }
        assert!(ExactDtype::I32.all_finite(&[255; 8]));
    }
}
