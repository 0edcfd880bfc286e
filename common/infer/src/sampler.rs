//! From logits to a token.
//!
//! The order is that of transformers: bias, penalties, temperature, top-k, top-p, min-p, then a draw. The random numbers are a
//! function of the seed and of the number of draws before, so a request gives the same tokens whatever else is computed. The
//! log-probabilities that are reported are the model's own, before any of it.

use std::collections::BTreeMap;

use serde::Serialize;
use uc_model::text::splitmix64;
use uc_simd::{Kernel, dispatch, exponentials};

use crate::error::InferError;

/// How tokens are chosen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sampling {
    /// Divisor of the logits; 0 always takes the largest.
    pub temperature: f64,
    /// Number of tokens that are considered; 0 considers all.
    pub top_k: usize,
    /// Considers the most probable tokens until their sum reaches this.
    pub top_p: f64,
    /// Considers tokens at least this fraction as probable as the most probable one.
    pub min_p: f64,
    /// Logits of tokens that occurred in prompt or text are divided by this if positive, else multiplied (Keskar et al. 2019,
    /// arXiv 1909.05858).
    pub repeat_penalty: f64,
    /// Subtracted from the logits of tokens that occurred in the generated text.
    pub presence_penalty: f64,
    /// Subtracted from the logits for each time the token occurred in the generated text.
    pub frequency_penalty: f64,
    /// Seed of the draws.
    pub seed: u64,
    /// Added to the logits of tokens.
    pub logit_bias: BTreeMap<u32, f64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            logit_bias: BTreeMap::new(),
        }
    }
}

impl Sampling {
    /// Checks that all options are in range, for a vocabulary of this size.
    ///
    /// # Errors
    /// [`InferError::Option`] for the first that is not.
    pub fn check(&self, vocab: usize) -> Result<(), InferError> {
        let ranges = [
            ("temperature", self.temperature, 0.0, 100.0),
            ("top-p", self.top_p, f64::MIN_POSITIVE, 1.0),
            ("min-p", self.min_p, 0.0, 1.0),
            ("repeat-penalty", self.repeat_penalty, 0.01, 100.0),
            ("presence-penalty", self.presence_penalty, -100.0, 100.0),
            ("frequency-penalty", self.frequency_penalty, -100.0, 100.0),
        ];
        for (option, found, low, high) in ranges {
            if !(low..=high).contains(&found) {
                let expected = match option {
                    "top-p" => "above 0, at most 1".to_owned(),
                    _ => format!("{low} to {high}"),
                };
                return Err(InferError::option(option, found, expected));
            }
        }
        for (&id, &bias) in &self.logit_bias {
            if id as usize >= vocab {
                let expected = format!("token ids below {vocab}, the size of the vocabulary");
                return Err(InferError::option("logit-bias", id, expected));
            }
            if !(-1000.0..=1000.0).contains(&bias) {
                return Err(InferError::option("logit-bias", bias, "-1000 to 1000"));
            }
        }
        Ok(())
    }
}

/// A token and its log-probability according to the model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Scored {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability, before penalties and temperature.
    pub logprob: f64,
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Chosen {
    /// The token.
    pub token: Scored,
    /// The most probable tokens according to the model, as many as were asked for.
    pub top: Vec<Scored>,
}

impl Chosen {
    /// The token `id` and the `top` most probable ones, by the logits `[vocab]` after the tokens before it.
    pub(crate) fn new(logits: &[f32], id: u32, top: usize) -> Self {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut weights = logits.to_vec();
        dispatch(Exponentials(&mut weights));
        let sum: f64 = weights.iter().map(|&x| f64::from(x)).sum();
        let logarithm = f64::from(largest) + libm::log(sum);
        let scored = |id: u32| Scored {
            id,
            logprob: f64::from(logits[id as usize]) - logarithm,
        };
        let top = match top {
            0 => Vec::new(),
            _ => {
                let values = logits.iter().map(|&x| f64::from(x));
                best((0..).zip(values).collect(), top)
            }
        };
        Chosen {
            token: scored(id),
            top: top.into_iter().map(|(id, _)| scored(id)).collect(),
        }
    }
}

/// `row <- exp(row - max(row))`
struct Exponentials<'a>(&'a mut [f32]);

impl Kernel for Exponentials<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        exponentials(self.0);
    }
}

/// Chooses the tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    /// How often a token occurred: in the prompt, and in the generated text.
    counts: BTreeMap<u32, [u32; 2]>,
    draws: u64,
}

impl Sampler {
    /// Starts after a prompt.
    ///
    /// # Errors
    /// Those of [`Sampling::check`].
    pub fn new(sampling: &Sampling, prompt: &[u32], vocab: usize) -> Result<Self, InferError> {
        sampling.check(vocab)?;
        let mut counts: BTreeMap<u32, [u32; 2]> = BTreeMap::new();
        for &id in prompt {
            counts.entry(id).or_default()[0] += 1;
        }
        Ok(Sampler {
            sampling: sampling.clone(),
            counts,
            draws: 0,
        })
    }

