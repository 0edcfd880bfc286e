//! Numbers of tokens of a request.

use serde_json::{Value, json};
use uc_infer::request::Usage;

/// The sums over all sequences of a request. The prompt of several choices counts once.
#[derive(Debug)]
pub(crate) struct Totals {
    /// Choices for each prompt.
    choices: usize,
    prompt: usize,
    cached: usize,
    completion: usize,
}

impl Totals {
    pub(crate) fn new(choices: usize) -> Self {
        Totals {
            choices,
            prompt: 0,
            cached: 0,
            completion: 0,
        }
    }

    /// Adds sequence `index` of the request.
    pub(crate) fn add(&mut self, index: usize, usage: &Usage) {
        if index.is_multiple_of(self.choices) {
            self.prompt += usage.prompt;
            self.cached += usage.reused;
        }
        self.completion += usage.generated;
    }

    /// The object of the API.
    pub(crate) fn value(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": { "cached_tokens": self.cached },
        })
    }
}
