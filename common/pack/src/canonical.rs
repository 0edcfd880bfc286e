//! Comparison of a text with bytes while the text is made, so that there is no second copy of a large manifest.

use std::io::Write;

/// Compares what is written with `bytes` and refuses the first byte that differs.
pub(crate) struct Comparison<'a> {
    bytes: &'a [u8],
    /// Number of bytes that are equal so far.
    offset: usize,
}

impl<'a> Comparison<'a> {
    /// Nothing has been compared yet.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    /// Number of bytes that are equal so far.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }
}

impl Write for Comparison<'_> {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        let rest = &self.bytes[self.offset..];
        let equal = rest.iter().zip(part).take_while(|(a, b)| a == b).count();
        self.offset += equal;
        if equal == part.len() {
            Ok(equal)
        } else {
            Err(std::io::ErrorKind::InvalidData.into())
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
