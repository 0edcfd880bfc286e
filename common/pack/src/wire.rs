//! Reading and writing the primitive fields of the binary files, with every bound checked.
//!
//! Owns the cursor over untrusted bytes, the rules for names, and alignment with its zero padding. It never allocates
//! memory for a length field before it has compared the length with the number of bytes available.

use std::io;
use std::ops::Range;

use crate::error::{self, PackError, invalid};

/// Bytes that are read by position: in memory or on disk.
pub(crate) trait ReadAt {
    /// Number of bytes.
    fn length(&self) -> u64;

    /// Fills the buffer from a position.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for Vec<u8> {
    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let range = usize::try_from(offset).ok().and_then(|start| {
            let end = start.checked_add(buffer.len())?;
            self.get(start..end)
        });
        buffer.copy_from_slice(range.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Bytes that a cursor reads at once.
const READ_AHEAD: u64 = 1 << 16;

/// A cursor over untrusted bytes. All integers are little-endian. Holds a small part of the bytes.
pub(crate) struct Cursor<'a> {
    bytes: &'a dyn ReadAt,
    position: u64,
    /// The bytes from `buffer_start` on.
    buffer: Vec<u8>,
    buffer_start: u64,
    origin: &'a str,
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte; `origin` names the bytes in errors.
    pub(crate) fn new(bytes: &'a dyn ReadAt, origin: &'a str) -> Self {
        Self {
            bytes,
            position: 0,
            buffer: Vec::new(),
            buffer_start: 0,
            origin,
        }
    }

    /// Position in bytes from the start.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Checks that `count` more bytes exist and moves behind them.
    ///
    /// # Errors
    /// `Truncated` if fewer bytes are left.
    pub(crate) fn skip(&mut self, count: u64, what: &str) -> Result<Range<u64>, PackError> {
        let available = self.bytes.length() - self.position;
        if count > available {
            return Err(PackError::Truncated {
                origin: self.origin.to_owned(),
                what: what.to_owned(),
                offset: self.position,
                needed: count,
                available,
            });
        }
        let start = self.position;
        self.position += count;
        Ok(start..self.position)
    }

    /// The next `count` bytes. The caller has limited `count`: as many bytes are allocated.
    ///
    /// # Errors
    /// `Truncated` if fewer bytes are left, `Io`.
    pub(crate) fn take(&mut self, count: u64, what: &str) -> Result<Vec<u8>, PackError> {
        let range = self.skip(count, what)?;
        let mut out = vec![0; count as usize];
        self.read(range.start, &mut out)?;
        Ok(out)
    }

    /// Fills `out` from a position, by way of the buffer if `out` is small.
    fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), PackError> {
        let count = out.len() as u64;
        if count > READ_AHEAD {
            let read = self.bytes.read_exact_at(out, offset);
            return read.map_err(error::io(self.origin));
        }
        let held = self.buffer_start..self.buffer_start + self.buffer.len() as u64;
        if offset < held.start || offset + count > held.end {
            let length = READ_AHEAD.min(self.bytes.length() - offset);
            self.buffer.resize(length as usize, 0);
            let read = self.bytes.read_exact_at(&mut self.buffer, offset);
            read.map_err(error::io(self.origin))?;
            self.buffer_start = offset;
        }
        let at = (offset - self.buffer_start) as usize;
        out.copy_from_slice(&self.buffer[at..at + out.len()]);
        Ok(())
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], PackError> {
        let range = self.skip(N as u64, what)?;
        let mut out = [0; N];
        self.read(range.start, &mut out)?;
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
        let name = String::from_utf8_lossy(&bytes).into_owned();
        check_name(&name, what, self.origin)?;
        Ok(name)
    }

    /// A length u32 and that many bytes, at most `limit`.
    pub(crate) fn section(&mut self, what: &str, limit: u64) -> Result<Vec<u8>, PackError> {
        let length = u64::from(self.u32(what)?);
        if length > limit {
            let expected = format!("at most {limit} bytes");
            return Err(invalid(
                self.origin,
                format!("length of {what}"),
                length,
                expected,
            ));
        }
        self.take(length, what)
    }

    /// Checks that all bytes have been read.
    ///
    /// # Errors
    /// `Invalid` if bytes are left over.
    pub(crate) fn finish(self, what: &str) -> Result<(), PackError> {
        if self.position != self.bytes.length() {
            let found = format!("{} bytes", self.bytes.length());
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
