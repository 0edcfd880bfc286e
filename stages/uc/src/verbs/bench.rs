//! `uc bench PACK`: how fast the model of a pack runs, what memory it takes, and how much of it is read for a token.
//!
//! The tokens are random, because the speed does not depend on the text. `measure` times, `machine` describes where,
//! `report` and `text` say what was found.

pub mod machine;
mod measure;
mod report;
mod text;

use std::time::Instant;

use anyhow::Context;
use uc_infer::bandwidth::{Reader, Reading};
use uc_infer::load::{self, Checks};
use uc_infer::{LoadOptions, Model};
use uc_pack::{MANIFEST_FILE, Pack};
use uc_store::{ExitCode, output, resources};

use self::measure::Work;
use self::report::{Bandwidth, Load, Memory, PackReport, Report, Settings};
use super::generate::classify;
use crate::cli::BenchArgs;
use crate::report::failure::failure;
use crate::report::json::print_json;
use crate::report::packs;
use crate::report::progress::Display;
use crate::session;

/// Tokens of every sequence before those whose generation is timed.
const PREFIX: usize = 16;
/// Times that memory is read for its bandwidth; the fastest counts.
const READS: usize = 16;

/// Runs the verb.
pub fn run(args: &BenchArgs, display: &Display) -> anyhow::Result<()> {
    let threads = session::threads(args.runtime.threads);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads as usize)
        .build()
        .context("cannot start threads")?;
    let report = pool.install(|| measure(args, threads, display))?;
    match args.json {
        true => print_json(&report),
        false => {
            output::print(text::table(&report));
            Ok(())
        }
    }
}

/// All measurements, on the threads of the current pool.
fn measure(args: &BenchArgs, threads: u32, display: &Display) -> anyhow::Result<Report> {
    let pack = packs::open(&args.pack)?;
    read_files(&pack)?;
    let options = args.runtime.load_options(&pack);
    display.info("loading without verification");
    let unchecked = LoadOptions {
        checks: Checks::Structure,
        ..options
    };
    let (unverified, mut model) = timed_load(args, unchecked)?;
    let mut verified = None;
    if options.checks == Checks::Digests {
        // Two models at the same time would count twice as resident memory.
        drop(model);
        display.info("loading with verification");
        let seconds;
        (seconds, model) = timed_load(args, options)?;
        verified = Some(seconds);
    }
    let work = work(args, &model)?;
    let prompts = work.prompts(&model, display).map_err(classify)?;
    let weights_read = model.reads();
    let mut generation = work.generation(&model, display).map_err(classify)?;
    // Before the buffer of the bandwidth takes memory.
    let (peak, resident) = (resources::peak_rss_bytes(), resources::rss_bytes());
    display.info("reading memory");
    let [bandwidth, plain_bandwidth] = [Reading::Prefetched, Reading::Plain]
        .map(|reading| bandwidth(machine::largest_cache(), reading));
    for batch in &mut generation {
        batch.compare(&weights_read, bandwidth.bytes_per_second);
    }
    let held = model.memory();
    let manifest = pack.manifest();
    Ok(Report {
        schema: report::SCHEMA,
        program: report::Program {
            name: "uc",
            version: env!("CARGO_PKG_VERSION"),
        },
        pack: PackReport {
            fingerprint: pack.fingerprint().to_string(),
            model: manifest.source.name.clone(),
            bytes: packs::bytes(&args.pack, &pack),
            bits_per_weight_linears: manifest.totals.bits_per_weight_linears.clone(),
        },
        machine: machine::Machine::here(),
        settings: Settings {
            arithmetic: options.arithmetic,
            memory: options.memory,
            cache: args.runtime.cache.into(),
            threads,
            runs: args.runs,
            seed: args.seed,
            generated_tokens: work.tokens,
            prefix_tokens: work.prefix,
            prompt_chunk: uc_infer::batch::STEP_TOKENS,
        },
        load: Load {
            verified_seconds: verified,
            unverified_seconds: unverified,
        },
        prompts,
        memory: Memory {
            peak_resident_bytes: peak,
            resident_bytes: resident,
            device_bytes: None,
            model: held,
            linear_bits: held.linear_bits(),
            state_bytes: generation.iter().map(|batch| batch.state_bytes).max(),
        },
        generation,
        weights_read: weights_read.into(),
        bandwidth,
        plain_bandwidth,
    })
}

/// Reads every file of the pack, so that loading is not timed with the disk.
fn read_files(pack: &Pack) -> anyhow::Result<()> {
    let manifest = pack.manifest();
    let layers = manifest.layers.iter().map(|layer| layer.file.as_str());
    let files = manifest.files.iter().map(|file| file.name.as_str());
    let others = [MANIFEST_FILE, manifest.non_layer.file.as_str()];
    for name in layers.chain(files).chain(others) {
        // A file that is missing or damaged is reported by loading.
        let Ok(mut file) = uc_input::open(pack.path(name)) else {
            continue;
        };
        std::io::copy(&mut file, &mut std::io::sink()).with_context(|| name.to_owned())?;
    }
    Ok(())
}

/// What `uc generate` does before it reads the prompt, and the seconds that it takes.
fn timed_load(args: &BenchArgs, options: LoadOptions) -> anyhow::Result<(f64, Model)> {
    let start = Instant::now();
    let pack = packs::open(&args.pack)?;
    load::tokenizer(&pack, options.checks).map_err(classify)?;
    let model = load::load(&pack, options).map_err(classify)?;
    Ok((start.elapsed().as_secs_f64(), model))
}

/// What is measured, within the context of the model.
fn work(args: &BenchArgs, model: &Model) -> anyhow::Result<Work> {
    let config = model.config();
    let tokens = usize::try_from(args.tokens)?;
    if tokens >= config.context {
        let most = config.context - 1;
        let context = config.context;
        let message = format!(
            "--tokens: found {tokens}, expected at most {most}, because the model has a context of {context} tokens"
        );
        return Err(failure(ExitCode::Usage, message));
    }
    let within = |lengths: &[u64], most: usize| {
        let lengths = lengths.iter().map(|&n| (n as usize).min(most));
        lengths
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    };
    Ok(Work {
        prompts: within(&args.prompts, config.context),
        batches: within(&args.batches, usize::MAX),
        prefix: PREFIX.min(config.context - tokens),
        tokens,
        runs: args.runs as usize,
        seed: args.seed,
        cache: args.runtime.cache.into(),
    })
}

/// How fast the threads of the current pool read memory: a buffer many times larger than the largest cache.
pub fn bandwidth(cache: u64, reading: Reading) -> Bandwidth {
    let most = resources::total_memory_bytes() / 4;
    let bytes = (8 * cache).max(256 << 20).min(most.max(64 << 20));
    let reader = Reader::new(bytes as usize, reading);
    let runs: Vec<f64> = (0..READS).map(|_| reader.bytes_per_second()).collect();
    Bandwidth {
        buffer_bytes: reader.bytes() as u64,
        bytes_per_second: runs.iter().copied().fold(0.0, f64::max),
        runs,
    }
}
