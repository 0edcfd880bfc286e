//! The metrics of an evaluation: from per-token comparisons to estimates with confidence intervals.
//!
//! Owns the arithmetic of perplexity, KL divergence and top-1 agreement. Reads no files and knows nothing of models.
//! Windows are the unit of resampling: tokens within a window are correlated, windows are treated as independent.

use serde::{Deserialize, Serialize};
use uc_simd::{Kernel, LANES, dispatch, exp_below_zero};

/// Version of the metrics document.
pub const METRICS_VERSION: u32 = 2;
/// Bins of the per-window histogram of KL divergences, evenly spaced in the logarithm.
const BINS: usize = 2400;
/// Divergences at or below this value share the first bin, nats.
const SMALLEST_KL: f64 = 1e-9;
/// Divergences at or above this value share the last bin, nats.
const LARGEST_KL: f64 = 1e3;
/// Bootstrap resamples for quantiles.
const RESAMPLES: usize = 400;
/// Two-sided 95 % quantile of the standard normal distribution.
const NORMAL_95: f64 = 1.959_963_985;

/// One predicted token: the predictions of teacher and pack for the same context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenComparison {
    /// Negative log-likelihood of the text's next token under the teacher, nats.
    pub teacher_nll: f64,
    /// The same under the pack, nats.
    pub pack_nll: f64,
    /// KL(teacher ‖ pack) of the two next-token distributions, nats, clamped to at least 0.
    pub kl: f64,
    /// Whether both rank the same token first.
    pub same_top: bool,
}

/// Compares the logits of one position.
///
/// `teacher`, `pack`: `[vocab]`, raw logits; `target`: the text's next token. The order of summation is fixed, so the result
/// does not depend on the number of threads.
pub fn compare_logits(teacher: &[f32], pack: &[f32], target: usize) -> TokenComparison {
    assert_eq!(teacher.len(), pack.len(), "logits of two vocabularies");
    let (teacher_max, teacher_top) = maximum(teacher);
    let (pack_max, pack_top) = maximum(pack);
    let [teacher_sum, pack_sum, weighted_difference] = dispatch(Sums {
        teacher: (teacher, teacher_max),
        pack: (pack, pack_max),
    });
    let (teacher_log, pack_log) = (teacher_sum.ln(), pack_sum.ln());
    let nll = |logit: f32, max: f32, log_sum: f64| log_sum - f64::from(logit - max);
    TokenComparison {
        teacher_nll: nll(teacher[target], teacher_max, teacher_log),
        pack_nll: nll(pack[target], pack_max, pack_log),
        kl: (weighted_difference / teacher_sum - teacher_log + pack_log).max(0.0),
        same_top: teacher_top == pack_top,
    }
}

/// The logits of a model and the largest of them, for teacher and pack.
struct Sums<'a> {
    teacher: (&'a [f32], f32),
    pack: (&'a [f32], f32),
}

impl Kernel for Sums<'_> {
    type Output = [f64; 3];

    /// With `a` and `b` the differences of teacher and pack to their largest logits: `Σ eᵃ`, `Σ eᵇ` and `Σ eᵃ (a − b)`. Short blocks are
    /// summed in f32, which vectorizes; their sums are added in f64.
    #[inline(always)]
    fn run(self) -> [f64; 3] {
        let ((teacher, teacher_max), (pack, pack_max)) = (self.teacher, self.pack);
        let mut totals = [0f64; 3];
        for (t, p) in teacher.chunks(256).zip(pack.chunks(256)) {
            let mut sums = [[0f32; LANES]; 3];
            let mut add = |lane: usize, a: f32, b: f32| {
                let (a, b) = (a - teacher_max, b - pack_max);
                let weight = exp_below_zero(a);
                sums[0][lane] += weight;
                sums[1][lane] += exp_below_zero(b);
                sums[2][lane] += weight * (a - b);
            };
            let ((t, t_rest), (p, p_rest)) = (t.as_chunks::<LANES>(), p.as_chunks::<LANES>());
            for (t, p) in t.iter().zip(p) {
                for lane in 0..LANES {
                    add(lane, t[lane], p[lane]);
                }
            }
            for (lane, (&a, &b)) in t_rest.iter().zip(p_rest).enumerate() {
                add(lane, a, b);
            }
            for (total, sums) in totals.iter_mut().zip(sums) {
                *total += f64::from(sums.iter().sum::<f32>());
            }
        }
        totals
    }
}

