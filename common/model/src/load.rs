//! Reads a `config.json`, parses it, and passes its keys to the family that `model_type` names.
//!
//! The only place that knows both [`ModelConfig`] and the families. It reads no weights; it looks at
//! the names of the tensors where checkpoints of one family name or pack them differently.

use std::cell::OnceCell;
use std::path::Path;

use crate::config::{ConfigError, ModelConfig};
use crate::families::FAMILIES;
use crate::families::floats::tag_non_finite;
use crate::families::keys::Keys;
use crate::source;

/// Largest `config.json` that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

impl ModelConfig {
    /// Reads and validates `config.json` of the model folder `dir`. Where checkpoints of a family name
    /// or pack the same tensors differently, the tensor names in the folder decide.
    ///
    /// # Errors
    /// [`ConfigError`], with file, key, value found and values expected.
    pub fn load(dir: &Path) -> Result<ModelConfig, ConfigError> {
        let path = dir.join("config.json");
        if !path.exists() {
            return Err(ConfigError::Missing {
                path: dir.to_owned(),
                found: source::contents::config(dir),
            });
        }
        let names = OnceCell::new();
        let has_tensor = |part: &str| {
            let names = names.get_or_init(|| source::tensor_names(dir));
            names.iter().any(|name: &String| name.contains(part))
        };
        ModelConfig::read(&path, &has_tensor)
    }

    /// Reads and validates a `config.json` without its folder; `has_tensor` as in
    /// [`ModelConfig::from_json`].
    ///
    /// # Errors
    /// As [`ModelConfig::load`].
    pub fn read(
        path: &Path,
        has_tensor: &dyn Fn(&str) -> bool,
    ) -> Result<ModelConfig, ConfigError> {
        let bytes = uc_input::read(path, MAX_CONFIG_BYTES).map_err(|source| ConfigError::Io {
            path: path.to_owned(),
            source,
        })?;
        ModelConfig::from_json(&bytes, path, has_tensor)
    }

    /// Validates the bytes of a `config.json`; `path` is only used in errors. `has_tensor(part)` says
    /// whether the checkpoint has a tensor whose name contains `part`.
    ///
    /// # Errors
    /// As [`ModelConfig::load`].
    pub fn from_json(
        bytes: &[u8],
        path: &Path,
        has_tensor: &dyn Fn(&str) -> bool,
    ) -> Result<ModelConfig, ConfigError> {
        let json = tag_non_finite(bytes);
        let map = serde_json::from_slice(&json).map_err(|source| ConfigError::Json {
            path: path.to_owned(),
            source,
        })?;
        let keys = Keys::new(path, &map, has_tensor);
        let family = keys.optional_string("model_type")?.unwrap_or_default();
        let Some((_, describe)) = FAMILIES.iter().find(|(name, _)| *name == family) else {
            let names: Vec<_> = FAMILIES.iter().map(|(name, _)| *name).collect();
            return Err(ConfigError::UnsupportedFamily {
                path: path.to_owned(),
                found: family.chars().take(200).collect(),
                expected: names.join(", "),
            });
        };
        keys.refuse_quantized()?;
        keys.refuse_contradictions()?;
        // Any model can be asked to attend in both directions, whatever its family's fields are.
        for key in ["is_causal", "causal"] {
            keys.supports_only(key, true)?;
        }
        let config = describe(&keys)?;
        keys.refuse_unread()?;
        Ok(config)
    }
}
