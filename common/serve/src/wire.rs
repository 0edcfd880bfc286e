//! Request bodies: read within limits of size and time, then parsed with errors that name the field.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use crate::error::ApiError;

/// Reads a body of at most `limit` bytes within `time`.
pub async fn read(body: Body, limit: usize, time: Duration) -> Result<Bytes, ApiError> {
    let whole = Limited::new(body, limit).collect();
    let Ok(whole) = tokio::time::timeout(time, whole).await else {
        let message = format!(
            "the body was not complete within {} s, expected it sooner",
            time.as_secs()
        );
        return Err(ApiError::refused(StatusCode::REQUEST_TIMEOUT, message));
    };
    match whole {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            let message = format!("found a body of more than {limit} bytes, expected less");
            Err(ApiError::refused(StatusCode::PAYLOAD_TOO_LARGE, message))
        }
        Err(error) => Err(ApiError::invalid(format!("cannot read the body: {error}"))),
    }
}

/// Parses a body. Fields that the type does not have are ignored, as they are by other servers of this API.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    if body.trim_ascii_start().first() != Some(&b'{') {
        // Also because a list would be taken for the fields in their order.
        let message = "the body cannot be used: found no object, expected a JSON object in UTF-8";
        return Err(ApiError::invalid(message));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut deserializer);
    let value = parsed.map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        match inner.classify() {
            serde_json::error::Category::Data if path != "." => {
                ApiError::invalid(format!("{path}: {inner}")).param(path)
            }
            _ => not_json(&inner),
        }
    })?;
    deserializer.end().map_err(|error| not_json(&error))?;
    Ok(value)
}

fn not_json(error: &serde_json::Error) -> ApiError {
    let message = format!("the body cannot be used: {error}; expected a JSON object in UTF-8");
    ApiError::invalid(message)
}

/// One item or several.
#[derive(Debug, Clone)]
pub struct Several<T>(pub Vec<T>);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Several<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let items = match value {
            serde_json::Value::Array(_) => serde_json::from_value(value),
            one => serde_json::from_value(one).map(|item| vec![item]),
        };
        items.map(Several).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Example {
        #[serde(default)]
        numbers: Vec<u32>,
        stop: Option<Several<String>>,
    }

    #[test]
    fn a_wrong_type_is_named_by_its_path_and_what_is_no_json_by_its_place() {
        let error = parse::<Example>(br#"{"numbers": [1, "x"]}"#).expect_err("a text");
        assert_eq!(error.param.as_deref(), Some("numbers[1]"), "{error:?}");
        for wrong in [
            &b"{"[..],
            b"",
            b"[]",
            b"{} {}",
            b"\"\xff\"",
            b"{\"stop\": \"\xff\"}",
        ] {
            let error = parse::<Example>(wrong).expect_err("no object");
            assert!(error.message.contains("JSON"), "{error:?}");
            assert_eq!(error.status, StatusCode::BAD_REQUEST);
        }
    }

    #[test]
    fn one_item_is_a_list_of_one_and_null_is_absent() {
        let stop = |text: &[u8]| {
            let example: Example = parse(text).expect("an object");
            assert_eq!(example.numbers, [0_u32; 0]);
            example.stop.map(|stop| stop.0)
        };
        assert_eq!(stop(br#"{"stop": "a"}"#), Some(vec!["a".to_owned()]));
        assert_eq!(stop(br#"{"stop": ["a", "b"]}"#).map(|s| s.len()), Some(2));
        assert_eq!(stop(br#"{"stop": null}"#), None);
        assert!(parse::<Example>(br#"{"stop": 1}"#).is_err());
    }
}