struct Largest<'a>(&'a [f32]);

impl Kernel for Largest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let larger = |a: f32, b: f32| if b > a { b } else { a };
        let mut peaks = [f32::NEG_INFINITY; LANES];
        let (blocks, rest) = self.0.as_chunks::<LANES>();
        for block in blocks {
            for lane in 0..LANES {
                peaks[lane] = larger(peaks[lane], block[lane]);
            }
        }
        peaks
            .iter()
            .chain(rest)
            .copied()
            .fold(f32::NEG_INFINITY, larger)
    }
}

/// The largest value and the first index where it occurs.
fn maximum(values: &[f32]) -> (f32, usize) {
    let largest = dispatch(Largest(values));
    let index = values.iter().position(|&value| value == largest);
    (largest, index.unwrap_or(0))
}

/// A metric with its 95 % confidence interval over windows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The metric over all tokens.
    pub value: f64,
    /// Lower end of the interval; none from one window, which says nothing about the spread.
    pub low: Option<f64>,
    /// Upper end of the interval; none from one window.
    pub high: Option<f64>,
}

impl Estimate {
    /// An estimate without an interval.
    fn point(value: f64) -> Self {
        Self {
            value,
            low: None,
            high: None,
        }
    }
}

/// Sums over the tokens of a window.
#[derive(Debug, Clone)]
struct WindowSums {
    tokens: usize,
    teacher_nll: f64,
    pack_nll: f64,
    kl: f64,
    same_top: usize,
    histogram: Vec<u32>,
}

/// Accumulates windows; [`MetricsAccumulator::finish`] returns the metrics.
#[derive(Debug, Default)]
pub struct MetricsAccumulator {
    windows: Vec<WindowSums>,
    /// KL divergence of every token, for exact quantiles.
    kls: Vec<f32>,
}

/// The metrics of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationMetrics {
    /// Windows compared.
    pub windows: usize,
    /// Predicted tokens compared, over all windows.
    pub tokens: usize,
    /// Perplexity of the teacher.
    pub teacher_ppl: Estimate,
    /// Perplexity of the pack.
    pub pack_ppl: Estimate,
    /// Pack perplexity over teacher perplexity; the interval is that of the paired log-likelihood difference.
    pub ppl_ratio: Estimate,
    /// Mean KL(teacher ‖ pack), nats.
    pub mean_kl: Estimate,
    /// Median of the per-token divergence, nats.
    pub median_kl: Estimate,
    /// 99th percentile of the per-token divergence, nats.
    pub p99_kl: Estimate,
    /// Fraction of positions where both rank the same token first.
    pub top1_agreement: Estimate,
}

impl MetricsAccumulator {
    /// Adds one window's tokens, in order.
    pub fn add_window(&mut self, tokens: &[TokenComparison]) {
        let mut histogram = vec![0u32; BINS];
        for token in tokens {
            histogram[bin(token.kl)] += 1;
        }
        self.kls.extend(tokens.iter().map(|token| token.kl as f32));
        self.windows.push(WindowSums {
            tokens: tokens.len(),
            teacher_nll: tokens.iter().map(|t| t.teacher_nll).sum(),
            pack_nll: tokens.iter().map(|t| t.pack_nll).sum(),
            kl: tokens.iter().map(|t| t.kl).sum(),
            same_top: tokens.iter().filter(|t| t.same_top).count(),
            histogram,
        });
    }

