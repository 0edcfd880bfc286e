//! The settings that determine a pack and its evaluation, typed and with checked ranges.
//!
//! Sections are named in `pipeline.toml` (`[settings.quantize]`) and on the command line (`--set quantize.bpw=4.5`).
//! Each stage lists the sections that determine its output; their fields enter the key of its receipts.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::size::Size;

/// All settings of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How the forward passes run.
    pub model: ModelSettings,
    /// Which text the teacher sees.
    pub calibration: CalibrationSettings,
    /// Which linear gets how many bits.
    pub allocation: AllocationSettings,
    /// Rate and error feedback.
    pub quantize: QuantizeSettings,
    /// The correction after quantization.
    pub overlay: OverlaySettings,
    /// What teacher and pack are compared on.
    pub evaluation: EvaluationSettings,
    /// Where the pack goes; determines nothing of it.
    pub upload: UploadSettings,
    /// How much of a source from the Hub lies on disk; determines no output.
    pub retention: RetentionSettings,
}

/// Section `model`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSettings {
    /// Device of the forward passes.
    pub device: Device,
}

/// Where forward passes run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// The processor.
    Cpu,
    /// The first NVIDIA GPU.
    Cuda,
}

/// Section `calibration`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CalibrationSettings {
    /// Number of windows; 0 takes all that the text gives.
    pub windows: u32,
    /// Tokens of a window; cut to the model's context where that is shorter.
    pub length: u32,
    /// Chooses the windows.
    pub seed: u64,
    /// Share of the second moments in which tokens count by the loss's gradient at them, 0 to 1.
    pub fisher_token_weight: f64,
    /// Inputs wider than this keep their second moments in diagonal blocks of this width.
    pub max_input_block: u32,
    /// More outputs than this keep the second moments of their gradients in diagonal blocks of this many: a multiple of 256, the trellis's rows.
    pub max_output_block: u32,
}

/// Section `allocation`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AllocationSettings {
    /// How far bits may move between linears.
    pub mode: AllocationMode,
    /// How many of the calibration windows the survey takes; 0 takes all of them.
    pub windows: u32,
    /// Chooses the tokens that the teacher is taken to have said.
    pub seed: u64,
}

/// How far bits may move between linears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AllocationMode {
    /// Every linear has the same bits per weight; no survey is made.
    PerTensor,
    /// Every layer has the same bits per weight, its linears share them.
    PerLayer,
    /// The linears of the model share one budget.
    Global,
}

/// Section `quantize`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuantizeSettings {
    /// Bits per weight over the linears, every byte of the layer files counted.
    pub bpw: f64,
    /// Added to the diagonal of the second moments, relative to its mean. Raised below 5 bits per weight (`uc_codec::factor::damping_at_rate`).
    pub damping: f64,
    /// Share by which what lies off the diagonal of the second moments is taken smaller.
    pub shrinkage: f64,
    /// As `damping`, for the second moments of the gradients at a linear's outputs.
    pub output_damping: f64,
    /// As `shrinkage`, for the second moments of the gradients at a linear's outputs.
    pub output_shrinkage: f64,
    /// Rows of a tensor on which the rate is probed.
    pub probe_rows: u32,
}

/// Section `overlay`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OverlaySettings {
    /// Rank of the low-rank correction.
    pub rank: Rank,
    /// Largest rank that `auto` considers.
    pub max_rank: u32,
}

/// Rank of the low-rank correction: chosen by benefit per bit, or forced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    /// The rank with the least error at equal total bits; 0 is a legitimate outcome.
    Auto,
    /// This rank for every linear.
    Fixed(u32),
}

/// Section `evaluation`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationSettings {
    /// Number of windows; 0 takes all that the text gives.
    pub windows: u32,
    /// Tokens of a window; cut to the model's context where that is shorter.
    pub length: u32,
    /// Chooses the windows.
    pub seed: u64,
}

/// Section `upload`: of the pipeline's stages only the one that makes the repository lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UploadSettings {
    /// The repository, `OWNER/NAME` or `OWNER/NAME@BRANCH`; empty without an upload.
    pub repository: String,
    /// Whether a repository that has to be made is private.
    pub private: bool,
    /// Attempts in a row without progress before an upload gives up.
    pub attempts: u32,
    /// Longest wait between two attempts, seconds.
    pub longest_wait: u32,
}

/// Section `retention`. No stage lists it: whatever it says, the outputs are the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionSettings {
    /// What becomes of the shards of a model of the Hub.
    pub source: SourceRetention,
    /// Bytes that they may take together where they are evicted.
    pub budget: Size,
}

/// What becomes of the shards of a model of the Hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceRetention {
    /// All are downloaded before the run and stay.
    Keep,
    /// They come when a job needs them and go when there is no room.
    Evict,
}

