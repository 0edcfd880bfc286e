//! From a prompt to text: a batch with one request.

use std::ops::ControlFlow;

use crate::batch::Batch;
use crate::error::InferError;
use crate::request::{Finish, Progress, Request, Token, Usage};

/// A generated text.
#[derive(Debug, Clone)]
pub struct Generated {
    /// The text, without what a stop string cuts off.
    pub text: String,
    /// The tokens, including those that end the text.
    pub tokens: Vec<Token>,
    /// Why it ends.
    pub finish: Finish,
    /// What it took.
    pub usage: Usage,
}

/// Generates text after the prompt with a batch that has nothing else to do. `on_text` gets the text as it becomes certain, and
/// ends the generation if it says so.
///
/// # Errors
/// Those of [`Request::check`], [`InferError::Overflow`], [`InferError::Text`].
///
/// # Panics
/// If the batch has something to do.
pub fn generate(
    batch: &mut Batch,
    request: Request,
    on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated, InferError> {
    assert!(batch.is_idle(), "a batch of one request");
    let id = batch.add(request, None)?;
    let (mut text, mut tokens) = (String::new(), Vec::new());
    loop {
        for event in batch.step() {
            match event.progress {
                Progress::Started { .. } | Progress::Prompt { .. } => {}
                Progress::Text {
                    text: new,
                    tokens: certain,
                } => {
                    text.push_str(&new);
                    tokens.extend(certain);
                    if !new.is_empty() && on_text(&new).is_break() {
                        batch.cancel(id);
                    }
                }
                Progress::Finished { finish, usage } => {
                    return Ok(Generated {
                        text,
                        tokens,
                        finish,
                        usage,
                    });
                }
                Progress::Failed { error } => return Err(error),
            }
        }
    }
}
