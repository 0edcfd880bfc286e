//! A running batch: requests join and leave while others go on. Every step is one forward pass over the next tokens of all that
//! run: one token of each text, and parts of prompts. What a request gets does not depend on the others, nor on when they come.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;
use uc_model::Tokenizer;

use crate::cache::Precision;
use crate::error::InferError;
use crate::model::{Chunk, Model};
use crate::prefix::{Prefixes, bytes_of, common, reusable};
use crate::request::{Constraint, Event, Finish, Progress, Request, RequestId, Usage};
use crate::running::Running;
use crate::sequence::Sequence;

/// Tokens of prompts in a step, unless there is a reason for another number.
pub const STEP_TOKENS: usize = 128;

/// The limits of a batch. No result depends on them, except that a longer context may have other rotary frequencies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSettings {
    /// Most requests that run at the same time; others wait.
    pub slots: usize,
    /// Most tokens of prompts in a step, so that a long prompt does not hold up the texts.
    pub step_tokens: usize,
    /// Most tokens of a prompt and its text.
    pub context: usize,
    /// Number format of keys and values.
    pub precision: Precision,
    /// Most bytes of the states that are kept of prompts and texts that have ended, for requests that begin with the same tokens;
    /// 0 computes every prompt.
    pub prefix_bytes: u64,
}

/// What a batch has done and holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Requests that run.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Steps so far.
    pub steps: u64,
    /// Tokens of prompts that were computed.
    pub prompt_tokens: u64,
    /// Tokens of prompts that were taken from prefixes.
    pub reused_tokens: u64,
    /// Generated tokens.
    pub generated_tokens: u64,
    /// Bytes of the states of running requests, of which shared ones count once.
    pub state_bytes: u64,
    /// Bytes of the states of kept prefixes, of which shared ones count once. Running requests may share them as well.
    pub prefix_bytes: u64,
}

/// A request without a slot.
struct Waiting {
    id: RequestId,
    request: Request,
    constraint: Option<Box<dyn Constraint>>,
    since: Instant,
}

/// What is known of a prompt.
#[derive(Default)]
struct Prefix {
    /// Tokens that can be taken.
    count: usize,
    origin: Origin,
    /// Tokens that others have in common with it.
    common: usize,
    /// Whether more can be taken when another prompt is computed.
    is_coming: bool,
}

/// From where tokens can be taken.
#[derive(Default)]
enum Origin {
    #[default]
    Nothing,
    Kept(usize),
    Running(usize),
}

/// See the module.
pub struct Batch {
    model: Arc<Model>,
    tokenizer: Arc<Tokenizer>,
    settings: BatchSettings,
    waiting: VecDeque<Waiting>,
    running: Vec<Running>,
    prefixes: Prefixes,
    /// Events that the next step returns first.
    events: Vec<Event>,
    counters: Counters,
    added: u64,
}

