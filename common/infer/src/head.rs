//! The output matrix: from hidden states to logits.
//!
//! It is stored exactly, and at 16 bits a weight it would be among the most that is read for a token, although only few tokens are
//! likely. So the arithmetic `fast` reads it in two steps. Signed bytes give approximate logits of all tokens; those within
//! [`LIKELY`] of the largest are then computed again, from the exact rows, with the bits that `exact` arithmetic would give for the
//! same hidden state. What is left approximate are the logits of tokens of less than `e^−8` times the probability of the likeliest.

use rayon::prelude::*;
use uc_model::ModelConfig;
use uc_model::spec::HeadSpec;
use uc_simd::{Kernel, dispatch};

use crate::arithmetic::{Arithmetic, MemoryForm};
use crate::bytes::ByteMatrix;
use crate::error::InferError;
use crate::matrix::Matrix;
use crate::source::Source;
use crate::vector::cap;

/// Logits that are less than this below the largest are exact.
const LIKELY: f32 = 8.0;
/// Rows of a task.
const TASK_ROWS: usize = 64;
/// Logits that are compared at the same time.
const CHUNK: usize = 64;

/// The output matrix and what follows it.
#[derive(Debug)]
pub(crate) struct Head {
    /// None if it is the embedding.
    matrix: Option<Matrix>,
    /// `[vocab]`
    bias: Option<Vec<f32>>,
    spec: HeadSpec,
    /// For the arithmetic `fast`.
    bytes: Option<ByteMatrix>,
}

impl Head {
    /// Loads the head of a model that has this embedding.
    ///
    /// # Errors
    /// Those of the source.
    pub(crate) fn new(
        config: &ModelConfig,
        arithmetic: Arithmetic,
        memory: MemoryForm,
        embedding: &Matrix,
        source: &dyn Source,
    ) -> Result<Self, InferError> {
        let spec = config.head.clone();
        let matrix = match spec.tied {
            true => None,
            false => Some(source.matrix(&spec.weight, [config.vocab, config.hidden])?),
        };
        let bias = spec.bias.as_ref();
        let bias = bias.map(|name| source.values(name, &[config.vocab]));
        let bytes = match (arithmetic, matrix.as_ref().unwrap_or(embedding)) {
            (Arithmetic::Fast, Matrix::Dense { values, cols }) => {
                Some(ByteMatrix::new(values, *cols, memory))
            }
            _ => None,
        };
        Ok(Head {
            bias: bias.transpose()?,
            matrix,
            spec,
            bytes,
        })
    }

    /// The matrix of its own, unless it is the embedding.
    pub(crate) fn own_matrix(&self) -> Option<&Matrix> {
        self.matrix.as_ref()
    }

    /// Bytes in memory beside the exact matrix.
    pub(crate) fn bytes_beside(&self) -> usize {
        self.bytes.as_ref().map_or(0, ByteMatrix::bytes)
    }

    /// Bytes that are read for a token, but for the rows of likely tokens.
    pub(crate) fn bytes_read(&self, embedding: &Matrix) -> usize {
        match self.bytes_beside() {
            0 => self.matrix(embedding).bytes(),
            bytes => bytes,
        }
    }

    fn matrix<'a>(&'a self, embedding: &'a Matrix) -> &'a Matrix {
        self.matrix.as_ref().unwrap_or(embedding)
    }

    /// The logits `[states, vocab]` of hidden states `[states, hidden]`, which are normalized.
    pub(crate) fn logits(&self, embedding: &Matrix, states: &[f32]) -> Vec<f32> {
        if states.is_empty() {
            return Vec::new();
        }
        let matrix = self.matrix(embedding);
        let (Some(bytes), Matrix::Dense { values, cols }) = (&self.bytes, matrix) else {
            let mut logits = matrix.product(states);
            self.finish(&mut logits);
            return logits;
        };
        let mut logits = bytes.product(values, states);
        for (logits, state) in logits
            .chunks_exact_mut(matrix.rows())
            .zip(states.chunks_exact(*cols))
        {
            let likely = self.likely(logits);
            let tasks = likely.par_chunks(TASK_ROWS);
            let exact = tasks.flat_map_iter(|tokens| {
                tokens.iter().map(|&token| {
                    let mut logit = [0.0];
                    values.rows_of_product(token, state, *cols, &mut logit);
                    logit[0]
                })
            });
            for (&token, exact) in likely.iter().zip(exact.collect::<Vec<f32>>()) {
                logits[token] = exact;
            }
        }
        self.finish(&mut logits);
        logits
    }

    /// The tokens whose logits are exact, given approximate products with the matrix.
    fn likely(&self, products: &[f32]) -> Vec<usize> {
        let scale = self.spec.scale as f32;
        let Some(bias) = &self.bias else {
            return dispatch(Likely(products, LIKELY / scale));
        };
        let sums = products.iter().zip(bias);
        let logits: Vec<f32> = sums.map(|(x, bias)| (x + bias) * scale).collect();
        dispatch(Likely(&logits, LIKELY))
    }

    fn add_bias(&self, logits: &mut [f32]) {
        if let Some(bias) = &self.bias {
            for row in logits.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
            }
        }
    }

    /// Logits from products with the matrix.
    fn finish(&self, logits: &mut [f32]) {
        self.add_bias(logits);
        if self.spec.scale != 1.0 {
            let scale = self.spec.scale as f32;
            logits.iter_mut().for_each(|logit| *logit *= scale);
        }
        if let Some(softcap) = self.spec.softcap {
            cap(logits, softcap);
        }
    }
}

