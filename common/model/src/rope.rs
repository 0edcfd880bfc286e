//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864): frequencies of every scaling method, and
//! tables of cosines and sines.
//!
//! In the first `width` elements of a head, the pair `(i, i + width/2)` at position `p` is rotated by the
//! angle `p * inv_freq[i]`; the elements after them are not rotated. Frequencies and angles are rounded to
//! f32 wherever the reference implementation (Hugging Face transformers) holds them in f32: at position
//! 8000, one ulp of a frequency already makes a visible difference. Cosine and sine are computed in f64
//! from that f32 angle.

#[cfg(feature = "forward")]
use burn::tensor::backend::Backend;
#[cfg(feature = "forward")]
use burn::tensor::{Tensor, TensorData};

/// Rotary positions of an attention block.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// Number of elements of a head that are rotated; even.
    pub width: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// How the frequencies are scaled.
    pub scaling: RopeScaling,
}

/// How the rotary frequencies are scaled for contexts longer than those of the training.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// No scaling.
    Default,
    /// Every frequency divided by `factor`.
    Linear {
        /// Divisor, above 0.
        factor: f64,
    },
    /// Dynamic NTK: for windows longer than the context, the base grows with the length of the window, so that the
    /// lowest frequency is that of the linear scaling by their ratio.
    Dynamic {
        /// Scaling per multiple of the context, above 0.
        factor: f64,
        /// Longest window, in tokens, that is not scaled.
        original_context: usize,
    },
    /// Llama 3.1: low frequencies are divided by `factor`, high ones are kept, those between are interpolated.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context length of the original training.
        original_context: f64,
    },
    /// YaRN (Peng et al. 2023, arXiv 2309.00071): as `Llama3`, but interpolated by pair index instead of
    /// wavelength, and with scaled cosines and sines.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Pairs that make more rotations than this over the original context keep their frequency.
        beta_fast: f64,
        /// Frequencies of pairs that make fewer rotations than this are divided by `factor`.
        beta_slow: f64,
        /// Context length of the original training.
        original_context: f64,
        /// Whether the ends of the interpolation are rounded to whole pairs.
        truncate: bool,
        /// Factor of cosine and sine (transformers: `attention_factor`).
        attention_factor: f64,
    },
    /// LongRoPE (Ding et al. 2024, arXiv 2402.13753): one divisor per pair, with a second set for long windows.
    LongRope {
        /// Divisors for windows up to `original_context`, one per pair.
        short: Vec<f64>,
        /// Divisors for longer windows.
        long: Vec<f64>,
        /// Longest window, in tokens, for which `short` is used.
        original_context: usize,
        /// Factor of cosine and sine for short and for long windows.
        attention_factors: [f64; 2],
    },
}

/// Cosines and sines for the positions of a window, multiplied by the attention factor.
#[cfg(feature = "forward")]
#[derive(Debug, Clone)]
pub struct Rope<B: Backend> {
    /// `[positions, width / 2]`
    pub cos: Tensor<B, 2>,
    /// `[positions, width / 2]`
    pub sin: Tensor<B, 2>,
}

#[cfg(feature = "forward")]
impl<B: Backend> Rope<B> {
    /// Tables for windows of `positions` tokens.
    pub fn new(spec: &RopeSpec, positions: usize, device: &B::Device) -> Self {
        let (frequencies, attention_factor) = spec.frequencies(positions);
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |&f| p as f32 * f));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles
            .map(|angle| {
                let (sin, cos) = f64::from(angle).sin_cos();
                let attention_factor = attention_factor as f32;
                (cos as f32 * attention_factor, sin as f32 * attention_factor)
            })
            .unzip();
        let shape = [positions, frequencies.len()];
        Rope {
            cos: Tensor::from_data(TensorData::new(cos, shape), device),
            sin: Tensor::from_data(TensorData::new(sin, shape), device),
        }
    }

    /// Number of positions in the tables.
    pub fn positions(&self) -> usize {
        self.cos.dims()[0]
    }
}

