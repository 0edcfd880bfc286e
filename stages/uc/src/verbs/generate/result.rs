//! The result of `uc generate --json`.

use serde::Serialize;
use uc_infer::load::Checks;
use uc_infer::memory::Memory;
use uc_infer::sampler::Scored;
use uc_infer::{Arithmetic, Batch, Finish, Generated, MemoryForm, Precision, Request, Sampling};

use super::{Loaded, classify};

/// What was generated, by what and how fast.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    /// Fingerprint of the pack.
    pack: String,
    /// Whether every tensor was compared with the manifest.
    verified: bool,
    /// How products are computed.
    arithmetic: Arithmetic,
    /// How the linears are kept.
    memory_form: MemoryForm,
    cache: Precision,
    context: usize,
    threads: u32,
    sampling: &'a Sampling,
    prompt_tokens: &'a [u32],
    text: &'a str,
    tokens: Vec<Token>,
    finish: Finish,
    times: Times,
    memory: MemoryReport,
}

/// A token with its text and the natural logarithm of its probability.
#[derive(Debug, Serialize)]
struct Token {
    id: u32,
    text: String,
    logprob: f64,
    /// The most probable tokens.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top: Vec<Token>,
}

#[derive(Debug, Serialize)]
struct Times {
    load_seconds: f64,
    prompt_seconds: f64,
    generation_seconds: f64,
    prompt_tokens_per_second: f64,
    generated_tokens_per_second: f64,
}

#[derive(Debug, Serialize)]
struct MemoryReport {
    #[serde(flatten)]
    model: Memory,
    /// Bits per weight of the linears in memory.
    linear_bits: f64,
    /// Bytes of keys, values and states at the end.
    state_bytes: u64,
}

/// The report of a generation.
pub fn report<'a>(
    loaded: &'a Loaded<'_>,
    request: &'a Request,
    generated: &'a Generated,
    batch: &Batch,
) -> anyhow::Result<Report<'a>> {
    let memory = loaded.model.memory();
    let rate = |count: usize, seconds: f64| count as f64 / seconds.max(1e-9);
    let prompt_seconds = generated.usage.prompt_time.as_secs_f64();
    let generation_seconds = generated.usage.generation_time.as_secs_f64();
    let tokens = generated.tokens.iter();
    Ok(Report {
        pack: loaded.pack.fingerprint().to_string(),
        verified: loaded.options.checks == Checks::Digests,
        arithmetic: loaded.options.arithmetic,
        memory_form: loaded.options.memory,
        cache: loaded.args.runtime.cache.into(),
        context: batch.settings().context,
        threads: loaded.threads,
        sampling: &request.sampling,
        prompt_tokens: &request.prompt,
        text: &generated.text,
        tokens: tokens
            .map(|chosen| token(loaded, chosen))
            .collect::<anyhow::Result<_>>()?,
        finish: generated.finish,
        times: Times {
            load_seconds: loaded.load_time.as_secs_f64(),
            prompt_seconds,
            generation_seconds,
            prompt_tokens_per_second: rate(request.prompt.len(), prompt_seconds),
            generated_tokens_per_second: rate(generated.tokens.len(), generation_seconds),
        },
        memory: MemoryReport {
            model: memory,
            linear_bits: memory.linear_bits(),
            state_bytes: generated.usage.state_bytes,
        },
    })
}

fn token(loaded: &Loaded<'_>, chosen: &uc_infer::Token) -> anyhow::Result<Token> {
    let named = |scored: &Scored, top: Vec<Token>| -> anyhow::Result<Token> {
        let text = loaded.tokenizer.decode_all(&[scored.id]);
        Ok(Token {
            id: scored.id,
            text: text.map_err(|error| classify(error.into()))?,
            logprob: scored.logprob,
            top,
        })
    };
    let top = chosen.top.iter();
    let top = top
        .map(|scored| named(scored, Vec::new()))
        .collect::<anyhow::Result<_>>()?;
    named(&chosen.token, top)
}