impl Batch {
    /// An empty batch.
    ///
    /// # Errors
    /// [`InferError::Option`] without slots or step tokens, [`InferError::ContextRange`].
    pub fn new(
        model: Arc<Model>,
        tokenizer: Arc<Tokenizer>,
        settings: BatchSettings,
    ) -> Result<Self, InferError> {
        for (option, found) in [
            ("slots", settings.slots),
            ("step-tokens", settings.step_tokens),
        ] {
            if found == 0 {
                return Err(InferError::option(option, found, "at least 1"));
            }
        }
        Sequence::new(&model, settings.context, settings.precision)?;
        Ok(Batch {
            model,
            tokenizer,
            settings,
            waiting: VecDeque::new(),
            running: Vec::new(),
            prefixes: Prefixes::new(settings.prefix_bytes),
            events: Vec::new(),
            counters: Counters::default(),
            added: 0,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The limits.
    pub fn settings(&self) -> &BatchSettings {
        &self.settings
    }

    /// Requests that wait for a slot.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether [`Batch::step`] has nothing to do and nothing to tell.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.events.is_empty()
    }

    /// What the batch has done and holds.
    pub fn counters(&self) -> Counters {
        let running = self.running.iter().map(|running| &running.sequence);
        let generated = self.running.iter().map(|running| running.usage.generated);
        Counters {
            running: self.running.len(),
            waiting: self.waiting.len(),
            generated_tokens: self.counters.generated_tokens + generated.sum::<usize>() as u64,
            state_bytes: bytes_of(running),
            prefix_bytes: self.prefixes.bytes(),
            ..self.counters
        }
    }

    /// Adds a request, which waits until a slot is free.
    ///
    /// # Errors
    /// Those of [`Request::check`]; then nothing is added.
    pub fn add(
        &mut self,
        request: Request,
        constraint: Option<Box<dyn Constraint>>,
    ) -> Result<RequestId, InferError> {
        request.check(&self.model, self.settings.context)?;
        let id = RequestId(self.added);
        self.added += 1;
        self.waiting.push_back(Waiting {
            id,
            request,
            constraint,
            since: Instant::now(),
        });
        Ok(id)
    }

    /// Ends a request; the next step returns its [`Finish::Cancelled`]. Returns whether it was there.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        if let Some(index) = self.waiting.iter().position(|waiting| waiting.id == id) {
            if let Some(waiting) = self.waiting.remove(index) {
                let usage = Usage {
                    prompt: waiting.request.prompt.len(),
                    queue_time: waiting.since.elapsed(),
                    ..Usage::default()
                };
                let finish = Finish::Cancelled;
                self.tell(id, Progress::Finished { finish, usage });
            }
            return true;
        }
        let Some(index) = self.running.iter().position(|running| running.id == id) else {
            return false;
        };
        let mut running = self.running.remove(index);
        let progress = running.cancel();
        self.leave(running);
        progress.into_iter().for_each(|p| self.tell(id, p));
        true
    }

    /// Computes the next tokens of everything that runs. Returns what happened since the last step, in the order of the requests
    /// for each kind of event.
    pub fn step(&mut self) -> Vec<Event> {
        self.admit();
        if self.running.is_empty() {
            return std::mem::take(&mut self.events);
        }
        self.counters.steps += 1;
        let (mut stepped, tokens) = parts(&mut self.running, self.settings.step_tokens);
        let mut chunks = Vec::with_capacity(tokens.len());
        for (running, tokens) in stepped.iter_mut().zip(&tokens) {
            if running.is_in_prompt() {
                self.counters.prompt_tokens += tokens.len() as u64;
            }
            chunks.push(Chunk {
                wanted: running.wanted(tokens.len()),
                sequence: &mut running.sequence,
                tokens,
            });
        }
        let logits = self.model.compute(&mut chunks);
        // Choosing takes about as long as a small layer, so it is shared among the threads.
        let advanced: Vec<(RequestId, Vec<Progress>)> = stepped
            .par_iter_mut()
            .zip(logits)
            .map(|(running, logits)| (running.id, running.advance(logits)))
            .collect();
        for running in stepped {
            if running.is_at_point() && !running.has_failed() {
                self.prefixes.keep(running.sequence.clone());
            }
        }
        for (id, progress) in advanced {
            progress.into_iter().for_each(|p| self.tell(id, p));
        }
        let (running, ended) = std::mem::take(&mut self.running)
            .into_iter()
            .partition(|running| !running.has_ended());
        self.running = running;
        ended.into_iter().for_each(|running| self.leave(running));
        std::mem::take(&mut self.events)
    }

    /// Gives free slots to those that wait, in their order. One whose prompt begins like one that is being computed waits for that.
    fn admit(&mut self) {
        let mut index = 0;
        while self.running.len() < self.settings.slots && index < self.waiting.len() {
            let request = &self.waiting[index].request;
            let prefix = self.prefix(request);
            if prefix.is_coming {
                index += 1;
                continue;
            }
            if let Some(waiting) = self.waiting.remove(index) {
                let id = waiting.id;
                if let Err(error) = self.start(waiting, prefix) {
                    self.tell(id, Progress::Failed { error });
                }
            }
        }
    }

