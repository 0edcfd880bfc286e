//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864): frequencies of every kind and tables.
//!
//! Element pair `(i, i + width/2)` of the first `width` elements of a head at position `p` is turned by
//! the angle `p * inv_freq[i]`; the elements after them stay. Frequencies and angles are rounded to f32
//! where the reference implementation (Hugging Face transformers) holds them in f32, since at position
//! 8000 an f32 ulp of a frequency is already visible; cosine and sine are computed in f64 from that f32
//! angle.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

/// Rotary positions of an attention block.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// Elements of a head that are turned, even.
    pub width: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// How the frequencies are stretched.
    pub scaling: RopeScaling,
}

/// How the rotary frequencies are stretched for contexts longer than those trained on.
#[derive(Debug, Clone, PartialEq)]
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
    /// YaRN (Peng et al. 2023, arXiv 2309.00071): as Llama3, with the ramp over pair numbers and the
    /// vectors lengthened.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Pairs that turn more often than this over the original context are kept.
        beta_fast: f64,
        /// Pairs that turn less often than this are divided.
        beta_slow: f64,
        /// Context that the model was first trained on.
        original_context: f64,
        /// The ramp begins and ends at whole pairs.
        whole: bool,
        /// Factor of cosine and sine.
        lengthening: f64,
    },
    /// LongRoPE (Ding et al. 2024, arXiv 2402.13753): a divisor for every pair, other ones for long windows.
    Long {
        /// Divisors for windows up to `original_context`, one per pair.
        short: Vec<f64>,
        /// Divisors for longer windows.
        long: Vec<f64>,
        /// Longest window for the short divisors.
        original_context: usize,
        /// Factors of cosine and sine for short and for long windows.
        lengthening: [f64; 2],
    },
}

/// Cosines and sines for the positions of a window.
#[derive(Debug, Clone)]
pub struct Rope<B: Backend> {
    /// `[positions, width / 2]`
    pub cos: Tensor<B, 2>,
    /// `[positions, width / 2]`
    pub sin: Tensor<B, 2>,
}

impl<B: Backend> Rope<B> {
    /// Tables for windows of `positions` tokens.
    pub fn new(spec: &RopeSpec, positions: usize, device: &B::Device) -> Self {
        let (frequencies, lengthening) = spec.frequencies(positions);
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |&f| p as f32 * f));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles
            .map(|angle| {
                let (sin, cos) = f64::from(angle).sin_cos();
                let lengthening = lengthening as f32;
                (cos as f32 * lengthening, sin as f32 * lengthening)
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
    /// Angle per position of each pair, `[width / 2]`, in windows of `length` tokens, and the factor of
    /// cosine and sine.
    pub fn frequencies(&self, length: usize) -> (Vec<f32>, f64) {
        let plain: Vec<f32> = (0..self.width / 2)
            .map(|i| {
                let exponent = (2 * i) as f32 / self.width as f32;
                1.0 / (self.theta.powf(f64::from(exponent)) as f32)
            })
            .collect();
        match &self.scaling {
            RopeScaling::Default => (plain, 1.0),
            RopeScaling::Linear { factor } => {
                (plain.iter().map(|f| f / *factor as f32).collect(), 1.0)
            }
            RopeScaling::Llama3 { .. } => {
                (plain.iter().map(|&f| self.scaling.llama3(f)).collect(), 1.0)
            }
            RopeScaling::Yarn { lengthening, .. } => (self.yarn(&plain), *lengthening),
            RopeScaling::Long {
                short,
                long,
                original_context,
                lengthening,
            } => {
                let far = length > *original_context;
                let divisors = if far { long } else { short };
                let divided = plain.iter().zip(divisors).map(|(f, &d)| f / d as f32);
                (divided.collect(), lengthening[usize::from(far)])
            }
        }
    }

    /// The stretched frequencies of YaRN.
    fn yarn(&self, plain: &[f32]) -> Vec<f32> {
        let RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_context,
            whole,
            ..
        } = self.scaling
        else {
            unreachable!("only YaRN's frequencies are stretched here");
        };
        // The pair that turns `times` over the original context.
        let pair = |times: f64| {
            self.width as f64 * (original_context / (times * 2.0 * std::f64::consts::PI)).ln()
                / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
        if whole {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(self.width as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        let stretch = |(i, &f): (usize, &f32)| {
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0) as f32;
            f / factor as f32 * ramp + f * (1.0 - ramp)
        };
        plain.iter().enumerate().map(stretch).collect()
    }
}

impl RopeScaling {
    /// A frequency stretched as in Llama 3.1, computed in f32 as the reference does.
    fn llama3(&self, frequency: f32) -> f32 {
        let RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_context: context,
        } = *self
        else {
            unreachable!("only Llama 3's frequencies are stretched here");
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
