//! A request in a slot: its sequence, and what follows from the logits of every step.

use std::sync::Arc;
use std::time::Instant;

use uc_model::Tokenizer;

use crate::error::InferError;
use crate::model::Wanted;
use crate::prefix::common;
use crate::request::{Constraint, Finish, Progress, Request, RequestId, Usage};
use crate::sampler::{Chosen, Sampler};
use crate::sequence::Sequence;
use crate::writer::{Certain, Writer};

/// See the module.
pub(crate) struct Running {
    pub(crate) id: RequestId,
    request: Request,
    constraint: Option<Box<dyn Constraint>>,
    pub(crate) sequence: Sequence,
    sampler: Sampler,
    writer: Writer,
    vocab: usize,
    /// After how many tokens of the prompt a copy of the sequence is kept.
    points: Vec<usize>,
    /// The last generated token, which is not in the sequence yet.
    last: Option<u32>,
    /// Log-probabilities of the prompt's tokens so far, if they were asked for.
    prompt_tokens: Vec<Chosen>,
    pub(crate) usage: Usage,
    /// When it got the slot.
    start: Instant,
    has_ended: bool,
    /// Its sequence may be of no use.
    has_failed: bool,
}

impl Running {
    /// A request whose sequence holds the beginning of its prompt, or nothing.
    pub(crate) fn new(
        id: RequestId,
        request: Request,
        constraint: Option<Box<dyn Constraint>>,
        sequence: Sequence,
        points: Vec<usize>,
        tokenizer: Arc<Tokenizer>,
        vocab: usize,
    ) -> Result<Self, InferError> {
        Ok(Running {
            id,
            sampler: Sampler::new(&request.sampling, &request.prompt, vocab)?,
            writer: Writer::new(tokenizer, &request.prompt, request.stop.clone()),
            usage: Usage {
                prompt: request.prompt.len(),
                reused: sequence.tokens().len(),
                ..Usage::default()
            },
            request,
            constraint,
            sequence,
            vocab,
            points,
            last: None,
            prompt_tokens: Vec::new(),
            start: Instant::now(),
            has_ended: false,
            has_failed: false,
        })
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed
    }

    pub(crate) fn prompt(&self) -> &[u32] {
        &self.request.prompt
    }

    /// Tokens of the prompt that are not computed.
    pub(crate) fn prompt_left(&self) -> usize {
        let computed = self.sequence.tokens().len();
        self.request.prompt.len().saturating_sub(computed)
    }

    /// Tokens of the prompt that may be computed in the next step.
    pub(crate) fn prompt_next(&self) -> usize {
        let computed = self.sequence.tokens().len();
        let points = self.points.iter().filter(|&&point| point > computed);
        let next = points.map(|point| point - computed).min();
        next.unwrap_or(usize::MAX).min(self.prompt_left())
    }

    /// Whether the sequence is now as it should be kept.
    pub(crate) fn is_at_point(&self) -> bool {
        self.points.contains(&self.sequence.tokens().len())
    }

    /// How many first tokens of `prompt` can be taken from the sequence, now or after its own prompt is computed.
    pub(crate) fn will_share(&self, prompt: &[u32]) -> usize {
        let common = common(&self.request.prompt, prompt).min(prompt.len() - 1);
        // A copy with a sliding window serves also the token before its last.
        let is_point = |&point: &usize| point == common || point == common + 1;
        match self.points.is_empty() || self.points.iter().any(is_point) {
            true if self.is_in_prompt() => common,
            _ => 0,
        }
    }

    pub(crate) fn is_in_prompt(&self) -> bool {
        self.prompt_left() > 0
    }

    /// The tokens of the next step, of which `share` are of the prompt; none if it has to wait for a share.
    pub(crate) fn next_tokens(&self, share: usize) -> &[u32] {
        match self.is_in_prompt() {
            true => &self.request.prompt[self.sequence.tokens().len()..][..share],
            false => self.last.as_slice(),
        }
    }

    /// The logits that a step with so many tokens has to compute.
    pub(crate) fn wanted(&self, count: usize) -> Wanted {
        if !self.is_in_prompt() {
            return Wanted::Last;
        }
        match (self.request.prompt_top, self.prompt_left() == count) {
            (Some(_), _) => Wanted::All,
            (None, true) if self.request.tokens > 0 => Wanted::Last,
            _ => Wanted::None,
        }
    }

    /// Goes on by the logits of a step.
    pub(crate) fn advance(&mut self, logits: Result<Vec<f32>, InferError>) -> Vec<Progress> {
        let mut progress = Vec::new();
        let result = logits.and_then(|logits| self.go_on(&logits, &mut progress));
        match result {
            Ok(None) => {}
            Ok(Some(finish)) => self.finish(finish, &mut progress),
            Err(error) => self.fail(error, &mut progress),
        }
        progress
    }

