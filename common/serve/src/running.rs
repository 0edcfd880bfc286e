//! The sequences of one request, from their acceptance to their ends.

use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::Instant;
use uc_infer::Request;
use uc_infer::request::{Finish, Progress, Token, Usage};
use uc_infer::sampler::Chosen;

use crate::apart::apart;
use crate::constraint::Grammar;
use crate::engine::{Job, Ticket};
use crate::error::ApiError;
use crate::phase::{Phase, Watch};
use crate::state::State;

/// See the module.
pub(crate) struct Running {
    events: UnboundedReceiver<(usize, Progress)>,
    /// Cancel what has not ended.
    _tickets: Vec<Ticket>,
    deadline: Instant,
    timeout: Duration,
    phase: Watch,
    /// Sequences that have not ended.
    left: usize,
}

/// What one sequence gave.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
    /// The tokens of the prompt from the second on, if they were asked for.
    pub(crate) prompt: Vec<Chosen>,
    pub(crate) finish: Option<Finish>,
    pub(crate) usage: Usage,
}

impl Running {
    /// Starts the sequences of a request. All of them keep to the grammar.
    ///
    /// # Errors
    /// 400 for what cannot be computed, 429 if the queue is full, 503 if the server ends.
    pub(crate) async fn start(
        state: &State,
        requests: Vec<Request>,
        grammar: Option<Grammar>,
    ) -> Result<Self, ApiError> {
        if state.phase.now() != Phase::Open {
            return Err(ApiError::ending());
        }
        let model = &state.prepared.served.model;
        for request in &requests {
            request.check(model, state.settings.batch.context)?;
        }
        let permits = state.engine.permits(requests.len())?;
        let jobs = jobs(state, requests, grammar).await?;
        let (sender, events) = unbounded_channel();
        let left = jobs.len();
        let timeout = state.settings.timeout;
        Ok(Running {
            _tickets: state.engine.add(jobs, permits, &sender),
            events,
            deadline: Instant::now() + timeout,
            timeout,
            phase: state.phase.clone(),
            left,
        })
    }

    /// What happens next, with the index of the sequence; none after all have ended.
    ///
    /// # Errors
    /// Those of the sequence, 504 after the server's limit, 503 if the server ends before the sequence does.
    pub(crate) async fn next(&mut self) -> Result<Option<(usize, Progress)>, ApiError> {
        if self.left == 0 {
            return Ok(None);
        }
        let event = tokio::select! {
            biased;
            event = self.events.recv() => event,
            () = tokio::time::sleep_until(self.deadline) => {
                return Err(ApiError::too_slow(self.timeout.as_secs()));
            }
            () = self.phase.reached(Phase::Cut) => return Err(ApiError::ending()),
        };
        let Some((index, progress)) = event else {
            let message =
                "the computation has failed, expected an answer; the server's log says more";
            return Err(ApiError::internal(message));
        };
        match progress {
            Progress::Failed { error } => return Err(error.into()),
            Progress::Finished { .. } => self.left -= 1,
            _ => {}
        }
        Ok(Some((index, progress)))
    }

    /// Everything, for `count` sequences.
    pub(crate) async fn answers(mut self, count: usize) -> Result<Vec<Answer>, ApiError> {
        let mut answers: Vec<Answer> = Vec::new();
        answers.resize_with(count, Answer::default);
        while let Some((index, progress)) = self.next().await? {
            answers[index].add(progress);
        }
        Ok(answers)
    }
}

impl Answer {
    fn add(&mut self, progress: Progress) {
        match progress {
            Progress::Prompt { tokens } => self.prompt = tokens,
            Progress::Text { text, tokens } => {
                self.text.push_str(&text);
                self.tokens.extend(tokens);
            }
            Progress::Finished { finish, usage } => {
                self.finish = Some(finish);
                self.usage = usage;
            }
            Progress::Started { .. } | Progress::Failed { .. } => {}
        }
    }
}

/// The jobs of a request.
async fn jobs(
    state: &State,
    requests: Vec<Request>,
    grammar: Option<Grammar>,
) -> Result<Vec<Job>, ApiError> {
    let Some(grammar) = grammar else {
        let job = |request| Job {
            request,
            constraint: None,
        };
        return Ok(requests.into_iter().map(job).collect());
    };
    let prepared = state.prepared.clone();
    let compile = move || {
        let grammars = prepared.grammars.as_ref();
        let grammars = grammars.map_err(|reason| {
            let message =
                format!("response_format: the model's tokenizer does not allow it: {reason}");
            ApiError::invalid(message).param("response_format")
        })?;
        let job = |request| {
            let constraint = grammars.constraint(&grammar).map_err(|reason| {
                let message = format!("the schema or grammar cannot be used: {reason}");
                ApiError::invalid(message).param("response_format")
            })?;
            Ok(Job {
                request,
                constraint: Some(constraint),
            })
        };
        requests.into_iter().map(job).collect()
    };
    apart(compile).await
}

/// The API's word for the end of a text.
pub(crate) fn finish_reason(finish: Option<Finish>) -> &'static str {
    match finish {
        Some(Finish::Stop) => "stop",
        _ => "length",
    }
}
