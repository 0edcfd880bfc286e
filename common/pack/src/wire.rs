//! Reading and writing the primitive fields of the binary files, with every bound checked.
//!
//! Owns: the cursor over untrusted bytes, name rules, alignment and its zero padding. It never
//! allocates from a length that it has not compared with the bytes that are really there.

use crate::error::{PackError, invalid};

/// A cursor over bytes that are not trusted. All integers are little-endian.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    origin: &'a str,
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte; `origin` names the bytes in errors.
    pub(crate) fn new(bytes: &'a [u8], origin: &'a str) -> Self {
        Self {
            bytes,
            at: 0,
            origin,
        }
    }

    /// Position, bytes from the start.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// `Truncated` if fewer are left.
    pub(crate) fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8], PackError> {
        let left = &self.bytes[self.at..];
        if count > left.len() as u64 {
            return Err(PackError::Truncated {
                origin: self.origin.to_owned(),
                what: what.to_owned(),
                offset: self.at as u64,
                needed: count,
                available: left.len() as u64,
            });
        }
        self.at += count as usize;
        Ok(&left[..count as usize])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], PackError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    pub(crate) fn u8(&mut self, what: &str) -> Result<u8, PackError> {
        Ok(self.array::<1>(what)?[0])
    }

    pub(crate) fn u16(&mut self, what: &str) -> Result<u16, PackError> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn u32(&mut self, what: &str) -> Result<u32, PackError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn f32(&mut self, what: &str) -> Result<f32, PackError> {
        Ok(f32::from_le_bytes(self.array(what)?))
    }

    /// A length byte and that many characters of the permitted set.
    pub(crate) fn name(&mut self, what: &str) -> Result<String, PackError> {
        let length = self.u8(what)?;
        let bytes = self.take(length.into(), what)?;
        let name = String::from_utf8_lossy(bytes).into_owned();
        check_name(&name, what, self.origin)?;
        Ok(name)
    }

    /// Everything must have been read.
    ///
    /// # Errors
    /// `Invalid` if bytes are left over.
    pub(crate) fn finish(self, what: &str) -> Result<(), PackError> {
        if self.at != self.bytes.len() {
            let found = format!("{} bytes", self.bytes.len());
            return Err(invalid(
                self.origin,
                what,
                found,
                format!("{} bytes", self.at),
            ));
        }
        Ok(())
    }
}

/// Bytes from `at` to the next multiple of `alignment`.
pub(crate) fn padding_to(at: u64, alignment: usize) -> u64 {
    at.next_multiple_of(alignment as u64) - at
}

/// Padding must be zero, so that no byte of a file is without meaning.
pub(crate) fn check_zero(padding: &[u8], what: &str, origin: &str) -> Result<(), PackError> {
    match padding.iter().find(|byte| **byte != 0) {
        Some(byte) => Err(invalid(
            origin,
            format!("padding before {what}"),
            byte,
            "zero",
        )),
        None => Ok(()),
    }
}

/// Names are 1 to 255 characters of `A-Z a-z 0-9 _ - .`.
pub(crate) fn check_name(name: &str, what: &str, origin: &str) -> Result<(), PackError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.len() > 255 || !name.chars().all(plain) {
        let expected = "1 to 255 characters of A-Z a-z 0-9 _ - .";
        return Err(invalid(origin, what, format!("name {name:?}"), expected));
    }
    Ok(())
}

/// Writes a checked name: length byte, characters.
pub(crate) fn put_name(
    out: &mut Vec<u8>,
    name: &str,
    what: &str,
    origin: &str,
) -> Result<(), PackError> {
    check_name(name, what, origin)?;
    out.push(name.len() as u8);
    out.extend_from_slice(name.as_bytes());
    Ok(())
}

/// Narrows a count for its field.
///
/// # Errors
/// `Invalid` if it exceeds `limit`.
pub(crate) fn narrow<T: TryFrom<u64>>(
    value: usize,
    limit: u64,
    what: &str,
    origin: &str,
) -> Result<T, PackError> {
    let found = value as u64;
    match T::try_from(found) {
        Ok(narrow) if found <= limit => Ok(narrow),
        _ => Err(invalid(origin, what, found, format!("at most {limit}"))),
    }
}