    /// Ends it.
    pub(crate) fn cancel(&mut self) -> Vec<Progress> {
        let mut progress = Vec::new();
        self.finish(Finish::Cancelled, &mut progress);
        progress
    }

    fn go_on(
        &mut self,
        logits: &[f32],
        progress: &mut Vec<Progress>,
    ) -> Result<Option<Finish>, InferError> {
        if self.last.is_none() {
            self.score_prompt(logits);
            if self.is_in_prompt() {
                return Ok(None);
            }
            self.usage.prompt_time = self.start.elapsed();
            if self.request.prompt_top.is_some() {
                let tokens = std::mem::take(&mut self.prompt_tokens);
                progress.push(Progress::Prompt { tokens });
            }
            if self.request.tokens == 0 {
                return Ok(Some(Finish::Length));
            }
        }
        let last = logits.len() - self.vocab;
        let (chosen, is_complete) = self.choose(&logits[last..])?;
        let id = chosen.token.id;
        self.last = Some(id);
        self.usage.generated += 1;
        if self.request.stop_tokens.contains(&id) {
            self.writer.push_end(chosen);
            return Ok(Some(Finish::Stop));
        }
        let certain = self.writer.push(chosen)?;
        tell(certain, progress);
        Ok(if self.writer.is_stopped() || is_complete {
            Some(Finish::Stop)
        } else if self.usage.generated == self.request.tokens {
            Some(Finish::Length)
        } else if self.sequence.tokens().len() == self.sequence.context() {
            Some(Finish::Context)
        } else {
            None
        })
    }

    /// Takes the log-probabilities of the prompt's next tokens, if they were asked for.
    fn score_prompt(&mut self, logits: &[f32]) {
        let Some(top) = self.request.prompt_top else {
            return;
        };
        let first = self.prompt_tokens.len() + 1;
        let rows = logits.chunks_exact(self.vocab);
        let scored = rows.zip(&self.request.prompt[first..]);
        let scored = scored.map(|(logits, &id)| Chosen::new(logits, id, top));
        self.prompt_tokens.extend(scored);
    }

    /// The next token, and whether nothing can follow it.
    fn choose(&mut self, logits: &[f32]) -> Result<(Chosen, bool), InferError> {
        let failed = |reason| InferError::Constraint { reason };
        let mut allowed = None;
        if let Some(constraint) = &mut self.constraint {
            let mut bits = vec![0; self.vocab.div_ceil(32)];
            constraint.allow(&mut bits).map_err(failed)?;
            allowed = Some(bits);
        }
        if self.usage.generated < self.request.min_tokens {
            let bits = allowed.get_or_insert_with(|| vec![u32::MAX; self.vocab.div_ceil(32)]);
            for &id in &self.request.stop_tokens {
                if let Some(bits) = bits.get_mut(id as usize / 32) {
                    *bits &= !(1 << (id % 32));
                }
            }
        }
        if let Some(bits) = &mut allowed {
            // The last bits stand for no tokens.
            if let (Some(last), used @ 1..) = (bits.last_mut(), self.vocab % 32) {
                *last &= (1 << used) - 1;
            }
            if bits.iter().all(|&bits| bits == 0) {
                return Err(failed("no token may follow".to_owned()));
            }
        }
        let top = self.request.top;
        let chosen = self.sampler.choose(logits, top, allowed.as_deref());
        let accepted = match &mut self.constraint {
            Some(constraint) => constraint
                .accept(chosen.token.id)
                .map_err(failed)?
                .is_break(),
            None => false,
        };
        Ok((chosen, accepted))
    }

    fn finish(&mut self, finish: Finish, progress: &mut Vec<Progress>) {
        match self.writer.finish() {
            Ok(certain) => tell(certain, progress),
            Err(error) => return self.fail(error, progress),
        }
        self.end();
        let usage = self.usage;
        progress.push(Progress::Finished { finish, usage });
    }

    fn fail(&mut self, error: InferError, progress: &mut Vec<Progress>) {
        self.end();
        self.has_failed = true;
        progress.push(Progress::Failed { error });
    }

    fn end(&mut self) {
        self.has_ended = true;
        self.usage.state_bytes = self.sequence.bytes();
        let time = self.start.elapsed();
        match self.is_in_prompt() {
            true => self.usage.prompt_time = time,
            false => self.usage.generation_time = time - self.usage.prompt_time,
        }
    }
}

/// Tells what is certain, if it is anything.
fn tell(Certain { text, tokens }: Certain, progress: &mut Vec<Progress>) {
    if !text.is_empty() || !tokens.is_empty() {
        progress.push(Progress::Text { text, tokens });
    }
}
