//! Times prompts and the generation of batches through the forward pass that `uc generate` uses.

use std::time::Instant;

use uc_infer::batch::STEP_TOKENS;
use uc_infer::{Chunk, InferError, Model, Precision, Sampler, Sampling, Sequence, Wanted};
use uc_model::text::splitmix64;

use super::report::{Generation, Prompt, Spread};
use crate::report::progress::Display;

/// What is measured.
#[derive(Debug)]
pub struct Work {
    /// Lengths of prompts, ascending.
    pub prompts: Vec<usize>,
    /// Numbers of sequences, ascending.
    pub batches: Vec<usize>,
    /// Tokens of a sequence before those that are timed.
    pub prefix: usize,
    /// Tokens that are generated, for each sequence.
    pub tokens: usize,
    /// Measurements of each kind, after the one that does not count.
    pub runs: usize,
    pub seed: u64,
    pub cache: Precision,
}

impl Work {
    /// Times the prompts: from an empty sequence to the choice of the token after it.
    pub fn prompts(&self, model: &Model, display: &Display) -> Result<Vec<Prompt>, InferError> {
        let mut found = Vec::new();
        for &length in &self.prompts {
            display.info(&format!("prompts of {length} tokens"));
            let run = |run| self.prompt(model, length, run);
            let seconds = (0..=self.runs).map(run).collect::<Result<Vec<_>, _>>()?;
            found.push(Prompt {
                tokens: length,
                tokens_per_second: Spread::rates(length, &seconds[1..]),
                seconds_to_first_token: Spread::times(&seconds[1..]),
            });
        }
        Ok(found)
    }

    fn prompt(&self, model: &Model, length: usize, run: usize) -> Result<f64, InferError> {
        let tokens = self.random_tokens(model, length, &[run]);
        let mut sequence = Sequence::new(model, length, self.cache)?;
        let start = Instant::now();
        let mut sampler = Sampler::new(&Sampling::default(), &tokens, model.config().vocab)?;
        let logits = compute(model, &mut sequence, &tokens)?;
        sampler.choose(&logits, 0, None);
        Ok(start.elapsed().as_secs_f64())
    }

    /// Times the generation of every batch: forward passes of one token for each sequence. Choosing the tokens is not timed.
    pub fn generation(
        &self,
        model: &Model,
        display: &Display,
    ) -> Result<Vec<Generation>, InferError> {
        let mut found = Vec::new();
        for &batch in &self.batches {
            display.info(&format!("generating {} tokens, batch {batch}", self.tokens));
            let (mut seconds, mut steps, mut state_bytes) = (Vec::new(), Vec::new(), 0);
            for run in 0..=self.runs {
                let (own, bytes) = self.batch(model, batch, run)?;
                state_bytes = bytes;
                if run > 0 {
                    seconds.push(own.iter().sum());
                    steps.extend(own);
                }
            }
            let tokens = batch * self.tokens;
            found.push(Generation {
                batch,
                tokens,
                tokens_per_second: Spread::rates(tokens, &seconds),
                seconds: Spread::times(&seconds),
                step_seconds: Spread::times(&steps).without_runs(),
                state_bytes,
                weight_bytes_per_second: None,
                share_of_bandwidth: None,
            });
        }
        Ok(found)
    }

    /// Seconds of every step of a batch, and the bytes of its states at the end.
    fn batch(
        &self,
        model: &Model,
        batch: usize,
        run: usize,
    ) -> Result<(Vec<f64>, u64), InferError> {
        let context = self.prefix + self.tokens;
        let mut sequences = Vec::with_capacity(batch);
        let mut texts = Vec::with_capacity(batch);
        for index in 0..batch {
            let text = self.random_tokens(model, context, &[run, index]);
            let mut sequence = Sequence::new(model, context, self.cache)?;
            compute(model, &mut sequence, &text[..self.prefix])?;
            sequences.push(sequence);
            texts.push(text);
        }
        let mut seconds = Vec::with_capacity(self.tokens);
        for at in self.prefix..context {
            let parts = sequences.iter_mut().zip(&texts);
            let mut chunks: Vec<Chunk<'_>> = parts
                .map(|(sequence, text)| Chunk {
                    sequence,
                    tokens: &text[at..=at],
                    wanted: Wanted::Last,
                })
                .collect();
            let start = Instant::now();
            model.forward(&mut chunks)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        Ok((seconds, sequences.iter().map(Sequence::bytes).sum()))
    }

    /// Tokens that depend on the seed and on `which` text it is.
    fn random_tokens(&self, model: &Model, count: usize, which: &[usize]) -> Vec<u32> {
        let seed = which
            .iter()
            .fold(self.seed, |seed, &part| splitmix64(seed, part as u64));
        let vocab = model.config().vocab as u64;
        let tokens = 0..count as u64;
        tokens
            .map(|index| (splitmix64(seed, index) % vocab) as u32)
            .collect()
    }
}

/// The logits after the last of some tokens, in chunks as `uc generate` takes them.
fn compute(model: &Model, sequence: &mut Sequence, tokens: &[u32]) -> Result<Vec<f32>, InferError> {
    let mut logits = Vec::new();
    let chunks = tokens.chunks(STEP_TOKENS);
    let last = chunks.len() - 1;
    for (index, tokens) in chunks.enumerate() {
        let wanted = if index == last {
            Wanted::Last
        } else {
            Wanted::None
        };
        let sequence = &mut *sequence;
        let chunk = Chunk {
            sequence,
            tokens,
            wanted,
        };
        logits = model.forward(&mut [chunk])?.remove(0);
    }
    Ok(logits)
}
