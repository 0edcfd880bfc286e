//! Rotary position embedding: frequencies (default, linear, llama3) and tables.
//!
//! Element pair `(i, i + head_dim/2)` of a head at position `p` is turned by the angle
//! `p * inv_freq[i]`. Frequencies and angles are rounded to f32 where the reference implementation
//! (Hugging Face transformers) holds them in f32, since at position 8000 an f32 ulp of a frequency
//! is already visible; cosine and sine are computed in f64 from that f32 angle.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::config::ModelConfig;
use crate::error::ModelError;

/// How the rotary frequencies are stretched for contexts longer than those trained on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    Default,
    /// Every frequency divided by `factor`.
    Linear {
        /// Divisor, above 0.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context that the model was first trained on.
        original_context: f64,
    },
}

/// Cosines and sines for positions `0..positions()`.
#[derive(Debug, Clone)]
pub struct Rope<B: Backend> {
    /// `[positions, head_dim / 2]`
    pub cos: Tensor<B, 2>,
    /// `[positions, head_dim / 2]`
    pub sin: Tensor<B, 2>,
}

impl<B: Backend> Rope<B> {
    /// Tables for `positions` positions.
    ///
    /// # Errors
    /// [`ModelError::TooManyPositions`] if that is more than the model's context.
    pub fn new(
        config: &ModelConfig,
        positions: usize,
        device: &B::Device,
    ) -> Result<Self, ModelError> {
        if positions > config.context {
            let expected = config.context;
            return Err(ModelError::TooManyPositions {
                found: positions,
                expected,
            });
        }
        let frequencies = inverse_frequencies(config);
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |&f| p as f32 * f));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles
            .map(|a| (f64::from(a).cos() as f32, f64::from(a).sin() as f32))
            .unzip();
        let shape = [positions, frequencies.len()];
        Ok(Rope {
            cos: Tensor::from_data(TensorData::new(cos, shape), device),
            sin: Tensor::from_data(TensorData::new(sin, shape), device),
        })
    }

    /// Number of positions in the tables.
    pub fn positions(&self) -> usize {
        self.cos.dims()[0]
    }
}

/// Angle per position of each pair, `[head_dim / 2]`.
pub fn inverse_frequencies(config: &ModelConfig) -> Vec<f32> {
    let half = config.head_dim / 2;
    (0..half)
        .map(|i| {
            let exponent = (2 * i) as f32 / config.head_dim as f32;
            let plain = 1.0 / (config.rope_theta.powf(f64::from(exponent)) as f32);
            config.rope_scaling.stretch(plain)
        })
        .collect()
}

impl RopeScaling {
    /// The stretched frequency, computed in f32 as the reference does.
    fn stretch(self, frequency: f32) -> f32 {
        match self {
            RopeScaling::Default => frequency,
            RopeScaling::Linear { factor } => frequency / factor as f32,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_context: context,
            } => {
                let wavelength = 2.0 * std::f32::consts::PI / frequency;
                if wavelength > (context / low) as f32 {
                    frequency / factor as f32
                } else if wavelength < (context / high) as f32 {
                    frequency
                } else {
                    let smooth = (context as f32 / wavelength - low as f32) / (high - low) as f32;
                    (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
                }
            }
        }
    }
}
