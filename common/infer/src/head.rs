//! The output matrix: from hidden states to logits.
//!
//! It is stored exactly, and at 16 bits a weight it would be among the most that is read for a token. The arithmetic `fast` reads it in
//! [twelve bits](crate::twelve_bits).

use uc_model::ModelConfig;
use uc_model::spec::HeadSpec;

use crate::arithmetic::{Arithmetic, MemoryForm};
use crate::error::InferError;
use crate::matrix::Matrix;
use crate::source::Source;
use crate::twelve_bits::TwelveBits;
use crate::vector::cap;

/// The output matrix and what follows it.
#[derive(Debug)]
pub(crate) struct Head {
    /// None if it is the embedding.
    matrix: Option<Matrix>,
    /// `[vocab]`
    bias: Option<Vec<f32>>,
    spec: HeadSpec,
    /// For the arithmetic `fast`.
    bits: Option<TwelveBits>,
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
        let bits = match (arithmetic, matrix.as_ref().unwrap_or(embedding)) {
            (Arithmetic::Fast, Matrix::Dense { values, cols }) => {
                Some(TwelveBits::new(values, *cols, memory))
            }
            _ => None,
        };
        Ok(Head {
            bias: bias.transpose()?,
            matrix,
            spec,
            bits,
        })
    }

    /// The matrix of its own, unless it is the embedding.
    pub(crate) fn own_matrix(&self) -> Option<&Matrix> {
        self.matrix.as_ref()
    }

    /// Bytes in memory beside the exact matrix.
    pub(crate) fn bytes_beside(&self) -> usize {
        self.bits.as_ref().map_or(0, TwelveBits::bytes)
    }

    /// Bytes that are read for a token.
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
        let mut logits = match (&self.bits, matrix) {
            (Some(bits), Matrix::Dense { values, .. }) => bits.product(values, states),
            _ => matrix.product(states),
        };
        self.finish(&mut logits);
        logits
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
            bits: memory.map(|memory| TwelveBits::new(&values, cols, memory)),
            matrix: Some(Matrix::Dense { values, cols }),
        }
    }

    #[test]
    fn fast_logits_are_close_to_exact_ones_with_bias_and_scale() {
        let (vocab, cols, tokens) = (1003, 70, 3);
        let matrix = numbers(vocab * cols, 7919);
        let bias = numbers(vocab, 31);
        let states = numbers(tokens * cols, 6421);
        let new = |memory| head(matrix.clone(), cols, Some(bias.clone()), memory);
        let embedding = Matrix::Dense {
            values: Dense::F32(Vec::new()),
            cols: 1,
        };
        let exact = new(None).logits(&embedding, &states);
        let found = new(Some(MemoryForm::Resident)).logits(&embedding, &states);
        assert!(found != exact);
        for (found, exact) in found.iter().zip(&exact) {
            assert!((found - exact).abs() < 1e-3, "{found} {exact}");
        }
        assert!(new(None).logits(&embedding, &[]).is_empty());
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