impl RopeSpec {
    /// The frequency of each pair, `[width / 2]` in radians per token, for windows of `length` tokens, and
    /// the factor of cosine and sine.
    pub fn frequencies(&self, length: usize) -> (Vec<f32>, f64) {
        let base: Vec<f32> = (0..self.width / 2)
            .map(|i| {
                let exponent = (2 * i) as f32 / self.width as f32;
                1.0 / (self.theta.powf(f64::from(exponent)) as f32)
            })
            .collect();
        match &self.scaling {
            RopeScaling::Default => (base, 1.0),
            RopeScaling::Dynamic {
                factor,
                original_context,
            } => (self.dynamic(base, *factor, *original_context, length), 1.0),
            RopeScaling::Linear { factor } => {
                (base.iter().map(|f| f / *factor as f32).collect(), 1.0)
            }
            RopeScaling::Llama3 { .. } => {
                (base.iter().map(|&f| self.scaling.llama3(f)).collect(), 1.0)
            }
            RopeScaling::Yarn {
                attention_factor, ..
            } => (self.yarn(&base), *attention_factor),
            RopeScaling::LongRope {
                short,
                long,
                original_context,
                attention_factors,
            } => {
                let is_long = length > *original_context;
                let divisors = if is_long { long } else { short };
                let divided = base.iter().zip(divisors).map(|(f, &d)| f / d as f32);
                (divided.collect(), attention_factors[usize::from(is_long)])
            }
        }
    }

    /// The frequencies `base`, or those of a larger base for windows that are longer than the context. Computed in f32,
    /// as the reference implementation does.
    fn dynamic(&self, base: Vec<f32>, factor: f64, context: usize, length: usize) -> Vec<f32> {
        if length <= context {
            return base;
        }
        let stretch = factor as f32 * length as f32 / context as f32 - (factor - 1.0) as f32;
        let exponent = self.width as f64 / (self.width as f64 - 2.0);
        let theta = self.theta as f32 * stretch.powf(exponent as f32);
        let pairs = 0..self.width / 2;
        pairs
            .map(|i| 1.0 / theta.powf((2 * i) as f32 / self.width as f32))
            .collect()
    }

    /// The frequencies `base` scaled by YaRN.
    fn yarn(&self, base: &[f32]) -> Vec<f32> {
        let RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_context,
            truncate,
            ..
        } = self.scaling
        else {
            unreachable!("called for YaRN only");
        };
        // The (fractional) index of the pair that makes `rotations` rotations over the original context.
        let pair = |rotations: f64| {
            self.width as f64 * (original_context / (rotations * 2.0 * std::f64::consts::PI)).ln()
                / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(self.width as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        let interpolate = |(i, &f): (usize, &f32)| {
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0) as f32;
            f / factor as f32 * ramp + f * (1.0 - ramp)
        };
        base.iter().enumerate().map(interpolate).collect()
    }
}

impl RopeScaling {
    /// A frequency scaled as in Llama 3.1, computed in f32 as the reference implementation does.
    fn llama3(&self, frequency: f32) -> f32 {
        let RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_context: context,
        } = *self
        else {
            unreachable!("called for Llama 3 only");
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values: the formula of transformers' `_compute_dynamic_ntk_parameters` in f64.
    #[test]
    fn dynamic_scaling_changes_windows_longer_than_the_context_only() {
        let spec = |scaling| RopeSpec {
            width: 8,
            theta: 10_000.0,
            scaling,
        };
        let plain = spec(RopeScaling::Default).frequencies(1);
        let dynamic = spec(RopeScaling::Dynamic {
            factor: 2.0,
            original_context: 128,
        });
        for length in [1, 127, 128] {
            assert_eq!(dynamic.frequencies(length), plain, "{length}");
        }
        let (found, attention_factor) = dynamic.frequencies(256);
        assert_eq!(attention_factor, 1.0);
        let theta: f64 = 10_000.0 * (2.0_f64 * 256.0 / 128.0 - 1.0).powf(8.0 / 6.0);
        for (i, found) in found.into_iter().enumerate() {
            let expected = theta.powf(-(i as f64) / 4.0);
            let error = (f64::from(found) / expected - 1.0).abs();
            assert!(error < 1e-6, "pair {i}: {found}, expected {expected}");
        }
    }
}
