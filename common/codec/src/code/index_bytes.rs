//! Indices as bytes for serde: one for an index of −127 to 127, the byte −128 before the two of any other. A sequence of numbers
//! would be decoded one at a time, which takes longer than decompressing them.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserializer, Serializer};

/// Announces two bytes, little endian.
const WIDE: i8 = i8::MIN;
/// Indices that are copied together if none of them is wide.
const GROUP: usize = 64;

/// Serializes indices.
pub(super) fn serialize<S: Serializer>(q: &[i16], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(&encode(q))
}

/// Deserializes indices.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<i16>, D::Error> {
    deserializer.deserialize_bytes(Indices)
}

struct Indices;

impl Visitor<'_> for Indices {
    type Value = Vec<i16>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the bytes of indices")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<i16>, E> {
        decode(bytes).ok_or_else(|| E::custom("the last index is cut off"))
    }
}

fn encode(q: &[i16]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(q.len() + q.len() / 64);
    let is_narrow = |&q: &i16| q.unsigned_abs() < 128;
    for q in q.chunks(GROUP) {
        if q.iter().all(is_narrow) {
            bytes.extend(q.iter().map(|&q| q as u8));
            continue;
        }
        for q in q {
            if is_narrow(q) {
                bytes.push(*q as u8);
            } else {
                bytes.push(WIDE as u8);
                bytes.extend(q.to_le_bytes());
            }
        }
    }
    bytes
}

/// None if the last index is incomplete.
fn decode(mut bytes: &[u8]) -> Option<Vec<i16>> {
    let mut q = Vec::with_capacity(bytes.len());
    while !bytes.is_empty() {
        let (group, rest) = bytes.split_at(bytes.len().min(GROUP));
        if group.iter().all(|&byte| byte as i8 != WIDE) {
            q.extend(group.iter().map(|&byte| i16::from(byte as i8)));
            bytes = rest;
            continue;
        }
        // Up to the first wide index, and this one.
        let narrow = bytes.iter().position(|&byte| byte as i8 == WIDE)?;
        q.extend(bytes[..narrow].iter().map(|&byte| i16::from(byte as i8)));
        let (wide, rest) = bytes[narrow + 1..].split_first_chunk()?;
        q.push(i16::from_le_bytes(*wide));
        bytes = rest;
    }
    Some(q)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_of_every_size_are_read_as_they_were_written() {
        let all: Vec<i16> = (i16::MIN..=i16::MAX).collect();
        let small: Vec<i16> = (0..1000).map(|i| i * 7 % 255 - 127).collect();
        let rarely_wide: Vec<i16> = (0..1000)
            .map(|i| if i % 97 == 5 { 300 } else { i % 50 })
            .collect();
        for q in [
            &[][..],
            &[-128],
            &[127, -127, 128],
            &all,
            &small,
            &rarely_wide,
        ] {
            assert_eq!(decode(&encode(q)).as_deref(), Some(q));
        }
        assert_eq!(encode(&small).len(), small.len());
    }

    #[test]
    fn an_index_that_is_cut_off_is_refused() {
        let bytes = encode(&[1, 2, 3000]);
        assert_eq!(bytes.len(), 5);
        assert_eq!((decode(&bytes[..4]), decode(&bytes[..3])), (None, None));
    }
}
