//! The rank of the low-rank correction: a number or `auto`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Rank of the low-rank correction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    /// The rank with the smallest error at equal total bits, which may be 0.
    Auto,
    /// This rank for every linear.
    Fixed(u32),
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(rank) => write!(f, "{rank}"),
        }
    }
}

impl Serialize for Rank {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Fixed(rank) => serializer.serialize_u32(*rank),
        }
    }
}

impl<'de> Deserialize<'de> for Rank {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RankVisitor)
    }
}

struct RankVisitor;

impl de::Visitor<'_> for RankVisitor {
    type Value = Rank;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"auto\" or a whole number")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Rank, E> {
        match text {
            "auto" => Ok(Rank::Auto),
            other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
        }
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Rank, E> {
        u32::try_from(value)
            .map(Rank::Fixed)
            .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(value), &self))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Rank, E> {
        match u64::try_from(value) {
            Ok(value) => self.visit_u64(value),
            Err(_) => Err(E::invalid_value(de::Unexpected::Signed(value), &self)),
        }
    }
}
