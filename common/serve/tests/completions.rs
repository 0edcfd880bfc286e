//! `/v1/completions` over HTTP: texts, echoes, log-probabilities, choices, streams.

mod support;

use serde_json::{Value, json};
use support::{FINGERPRINT, NAME, Running};

const PATH: &str = "/v1/completions";
const PROMPT: &str = "Once upon a time";

/// The joined texts of a stream, by choice.
fn streamed(events: &[Value], index: usize) -> String {
    let choices = events
        .iter()
        .flat_map(|event| event["choices"].as_array().unwrap());
    let own = choices.filter(|choice| choice["index"] == index);
    own.map(|choice| choice["text"].as_str().unwrap()).collect()
}

#[test]
fn a_text_is_continued_and_counted() {
    let server = Running::usual();
    let body = json!({"model": NAME, "prompt": PROMPT, "max_tokens": 12, "temperature": 0});
    let answer = server.answer(PATH, &body);
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["model"], NAME);
    assert_eq!(answer["system_fingerprint"], FINGERPRINT);
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    let choice = &answer["choices"][0];
    assert!(choice["text"].as_str().unwrap().len() > 12, "{choice}");
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["logprobs"], Value::Null);
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    let prompt = answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(answer["usage"]["total_tokens"], prompt + 12);
    // The second time, the prompt is known.
    let again = server.answer(PATH, &body);
    assert_eq!(again["choices"], answer["choices"]);
    let cached = again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert!(cached.unwrap() > 0, "{again}");
    // Without a number of tokens there are 16, without a model the only one answers.
    let answer = server.answer(PATH, &json!({"prompt": PROMPT}));
    assert_eq!(answer["usage"]["completion_tokens"], 16);
}

#[test]
fn prompts_may_be_texts_or_tokens_one_or_several() {
    let server = Running::usual();
    let tokens = server.answer("/tokenize", &json!({"content": PROMPT}))["tokens"].clone();
    let texts = |prompt: Value| {
        let body = json!({"prompt": prompt, "max_tokens": 8, "temperature": 0});
        let answer = server.answer(PATH, &body);
        let choices = answer["choices"].as_array().unwrap().clone();
        let texts = choices.iter().map(|choice| choice["text"].clone());
        texts.collect::<Vec<_>>()
    };
    let expected = texts(json!(PROMPT));
    assert_eq!(texts(tokens.clone()), expected);
    assert_eq!(texts(json!([tokens.clone()])), expected);
    let several = texts(json!([PROMPT, "The old king", PROMPT]));
    assert_eq!(several.len(), 3);
    assert_eq!([&several[0], &several[2]], [&expected[0], &expected[0]]);
    assert_ne!(several[1], expected[0]);
}

