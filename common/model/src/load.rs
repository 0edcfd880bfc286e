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
const MAX_CONFIG_BYTES: u64 = 16 << 20;

impl ModelConfig {
    /// Reads and validates `config.json` of the model folder `dir`. Where checkpoints of a family name
    /// or pack the same tensors differently, the tensor names in the folder decide.
    ///
    /// # Errors
    /// [`ConfigError`], with file, key, value found and values expected.
    pub fn load(dir: &Path) -> Result<ModelConfig, ConfigError> {
        let names = OnceCell::new();
        let has_tensor = |part: &str| {
            let names = names.get_or_init(|| source::tensor_names(dir));
            names.iter().any(|name: &String| name.contains(part))
        };
        ModelConfig::read(&dir.join("config.json"), &has_tensor)
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
        let io = |source| ConfigError::Io {
            path: path.to_owned(),
            source,
        };
        let size = std::fs::metadata(path).map_err(io)?.len();
        if size > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLarge {
                path: path.to_owned(),
                found: size,
                expected: MAX_CONFIG_BYTES,
            });
        }
        let bytes = std::fs::read(path).map_err(io)?;
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
                found: family.to_owned(),
                expected: names.join(", "),
            });
        };
        let config = describe(&keys)?;
        keys.refuse_unread()?;
        Ok(config)
    }
}