    /// The metrics, or `None` if no token was compared.
    pub fn finish(mut self) -> Option<EvaluationMetrics> {
        let tokens: usize = self.windows.iter().map(|w| w.tokens).sum();
        if tokens == 0 {
            return None;
        }
        self.kls.sort_unstable_by(f32::total_cmp);
        let exact_quantile = |probability: f64| {
            f64::from(self.kls[((tokens - 1) as f64 * probability).round() as usize])
        };
        let exp = |e: Estimate| Estimate {
            value: e.value.exp(),
            low: e.low.map(f64::exp),
            high: e.high.map(f64::exp),
        };
        let windows = &self.windows;
        Some(EvaluationMetrics {
            windows: windows.len(),
            tokens,
            teacher_ppl: exp(mean(windows, |w| w.teacher_nll)),
            pack_ppl: exp(mean(windows, |w| w.pack_nll)),
            ppl_ratio: exp(mean(windows, |w| w.pack_nll - w.teacher_nll)),
            mean_kl: mean(windows, |w| w.kl),
            median_kl: quantile(windows, 0.5, exact_quantile(0.5)),
            p99_kl: quantile(windows, 0.99, exact_quantile(0.99)),
            top1_agreement: mean(windows, |w| w.same_top as f64),
        })
    }
}

/// The per-token mean of a per-window sum, with the normal confidence interval of a ratio estimator over windows.
fn mean(windows: &[WindowSums], sum: impl Fn(&WindowSums) -> f64) -> Estimate {
    let tokens: f64 = windows.iter().map(|w| w.tokens as f64).sum();
    let value = windows.iter().map(&sum).sum::<f64>() / tokens;
    let count = windows.len() as f64;
    if windows.len() < 2 {
        return Estimate::point(value);
    }
    let squares: f64 = windows
        .iter()
        .map(|w| (sum(w) - value * w.tokens as f64).powi(2))
        .sum();
    let standard_error = (squares * count / (count - 1.0)).sqrt() / tokens;
    Estimate {
        value,
        low: Some(value - NORMAL_95 * standard_error),
        high: Some(value + NORMAL_95 * standard_error),
    }
}

/// Bootstrap confidence interval of the quantile `value`; windows are resampled with replacement (Efron 1979), from a fixed
/// seed.
fn quantile(windows: &[WindowSums], probability: f64, value: f64) -> Estimate {
    if windows.len() < 2 {
        return Estimate::point(value);
    }
    let mut random = SplitMix(0x5eed);
    let mut quantiles: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut sum = vec![0u64; BINS];
            for _ in 0..windows.len() {
                let pick = &windows[(random.next() % windows.len() as u64) as usize];
                for (total, &count) in sum.iter_mut().zip(&pick.histogram) {
                    *total += u64::from(count);
                }
            }
            let total: u64 = sum.iter().sum();
            let rank = (total as f64 * probability) as u64;
            let mut seen = 0;
            let index = sum.iter().position(|&count| {
                seen += count;
                seen > rank
            });
            bin_center(index.unwrap_or(BINS - 1))
        })
        .collect();
    quantiles.sort_unstable_by(f64::total_cmp);
    let percentile = |p: f64| quantiles[((RESAMPLES - 1) as f64 * p).round() as usize];
    // Bins are 1.2 % wide; rounding to a bin center must not exclude the exact quantile from the interval.
    Estimate {
        value,
        low: Some(percentile(0.025).min(value)),
        high: Some(percentile(0.975).max(value)),
    }
}

fn bin(kl: f64) -> usize {
    let span = (LARGEST_KL / SMALLEST_KL).ln();
    let position = (kl.clamp(SMALLEST_KL, LARGEST_KL) / SMALLEST_KL).ln() / span;
    ((position * BINS as f64) as usize).min(BINS - 1)
}

fn bin_center(index: usize) -> f64 {
    let span = (LARGEST_KL / SMALLEST_KL).ln();
    SMALLEST_KL * ((index as f64 + 0.5) / BINS as f64 * span).exp()
}

