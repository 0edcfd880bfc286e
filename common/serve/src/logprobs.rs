//! Log-probabilities in the two forms of the API.

use serde_json::{Map, Value, json};
use uc_infer::sampler::Scored;

use crate::served::Prepared;

/// A token with the most probable ones at its place. The first token of a prompt has no log-probability.
#[derive(Debug, Clone)]
pub(crate) struct Place<'a> {
    pub(crate) id: u32,
    pub(crate) logprob: Option<f64>,
    pub(crate) top: &'a [Scored],
}

/// The form of completions. `offset` counts the characters of the text before each token, and is moved on.
pub(crate) fn of_completion(
    prepared: &Prepared,
    places: &[Place<'_>],
    offset: &mut usize,
) -> Value {
    let (mut tokens, mut logprobs, mut tops, mut offsets) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for place in places {
        tokens.push(prepared.token_name(place.id));
        logprobs.push(place.logprob);
        tops.push(place.logprob.map(|own| {
            // The token itself is among them, even if others are more probable.
            let mut top = Map::new();
            for scored in place.top {
                top.insert(prepared.token_name(scored.id), scored.logprob.into());
            }
            top.insert(prepared.token_name(place.id), own.into());
            top
        }));
        offsets.push(*offset);
        if !prepared.is_special(place.id) {
            let bytes = prepared.token_bytes(place.id);
            // Bytes that continue a character do not count.
            *offset += bytes.iter().filter(|&&byte| byte & 0xc0 != 0x80).count();
        }
    }
    json!({
        "tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets,
    })
}

/// The form of chat completions: one entry for each token.
pub(crate) fn of_chat(prepared: &Prepared, places: &[Place<'_>]) -> Vec<Value> {
    let entry = |id: u32, logprob: f64| {
        let bytes = prepared.token_bytes(id);
        let mut entry = Map::new();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        entry.insert("token".to_owned(), text.into());
        entry.insert("logprob".to_owned(), logprob.into());
        entry.insert("bytes".to_owned(), bytes.into());
        entry
    };
    let place = |place: &Place<'_>| {
        let top = place.top.iter();
        let top: Vec<Map<String, Value>> =
            top.map(|scored| entry(scored.id, scored.logprob)).collect();
        let mut value = entry(place.id, place.logprob.unwrap_or_default());
        value.insert("top_logprobs".to_owned(), json!(top));
        Value::Object(value)
    };
    places.iter().map(place).collect()
}