    /// What is known of a prompt.
    fn prefix(&self, request: &Request) -> Prefix {
        /// Tokens that are worth waiting for.
        const WORTH: usize = 32;
        let mut prefix = Prefix::default();
        // The log-probabilities of a prompt are not kept.
        if self.settings.prefix_bytes == 0 || request.prompt_top.is_some() {
            return prefix;
        }
        let prompt = &request.prompt;
        prefix.common = self.prefixes.common(prompt);
        if let Some((index, count)) = self.prefixes.longest(prompt) {
            (prefix.count, prefix.origin) = (count, Origin::Kept(index));
        }
        let mut coming = 0;
        for (index, running) in self.running.iter().enumerate() {
            let count = reusable(&running.sequence, prompt);
            if count > prefix.count {
                (prefix.count, prefix.origin) = (count, Origin::Running(index));
            }
            prefix.common = prefix.common.max(common(running.prompt(), prompt));
            coming = coming.max(running.will_share(prompt));
        }
        prefix.is_coming = coming >= prefix.count + WORTH;
        prefix
    }

    /// Gives a slot to a request.
    fn start(&mut self, waiting: Waiting, prefix: Prefix) -> Result<(), InferError> {
        let sequence = match prefix.origin {
            Origin::Nothing => {
                Sequence::new(&self.model, self.settings.context, self.settings.precision)?
            }
            Origin::Kept(index) => self.prefixes.take(index, prefix.count),
            Origin::Running(index) => {
                let mut sequence = self.running[index].sequence.clone();
                sequence.cut(prefix.count);
                sequence
            }
        };
        let Waiting {
            id,
            request,
            constraint,
            since,
        } = waiting;
        let points = match self.settings.prefix_bytes {
            0 => Vec::new(),
            _ => sequence.points(prefix.common, request.prompt.len()),
        };
        let mut running = Running::new(
            id,
            request,
            constraint,
            sequence,
            points,
            self.tokenizer.clone(),
            self.model.config().vocab,
        )?;
        running.usage.queue_time = since.elapsed();
        let reused = running.usage.reused;
        self.counters.reused_tokens += reused as u64;
        self.tell(id, Progress::Started { reused });
        self.running.push(running);
        Ok(())
    }

    /// Keeps the sequence of what has ended.
    fn leave(&mut self, running: Running) {
        self.counters.generated_tokens += running.usage.generated as u64;
        if !running.has_failed() {
            self.prefixes.keep(running.sequence);
        }
    }

    fn tell(&mut self, request: RequestId, progress: Progress) {
        self.events.push(Event { request, progress });
    }
}

/// The requests that have a part in the next step, and their tokens.
fn parts(running: &mut [Running], step_tokens: usize) -> (Vec<&mut Running>, Vec<Vec<u32>>) {
    let shares = shares(running, step_tokens);
    let parts = running.iter_mut().zip(shares);
    let parts = parts.filter(|(_, share)| *share > 0);
    parts
        .map(|(running, share)| {
            let tokens = running.next_tokens(share).to_vec();
            (running, tokens)
        })
        .unzip()
}

/// How many tokens each request computes in a step: the next one of a text; of the prompts, the one that has the fewest tokens
/// left gets half of the step's, and the others from the oldest on what there is. So a short prompt hardly waits for long ones,
/// and none waits forever.
fn shares(running: &[Running], step_tokens: usize) -> Vec<usize> {
    let prompts = || (0..running.len()).filter(|&index| running[index].is_in_prompt());
    let texts = running.iter().map(|running| !running.is_in_prompt());
    let mut shares: Vec<usize> = texts.map(usize::from).collect();
    let mut left = step_tokens;
    let shortest = prompts().min_by_key(|&index| running[index].prompt_left());
    let first = shortest.map(|index| (index, step_tokens / 2));
    let others = prompts().map(|index| (index, step_tokens));
    for (index, most) in first.into_iter().chain(others) {
        let share = running[index].prompt_next() - shares[index];
        let share = share.min(most).min(left);
        shares[index] += share;
        left -= share;
    }
    shares
}
