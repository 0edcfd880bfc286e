//! The rotary settings of a `config.json`: both spellings, and the scaling methods.
//!
//! Older files have `rope_theta` and `rope_scaling`, files written by transformers 5 have
//! `rope_parameters`. The formulas of the scaling methods are in [`crate::rope`].

use super::decoder::DecoderDims;
use super::keys::Keys;
use crate::config::ConfigError;
use crate::rope::{RopeScaling, RopeSpec};

/// `rope_theta` if the file does not specify it.
const DEFAULT_THETA: f64 = 10_000.0;

/// The rotary settings outside of `rope_scaling` and `rope_parameters`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RopeDefaults {
    /// Base of the frequencies, if the file specifies it there.
    pub(super) theta: Option<f64>,
    /// The part of a head that is rotated, if the file specifies it there.
    pub(super) fraction: Option<f64>,
    /// The part of a head that is rotated if the file does not specify it anywhere.
    pub(super) default_fraction: f64,
}

impl RopeDefaults {
    /// Reads the usual keys.
    fn read(keys: &Keys<'_>) -> Result<Self, ConfigError> {
        Ok(RopeDefaults {
            theta: keys.optional_number_above("rope_theta", 1.0)?,
            fraction: keys.optional_number_above("partial_rotary_factor", 0.0)?,
            default_fraction: 1.0,
        })
    }
}

impl DecoderDims {
    /// Base and scaling of the rotary frequencies from either spelling: `rope_theta` with
    /// `rope_scaling`, or `rope_parameters`.
    pub(super) fn rope(&self, keys: &Keys<'_>) -> Result<RopeSpec, ConfigError> {
        self.rope_with(keys, RopeDefaults::read(keys)?)
    }

    /// As [`DecoderDims::rope`] for a family that has other names for the keys outside of the objects. A file with both
    /// objects must say the same in both.
    pub(super) fn rope_with(
        &self,
        keys: &Keys<'_>,
        defaults: RopeDefaults,
    ) -> Result<RopeSpec, ConfigError> {
        keys.supports_only("rope_interleaved", false)?;
        let kind = keys.optional_string("position_embedding_type")?;
        if !matches!(kind, None | Some("rope" | "rotary"))
            || kind.is_none() && keys.has("position_embedding_type")
        {
            let found = kind.unwrap_or("null");
            return Err(keys.invalid("position_embedding_type", found, "rope, or nothing"));
        }
        let old = keys.optional_object("rope_scaling")?;
        let new = keys.optional_object("rope_parameters")?;
        let (Some(old), Some(new)) = (&old, &new) else {
            return self.rope_from(keys, old.or(new).as_ref(), defaults);
        };
        // `rope_scaling` has no base of its own.
        let defaults = RopeDefaults {
            theta: defaults
                .theta
                .or(new.optional_number_above("rope_theta", 1.0)?),
            fraction: defaults
                .fraction
                .or(new.optional_number_above("partial_rotary_factor", 0.0)?),
            ..defaults
        };
        let spec = self.rope_from(keys, Some(new), defaults)?;
        match self.rope_from(keys, Some(old), defaults)? == spec {
            true => Ok(spec),
            false => {
                let expected = "the same settings as in rope_parameters, or only one of the two";
                Err(keys.invalid(
                    "rope_scaling",
                    "other settings than in rope_parameters",
                    expected,
                ))
            }
        }
    }

    /// The rotary embedding that the object `settings` describes, if there is one. What it says must agree with what
    /// the keys outside of it say.
    pub(super) fn rope_from(
        &self,
        keys: &Keys<'_>,
        settings: Option<&Keys<'_>>,
        defaults: RopeDefaults,
    ) -> Result<RopeSpec, ConfigError> {
        let merged = |key: &str, bound: f64, outer: Option<f64>| {
            let Some(settings) = settings else {
                return Ok(outer);
            };
            let inner = settings.optional_number_above(key, bound)?;
            match (inner, outer) {
                (Some(inner), Some(outer)) if inner != outer => {
                    let expected = format!("{outer}, as the file says elsewhere");
                    Err(settings.invalid(key, inner, expected))
                }
                _ => Ok(inner.or(outer)),
            }
        };
        let theta = merged("rope_theta", 1.0, defaults.theta)?;
        let fraction = merged("partial_rotary_factor", 0.0, defaults.fraction)?;
        let partial_factor = fraction.unwrap_or(defaults.default_fraction);
        let width = (self.head_dim as f64 * partial_factor) as usize;
        if width == 0 || width > self.head_dim || !width.is_multiple_of(2) {
            let expected = format!("an even number between 2 and head_dim, {}", self.head_dim);
            return Err(keys.invalid("head_dim · partial_rotary_factor", width, expected));
        }
        let scaling = match settings {
            Some(settings) => {
                let scaling = self.scaling(keys, settings, width)?;
                settings.refuse_unread()?;
                scaling
            }
            None => RopeScaling::Default,
        };
        Ok(RopeSpec {
            width,
            theta: theta
                .or(keys.default_number("rope_theta"))
                .unwrap_or(DEFAULT_THETA),
            scaling,
        })
    }

