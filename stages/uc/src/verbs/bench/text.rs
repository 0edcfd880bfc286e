//! The result of `uc bench` as tables.

use std::fmt::Write;

use indicatif::BinaryBytes;
use serde::Serialize;
use serde_json::Value;
use uc_input::printable;

use super::report::{Bandwidth, Generation, Prompt, Report};

/// The whole result.
pub fn table(report: &Report) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<14}{}", printable(&value));
    };
    let (pack, machine, settings) = (&report.pack, &report.machine, &report.settings);
    row(
        "pack",
        format!(
            "{}, {} bits per weight, {}",
            pack.model,
            pack.bits_per_weight_linears,
            BinaryBytes(pack.bytes)
        ),
    );
    row("fingerprint", pack.fingerprint.clone());
    row(
        "machine",
        format!(
            "{}, {} cores, {}",
            machine.cpu,
            machine.cores,
            BinaryBytes(machine.memory_bytes)
        ),
    );
    row("instructions", machine.instruction_sets.join(" "));
    row(
        "settings",
        format!(
            "arithmetic {}, memory {}, cache {}, threads {}, runs {}",
            settings.arithmetic,
            settings.memory,
            name(&settings.cache),
            settings.threads,
            settings.runs
        ),
    );
    let verified = report.load.verified_seconds;
    let verified = verified.map(|seconds| format!("{seconds:.2} s verified, "));
    row(
        "load",
        format!(
            "{}{:.2} s not verified",
            verified.unwrap_or_default(),
            report.load.unverified_seconds
        ),
    );
    let memory = &report.memory;
    row(
        "memory",
        format!(
            "peak {}, at the end {}: linears {} ({:.2} bits per weight), exact matrices {}, states {}",
            BinaryBytes(memory.peak_resident_bytes),
            BinaryBytes(memory.resident_bytes),
            BinaryBytes(memory.model.linear_bytes),
            memory.linear_bits,
            BinaryBytes(memory.model.exact_bytes),
            BinaryBytes(memory.state_bytes.unwrap_or(0))
        ),
    );
    let reads = &report.weights_read;
    row(
        "weights read",
        format!(
            "{} per token: linears {}, exact {}, head {}",
            BinaryBytes(reads.total_bytes),
            BinaryBytes(reads.reads.linear_bytes),
            BinaryBytes(reads.reads.exact_bytes),
            BinaryBytes(reads.reads.head_bytes)
        ),
    );
    let [fastest, plain] = [&report.bandwidth, &report.plain_bandwidth];
    row("bandwidth", bandwidth(fastest, plain));
    text + &prompts(&report.prompts) + &generation(&report.generation)
}

fn bandwidth(fastest: &Bandwidth, plain: &Bandwidth) -> String {
    let [fastest, plain] = [fastest, plain].map(|bandwidth| bandwidth.bytes_per_second / 1e9);
    format!("{fastest:.1} GB/s, {plain:.1} in ordinary loops")
}

/// The name of a setting, as in the JSON.
fn name(setting: &impl Serialize) -> String {
    match serde_json::to_value(setting) {
        Ok(Value::String(name)) => name,
        _ => String::new(),
    }
}

fn prompts(prompts: &[Prompt]) -> String {
    let mut text = "\nprompt tokens  first token ms      p95    tokens/s      p95\n".to_owned();
    for prompt in prompts {
        let (first, rate) = (&prompt.seconds_to_first_token, &prompt.tokens_per_second);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:>13}{:>16.1}{:>9.1}{:>12.1}{:>9.1}",
            prompt.tokens,
            1e3 * first.median,
            1e3 * first.p95,
            rate.median,
            rate.p95
        );
    }
    text
}

fn generation(batches: &[Generation]) -> String {
    let mut text =
        "\nbatch  tokens/s      p95     step ms      p95   share of bandwidth\n".to_owned();
    for batch in batches {
        let (rate, step) = (&batch.tokens_per_second, &batch.step_seconds);
        let share = batch.share_of_bandwidth;
        let share = share.map_or("-".to_owned(), |share| format!("{:.0} %", 100.0 * share));
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:>5}{:>10.1}{:>9.1}{:>12.2}{:>9.2}{share:>21}",
            batch.batch,
            rate.median,
            rate.p95,
            1e3 * step.median,
            1e3 * step.p95
        );
    }
    text
}