    /// Chooses a token by the logits `[vocab]`, which must be finite, among those whose bit is set in `allowed` if there is one
    /// (at least one must be); also returns the `top` most probable ones.
    pub fn choose(&mut self, logits: &[f32], top: usize, allowed: Option<&[u32]>) -> Chosen {
        let adjusted = self.adjusted(logits);
        let candidates = (0..).zip(adjusted);
        let is_allowed =
            |id: u32| allowed.is_none_or(|bits| bits[id as usize / 32] >> (id % 32) & 1 == 1);
        let id = self.pick(candidates.filter(|&(id, _)| is_allowed(id)));
        self.counts.entry(id).or_default()[1] += 1;
        Chosen::new(logits, id, top)
    }

    /// The logits with biases and penalties.
    fn adjusted(&self, logits: &[f32]) -> Vec<f64> {
        let mut logits: Vec<f64> = logits.iter().map(|&x| x.into()).collect();
        for (&id, bias) in &self.sampling.logit_bias {
            logits[id as usize] += bias;
        }
        let Sampling {
            repeat_penalty,
            presence_penalty,
            frequency_penalty,
            ..
        } = self.sampling;
        for (&id, &[_, generated]) in &self.counts {
            let Some(logit) = logits.get_mut(id as usize) else {
                continue;
            };
            if *logit > 0.0 {
                *logit /= repeat_penalty;
            } else {
                *logit *= repeat_penalty;
            }
            if generated > 0 {
                *logit -= presence_penalty + frequency_penalty * f64::from(generated);
            }
        }
        logits
    }

    /// The token that these candidates with their logits give.
    fn pick(&mut self, candidates: impl Iterator<Item = (u32, f64)>) -> u32 {
        if self.sampling.temperature == 0.0 {
            // Of equal ones the first.
            let greatest = candidates.reduce(|a, b| if b.1 > a.1 { b } else { a });
            return greatest.expect("an allowed token").0;
        }
        let candidates = candidates.collect();
        let mut candidates = match self.sampling.top_k {
            0 => best(candidates, usize::MAX),
            k => best(candidates, k),
        };
        // From logits to probabilities, up to a factor.
        let largest = candidates[0].1;
        for (_, value) in &mut candidates {
            *value = libm::exp((*value - largest) / self.sampling.temperature);
        }
        let total: f64 = candidates.iter().map(|(_, p)| p).sum();
        if self.sampling.top_p < 1.0 {
            let mut sum = 0.0;
            let reached = candidates.iter().position(|(_, p)| {
                sum += p;
                sum >= self.sampling.top_p * total
            });
            candidates.truncate(reached.map_or(candidates.len(), |last| last + 1));
        }
        // The most probable one has the value 1.
        candidates.retain(|(_, p)| *p >= self.sampling.min_p);
        self.draw(&candidates)
    }

    /// One of the candidates, with a probability proportional to its value.
    fn draw(&mut self, candidates: &[(u32, f64)]) -> u32 {
        let bits = splitmix64(self.sampling.seed, self.draws) >> 11;
        self.draws += 1;
        let total: f64 = candidates.iter().map(|(_, p)| p).sum();
        let mut left = bits as f64 / (1_u64 << 53) as f64 * total;
        for &(id, p) in candidates {
            if left < p {
                return id;
            }
            left -= p;
        }
        // Only by rounding.
        candidates[0].0
    }
}