/// The places of the values that are no less than the largest by more than a distance.
struct Likely<'a>(&'a [f32], f32);

impl Kernel for Likely<'_> {
    type Output = Vec<usize>;

    #[inline(always)]
    fn run(self) -> Vec<usize> {
        let Likely(values, distance) = self;
        let (chunks, rest) = values.as_chunks::<CHUNK>();
        let mut largest = [f32::NEG_INFINITY; CHUNK];
        for chunk in chunks {
            for (largest, &x) in largest.iter_mut().zip(chunk) {
                *largest = if x > *largest { x } else { *largest };
            }
        }
        let all = largest.iter().chain(rest);
        let limit = all.fold(f32::NEG_INFINITY, |a, &x| a.max(x)) - distance;
        let mut places = Vec::new();
        for (index, chunk) in values.chunks(CHUNK).enumerate() {
            let count: u32 = chunk.iter().map(|&x| u32::from(x >= limit)).sum();
            if count > 0 {
                let likely = chunk.iter().enumerate().filter(|(_, x)| **x >= limit);
                places.extend(likely.map(|(place, _)| index * CHUNK + place));
            }
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use uc_model::spec::{NormKind, NormSpec};

    use super::*;
    use crate::matrix::Dense;

    fn numbers(count: usize, step: usize) -> Vec<f32> {
        let number = |i: usize| ((i * step % 1009) as f32 / 504.5 - 1.0).powi(3);
        (1..=count).map(number).collect()
    }

    fn head(
        matrix: Vec<f32>,
        cols: usize,
        bias: Option<Vec<f32>>,
        memory: Option<MemoryForm>,
    ) -> Head {
        let values = matrix.into_iter().map(half::bf16::from_f32).collect();
        let values = Dense::Bf16(values);
        Head {
            bias,
            spec: HeadSpec {
                norm: NormSpec {
                    name: "norm".to_owned(),
                    kind: NormKind::Rms,
                    width: cols,
                    eps: 1e-5,
                },
                weight: "head".to_owned(),
                tied: false,
                bias: None,
                scale: 0.5,
                softcap: None,
            },
            bytes: memory.map(|memory| ByteMatrix::new(&values, cols, memory)),
            matrix: Some(Matrix::Dense { values, cols }),
        }
    }

    #[test]
    fn likely_tokens_have_exact_logits_and_the_others_close_ones() {
        for (vocab, cols, tokens) in [(1003, 70, 1), (515, 256, 3), (70, 600, 12), (3, 5, 1)] {
            let matrix = numbers(vocab * cols, 7919);
            let bias = Some(numbers(vocab, 31).iter().map(|x| x * 20.0).collect());
            let states: Vec<f32> = numbers(tokens * cols, 6421)
                .iter()
                .map(|x| 9.0 * x)
                .collect();
            let new = |memory| head(matrix.clone(), cols, bias.clone(), memory);
            let embedding = Matrix::Dense {
                values: Dense::F32(Vec::new()),
                cols: 1,
            };
            let exact = new(None).logits(&embedding, &states);
            let found = new(Some(MemoryForm::Resident)).logits(&embedding, &states);
            let made = new(Some(MemoryForm::Streamed)).logits(&embedding, &states);
            assert_eq!(found, made);
            for token in 0..tokens {
                let state = &states[token * cols..(token + 1) * cols];
                let alone = new(Some(MemoryForm::Resident)).logits(&embedding, state);
                let range = token * vocab..(token + 1) * vocab;
                assert_eq!(found[range.clone()], alone);
                let exact = &exact[range];
                let largest = exact.iter().fold(f32::NEG_INFINITY, |a, &x| a.max(x));
                let size = state.iter().map(|x| x * x).sum::<f32>().sqrt();
                for (exact, found) in exact.iter().zip(&alone) {
                    // A byte is off by half a step, 1/254 of the largest weight, which is at most 1.
                    let tolerance = size * (cols as f32).sqrt() / 254.0;
                    assert!((exact - found).abs() <= tolerance, "{exact} {found}");
                    if *exact > largest - LIKELY + tolerance {
                        assert_eq!(exact.to_bits(), found.to_bits(), "{vocab} {cols}");
                    }
                }
                assert!(exact != alone || vocab < 100);
            }
        }
    }

    #[test]
    fn likely_values_are_found_wherever_they_are() {
        let values = numbers(1000, 7919);
        for (count, distance) in [(1, 0.0), (63, 0.3), (64, 0.3), (1000, 0.1), (1000, 9.0)] {
            let values = &values[..count];
            let largest = values.iter().fold(f32::NEG_INFINITY, |a, &x| a.max(x));
            let expected = (0..count).filter(|&i| values[i] >= largest - distance);
            assert_eq!(
                dispatch(Likely(values, distance)),
                expected.collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn a_state_that_is_not_finite_gives_no_finite_logit() {
        let (vocab, cols) = (300, 70);
        let head = head(
            numbers(vocab * cols, 7919),
            cols,
            None,
            Some(MemoryForm::Resident),
        );
        let embedding = Matrix::Dense {
            values: Dense::F32(Vec::new()),
            cols: 1,
        };
        for bad in [f32::NAN, f32::INFINITY] {
            let mut state = numbers(cols, 31);
            state[3] = bad;
            let logits = head.logits(&embedding, &state);
            assert!(logits.iter().all(|logit| !logit.is_finite()));
        }
    }
}
