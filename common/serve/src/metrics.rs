//! Numbers about the server in the text format of Prometheus. `docs/serving.md` says what each of them means.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uc_infer::batch::Counters;
use uc_infer::memory::Memory;
use uc_infer::request::Usage;

/// Upper bounds of the histograms, seconds.
const BOUNDS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    numbers: Mutex<Numbers>,
}

#[derive(Debug, Default)]
struct Numbers {
    /// By path and status code.
    requests: BTreeMap<(&'static str, u16), u64>,
    connections: u64,
    cancelled: u64,
    failed: u64,
    batch: Counters,
    request_seconds: Histogram,
    queue_seconds: Histogram,
    first_token_seconds: Histogram,
    token_seconds: Histogram,
}

#[derive(Debug, Default)]
struct Histogram {
    /// For each bound, how many values were at most that and above the bound before.
    counts: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn add(&mut self, value: Duration) {
        let seconds = value.as_secs_f64();
        if let Some(index) = BOUNDS.iter().position(|&bound| seconds <= bound) {
            self.counts[index] += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        head(out, name, "histogram", help);
        let mut below = 0;
        for (bound, count) in BOUNDS.iter().zip(self.counts) {
            below += count;
            line(out, &format!("{name}_bucket{{le=\"{bound}\"}}"), below);
        }
        line(out, &format!("{name}_bucket{{le=\"+Inf\"}}"), self.count);
        line(out, &format!("{name}_sum"), self.sum);
        line(out, &format!("{name}_count"), self.count);
    }
}

/// What is constant about the server.
pub(crate) struct Constants<'a> {
    pub(crate) model: &'a str,
    pub(crate) fingerprint: &'a str,
    pub(crate) memory: Memory,
}

impl Metrics {
    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request was answered.
    pub(crate) fn answered(&self, path: &'static str, status: u16, time: Duration) {
        let mut numbers = self.numbers();
        *numbers.requests.entry((path, status)).or_default() += 1;
        numbers.request_seconds.add(time);
    }

    /// A connection was opened, or closed.
    pub(crate) fn connection(&self, opened: bool) {
        let mut numbers = self.numbers();
        match opened {
            true => numbers.connections += 1,
            false => numbers.connections = numbers.connections.saturating_sub(1),
        }
    }

    /// A sequence got a slot and its first token.
    pub(crate) fn first_token(&self, since: Duration) {
        self.numbers().first_token_seconds.add(since);
    }

    /// A sequence has ended.
    pub(crate) fn finished(&self, usage: &Usage, cancelled: bool) {
        let mut numbers = self.numbers();
        numbers.cancelled += u64::from(cancelled);
        numbers.queue_seconds.add(usage.queue_time);
        if usage.generated > 1 {
            let tokens = usage.generated as u32 - 1;
            numbers.token_seconds.add(usage.generation_time / tokens);
        }
    }

    /// A sequence has failed.
    pub(crate) fn failed(&self) {
        self.numbers().failed += 1;
    }

    /// What the batch has done.
    pub(crate) fn stepped(&self, counters: Counters) {
        self.numbers().batch = counters;
    }

    /// The text for Prometheus.
    pub(crate) fn text(&self, constants: &Constants<'_>) -> String {
        let numbers = self.numbers();
        let mut out = String::new();
        head(&mut out, "uc_info", "gauge", "What is served; always 1");
        let Constants {
            model,
            fingerprint,
            memory,
        } = constants;
        let version = env!("CARGO_PKG_VERSION");
        let labels = format!(
            "model=\"{}\",fingerprint=\"{fingerprint}\",version=\"{version}\"",
            escaped(model)
        );
        line(&mut out, &format!("uc_info{{{labels}}}"), 1);
        let name = "uc_requests_total";
        head(
            &mut out,
            name,
            "counter",
            "HTTP requests by path and status",
        );
        for (&(path, status), &count) in &numbers.requests {
            let labels = format!("{name}{{path=\"{path}\",status=\"{status}\"}}");
            line(&mut out, &labels, count);
        }
        let batch = numbers.batch;
        for (name, kind, help, value) in [
            (
                "uc_connections",
                "gauge",
                "Open connections",
                numbers.connections,
            ),
            (
                "uc_sequences_running",
                "gauge",
                "Sequences that have a slot",
                batch.running as u64,
            ),
            (
                "uc_sequences_waiting",
                "gauge",
                "Sequences that wait for a slot",
                batch.waiting as u64,
            ),
            (
                "uc_sequences_cancelled_total",
                "counter",
                "Sequences that were ended before they were complete",
                numbers.cancelled,
            ),
            (
                "uc_sequences_failed_total",
                "counter",
                "Sequences that failed",
                numbers.failed,
            ),
            (
                "uc_prompt_tokens_total",
                "counter",
                "Tokens of prompts that were computed",
                batch.prompt_tokens,
            ),
            (
                "uc_reused_tokens_total",
                "counter",
                "Tokens of prompts that were taken from kept prefixes",
                batch.reused_tokens,
            ),
            (
                "uc_generated_tokens_total",
                "counter",
                "Generated tokens of sequences that have ended",
                batch.generated_tokens,
            ),
            ("uc_steps_total", "counter", "Forward passes", batch.steps),
        ] {
            head(&mut out, name, kind, help);
            line(&mut out, name, value);
        }
        let name = "uc_memory_bytes";
        head(&mut out, name, "gauge", "Memory by what it holds");
        for (kind, bytes) in [
            ("linears", memory.linear_bytes),
            ("exact", memory.exact_bytes),
            ("states", batch.state_bytes),
            ("prefixes", batch.prefix_bytes),
        ] {
            line(&mut out, &format!("{name}{{kind=\"{kind}\"}}"), bytes);
        }
        if let Some(bytes) = resident_bytes() {
            let name = "process_resident_memory_bytes";
            head(&mut out, name, "gauge", "Memory of the process");
            line(&mut out, name, bytes);
        }
        for (name, help, histogram) in [
            (
                "uc_request_seconds",
                "Time from a request's head to its answer, or to the beginning of its stream",
                &numbers.request_seconds,
            ),
            (
                "uc_queue_seconds",
                "Time that sequences waited for a slot",
                &numbers.queue_seconds,
            ),
            (
                "uc_time_to_first_token_seconds",
                "Time from a request to its first token",
                &numbers.first_token_seconds,
            ),
            (
                "uc_time_per_token_seconds",
                "Time between the tokens of a sequence, its mean",
                &numbers.token_seconds,
            ),
        ] {
            histogram.write(&mut out, name, help);
        }
        out
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string does not fail.
    let _ = write!(out, "# HELP {name} {help}.\n# TYPE {name} {kind}\n");
}

fn line(out: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "{name} {value}");
}

/// A label's value.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// Bytes of memory that this process has, where the system tells.
fn resident_bytes() -> Option<u64> {
    let status = uc_input::read_text("/proc/self/status", 1 << 20).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buckets_of_a_histogram_add_up() {
        let mut histogram = Histogram::default();
        for milliseconds in [1, 5, 6, 1_000_000] {
            histogram.add(Duration::from_millis(milliseconds));
        }
        let mut text = String::new();
        histogram.write(&mut text, "x", "What it is");
        for expected in [
            "# TYPE x histogram\n",
            "x_bucket{le=\"0.005\"} 2\n",
            "x_bucket{le=\"0.01\"} 3\n",
            "x_bucket{le=\"300\"} 3\n",
            "x_bucket{le=\"+Inf\"} 4\n",
            "x_count 4\n",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }

    #[test]
    fn labels_cannot_break_the_format() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