#[test]
fn echoes_have_the_log_probabilities_of_the_prompt() {
    let server = Running::usual();
    let body = json!({
        "prompt": PROMPT, "max_tokens": 3, "temperature": 0, "echo": true, "logprobs": 2,
    });
    let answer = server.answer(PATH, &body);
    let choice = &answer["choices"][0];
    let text = choice["text"].as_str().unwrap();
    assert!(
        text.starts_with(PROMPT) && text.len() > PROMPT.len(),
        "{text}"
    );
    let logprobs = &choice["logprobs"];
    let list = |name: &str| logprobs[name].as_array().unwrap().clone();
    let (tokens, values) = (list("tokens"), list("token_logprobs"));
    let prompt = answer["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    assert_eq!(tokens.len(), prompt + 3);
    let joined: String = tokens.iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(joined, text);
    assert_eq!(values[0], Value::Null);
    assert_eq!(list("top_logprobs")[0], Value::Null);
    for (index, value) in values.iter().enumerate().skip(1) {
        let value = value.as_f64().unwrap();
        assert!(value <= 0.0);
        let top = list("top_logprobs")[index].as_object().unwrap().clone();
        let name = tokens[index].as_str().unwrap();
        assert_eq!(
            top[name].as_f64(),
            Some(value),
            "the token itself is among the top"
        );
        assert!((2..=3).contains(&top.len()), "{top:?}");
        let best = top
            .values()
            .map(|v| v.as_f64().unwrap())
            .fold(f64::MIN, f64::max);
        assert!(
            index < prompt || best == value,
            "greedy tokens are the most probable"
        );
        let offset = list("text_offset")[index].as_u64().unwrap() as usize;
        assert!(
            text.chars()
                .skip(offset)
                .collect::<String>()
                .starts_with(name)
        );
    }
    // Only the prompt: nothing is generated.
    let only = json!({"prompt": PROMPT, "max_tokens": 0, "echo": true, "logprobs": 2});
    let only = server.answer(PATH, &only);
    assert_eq!(only["choices"][0]["text"], PROMPT);
    let found = only["choices"][0]["logprobs"]["token_logprobs"].clone();
    assert_eq!(found, Value::from(values[..prompt].to_vec()));
    // The same in a stream.
    let events = server.events(PATH, &body);
    assert_eq!(streamed(&events, 0), text);
    let parts = events.iter().flat_map(|event| {
        let values = event["choices"][0]["logprobs"]["token_logprobs"].as_array();
        values.cloned().unwrap_or_default()
    });
    assert_eq!(parts.collect::<Vec<_>>(), values);
}

#[test]
fn seeds_choices_and_biases_decide_what_is_drawn() {
    let server = Running::usual();
    let texts = |extra: Value| {
        let mut body = json!({"prompt": PROMPT, "max_tokens": 10});
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        let answer = server.answer(PATH, &body);
        let choices = answer["choices"].as_array().unwrap().clone();
        let texts = choices
            .iter()
            .map(|choice| choice["text"].as_str().unwrap().to_owned());
        texts.collect::<Vec<_>>()
    };
    let three = texts(json!({"seed": 5, "n": 3, "best_of": 3}));
    assert_eq!(three.len(), 3);
    assert_eq!(three, texts(json!({"seed": 5, "n": 3})));
    assert_ne!(three[0], three[1]);
    // A choice is what the next seed gives alone.
    assert_eq!(texts(json!({"seed": 6}))[0], three[1]);
    assert_ne!(
        texts(json!({})),
        texts(json!({})),
        "without a seed, texts differ"
    );
    let biased = texts(json!({"seed": 1, "logit_bias": {"33": 100}, "temperature": 0.1}));
    let token = server.answer("/detokenize", &json!({"tokens": [33]}))["content"].clone();
    assert_eq!(biased[0], token.as_str().unwrap().repeat(10));
    let penalized = texts(json!({
        "temperature": 0, "max_tokens": 40, "frequency_penalty": 2, "presence_penalty": 2, "repetition_penalty": 2,
    }));
    assert_ne!(
        penalized,
        texts(json!({"temperature": 0, "max_tokens": 40}))
    );
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let server = Running::usual();
    let body =
        |stop: Value| json!({"prompt": PROMPT, "max_tokens": 40, "temperature": 0, "stop": stop});
    let whole = server.answer(PATH, &body(json!(null)))["choices"][0]["text"].clone();
    let whole = whole.as_str().unwrap();
    let stop = &whole[20..26];
    let end = whole.find(stop).unwrap();
    for stop in [json!(stop), json!(["never occurs", stop])] {
        let answer = server.answer(PATH, &body(stop.clone()));
        assert_eq!(answer["choices"][0]["text"], whole[..end]);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        assert_eq!(streamed(&server.events(PATH, &body(stop)), 0), whole[..end]);
    }
}

#[test]
fn a_stream_has_the_same_text_and_ends_with_the_usage() {
    let server = Running::usual();
    let mut body = json!({"prompt": [PROMPT, "The end"], "max_tokens": 9, "seed": 3, "n": 2});
    let whole = server.answer(PATH, &body);
    body["stream_options"] = json!({"include_usage": true});
    let mut events = server.events(PATH, &body);
    let last = events.pop().unwrap();
    assert_eq!(last["choices"], json!([]));
    for name in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(last["usage"][name], whole["usage"][name], "{name}");
    }
    for event in &events {
        assert_eq!(event["usage"], Value::Null);
        assert_eq!(event["id"], events[0]["id"]);
        assert_eq!(event["system_fingerprint"], FINGERPRINT);
    }
    for index in 0..4 {
        let choice = &whole["choices"][index];
        assert_eq!(streamed(&events, index), choice["text"].as_str().unwrap());
        let own = events
            .iter()
            .rfind(|event| event["choices"][0]["index"] == index);
        assert_eq!(
            own.unwrap()["choices"][0]["finish_reason"],
            choice["finish_reason"]
        );
    }
}

#[test]
fn a_text_ends_where_the_context_does() {
    let server = Running::usual();
    let body = json!({"prompt": "a ".repeat(100), "max_tokens": 100_000, "temperature": 0});
    let answer = server.answer(PATH, &body);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    // The last token is not computed, so one more fits.
    assert!(
        answer["usage"]["total_tokens"].as_u64().unwrap() <= 257,
        "{answer}"
    );
}
