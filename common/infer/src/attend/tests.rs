//! Attention against its definition in double precision, and its bits for every way to compute it.

use super::*;
use crate::cache::Precision;

fn numbers(count: usize, step: usize) -> Vec<f32> {
    let number = |i: usize| ((i * step % 1009) as f32 / 504.5 - 1.0).powi(3);
    (1..=count).map(number).collect()
}

/// A case: dimensions, tokens, number format.
struct Case {
    heads: Heads,
    tokens: usize,
    precision: Precision,
}

impl Case {
    fn width(&self) -> [usize; 3] {
        let layout = self.heads.layout;
        let values = match layout {
            Layout::Heads { count, value, .. } => count * value,
            Layout::Latent { .. } => 0,
        };
        let key = layout.key();
        [self.heads.count * key, layout.heads() * key, values]
    }

    /// Queries, keys and values of all tokens. Half precision holds them exactly.
    fn inputs(&self) -> [Vec<f32>; 3] {
        let [q, k, v] = self.width();
        [(q, 7919), (k, 6421), (v, 5003)].map(|(width, step)| {
            let values = numbers(self.tokens * width, step).into_iter();
            values.map(|x| (x * 128.0).round() / 128.0).collect()
        })
    }

    fn empty(&self) -> State {
        let Heads { layout, window, .. } = self.heads;
        State::Cache(KvCache::new(self.precision, layout, window))
    }

    /// Attention in chunks of these lengths (the last as often as needed).
    fn attend(&self, chunks: &[usize]) -> Vec<f32> {
        let [q, k, v] = self.inputs();
        let width = self.width();
        let mut state = self.empty();
        let mut lengths = chunks
            .iter()
            .chain(std::iter::repeat(&chunks[chunks.len() - 1]));
        let (mut position, mut out) = (0, Vec::new());
        while position < self.tokens {
            let count = lengths.next().map_or(1, |&n| n).min(self.tokens - position);
            let part = |x: &[f32], width: usize| x[position * width..][..count * width].to_vec();
            let span = Span {
                first: 0,
                count,
                position,
                tables: &[],
                state: &mut state,
            };
            let mut k = part(&k, width[1]);
            let v = part(&v, width[2]);
            out.extend(
                self.heads
                    .attend(&part(&q, width[0]), &mut k, &v, &mut [span]),
            );
            position += count;
        }
        out
    }

    /// The definition.
    fn reference(&self) -> Vec<f64> {
        let [q, k, v] = self.inputs();
        let [q_width, k_width, v_width] = self.width();
        let Heads { count, layout, .. } = self.heads;
        let (key, value, group) = (layout.key(), layout.value(), count / layout.heads());
        let double = |x: &f32| f64::from(*x);
        let mut out = Vec::new();
        for (token, head) in (0..self.tokens).flat_map(|t| (0..count).map(move |h| (t, h))) {
            let q = &q[token * q_width + head * key..][..key];
            let start = (token + 1).saturating_sub(self.heads.window.unwrap_or(usize::MAX));
            let k_of = |t: usize| &k[t * k_width + head / group * key..][..key];
            let scores = (start..=token).map(|t| {
                let products = q.iter().zip(k_of(t)).map(|(q, k)| double(q) * double(k));
                let score = products.sum::<f64>() * f64::from(self.heads.scale);
                self.heads
                    .softcap
                    .map_or(score, |cap| cap * (score / cap).tanh())
            });
            let weights: Vec<f64> = scores.map(f64::exp).collect();
            let sum: f64 = weights.iter().sum();
            let mut row = vec![0.0; value];
            for (t, weight) in (start..=token).zip(weights) {
                let values = match layout {
                    Layout::Heads { .. } => &v[t * v_width + head / group * value..][..value],
                    Layout::Latent { first, .. } => &k_of(t)[first..],
                };
                let sums = row.iter_mut().zip(values);
                sums.for_each(|(x, v)| *x += weight / sum * double(v));
            }
            out.extend(row);
        }
        out
    }
}

fn heads(count: usize, layout: Layout) -> Heads {
    Heads {
        count,
        layout,
        rope: None,
        window: None,
        scale: 0.3,
        softcap: None,
    }
}

fn cases() -> Vec<Case> {
    let grouped = |count, key, value| Layout::Heads { count, key, value };
    let plain = heads(3, grouped(1, 40, 40));
    let case = |heads, tokens, precision| Case {
        heads,
        tokens,
        precision,
    };
    let windowed = Heads {
        window: Some(100),
        ..heads(4, grouped(2, 16, 48))
    };
    let capped = Heads {
        softcap: Some(2.0),
        ..plain
    };
    let latent = heads(20, Layout::Latent { key: 24, first: 5 });
    vec![
        // More than a part.
        case(plain, PART * BLOCK + 70, Precision::F32),
        case(windowed, PART * BLOCK + 30, Precision::Bf16),
        case(capped, 300, Precision::F16),
        case(latent, 200, Precision::F32),
        case(latent, 140, Precision::Bf16),
        case(heads(5, grouped(5, 7, 33)), 70, Precision::F32),
    ]
}

#[test]
fn attention_is_the_definition_up_to_rounding() {
    for (index, case) in cases().iter().enumerate() {
        let found = case.attend(&[500]);
        let expected = case.reference();
        assert_eq!(found.len(), expected.len());
        let errors = found.iter().zip(&expected);
        let worst = errors
            .map(|(a, b)| (f64::from(*a) - b).abs())
            .fold(0.0, f64::max);
        assert!(worst < 2e-6, "case {index}: {worst:.1e}");
    }
}

#[test]
fn attention_has_the_same_bits_for_every_chunking_and_number_of_threads() {
    for (index, case) in cases().iter().enumerate() {
        let on_threads = |threads: usize, chunks: &[usize]| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let found = pool.expect("a pool").install(|| case.attend(chunks));
            found.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        let expected = on_threads(1, &[case.tokens]);
        for chunks in [&[1][..], &[7, 130, 1], &[63, 2, 500], &[64]] {
            let found = on_threads(3, chunks);
            assert!(found == expected, "case {index}, chunks {chunks:?}");
        }
    }
}

#[test]
fn a_score_that_is_no_number_is_not_hidden() {
    let layout = Layout::Heads {
        count: 1,
        key: 8,
        value: 8,
    };
    let case = Case {
        heads: heads(1, layout),
        tokens: 3,
        precision: Precision::F32,
    };
    for bad in [f32::NAN, f32::INFINITY] {
        let [q, mut k, v] = case.inputs();
        k[9] = bad;
        let mut state = case.empty();
        let span = Span {
            first: 0,
            count: 3,
            position: 0,
            tables: &[],
            state: &mut state,
        };
        let out = case.heads.attend(&q, &mut k, &v, &mut [span]);
        assert!(out[..8].iter().all(|x| x.is_finite()));
        assert!(out[8..].iter().all(|x| x.is_nan()));
    }
}
