//! Reading and writing the primitive fields of the binary files, with every bound checked.
//!
//! Owns the cursor over untrusted bytes, the rules for names, and alignment with its zero padding. It never allocates
//! memory for a length field before it has compared the length with the number of bytes available.

use crate::error::{PackError, invalid};

/// A cursor over untrusted bytes. All integers are little-endian.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    origin: &'a str,
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte; `origin` names the bytes in errors.
    pub(crate) fn new(bytes: &'a [u8], origin: &'a str) -> Self {
        Self {
            bytes,
            position: 0,
            origin,
        }
    }

    /// Position in bytes from the start.
    pub(crate) fn position(&self) -> usize {
        self.position
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// `Truncated` if fewer bytes are left.
    pub(crate) fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8], PackError> {
        let rest = &self.bytes[self.position..];
        if count > rest.len() as u64 {
            return Err(PackError::Truncated {
                origin: self.origin.to_owned(),
                what: what.to_owned(),
                offset: self.position as u64,
                needed: count,
                available: rest.len() as u64,
            });
        }
        self.position += count as usize;
        Ok(&rest[..count as usize])
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

    /// A checked name: a length byte and that many characters.
    pub(crate) fn name(&mut self, what: &str) -> Result<String, PackError> {
        let length = self.u8(what)?;
        let bytes = self.take(length.into(), what)?;
        let name = String::from_utf8_lossy(bytes).into_owned();
        check_name(&name, what, self.origin)?;
        Ok(name)
    }

    /// Checks that all bytes have been read.
    ///
    /// # Errors
    /// `Invalid` if bytes are left over.
    pub(crate) fn finish(self, what: &str) -> Result<(), PackError> {
        if self.position != self.bytes.len() {
            let found = format!("{} bytes", self.bytes.len());
            return Err(invalid(
                self.origin,
                what,
                found,
                format!("{} bytes", self.position),
            ));
        }
        Ok(())
    }
}

/// Number of bytes from `offset` to the next multiple of `alignment`.
pub(crate) fn padding_to(offset: u64, alignment: usize) -> u64 {
    offset.next_multiple_of(alignment as u64) - offset
}

/// Checks that padding is zero: a file holds no byte that a reader would ignore.
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

/// Checks that a name is 1 to 255 characters of `A-Z a-z 0-9 _ - .`.
pub(crate) fn check_name(name: &str, what: &str, origin: &str) -> Result<(), PackError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.len() > 255 || !name.chars().all(allowed) {
        let expected = "1 to 255 characters of A-Z a-z 0-9 _ - .";
        return Err(invalid(origin, what, format!("name {name:?}"), expected));
    }
    Ok(())
}

/// Checks a name and appends it: a length byte and the characters.
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

/// Converts a count to the integer type of its field.
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
        Ok(value) if found <= limit => Ok(value),
        _ => Err(invalid(origin, what, found, format!("at most {limit}"))),
    }
}
