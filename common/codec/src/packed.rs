//! Short rows of small integers (column and row logarithms) in few bytes.
//!
//! Byte 0 is a base, byte 1 a mode, then a bit stream (least significant bit first, zero padding to
//! a whole byte):
//! - mode k = 0..=8: every value as `value − base` in k bits;
//! - mode 16 + k, k = 0..=7: every value as the Rice code with parameter k of
//!   `zigzag(value − base)`, that is z = 0, 1, 2, 3, … for differences 0, −1, 1, −2, …; the code is
//!   `z >> k` one bits, a zero bit, and the k lowest bits of z.
//!
//! The number of values is not stored: it is a dimension of the tensor. The writer uses the shorter form, and mode 0..=8 on
//! a tie.

use crate::bits::{BitReader, BitWriter, rice_bits, unzigzag, zigzag};
use crate::error::CodecError;

/// First mode with Rice codes.
const FIRST_RICE_MODE: u8 = 16;
/// Largest zigzag of a difference of two bytes.
const LARGEST_ZIGZAG: u32 = 511;

/// Packs `values`; at least two bytes.
pub fn pack_small(values: &[u8]) -> Vec<u8> {
    let mut counts = [0u64; 256];
    values.iter().for_each(|&v| counts[usize::from(v)] += 1);
    let (base, mode) = shortest(&counts);
    let mut writer = BitWriter::default();
    writer.put(u32::from(base), 8);
    writer.put(u32::from(mode), 8);
    match mode {
        0..=8 => values
            .iter()
            .for_each(|&v| writer.put(u32::from(v - base), u32::from(mode))),
        _ => values.iter().for_each(|&v| {
            let difference = zigzag(i32::from(v) - i32::from(base));
            writer.put_rice(difference, u32::from(mode - FIRST_RICE_MODE));
        }),
    }
    writer.finish()
}

/// Base and mode of the shortest form of values that occur `counts[value]` times. Given both, the bits follow from the values.
fn shortest(counts: &[u64; 256]) -> (u8, u8) {
    let used = |value: &u8| counts[usize::from(*value)] > 0;
    let smallest = (0..=255u8).find(used).unwrap_or(0);
    let largest = (0..=255u8).rev().find(used).unwrap_or(0);
    let width = 8 - (largest - smallest).leading_zeros();
    let median = median(counts);
    let bits = |parameter: u32| -> u64 {
        let zigzags = (0..=255u8).map(|value| zigzag(i32::from(value) - i32::from(median)));
        let bits = zigzags.zip(counts);
        bits.map(|(zigzag, count)| count * rice_bits(zigzag, parameter))
            .sum()
    };
    let rice = (0..=7u32).map(|parameter| (parameter, bits(parameter)));
    let (parameter, rice_bits) = rice
        .min_by_key(|&(_, bits)| bits)
        .expect("eight parameters");
    let total: u64 = counts.iter().sum();
    if rice_bits.div_ceil(8) < (total * u64::from(width)).div_ceil(8) {
        (median, FIRST_RICE_MODE + parameter as u8)
    } else {
        (smallest, width as u8)
    }
}

/// Largest length in bytes of `count` packed values: mode 8 is never the longest choice.
pub fn largest_packed(count: usize) -> u64 {
    count as u64 + 2
}

/// Unpacks `count` values; `bytes` must hold nothing else.
///
/// # Errors
/// [`CodecError::Damaged`] for anything that is not a valid encoding of `count` values; the base and the mode need not be those
/// that [`pack_small`] chooses. `count` is checked against the number of bytes before memory is allocated, unless the mode is
/// 0, in which values take no bits.
pub fn unpack_small(bytes: &[u8], count: usize) -> Result<Vec<u8>, CodecError> {
    let mut reader = PackedReader::new(bytes, count)?;
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        values.push(reader.value()?);
    }
    reader.finish()?;
    Ok(values)
}

/// Checks that `bytes` are what [`pack_small`] makes of `count` values, so that equal values have equal bytes. Takes no memory
/// that depends on `count`.
///
/// # Errors
/// [`CodecError::Damaged`].
pub fn check_packed(bytes: &[u8], count: usize) -> Result<(), CodecError> {
    let mut reader = PackedReader::new(bytes, count)?;
    let mut counts = [0u64; 256];
    for _ in 0..count {
        counts[usize::from(reader.value()?)] += 1;
    }
    let (base, mode) = shortest(&counts);
    if [base, mode] != bytes[..2] {
        let found = u64::from(bytes[0]) << 8 | u64::from(bytes[1]);
        return Err(reader.bits.damaged(found, "the shortest encoding"));
    }
    reader.finish()
}

/// Unpacks values one after another. A few bytes can stand for millions of equal values, so a reader of files from outside
/// keeps the bytes and not the values.
pub struct PackedReader<'a> {
    bits: BitReader<'a>,
    base: i32,
    mode: u32,
}