/// The `count` largest candidates, the largest first; among equal ones, the lower id first.
fn best(mut candidates: Vec<(u32, f64)>, count: usize) -> Vec<(u32, f64)> {
    let order = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if count == 0 {
        return Vec::new();
    }
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count - 1, order);
        candidates.truncate(count);
    }
    candidates.sort_unstable_by(order);
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 3.0];

    fn sampler(sampling: Sampling) -> Sampler {
        Sampler::new(&sampling, &[], LOGITS.len()).expect("in range")
    }

    /// How often each token is chosen in many draws, of which none is counted as generated text.
    fn frequencies(sampling: &Sampling) -> [f64; 5] {
        const DRAWS: u64 = 20_000;
        let mut counts = [0.0; 5];
        let mut sampler = sampler(sampling.clone());
        for _ in 0..DRAWS {
            let logits = (0..).zip(sampler.adjusted(&LOGITS));
            counts[sampler.pick(logits) as usize] += 1.0 / DRAWS as f64;
        }
        counts
    }

    fn close(found: [f64; 5], expected: [f64; 5]) {
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 0.015, "{found:?} {expected:?}");
        }
    }

    /// The probabilities of these values, which are divided by their sum.
    fn shares(values: [f64; 5]) -> [f64; 5] {
        let total: f64 = values.iter().sum();
        values.map(|value| value / total)
    }

    #[test]
    fn greedy_takes_the_largest_logit_and_the_lower_id_of_equal_ones() {
        let mut greedy = sampler(Sampling::default());
        let chosen = greedy.choose(&LOGITS, 3, None);
        assert_eq!(chosen.token.id, 1);
        let top: Vec<u32> = chosen.top.iter().map(|scored| scored.id).collect();
        assert_eq!(top, [1, 4, 2]);
        let sum: f64 = LOGITS.iter().map(|&x| f64::from(x).exp()).sum();
        assert!((chosen.token.logprob - (3.0 - sum.ln())).abs() < 1e-6);
    }

    #[test]
    fn draws_follow_the_probabilities_that_the_options_leave() {
        let base = Sampling {
            temperature: 1.0,
            seed: 7,
            ..Sampling::default()
        };
        let e = |x: f64| x.exp();
        let all = [e(1.0), e(3.0), e(2.0), e(-1.0), e(3.0)];
        close(frequencies(&base), shares(all));
        let halved = Sampling {
            temperature: 2.0,
            ..base.clone()
        };
        close(
            frequencies(&halved),
            shares([e(0.5), e(1.5), e(1.0), e(-0.5), e(1.5)]),
        );
        let top_k = Sampling {
            top_k: 3,
            ..base.clone()
        };
        close(
            frequencies(&top_k),
            shares([0.0, e(3.0), e(2.0), 0.0, e(3.0)]),
        );
        let top_p = Sampling {
            top_p: 0.5,
            ..base.clone()
        };
        close(frequencies(&top_p), shares([0.0, 1.0, 0.0, 0.0, 1.0]));
        let min_p = Sampling {
            min_p: 0.3,
            ..base.clone()
        };
        close(
            frequencies(&min_p),
            shares([0.0, e(3.0), e(2.0), 0.0, e(3.0)]),
        );
        let biased = Sampling {
            logit_bias: BTreeMap::from([(1, -1000.0), (4, -1000.0)]),
            ..base
        };
        close(
            frequencies(&biased),
            shares([e(1.0), 0.0, e(2.0), e(-1.0), 0.0]),
        );
    }

    #[test]
    fn penalties_change_the_logits_of_tokens_that_occurred() {
        let sampling = Sampling {
            repeat_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            ..Sampling::default()
        };
        let mut sampler = Sampler::new(&sampling, &[3, 2], LOGITS.len()).expect("in range");
        // The prompt: only the repetition penalty.
        assert_eq!(sampler.adjusted(&LOGITS), [1.0, 3.0, 1.0, -2.0, 3.0]);
        assert_eq!(sampler.choose(&LOGITS, 0, None).token.id, 1);
        assert_eq!(sampler.adjusted(&LOGITS)[1], 1.5 - 0.5 - 0.25);
        assert_eq!(sampler.choose(&LOGITS, 0, None).token.id, 4);
        assert_eq!(sampler.choose(&LOGITS, 0, None).token.id, 0);
    }

    #[test]
    fn equal_seeds_give_equal_draws_and_others_do_not() {
        let draws = |seed| {
            let mut sampler = sampler(Sampling {
                temperature: 1.0,
                seed,
                ..Sampling::default()
            });
            let draw = |_| sampler.choose(&LOGITS, 0, None).token.id;
            (0..40).map(draw).collect::<Vec<_>>()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }

    #[test]
    fn options_out_of_range_are_refused_by_name() {
        let base = Sampling::default();
        let bias = |id, value| Sampling {
            logit_bias: BTreeMap::from([(id, value)]),
            ..base.clone()
        };
        for (expected, sampling) in [
            (
                "temperature",
                Sampling {
                    temperature: -0.1,
                    ..base.clone()
                },
            ),
            (
                "temperature",
                Sampling {
                    temperature: f64::NAN,
                    ..base.clone()
                },
            ),
            (
                "top-p",
                Sampling {
                    top_p: 0.0,
                    ..base.clone()
                },
            ),
            (
                "top-p",
                Sampling {
                    top_p: 1.1,
                    ..base.clone()
                },
            ),
            (
                "min-p",
                Sampling {
                    min_p: 1.5,
                    ..base.clone()
                },
            ),
            (
                "repeat-penalty",
                Sampling {
                    repeat_penalty: 0.0,
                    ..base.clone()
                },
            ),
            (
                "presence-penalty",
                Sampling {
                    presence_penalty: 1e3,
                    ..base.clone()
                },
            ),
            (
                "frequency-penalty",
                Sampling {
                    frequency_penalty: f64::INFINITY,
                    ..base.clone()
                },
            ),
            ("logit-bias", bias(5, 0.0)),
            ("logit-bias", bias(1, f64::NAN)),
        ] {
            match sampling.check(LOGITS.len()) {
                Err(InferError::Option { option, .. }) => assert_eq!(option, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }
}
