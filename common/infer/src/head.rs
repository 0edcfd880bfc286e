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
use crate::twelve_bits::{TwelveBits, streamed_product};
use crate::vector::cap;

/// The output matrix and what follows it.
#[derive(Debug)]
pub(crate) struct Head {
    weights: Weights,
    /// `[vocab]`
    bias: Option<Vec<f32>>,
    spec: HeadSpec,
}

/// The output matrix, `[vocab, hidden]`.
#[derive(Debug)]
enum Weights {
    /// As stored; none if it is tied to the embedding.
    Exact(Option<Matrix>),
    /// As stored; converted to integers of twelve bits each time it is read.
    Streamed(Option<Matrix>),
    /// In integers of twelve bits only.
    Integers(TwelveBits),
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
        let own = match spec.tied {
            true => None,
            false => Some(source.matrix(&spec.weight, [config.vocab, config.hidden])?),
        };
        let bias = spec.bias.as_ref();
        let bias = bias.map(|name| source.values(name, &[config.vocab]));
        Ok(Head {
            bias: bias.transpose()?,
            weights: Weights::new(own, arithmetic, memory, embedding),
            spec,
        })
    }

    /// The exact matrix of its own, if it has one in memory.
    pub(crate) fn own_matrix(&self) -> Option<&Matrix> {
        match &self.weights {
            Weights::Exact(own) | Weights::Streamed(own) => own.as_ref(),
            Weights::Integers(_) => None,
        }
    }

    /// Bytes of integers in memory.
    pub(crate) fn integer_bytes(&self) -> usize {
        match &self.weights {
            Weights::Integers(bits) => bits.bytes(),
            _ => 0,
        }
    }

    /// Bytes that are read for a token.
    pub(crate) fn bytes_read(&self, embedding: &Matrix) -> usize {
        match &self.weights {
            Weights::Integers(bits) => bits.bytes(),
            _ => self.own_matrix().unwrap_or(embedding).bytes(),
        }
    }

    /// The logits `[states, vocab]` of hidden states `[states, hidden]`, which are normalized.
    pub(crate) fn logits(&self, embedding: &Matrix, states: &[f32]) -> Vec<f32> {
        if states.is_empty() {
            return Vec::new();
        }
        let stored = self.own_matrix().unwrap_or(embedding);
        let mut logits = match (&self.weights, stored) {
            (Weights::Integers(bits), _) => bits.product(states),
            (Weights::Streamed(_), Matrix::Dense { values, cols }) => {
                streamed_product(values, *cols, states)
            }
            _ => stored.product(states),
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

impl Weights {
    fn new(
        own: Option<Matrix>,
        arithmetic: Arithmetic,
        memory: MemoryForm,
        embedding: &Matrix,
    ) -> Self {
        match (arithmetic, memory, own.as_ref().unwrap_or(embedding)) {
            (Arithmetic::Fast, MemoryForm::Resident, Matrix::Dense { values, cols }) => {
                Weights::Integers(TwelveBits::new(values, *cols))
            }
            (Arithmetic::Fast, MemoryForm::Streamed, Matrix::Dense { .. }) => {
                Weights::Streamed(own)
            }
            _ => Weights::Exact(own),
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
        arithmetic: Arithmetic,
        memory: MemoryForm,
    ) -> Head {
        let values = matrix.into_iter().map(half::bf16::from_f32).collect();
        let values = Dense::Bf16(values);
        let own = Some(Matrix::Dense { values, cols });
        Head {
            bias,
            weights: Weights::new(own, arithmetic, memory, &no_embedding()),
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
        }
    }

    fn no_embedding() -> Matrix {
        Matrix::Dense {
            values: Dense::F32(Vec::new()),
            cols: 1,
        }
    }

    #[test]
    fn fast_logits_are_close_to_exact_ones_with_bias_and_scale() {
        let (vocab, cols, tokens) = (1003, 70, 3);
        let matrix = numbers(vocab * cols, 7919);
        let bias = numbers(vocab, 31);
        let states = numbers(tokens * cols, 6421);
        let new =
            |arithmetic, memory| head(matrix.clone(), cols, Some(bias.clone()), arithmetic, memory);
        let embedding = no_embedding();
        let exact = new(Arithmetic::Exact, MemoryForm::Resident);
        let resident = new(Arithmetic::Fast, MemoryForm::Resident);
        let streamed = new(Arithmetic::Fast, MemoryForm::Streamed);
        assert!(exact.logits(&embedding, &[]).is_empty());
        let [exact, found, same] =
            [&exact, &resident, &streamed].map(|head| head.logits(&embedding, &states));
        assert!(found != exact && found == same);
        for (found, exact) in found.iter().zip(&exact) {
            assert!((found - exact).abs() < 1e-3, "{found} {exact}");
        }
        // Only what is read stays in memory.
        assert!(resident.own_matrix().is_none() && resident.integer_bytes() > 0);
        assert!(streamed.own_matrix().is_some() && streamed.integer_bytes() == 0);
    }

    #[test]
    fn a_state_that_is_not_finite_gives_no_finite_logit() {
        let (vocab, cols) = (300, 70);
        let head = head(
            numbers(vocab * cols, 7919),
            cols,
            None,
            Arithmetic::Fast,
            MemoryForm::Resident,
        );
        let embedding = no_embedding();
        for bad in [f32::NAN, f32::INFINITY] {
            let mut state = numbers(cols, 31);
            state[3] = bad;
            let logits = head.logits(&embedding, &state);
            assert!(logits.iter().all(|logit| !logit.is_finite()));
        }
    }
}