impl Default for RetentionSettings {
    fn default() -> Self {
        Self {
            source: SourceRetention::Keep,
            budget: Size(64 << 30),
        }
    }
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
        }
    }
}

impl Default for CalibrationSettings {
    fn default() -> Self {
        Self {
            windows: 96,
            length: 1024,
            seed: 42,
            fisher_token_weight: 0.2,
            max_input_block: 16_384,
            max_output_block: 1024,
        }
    }
}

impl Default for AllocationSettings {
    fn default() -> Self {
        Self {
            mode: AllocationMode::Global,
            windows: 48,
            seed: 42,
        }
    }
}

impl Default for QuantizeSettings {
    fn default() -> Self {
        Self {
            bpw: 5.0,
            damping: 0.0001,
            shrinkage: 0.01,
            output_damping: 0.005,
            output_shrinkage: 0.1,
            probe_rows: 256,
        }
    }
}

impl Default for OverlaySettings {
    fn default() -> Self {
        Self {
            rank: Rank::Auto,
            max_rank: 64,
        }
    }
}

impl Default for EvaluationSettings {
    fn default() -> Self {
        Self {
            windows: 40,
            length: 1024,
            seed: 42,
        }
    }
}

impl Default for UploadSettings {
    fn default() -> Self {
        Self {
            repository: String::new(),
            private: false,
            attempts: 8,
            longest_wait: 300,
        }
    }
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
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Fixed(rank) => serializer.serialize_u32(*rank),
        }
    }
}

impl<'de> Deserialize<'de> for Rank {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Rank;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"auto\" or a whole number")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Rank, E> {
                match text {
                    "auto" => Ok(Rank::Auto),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }
            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Rank, E> {
                u32::try_from(value)
                    .map(Rank::Fixed)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Unsigned(value), &self))
            }
            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Rank, E> {
                match u64::try_from(value) {
                    Ok(value) => self.visit_u64(value),
                    Err(_) => Err(E::invalid_value(
                        serde::de::Unexpected::Signed(value),
                        &self,
                    )),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Settings {
    /// The names of the sections.
    pub const SECTIONS: [&'static str; 8] = [
        "model",
        "calibration",
        "allocation",
        "quantize",
        "overlay",
        "evaluation",
        "upload",
        "retention",
    ];

    /// Checks every range.
    pub fn validate(&self) -> Result<(), StoreError> {
        let range = |key: &str, value: f64, low: f64, high: f64| {
            if value >= low && value <= high {
                return Ok(());
            }
            Err(StoreError::Setting {
                key: key.into(),
                found: value.to_string(),
                expected: format!("a value from {low} to {high}"),
            })
        };
        range(
            "calibration.windows",
            self.calibration.windows.into(),
            0.0,
            1e6,
        )?;
        range(
            "calibration.length",
            self.calibration.length.into(),
            16.0,
            1_048_576.0,
        )?;
        range(
            "allocation.windows",
            self.allocation.windows.into(),
            0.0,
            1e6,
        )?;
        range(
            "calibration.fisher_token_weight",
            self.calibration.fisher_token_weight,
            0.0,
            1.0,
        )?;
        range(
            "calibration.max_input_block",
            self.calibration.max_input_block.into(),
            16.0,
            262_144.0,
        )?;
        range(
            "calibration.max_output_block",
            self.calibration.max_output_block.into(),
            256.0,
            262_144.0,
        )?;
        if !self.calibration.max_output_block.is_multiple_of(256) {
            return Err(StoreError::Setting {
                key: "calibration.max_output_block".into(),
                found: self.calibration.max_output_block.to_string(),
                expected: "a multiple of 256".into(),
            });
        }
        range("quantize.bpw", self.quantize.bpw, 2.0, 8.0)?;
        range("quantize.damping", self.quantize.damping, 1e-6, 10.0)?;
        range("quantize.shrinkage", self.quantize.shrinkage, 0.0, 1.0)?;
        range(
            "quantize.output_shrinkage",
            self.quantize.output_shrinkage,
            0.0,
            1.0,
        )?;
        range(
            "quantize.output_damping",
            self.quantize.output_damping,
            1e-6,
            1e3,
        )?;
        range(
            "quantize.probe_rows",
            self.quantize.probe_rows.into(),
            16.0,
            1e6,
        )?;
        if let Rank::Fixed(rank) = self.overlay.rank {
            range("overlay.rank", rank.into(), 0.0, 1024.0)?;
        }
        range(
            "overlay.max_rank",
            self.overlay.max_rank.into(),
            0.0,
            1024.0,
        )?;
        range(
            "evaluation.windows",
            self.evaluation.windows.into(),
            0.0,
            1e6,
        )?;
        range(
            "evaluation.length",
            self.evaluation.length.into(),
            16.0,
            1_048_576.0,
        )?;
        range("upload.attempts", self.upload.attempts.into(), 1.0, 1000.0)?;
        range(
            "upload.longest_wait",
            self.upload.longest_wait.into(),
            0.0,
            3600.0,
        )?;
        let repository = &self.upload.repository;
        let name = repository.split('@').next().unwrap_or_default();
        let parts: Vec<&str> = name.split('/').collect();
        if repository.is_empty()
            || matches!(parts[..], [owner, name] if !owner.is_empty() && !name.is_empty())
        {
            return Ok(());
        }
        Err(StoreError::Setting {
            key: "upload.repository".into(),
            found: repository.clone(),
            expected: "OWNER/NAME or OWNER/NAME@BRANCH".into(),
        })
    }

    /// Sets `section.key` from text as given on a command line (a TOML scalar; a bare word is a string).
    ///
    /// # Errors
    /// [`StoreError::Setting`] for an unknown key, a value of another type or one out of range.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), StoreError> {
        let refuse = |expected: String| StoreError::Setting {
            key: key.into(),
            found: value.into(),
            expected,
        };
        let mut tree = serde_json::to_value(&*self).expect("settings are plain data");
        let known = || Self::keys().join(", ");
        let slot = key
            .split_once('.')
            .and_then(|(section, field)| tree.get_mut(section)?.get_mut(field))
            .ok_or_else(|| refuse(format!("one of the settings {}", known())))?;
        *slot = scalar(value);
        let changed: Self =
            serde_json::from_value(tree).map_err(|error| refuse(error.to_string()))?;
        changed.validate()?;
        *self = changed;
        Ok(())
    }

    /// The settings that determine outputs: the others are as by default.
    pub fn determining(&self) -> Self {
        Self {
            retention: RetentionSettings::default(),
            upload: UploadSettings::default(),
            ..self.clone()
        }
    }

    /// Every key, as `section.field`.
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
        let tree = serde_json::to_value(self).expect("settings are plain data");
        let Some(serde_json::Value::Object(fields)) = tree.get(section) else {
            return BTreeMap::new();
        };
        let text = |value: &serde_json::Value| match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        fields
            .iter()
            .map(|(name, value)| (name.clone(), text(value)))
            .collect()
    }
}

