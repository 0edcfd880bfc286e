//! A number of bytes with a unit, such as `64 GiB`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Binary units and the exponents of 2 that they stand for, largest first. Sizes are shown in them.
const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];
/// Decimal units.
const DECIMAL_UNITS: [(&str, f64); 4] = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |shift: &u32| self.0.trailing_zeros() >= *shift && self.0 > 0;
        let unit = UNITS.iter().find(|(_, shift)| whole(shift));
        let (unit, shift) = unit.unwrap_or(&("B", 0));
        write!(f, "{} {unit}", self.0 >> shift)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let text = text.trim();
            let end = text.find(|c: char| c.is_ascii_alphabetic())?;
            let number: f64 = text[..end].trim_end().parse().ok()?;
            let unit = &text[end..];
            let binary = UNITS.map(|(name, shift)| (name, 2f64.powi(shift as i32)));
            let mut units = binary.into_iter().chain(DECIMAL_UNITS);
            let bytes = number * units.find(|(name, _)| *name == unit)?.1;
            (0.0..=1e18).contains(&bytes).then_some(Self(bytes as u64))
        };
        parse().ok_or_else(|| format!("found `{text}`, expected a size such as \"64 GiB\""))
    }
}

impl Serialize for Size {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A number without a unit gets the same error message as an invalid text.
        let value = serde_json::Value::deserialize(deserializer)?;
        let text = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed_and_displayed_in_the_largest_whole_unit() {
        for (text, bytes, shown) in [
            ("64 GiB", 64 << 30, "64 GiB"),
            ("0.5 GiB", 512 << 20, "512 MiB"),
            ("200GiB", 200 << 30, "200 GiB"),
            ("24 GB", 24_000_000_000, "23437500 KiB"),
            ("1.5kB", 1500, "1500 B"),
            ("1000 B", 1000, "1000 B"),
            ("2048 KiB", 2 << 20, "2 MiB"),
            ("0 B", 0, "0 B"),
        ] {
            let size: Size = text.parse().expect(text);
            assert_eq!((size.0, size.to_string().as_str()), (bytes, shown));
        }
        for bad in [
            "", "64", "GiB", "64 gb", "64 gib", "-1 GiB", "NaN GiB", "9e9 TiB",
        ] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
