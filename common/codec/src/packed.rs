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

use crate::bits::{BitReader, BitWriter, best_rice, unzigzag, zigzag};
use crate::error::CodecError;

/// First mode with Rice codes.
const FIRST_RICE_MODE: u8 = 16;
/// Largest zigzag of a difference of two bytes.
const LARGEST_ZIGZAG: u32 = 511;

/// Packs `values`; at least two bytes.
pub fn pack_small(values: &[u8]) -> Vec<u8> {
    let smallest = values.iter().copied().min().unwrap_or(0);
    let largest = values.iter().copied().max().unwrap_or(0);
    let width = 8 - (largest - smallest).leading_zeros();
    let median = median(values);
    let zigzags: Vec<u32> = values
        .iter()
        .map(|&v| zigzag(i32::from(v) - i32::from(median)))
        .collect();
    let (parameter, rice_bits) = best_rice(&zigzags, 7);
    let mut writer = BitWriter::default();
    if rice_bits.div_ceil(8) < (values.len() as u64 * u64::from(width)).div_ceil(8) {
        writer.put(u32::from(median), 8);
        writer.put(u32::from(FIRST_RICE_MODE) + parameter, 8);
        zigzags.iter().for_each(|&z| writer.put_rice(z, parameter));
    } else {
        writer.put(u32::from(smallest), 8);
        writer.put(width, 8);
        values
            .iter()
            .for_each(|&v| writer.put(u32::from(v - smallest), width));
    }
    writer.finish()
}

/// Unpacks `count` values; `bytes` must hold nothing else.
///
/// # Errors
/// [`CodecError::Damaged`] for anything that is not a valid encoding of `count` values; the base and the mode need not be those
/// that [`pack_small`] chooses. `count` is checked against the number of bytes before memory is allocated, unless the mode is
/// 0, in which values take no bits.
pub fn unpack_small(bytes: &[u8], count: usize) -> Result<Vec<u8>, CodecError> {
    let mut reader = BitReader::new("packed integers", bytes);
    let base = reader.take(8)? as i32;
    let mode = reader.take(8)?;
    let rice = u32::from(FIRST_RICE_MODE);
    let bits = match mode {
        0..=8 => mode as usize,
        _ if (rice..rice + 8).contains(&mode) => (mode - rice) as usize + 1,
        _ => return Err(reader.damaged(u64::from(mode), "a mode of 0..=8 or 16..=23")),
    };
    if count
        .checked_mul(bits)
        .is_none_or(|bits| bits.div_ceil(8) > bytes.len() - 2)
    {
        return Err(reader.damaged(bytes.len() as u64, "more bytes"));
    }
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        let difference = match mode {
            0..=8 => reader.take(mode)? as i32,
            _ => unzigzag(reader.take_rice(mode - rice, LARGEST_ZIGZAG)?),
        };
        let value = base + difference;
        let Ok(value) = u8::try_from(value) else {
            return Err(reader.damaged(value.unsigned_abs().into(), "a value of one byte"));
        };
        values.push(value);
    }
    reader.finish()?;
    Ok(values)
}

/// The lower median, 0 if there are no values.
fn median(values: &[u8]) -> u8 {
    let mut counts = [0usize; 256];
    values.iter().for_each(|&v| counts[usize::from(v)] += 1);
    let mut below = 0;
    for (value, count) in counts.iter().enumerate() {
        below += count;
        if 2 * below >= values.len() {
            return value as u8;
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

    proptest! {
        #[test]
        fn packed_values_are_unpacked_unchanged(values in proptest::collection::vec(any::<u8>(), 0..300), spread in 1u8..=255) {
            let values: Vec<u8> = values.iter().map(|v| 90u8.wrapping_add(v % spread)).collect();
            let packed = pack_small(&values);
            prop_assert_eq!(unpack_small(&packed, values.len()).unwrap(), values);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40), count in 0usize..200) {
            if let Ok(values) = unpack_small(&bytes, count) {
                prop_assert_eq!(values.len(), count);
            }
        }
    }
}
