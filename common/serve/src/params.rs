//! The fields that completions and chat completions have in common: how tokens are chosen, how many, and what ends a text.

use std::collections::BTreeMap;

use serde::Deserialize;
use uc_infer::Sampling;

use crate::error::ApiError;
use crate::wire::Several;

/// Most choices of one request, over all its prompts.
pub const MAX_CHOICES: usize = 128;
/// Most stop strings.
const MAX_STOPS: usize = 16;
/// Most tokens with a bias.
const MAX_BIASES: usize = 1024;
/// Most log-probabilities beside the one of a token.
pub const MAX_TOP: usize = 20;

/// Fields of both kinds of requests.
#[derive(Debug, Default, Deserialize)]
pub struct Params {
    pub max_tokens: Option<i64>,
    pub max_completion_tokens: Option<i64>,
    pub n: Option<i64>,
    pub stop: Option<Several<String>>,
    pub seed: Option<i64>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    pub min_p: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub logit_bias: Option<BTreeMap<String, f64>>,
    pub ignore_eos: Option<bool>,
}

/// What a stream contains beside the text.
#[derive(Debug, Default, Deserialize)]
pub struct StreamOptions {
    pub include_usage: Option<bool>,
}

impl Params {
    /// Number of choices for each prompt.
    pub fn choices(&self) -> Result<usize, ApiError> {
        integer("n", self.n, 1, MAX_CHOICES as i64).map(|n| n.unwrap_or(1) as usize)
    }

    /// Most tokens of a choice; none for as many as the context holds.
    pub fn tokens(&self) -> Result<Option<usize>, ApiError> {
        // The newer name counts if both are there.
        let newer = integer(
            "max_completion_tokens",
            self.max_completion_tokens,
            0,
            i64::MAX,
        )?;
        let older = integer("max_tokens", self.max_tokens, 0, i64::MAX)?;
        Ok(newer.or(older).map(|n| n as usize))
    }

    /// The stop strings.
    pub fn stops(&self) -> Result<Vec<String>, ApiError> {
        let stops = match &self.stop {
            Some(stops) => stops.0.clone(),
            None => Vec::new(),
        };
        if stops.len() > MAX_STOPS {
            let found = format!("{} texts", stops.len());
            let expected = format!("at most {MAX_STOPS}");
            return Err(ApiError::field("stop", found, &expected));
        }
        Ok(stops)
    }

    /// Whether the answer is sent as it is made.
    pub fn stream(&self) -> Result<bool, ApiError> {
        let stream = self.stream.unwrap_or(false);
        if self.stream_options.is_some() && !stream {
            let message =
                "stream_options: found without stream, expected only with \"stream\": true";
            return Err(ApiError::invalid(message).param("stream_options"));
        }
        Ok(stream)
    }

    /// Whether a stream ends with the numbers of tokens.
    pub fn include_usage(&self) -> bool {
        let options = self.stream_options.as_ref();
        options.and_then(|options| options.include_usage) == Some(true)
    }

