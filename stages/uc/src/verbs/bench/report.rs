//! The result of `uc bench --json`. `docs/bench-schema.json` describes it; a test compares the two.

use serde::Serialize;
use uc_infer::reads::Reads;
use uc_infer::{Arithmetic, MemoryForm, Precision};

use super::machine::Machine;

/// Version of the schema.
pub const SCHEMA: u32 = 1;

/// What was measured, where, and with which settings.
#[derive(Debug, Serialize)]
pub struct Report {
    pub schema: u32,
    pub program: Program,
    pub pack: PackReport,
    pub machine: Machine,
    pub settings: Settings,
    pub load: Load,
    pub prompts: Vec<Prompt>,
    pub generation: Vec<Generation>,
    pub memory: Memory,
    pub weights_read: WeightsRead,
    /// As the kernels read, from huge pages and with prefetching.
    pub bandwidth: Bandwidth,
    /// As ordinary loops read.
    pub plain_bandwidth: Bandwidth,
}

/// The program that measured.
#[derive(Debug, Serialize)]
pub struct Program {
    pub name: &'static str,
    pub version: &'static str,
}

/// Which pack.
#[derive(Debug, Serialize)]
pub struct PackReport {
    pub fingerprint: String,
    /// Name of the model that it was made from.
    pub model: String,
    /// Bytes of all files.
    pub bytes: u64,
    pub bits_per_weight_linears: String,
}

/// How it was run.
#[derive(Debug, Serialize)]
pub struct Settings {
    /// How products are computed.
    pub arithmetic: Arithmetic,
    /// The form of the linears in memory.
    pub memory: MemoryForm,
    /// Number format of keys and values.
    pub cache: Precision,
    pub threads: u32,
    /// Measurements of each kind, after one that does not count.
    pub runs: u32,
    pub seed: u64,
    /// Tokens that are generated, for each sequence.
    pub generated_tokens: usize,
    /// Tokens of a sequence before those.
    pub prefix_tokens: usize,
    /// Tokens of a prompt that are computed together.
    pub prompt_chunk: usize,
}

/// Seconds from the pack's folder to a model that is ready, its files in the cache of the system.
#[derive(Debug, Serialize)]
pub struct Load {
    /// With every tensor compared with the manifest; none with `--no-verify`.
    pub verified_seconds: Option<f64>,
    pub unverified_seconds: f64,
}

/// Measurements of the same thing. Of times, `p95` is the time that 95 % of the runs do not exceed (nearest rank); of rates, the
/// rate that belongs to it.
#[derive(Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub p95: f64,
    /// In the order of measurement.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<f64>,
}

impl Spread {
    /// Of seconds.
    pub fn times(seconds: &[f64]) -> Self {
        let mut sorted = seconds.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let rank = (95 * sorted.len()).div_ceil(100);
        Spread {
            median: match sorted.len() % 2 {
                1 => sorted[middle],
                _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
            },
            p95: sorted[rank - 1],
            runs: seconds.to_vec(),
        }
    }

    /// Of `count` things per second.
    pub fn rates(count: usize, seconds: &[f64]) -> Self {
        let times = Spread::times(seconds);
        let rate = |seconds: f64| count as f64 / seconds.max(1e-9);
        Spread {
            median: rate(times.median),
            p95: rate(times.p95),
            runs: times.runs.into_iter().map(rate).collect(),
        }
    }

    /// Median and 95th percentile alone.
    pub fn without_runs(self) -> Self {
        Spread {
            runs: Vec::new(),
            ..self
        }
    }
}

/// Prompts of one length.
#[derive(Debug, Serialize)]
pub struct Prompt {
    pub tokens: usize,
    /// From an empty sequence to the choice of the next token.
    pub seconds_to_first_token: Spread,
    pub tokens_per_second: Spread,
}

