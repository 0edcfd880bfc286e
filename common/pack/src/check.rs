//! Comparisons of what a pack holds with what it should hold.
//!
//! Each function returns `Ok` or the one error that describes the difference; none of them reads a file.

use std::collections::HashSet;
use std::fmt::Debug;

use crate::digest::Digest;
use crate::error::{PackError, invalid};

/// `Invalid` unless the two values are equal.
pub(crate) fn check_equal<T: PartialEq + Debug>(
    origin: &str,
    what: &str,
    found: T,
    expected: T,
) -> Result<(), PackError> {
    if found == expected {
        return Ok(());
    }
    Err(invalid(
        origin,
        what,
        format!("{found:?}"),
        format!("{expected:?}"),
    ))
}

/// `Digest` unless the two digests are equal.
pub(crate) fn check_digest(
    origin: &str,
    what: &str,
    found: Digest,
    expected: Digest,
) -> Result<(), PackError> {
    if found == expected {
        return Ok(());
    }
    Err(PackError::Digest {
        origin: origin.to_owned(),
        what: what.to_owned(),
        found: found.to_string(),
        expected: expected.to_string(),
    })
}

/// `Invalid` with the first name that occurs a second time.
pub(crate) fn check_unique<'a>(
    origin: &str,
    what: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<(), PackError> {
    let mut seen = HashSet::new();
    match names.into_iter().find(|name| !seen.insert(*name)) {
        Some(duplicate) => Err(invalid(origin, what, duplicate, "every name once")),
        None => Ok(()),
    }
}
