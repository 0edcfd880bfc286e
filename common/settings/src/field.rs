//! The description of a setting, and the operations on settings that are derived from it: validation, reading and
//! writing by name.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::declaration::Settings;

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
    fn check(&self, key: &str, value: &Value) -> Result<(), SettingError> {
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

impl Settings {
    /// Checks that every value is allowed.
    ///
    /// # Errors
    /// If a value is not allowed; the error describes the first one.
    pub fn validate(&self) -> Result<(), SettingError> {
        let tree = self.to_json();
        for section in Self::DESCRIPTION {
            for field in section.fields {
                let key = format!("{}.{}", section.name, field.name);
                field.allowed.check(&key, &tree[section.name][field.name])?;
            }
        }
        Ok(())
    }

    /// Sets `section.field` from text as given on a command line: a TOML scalar, or a string without quotes.
    ///
    /// # Errors
    /// For an unknown key, a value of the wrong type or one that is not allowed. The settings are then unchanged.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), SettingError> {
        let refuse = |expected: String| SettingError {
            key: key.into(),
            found: value.into(),
            expected,
        };
        let mut tree = self.to_json();
        let slot = key
            .split_once('.')
            .and_then(|(section, field)| tree.get_mut(section)?.get_mut(field))
            .ok_or_else(|| refuse(format!("one of the settings {}", Self::keys().join(", "))))?;
        *slot = scalar(value);
        let changed: Self =
            serde_json::from_value(tree).map_err(|error| refuse(error.to_string()))?;
        changed.validate()?;
        *self = changed;
        Ok(())
    }

    /// Every key, as `section.field`; the fields of a section in alphabetical order.
    pub fn keys() -> Vec<String> {
        let settings = Self::default();
        Self::SECTIONS
            .iter()
            .flat_map(|section| {
                settings
                    .fields(section)
                    .into_keys()
                    .map(move |field| format!("{section}.{field}"))
            })
            .collect()
    }

    /// The fields of one section as text, for receipts; empty for an unknown section.
    pub fn fields(&self, section: &str) -> BTreeMap<String, String> {
        let tree = self.to_json();
        let Some(Value::Object(fields)) = tree.get(section) else {
            return BTreeMap::new();
        };
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        fields
            .iter()
            .map(|(name, value)| (name.clone(), text(value)))
            .collect()
    }

    pub(crate) fn to_json(&self) -> Value {
        serde_json::to_value(self).expect("settings are plain data")
    }
}

/// A scalar as JSON: a whole number, a number, a boolean, or else text.
fn scalar(text: &str) -> Value {
    if let Ok(whole) = text.parse::<u64>() {
        return whole.into();
    }
    if let Ok(number) = text.parse::<f64>()
        && number.is_finite()
    {
        return number.into();
    }
    match text {
        "true" => true.into(),
        "false" => false.into(),
        other => other.trim_matches('"').into(),
    }
}

#[cfg(test)]
mod tests;