impl<'a> PackedReader<'a> {
    /// Reads `count` values from `bytes`.
    ///
    /// # Errors
    /// [`CodecError::Damaged`] for an unknown mode or too few bytes for `count` values.
    pub fn new(bytes: &'a [u8], count: usize) -> Result<Self, CodecError> {
        let mut reader = BitReader::new("packed integers", bytes);
        let base = reader.take(8)? as i32;
        let mode = reader.take(8)?;
        let rice = u32::from(FIRST_RICE_MODE);
        let least = match mode {
            0..=8 => mode as usize,
            _ if (rice..rice + 8).contains(&mode) => (mode - rice) as usize + 1,
            _ => return Err(reader.damaged(u64::from(mode), "a mode of 0..=8 or 16..=23")),
        };
        if count
            .checked_mul(least)
            .is_none_or(|bits| bits.div_ceil(8) > bytes.len() - 2)
        {
            return Err(reader.damaged(bytes.len() as u64, "more bytes"));
        }
        let bits = reader;
        Ok(PackedReader { bits, base, mode })
    }

    /// The next value.
    ///
    /// # Errors
    /// [`CodecError::Damaged`] at the end of the bytes and for a value that does not fit a byte.
    #[inline]
    pub fn value(&mut self) -> Result<u8, CodecError> {
        let difference = match self.mode {
            0 => 0,
            1..=8 => self.bits.take(self.mode)? as i32,
            _ => {
                let parameter = self.mode - u32::from(FIRST_RICE_MODE);
                unzigzag(self.bits.take_rice(parameter, LARGEST_ZIGZAG)?)
            }
        };
        let value = self.base + difference;
        u8::try_from(value).map_err(|_| {
            let found = value.unsigned_abs().into();
            self.bits.damaged(found, "a value of one byte")
        })
    }

    /// Checks that no byte is left.
    ///
    /// # Errors
    /// [`CodecError::Damaged`].
    pub fn finish(self) -> Result<(), CodecError> {
        self.bits.finish()
    }
}

/// The lower median, 0 if there are no values.
fn median(counts: &[u64; 256]) -> u8 {
    let total: u64 = counts.iter().sum();
    let mut below = 0;
    for (value, count) in (0..=255u8).zip(counts) {
        below += count;
        if 2 * below >= total {
            return value;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn constants_cost_two_bytes_and_full_bytes_cost_one_each() {
        assert_eq!(pack_small(&[]), [0, 0]);
        assert_eq!(pack_small(&[77; 1000]), [77, 0]);
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(pack_small(&all).len(), 258);
    }

    #[test]
    fn a_few_outliers_do_not_widen_the_other_values() {
        let mut values = vec![20u8; 4000];
        values
            .iter_mut()
            .enumerate()
            .for_each(|(i, v)| *v += (i * 7 % 5) as u8);
        values[17] = 200;
        let packed = pack_small(&values);
        assert!(packed.len() < 4000 * 3 / 8 + 60, "{}", packed.len());
        assert_eq!(unpack_small(&packed, 4000).unwrap(), values);
    }

    #[test]
    fn unknown_modes_values_beyond_a_byte_and_wrong_counts_are_refused() {
        assert!(unpack_small(&[], 0).is_err());
        assert!(unpack_small(&[0, 9, 0], 1).is_err());
        assert!(unpack_small(&[0, 24, 0], 1).is_err());
        assert!(unpack_small(&[250, 4, 0xff], 2).is_err());
        assert!(unpack_small(&[0, 16, 1], 1).is_err());
        assert!(unpack_small(&[3, 4, 0x21], 3).is_err());
        assert!(unpack_small(&[3, 4, 0x21], 1).is_err());
        assert!(unpack_small(&[3, 8], usize::MAX).is_err());
    }

    #[test]
    fn only_the_shortest_encoding_passes_the_check_and_a_constant_of_any_length_takes_two_bytes() {
        check_packed(&[77, 0], 1 << 24).unwrap();
        // 77 in 8 bits, as a Rice code, and with another base.
        for longer in [&[0, 8, 77, 77][..], &[77, 16, 0], &[76, 1, 3]] {
            assert_eq!(unpack_small(longer, 2).unwrap(), [77, 77]);
            assert!(check_packed(longer, 2).is_err(), "{longer:?}");
        }
        assert!(check_packed(&[77, 0, 0], 2).is_err());
        assert!(check_packed(&[77], 2).is_err());
    }

    proptest! {
        #[test]
        fn packed_values_are_unpacked_unchanged(values in proptest::collection::vec(any::<u8>(), 0..300), spread in 1u8..=255) {
            let values: Vec<u8> = values.iter().map(|v| 90u8.wrapping_add(v % spread)).collect();
            let packed = pack_small(&values);
            check_packed(&packed, values.len()).unwrap();
            prop_assert!(packed.len() as u64 <= largest_packed(values.len()));
            prop_assert_eq!(unpack_small(&packed, values.len()).unwrap(), values);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40), count in 0usize..200) {
            if let Ok(values) = unpack_small(&bytes, count) {
                prop_assert_eq!(values.len(), count);
                let shortest = pack_small(&values) == bytes;
                prop_assert_eq!(check_packed(&bytes, count).is_ok(), shortest);
            }
        }
    }
}
