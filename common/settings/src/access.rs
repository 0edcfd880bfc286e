//! Operations on settings that follow from their declaration: validation, reading and writing by name.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::declaration::Settings;
use crate::field::SettingError;

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
