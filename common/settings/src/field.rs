//! The description of a setting, and the check of a value against it.

use std::fmt;

use serde_json::Value;

/// A setting with an unknown name, a value of the wrong type, or a value that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("setting `{key}`: found {found}, expected {expected}")]
pub struct SettingError {
    /// `section.field`.
    pub key: String,
    /// The value given.
    pub found: String,
    /// What is allowed.
    pub expected: String,
}

/// A section of the settings.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// Name of the section.
    pub name: &'static str,
    /// What the section is about.
    pub doc: &'static str,
    /// The fields.
    pub fields: &'static [Field],
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Name within the section.
    pub name: &'static str,
    /// What it means.
    pub doc: &'static str,
    /// The values it may have.
    pub allowed: Allowed,
    /// An allowed value other than the default.
    pub example: &'static str,
}

/// The values that a setting may have, beyond what its type says.
#[derive(Debug, Clone, Copy)]
pub enum Allowed {
    /// Any value of the type, which the text describes.
    Any(&'static str),
    /// Numbers from the first bound to the second, inclusive.
    Range(f64, f64),
    /// Multiples of a number in a range.
    MultipleInRange {
        /// The number.
        of: u32,
        /// The smallest value.
        low: f64,
        /// The largest value.
        high: f64,
    },
    /// `auto`, or numbers from the first bound to the second, inclusive.
    AutoOrRange(f64, f64),
    /// One of these names; each is paired with its meaning.
    Choice(&'static [(&'static str, &'static str)]),
    /// `OWNER/NAME`, `OWNER/NAME@BRANCH` or nothing.
    Repository,
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any(words) => f.write_str(words),
            Self::Range(low, high) => write!(f, "{low} to {high}"),
            Self::MultipleInRange { of, low, high } => {
                write!(f, "a multiple of {of}, {low} to {high}")
            }
            Self::AutoOrRange(low, high) => write!(f, "auto, or {low} to {high}"),
            Self::Choice(values) => {
                let values: Vec<_> = values.iter().map(|(value, _)| *value).collect();
                f.write_str(&values.join(", "))
            }
            Self::Repository => f.write_str("OWNER/NAME or OWNER/NAME@BRANCH"),
        }
    }
}

impl Allowed {
    /// Checks a value that has the type of its field.
    pub(crate) fn check(&self, key: &str, value: &Value) -> Result<(), SettingError> {
        match *self {
            Self::Any(_) | Self::Choice(_) => Ok(()), // the type allows no others
            Self::Range(low, high) => check_range(key, value, low, high),
            Self::MultipleInRange { of, low, high } => {
                check_range(key, value, low, high)?;
                if number(value) % f64::from(of) == 0.0 {
                    return Ok(());
                }
                Err(SettingError {
                    key: key.into(),
                    found: value.to_string(),
                    expected: format!("a multiple of {of}"),
                })
            }
            Self::AutoOrRange(..) if value == "auto" => Ok(()),
            Self::AutoOrRange(low, high) => check_range(key, value, low, high),
            Self::Repository => check_repository(key, value.as_str().unwrap_or_default()),
        }
    }
}

/// The number in a JSON value. JSON has no NaN: serde writes it as `null`.
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

fn check_range(key: &str, value: &Value, low: f64, high: f64) -> Result<(), SettingError> {
    let value = number(value);
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(SettingError {
        key: key.into(),
        found: value.to_string(),
        expected: format!("a value from {low} to {high}"),
    })
}

fn check_repository(key: &str, repository: &str) -> Result<(), SettingError> {
    let name = repository.split('@').next().unwrap_or_default();
    let is_full_name = name
        .split_once('/')
        .is_some_and(|(owner, name)| !owner.is_empty() && !name.is_empty() && !name.contains('/'));
    if repository.is_empty() || is_full_name {
        return Ok(());
    }
    Err(SettingError {
        key: key.into(),
        found: repository.into(),
        expected: Allowed::Repository.to_string(),
    })
}