    /// How tokens are chosen; the seed is that of the first choice. `seed` is the one of a request that names none.
    pub fn sampling(&self, vocab: usize, seed: u64) -> Result<Sampling, ApiError> {
        let top_p = number("top_p", self.top_p, 0.0, 1.0)?.unwrap_or(1.0);
        let sampling = Sampling {
            temperature: number("temperature", self.temperature, 0.0, 2.0)?.unwrap_or(1.0),
            // 0 leaves the most probable token.
            top_p: top_p.max(f64::MIN_POSITIVE),
            // -1 is what others use for all.
            top_k: integer("top_k", self.top_k, -1, i64::MAX)?
                .unwrap_or(0)
                .max(0) as usize,
            min_p: number("min_p", self.min_p, 0.0, 1.0)?.unwrap_or(0.0),
            presence_penalty: number("presence_penalty", self.presence_penalty, -2.0, 2.0)?
                .unwrap_or(0.0),
            frequency_penalty: number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?
                .unwrap_or(0.0),
            repeat_penalty: number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)?
                .unwrap_or(1.0),
            seed: self.seed.map_or(seed, |seed| seed as u64),
            logit_bias: self.biases(vocab)?,
        };
        sampling.check(vocab)?;
        Ok(sampling)
    }

    fn biases(&self, vocab: usize) -> Result<BTreeMap<u32, f64>, ApiError> {
        let Some(biases) = &self.logit_bias else {
            return Ok(BTreeMap::new());
        };
        if biases.len() > MAX_BIASES {
            let found = format!("{} tokens", biases.len());
            let expected = format!("at most {MAX_BIASES}");
            return Err(ApiError::field("logit_bias", found, &expected));
        }
        let expected = format!("ids of tokens below {vocab}, the size of the vocabulary");
        let bias = |(key, &bias): (&String, &f64)| {
            let id = key.parse().ok().filter(|&id: &u32| (id as usize) < vocab);
            let id =
                id.ok_or_else(|| ApiError::field("logit_bias", format!("{key:?}"), &expected))?;
            number("logit_bias", Some(bias), -100.0, 100.0)?;
            Ok((id, bias))
        };
        biases.iter().map(bias).collect()
    }
}

/// A number within a range.
pub fn number(
    name: &str,
    found: Option<f64>,
    low: f64,
    high: f64,
) -> Result<Option<f64>, ApiError> {
    match found {
        Some(found) if !(low..=high).contains(&found) => {
            Err(ApiError::field(name, found, &format!("{low} to {high}")))
        }
        _ => Ok(found),
    }
}

/// An integer within a range.
pub fn integer(
    name: &str,
    found: Option<i64>,
    low: i64,
    high: i64,
) -> Result<Option<i64>, ApiError> {
    match found {
        Some(found) if !(low..=high).contains(&found) => {
            let expected = match high {
                i64::MAX => format!("{low} or more"),
                _ => format!("{low} to {high}"),
            };
            Err(ApiError::field(name, found, &expected))
        }
        _ => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(json: &str) -> Params {
        crate::wire::parse(json.as_bytes()).expect("fields")
    }

    #[test]
    fn the_defaults_are_those_of_the_api() {
        let sampling = params("{}").sampling(10, 7).expect("in range");
        assert_eq!((sampling.temperature, sampling.top_p), (1.0, 1.0));
        assert_eq!(sampling.seed, 7);
        assert_eq!(params("{}").choices().expect("one"), 1);
        assert_eq!(params("{}").tokens().expect("none"), None);
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        for (json, name) in [
            (r#"{"temperature": 2.1}"#, "temperature"),
            (r#"{"temperature": -1}"#, "temperature"),
            (r#"{"top_p": 1.5}"#, "top_p"),
            (r#"{"top_k": -2}"#, "top_k"),
            (r#"{"min_p": 2}"#, "min_p"),
            (r#"{"presence_penalty": 3}"#, "presence_penalty"),
            (r#"{"frequency_penalty": -3}"#, "frequency_penalty"),
            (r#"{"repetition_penalty": 0}"#, "repetition_penalty"),
            (r#"{"logit_bias": {"10": 1}}"#, "logit_bias"),
            (r#"{"logit_bias": {"x": 1}}"#, "logit_bias"),
            (r#"{"logit_bias": {"1": 101}}"#, "logit_bias"),
        ] {
            let error = params(json).sampling(10, 0).expect_err(json);
            assert_eq!(error.param.as_deref(), Some(name), "{error:?}");
        }
        for json in [r#"{"n": 0}"#, r#"{"n": 129}"#] {
            assert!(params(json).choices().is_err(), "{json}");
        }
        assert!(params(r#"{"max_tokens": -1}"#).tokens().is_err());
        assert!(params(r#"{"stream_options": {}}"#).stream().is_err());
        let stops = serde_json::json!({"stop": vec!["a"; 17]}).to_string();
        assert!(params(&stops).stops().is_err());
    }
}