/// A scalar as JSON: whole number, number, boolean, else text.
fn scalar(text: &str) -> serde_json::Value {
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
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_every_section_has_fields() {
        let settings = Settings::default();
        settings.validate().expect("valid");
        for section in Settings::SECTIONS {
            assert!(!settings.fields(section).is_empty(), "{section}");
        }
        assert!(settings.fields("other").is_empty());
    }

    #[test]
    fn values_are_set_from_text() {
        let mut settings = Settings::default();
        settings.set("quantize.bpw", "4.5").expect("set");
        settings
            .set("quantize.bpw", "4")
            .expect("a whole number is a number");
        settings.set("overlay.rank", "8").expect("set");
        settings.set("model.device", "cuda").expect("set");
        assert_eq!(settings.quantize.bpw, 4.0);
        assert_eq!(settings.overlay.rank, Rank::Fixed(8));
        assert_eq!(settings.model.device, Device::Cuda);
        settings.set("overlay.rank", "auto").expect("set");
        assert_eq!(settings.overlay.rank, Rank::Auto);
    }

    #[test]
    fn bad_keys_types_and_ranges_are_refused_with_the_key() {
        for (key, value, word) in [
            ("quantize.bwp", "5", "quantize.bpw"),
            ("bpw", "5", "one of the settings"),
            ("quantize.bpw", "nine", "invalid type"),
            ("quantize.bpw", "9", "from 2 to 8"),
            ("quantize.bpw", "NaN", "invalid type"),
            ("quantize.damping", "0", "from 0.000001"),
            ("overlay.rank", "-1", "invalid"),
            ("overlay.rank", "2000", "1024"),
            ("calibration.length", "1", "from 16"),
            ("calibration.windows", "-3", "invalid"),
            ("model.device", "tpu", "unknown variant"),
            ("upload.repository", "nobody", "OWNER/NAME"),
            ("upload.attempts", "0", "from 1 to 1000"),
            ("retention.source", "drop", "unknown variant"),
            ("retention.budget", "64", "such as"),
            ("retention.budget", "-1 GiB", "such as"),
        ] {
            let mut settings = Settings::default();
            let error = settings.set(key, value).expect_err(key).to_string();
            assert!(error.contains(key) && error.contains(word), "{error}");
            assert_eq!(settings, Settings::default());
        }
    }

    #[test]
    fn settings_survive_json() {
        let settings = Settings::default();
        let text = serde_json::to_string(&settings).expect("text");
        assert_eq!(
            serde_json::from_str::<Settings>(&text).expect("settings"),
            settings
        );
        assert!(serde_json::from_str::<Settings>(r#"{"quantize":{"x":1}}"#).is_err());
    }
}