    fn scaling(
        &self,
        keys: &Keys<'_>,
        settings: &Keys<'_>,
        width: usize,
    ) -> Result<RopeScaling, ConfigError> {
        let kinds = [
            settings.optional_string("rope_type")?,
            settings.optional_string("type")?,
        ];
        let kind = match kinds {
            // An older name of the same method, which transformers keeps beside the new one.
            [Some("longrope"), Some("su")] => "longrope",
            [Some(kind), Some(other)] if kind != other => {
                let expected = format!("{other:?}, as type says");
                return Err(settings.invalid("rope_type", format!("{kind:?}"), expected));
            }
            [kind, other] => kind.or(other).unwrap_or("default"),
        };
        match kind {
            "default" | "mrope" => Ok(RopeScaling::Default),
            "linear" => Ok(RopeScaling::Linear {
                factor: settings.number_above("factor", 0.0)?,
            }),
            "llama3" => {
                let low = settings.number_above("low_freq_factor", 0.0)?;
                Ok(RopeScaling::Llama3 {
                    factor: settings.number_above("factor", 0.0)?,
                    low_freq_factor: low,
                    high_freq_factor: settings.number_above("high_freq_factor", low)?,
                    original_context: settings
                        .number_above("original_max_position_embeddings", 0.0)?,
                })
            }
            "dynamic" => self.dynamic(settings, width),
            "yarn" => self.yarn(settings),
            "longrope" | "su" => self.longrope(keys, settings, width),
            other => {
                let expected = "default, linear, dynamic, llama3, yarn, longrope or su";
                Err(settings.invalid("rope_type", format!("{other:?}"), expected))
            }
        }
    }

    /// Dynamic NTK: nothing changes up to the context length; the length in the object is not used by transformers.
    fn dynamic(&self, settings: &Keys<'_>, width: usize) -> Result<RopeScaling, ConfigError> {
        let original = settings.optional_size("original_max_position_embeddings")?;
        if original.is_some_and(|original| original != self.context) {
            let expected = format!("max_position_embeddings, {}", self.context);
            let found = original.unwrap_or_default();
            return Err(settings.invalid("original_max_position_embeddings", found, expected));
        }
        if width < 4 {
            let expected = "at least 4 rotated elements";
            return Err(settings.invalid("rope_type", format!("dynamic with {width}"), expected));
        }
        Ok(RopeScaling::Dynamic {
            factor: settings.number_above("factor", 0.0)?,
            original_context: self.context,
        })
    }

    fn yarn(&self, settings: &Keys<'_>) -> Result<RopeScaling, ConfigError> {
        let factor = settings.number_above("factor", 0.0)?;
        let mscales = [
            nonzero_mscale(settings, "mscale")?,
            mscale_all_dim(settings)?,
        ];
        let attention_factor = settings.optional_number_above("attention_factor", 0.0)?;
        let attention_factor = match (attention_factor, mscales) {
            (Some(attention_factor), _) => attention_factor,
            (None, [Some(one), Some(all)]) => yarn_mscale(factor, one) / yarn_mscale(factor, all),
            (None, _) => yarn_mscale(factor, 1.0),
        };
        let original = settings.optional_number_above("original_max_position_embeddings", 0.0)?;
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast: settings
                .optional_number_above("beta_fast", 0.0)?
                .unwrap_or(32.0),
            beta_slow: settings
                .optional_number_above("beta_slow", 0.0)?
                .unwrap_or(1.0),
            original_context: original.unwrap_or(self.context as f64),
            truncate: settings.optional_flag("truncate")?.unwrap_or(true),
            attention_factor,
        })
    }

    fn longrope(
        &self,
        keys: &Keys<'_>,
        settings: &Keys<'_>,
        width: usize,
    ) -> Result<RopeScaling, ConfigError> {
        let divisors = |key: &str| match settings.optional_positive_numbers(key)? {
            Some(divisors) if divisors.len() == width / 2 => Ok(divisors),
            other => {
                let found = format!("{} numbers", other.map_or(0, |divisors| divisors.len()));
                Err(settings.invalid(key, found, format!("{} numbers", width / 2)))
            }
        };
        let outer = keys.optional_size("original_max_position_embeddings")?;
        let inner = settings.optional_size("original_max_position_embeddings")?;
        let original = outer.or(inner).unwrap_or(self.context);
        let factor = match (outer, settings.optional_number_above("factor", 0.0)?) {
            (None, Some(factor)) => factor,
            _ => self.context as f64 / original as f64,
        };
        let default_factor = if factor > 1.0 {
            (1.0 + factor.ln() / (original as f64).ln()).sqrt()
        } else {
            1.0
        };
        let attention_factor = settings
            .optional_number_above("attention_factor", 0.0)?
            .unwrap_or(default_factor);
        let attention_factors = ["short_mscale", "long_mscale"].map(|key| {
            let mscale = settings.optional_number_above(key, 0.0)?;
            Ok(mscale.unwrap_or(attention_factor))
        });
        let [short, long] = attention_factors;
        Ok(RopeScaling::LongRope {
            attention_factors: [short?, long?],
            short: divisors("short_factor")?,
            long: divisors("long_factor")?,
            original_context: original,
        })
    }
}

/// YaRN's attention scale for a context stretched by `factor`: `0.1 · mscale · ln(factor) + 1`.
pub(super) fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor > 1.0 {
        0.1 * mscale * factor.ln() + 1.0
    } else {
        1.0
    }
}

/// `mscale_all_dim`, the parameter of YaRN that scales all elements of queries and keys. 0 means that it is unset.
pub(super) fn mscale_all_dim(settings: &Keys<'_>) -> Result<Option<f64>, ConfigError> {
    nonzero_mscale(settings, "mscale_all_dim")
}

fn nonzero_mscale(settings: &Keys<'_>, key: &str) -> Result<Option<f64>, ConfigError> {
    Ok(settings
        .optional_number_at_least(key, 0.0)?
        .filter(|mscale| *mscale != 0.0))
}
