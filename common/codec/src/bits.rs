//! Bit streams for the small tables of the format.
//!
//! Bits fill bytes from the least significant bit upwards; a field of k bits has its least
//! significant bit first. A stream ends with zero bits up to a whole byte.

use crate::error::CodecError;

/// Appends bits to a byte vector.
#[derive(Default)]
pub(crate) struct BitWriter {
    bytes: Vec<u8>,
    /// Bits used of the last byte; 0 if it is full or there is none.
    used: u32,
}

impl BitWriter {
    /// Appends the `width` (0..=32) lowest bits of `value`.
    pub(crate) fn put(&mut self, value: u32, width: u32) {
        debug_assert!(
            width == 32 || value >> width == 0,
            "{value} does not fit {width} bits"
        );
        for bit in 0..width {
            if self.used == 0 {
                self.bytes.push(0);
            }
            let last = self.bytes.len() - 1;
            self.bytes[last] |= (((value >> bit) & 1) as u8) << self.used;
            self.used = (self.used + 1) % 8;
        }
    }

    /// Appends a Rice code: `value >> parameter` ones, a zero, the `parameter` lowest bits.
    pub(crate) fn put_rice(&mut self, value: u32, parameter: u32) {
        for _ in 0..value >> parameter {
            self.put(1, 1);
        }
        self.put(0, 1);
        self.put(value & ((1 << parameter) - 1), parameter);
    }

    /// The stream, padded to whole bytes.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Bits that [`BitWriter::put_rice`] appends.
pub(crate) fn rice_bits(value: u32, parameter: u32) -> u64 {
    u64::from(value >> parameter) + 1 + u64::from(parameter)
}

/// The parameter, at most `largest`, with which the Rice codes of `values` are shortest.
pub(crate) fn best_rice(values: &[u32], largest: u32) -> (u32, u64) {
    (0..=largest)
        .map(|parameter| {
            (
                parameter,
                values.iter().map(|&v| rice_bits(v, parameter)).sum::<u64>(),
            )
        })
        .min_by_key(|&(_, bits)| bits)
        .unwrap_or((0, 0))
}

/// Signed to unsigned, small magnitudes first: 0, −1, 1, −2, 2, …
pub(crate) fn zigzag(value: i32) -> u32 {
    ((value << 1) ^ (value >> 31)) as u32
}

/// Inverse of [`zigzag`].
pub(crate) fn unzigzag(value: u32) -> i32 {
    (value >> 1) as i32 ^ -((value & 1) as i32)
}

/// Reads what [`BitWriter`] wrote; every read is bounds-checked.
pub(crate) struct BitReader<'a> {
    what: &'static str,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> BitReader<'a> {
    /// Reads `bytes`; `what` names them in errors.
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        BitReader {
            what,
            bytes,
            position: 0,
        }
    }

    /// The next `width` (0..=32) bits.
    pub(crate) fn take(&mut self, width: u32) -> Result<u32, CodecError> {
        let (mut value, mut done) = (0, 0);
        while done < width {
            let Some(byte) = self.bytes.get(self.position / 8) else {
                return Err(self.damaged(self.bytes.len() as u64, "more bytes"));
            };
            let offset = (self.position % 8) as u32;
            let count = (8 - offset).min(width - done);
            let bits = (u32::from(*byte) >> offset) & ((1 << count) - 1);
            value |= bits << done;
            done += count;
            self.position += count as usize;
        }
        Ok(value)
    }

    /// The next Rice code, which must be at most `largest`.
    pub(crate) fn take_rice(&mut self, parameter: u32, largest: u32) -> Result<u32, CodecError> {
        let mut quotient = 0u32;
        while self.take(1)? == 1 {
            quotient += 1;
            if quotient > largest >> parameter {
                return Err(self.damaged(u64::from(quotient), "a smaller Rice quotient"));
            }
        }
        let value = (quotient << parameter) | self.take(parameter)?;
        if value > largest {
            return Err(self.damaged(u64::from(value), "a smaller Rice code"));
        }
        Ok(value)
    }

    /// Checks that only the zero bits of the padding remain.
    pub(crate) fn finish(self) -> Result<(), CodecError> {
        let whole = self.position.div_ceil(8);
        if whole != self.bytes.len() {
            return Err(self.damaged(self.bytes.len() as u64, "no bytes after the last field"));
        }
        let padding = if self.position.is_multiple_of(8) {
            0
        } else {
            self.bytes[whole - 1] >> (self.position % 8)
        };
        if padding != 0 {
            Err(self.damaged(u64::from(padding), "zero padding"))
        } else {
            Ok(())
        }
    }

    /// An error about this stream.
    pub(crate) fn damaged(&self, found: u64, expected: &'static str) -> CodecError {
        CodecError::Damaged {
            what: self.what,
            found,
            expected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_rice_codes_are_read_back_in_order() {
        let mut writer = BitWriter::default();
        for i in 0..200u32 {
            writer.put(i & 31, 5);
            writer.put_rice(i, i % 6);
        }
        let bytes = writer.finish();
        let mut reader = BitReader::new("test", &bytes);
        for i in 0..200u32 {
            assert_eq!(reader.take(5).unwrap(), i & 31);
            assert_eq!(reader.take_rice(i % 6, 199).unwrap(), i);
        }
        reader.finish().unwrap();
    }

    #[test]
    fn unzigzag_inverts_zigzag() {
        for value in [-4096, -2, -1, 0, 1, 2, 4096] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
        assert_eq!([0, -1, 1, -2].map(zigzag), [0, 1, 2, 3]);
    }

    #[test]
    fn streams_that_are_too_short_too_long_or_have_endless_codes_are_refused() {
        assert!(BitReader::new("test", &[1]).take(9).is_err());
        assert!(BitReader::new("test", &[0xff; 9]).take_rice(0, 20).is_err());
        assert!(
            BitReader::new("test", &[0b0101_1111])
                .take_rice(2, 20)
                .is_err()
        );
        assert!(BitReader::new("test", &[0, 0]).finish().is_err());
        let mut reader = BitReader::new("test", &[0b1000]);
        reader.take(3).unwrap();
        assert!(reader.finish().is_err());
    }
}