/// Batches of one size.
#[derive(Debug, Serialize)]
pub struct Generation {
    /// Sequences that are computed together.
    pub batch: usize,
    /// Tokens of all of them in a run.
    pub tokens: usize,
    /// Of all sequences together.
    pub tokens_per_second: Spread,
    /// Of a run.
    pub seconds: Spread,
    /// Of a step, which makes a token of every sequence: over all steps of all runs.
    pub step_seconds: Spread,
    /// Keys, values and states of all sequences at the end.
    pub state_bytes: u64,
    /// Bytes of weights that the median run reads per second; none if a batch of experts reads an unknown number.
    pub weight_bytes_per_second: Option<f64>,
    /// The same, divided by the bandwidth.
    pub share_of_bandwidth: Option<f64>,
}

impl Generation {
    /// Compares the rate with the bandwidth. A batch reads the weights once, except those of experts.
    pub fn compare(&mut self, reads: &Reads, bandwidth: f64) {
        if reads.depends_on_routing && self.batch > 1 {
            return;
        }
        let steps = self.tokens / self.batch;
        let rate = (reads.total() * steps as u64) as f64 / self.seconds.median.max(1e-9);
        self.weight_bytes_per_second = Some(rate);
        self.share_of_bandwidth = Some(rate / bandwidth);
    }
}

/// Memory of the process and of the model.
#[derive(Debug, Serialize)]
pub struct Memory {
    /// The most that was resident, loading included.
    pub peak_resident_bytes: u64,
    /// What is resident at the end of the last generation, its sequences included.
    pub resident_bytes: u64,
    /// Memory of a device; none without one.
    pub device_bytes: Option<u64>,
    #[serde(flatten)]
    pub model: uc_infer::memory::Memory,
    /// Bits per weight of the linears in memory.
    pub linear_bits: f64,
    /// Keys, values and states of the largest batch.
    pub state_bytes: Option<u64>,
}

/// Bytes of weights that a token reads.
#[derive(Debug, Serialize)]
pub struct WeightsRead {
    #[serde(flatten)]
    pub reads: Reads,
    pub total_bytes: u64,
}

impl From<Reads> for WeightsRead {
    fn from(reads: Reads) -> Self {
        WeightsRead {
            total_bytes: reads.total(),
            reads,
        }
    }
}

/// How fast this machine reads memory, with the same number of threads.
#[derive(Debug, Serialize)]
pub struct Bandwidth {
    pub buffer_bytes: u64,
    /// Of the fastest run.
    pub bytes_per_second: f64,
    /// In the order of measurement.
    pub runs: Vec<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_and_the_percentile_is_a_measurement() {
        let odd = Spread::times(&[3.0, 1.0, 2.0]);
        assert_eq!((odd.median, odd.p95), (2.0, 3.0));
        assert_eq!(odd.runs, [3.0, 1.0, 2.0]);
        let times: Vec<f64> = (1..=40).map(f64::from).collect();
        let many = Spread::times(&times);
        assert_eq!((many.median, many.p95), (20.5, 38.0));
        let rates = Spread::rates(40, &[4.0, 8.0]);
        assert_eq!((rates.median, rates.p95), (40.0 / 6.0, 5.0));
        assert_eq!(rates.runs, [10.0, 5.0]);
    }

    #[test]
    fn a_batch_reads_weights_once_unless_they_are_routed() {
        let seconds = [2.0];
        let batch = |batch| Generation {
            batch,
            tokens: 10 * batch,
            tokens_per_second: Spread::rates(10 * batch, &seconds),
            seconds: Spread::times(&seconds),
            step_seconds: Spread::times(&seconds),
            state_bytes: 0,
            weight_bytes_per_second: None,
            share_of_bandwidth: None,
        };
        let mut reads = Reads {
            linear_bytes: 60,
            exact_bytes: 10,
            head_bytes: 30,
            depends_on_routing: false,
        };
        for size in [1, 4] {
            let mut found = batch(size);
            found.compare(&reads, 1000.0);
            assert_eq!(found.weight_bytes_per_second, Some(500.0));
            assert_eq!(found.share_of_bandwidth, Some(0.5));
        }
        reads.depends_on_routing = true;
        let mut found = batch(4);
        found.compare(&reads, 1000.0);
        assert_eq!(found.share_of_bandwidth, None);
    }
}