/// SplitMix64 (Steele, Lea, Flood 2014): good enough for resampling, and the same on every machine.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_have_zero_divergence_and_the_textbook_likelihood() {
        let logits = [1.0f32, 2.0, 3.0];
        let token = compare_logits(&logits, &logits, 1);
        let expected = (1f64.exp() + 2f64.exp() + 3f64.exp()).ln() - 2.0;
        assert!(token.kl.abs() < 1e-9);
        assert!((token.teacher_nll - expected).abs() < 1e-6);
        assert!(token.same_top);
    }

    #[test]
    fn divergence_matches_the_direct_sum() {
        let teacher: Vec<f32> = (0..1000).map(|i| ((i * 37 % 101) as f32) / 17.0).collect();
        let pack: Vec<f32> = teacher
            .iter()
            .enumerate()
            .map(|(i, x)| x + ((i % 7) as f32) / 50.0)
            .collect();
        let probabilities = |logits: &[f32]| -> Vec<f64> {
            let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
            logits.iter().map(|&x| f64::from(x).exp() / total).collect()
        };
        let (p, q) = (probabilities(&teacher), probabilities(&pack));
        let direct: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        let token = compare_logits(&teacher, &pack, 5);
        assert!(
            (token.kl - direct).abs() < 1e-6,
            "{} against {direct}",
            token.kl
        );
    }

    #[test]
    fn a_constant_added_to_all_logits_changes_nothing() {
        let teacher = [0.5f32, -1.0, 4.0, 2.0];
        let shifted = teacher.map(|x| x + 100.0);
        let token = compare_logits(&teacher, &shifted, 0);
        assert!(token.kl < 1e-6);
        assert!((token.teacher_nll - token.pack_nll).abs() < 1e-5);
    }

    /// The metrics of so many windows of noise.
    fn evaluate(windows: usize) -> EvaluationMetrics {
        let mut accumulator = MetricsAccumulator::default();
        let mut random = SplitMix(7);
        for _ in 0..windows {
            let tokens: Vec<_> = (0..50)
                .map(|_| {
                    let noise = (random.next() % 1000) as f64 / 1000.0;
                    TokenComparison {
                        teacher_nll: 2.0 + noise,
                        pack_nll: 2.01 + noise,
                        kl: 0.01 * noise,
                        same_top: noise < 0.9,
                    }
                })
                .collect();
            accumulator.add_window(&tokens);
        }
        accumulator.finish().expect("tokens were added")
    }

    fn estimates(metrics: &EvaluationMetrics) -> [Estimate; 7] {
        [
            metrics.teacher_ppl,
            metrics.pack_ppl,
            metrics.ppl_ratio,
            metrics.mean_kl,
            metrics.median_kl,
            metrics.p99_kl,
            metrics.top1_agreement,
        ]
    }

    #[test]
    fn intervals_contain_the_value_and_shrink_with_more_windows() {
        let (few, many) = (evaluate(8), evaluate(200));
        assert_eq!(many.tokens, 200 * 50);
        assert!((many.ppl_ratio.value - 0.01f64.exp()).abs() < 1e-9);
        let interval = |e: Estimate| e.low.zip(e.high).expect("an interval");
        for e in estimates(&many) {
            let (low, high) = interval(e);
            assert!(low <= e.value && e.value <= high, "{e:?}");
        }
        let width = |e: Estimate| interval(e).1 - interval(e).0;
        assert!(width(many.mean_kl) < width(few.mean_kl));
        assert!((many.median_kl.value - 0.005).abs() < 0.0005);
    }

    #[test]
    fn one_window_gives_values_without_intervals() {
        for estimate in estimates(&evaluate(1)) {
            assert!(estimate.value.is_finite());
            assert_eq!((estimate.low, estimate.high), (None, None));
        }
        let json = serde_json::to_value(evaluate(1)).expect("JSON");
        assert!(json["mean_kl"]["low"].is_null() && json["mean_kl"]["value"].is_f64());
    }

    #[test]
    fn no_tokens_give_no_metrics() {
        assert!(MetricsAccumulator::default().finish().is_none());
    }
}
