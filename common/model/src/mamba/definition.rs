//! The scan by definition, in double precision, its derivatives by central differences, and random test cases.
//! For tests only.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::tensors::ScanTensors;
use crate::text::splitmix64;

/// A random scan.
#[derive(Clone)]
pub(super) struct Case {
    pub windows: usize,
    pub length: usize,
    pub inner: usize,
    pub state: usize,
    /// `u`, `delta`, `a`, `b`, `c`, `d`, in the layouts of [`ScanTensors`].
    pub inputs: [Vec<f32>; 6],
}

/// `count` pseudo-random numbers from `low..high`.
pub(super) fn random(count: usize, seed: u64, low: f32, high: f32) -> Vec<f32> {
    let unit = |i| (splitmix64(seed, i) >> 40) as f32 / (1 << 24) as f32;
    (0..count as u64)
        .map(|i| low + (high - low) * unit(i))
        .collect()
}

impl Case {
    pub fn new(windows: usize, length: usize, inner: usize, state: usize) -> Self {
        let tokens = windows * length;
        Case {
            windows,
            length,
            inner,
            state,
            inputs: [
                random(tokens * inner, 1, -1.0, 1.0),
                random(tokens * inner, 2, 0.001, 0.9),
                random(inner * state, 3, -4.0, -0.02),
                random(tokens * state, 4, -1.0, 1.0),
                random(tokens * state, 5, -1.0, 1.0),
                random(inner, 6, -1.0, 1.0),
            ],
        }
    }

    /// A random gradient at `y`.
    pub fn grad_y(&self) -> Vec<f32> {
        random(self.windows * self.length * self.inner, 7, -1.0, 1.0)
    }

    pub fn scan<B: Backend>(&self) -> ScanTensors<B> {
        let [u, delta, a, b, c, d] = &self.inputs;
        let shape_x = [self.windows, self.length, self.inner];
        let states = [self.windows, self.length, self.state];
        ScanTensors {
            u: tensor(u, shape_x),
            delta: tensor(delta, shape_x),
            a: tensor(a, [self.inner, self.state]),
            b: tensor(b, states),
            c: tensor(c, states),
            d: tensor(d, [self.inner]),
        }
    }

    /// `y: [windows, length, inner]`.
    pub fn y(&self) -> Vec<f64> {
        let inputs = self.inputs.each_ref().map(|values| to_f64(values));
        y(self, &inputs)
    }

    /// The derivative of `sum(y * grad_y)` with respect to one element of one input, by central difference.
    pub fn derivative(&self, input: usize, index: usize, grad_y: &[f32]) -> f64 {
        const STEP: f64 = 1e-5;
        let loss = |step: f64| -> f64 {
            let mut inputs = self.inputs.each_ref().map(|values| to_f64(values));
            inputs[input][index] += step;
            let y = y(self, &inputs);
            y.iter().zip(grad_y).map(|(y, g)| y * f64::from(*g)).sum()
        };
        (loss(STEP) - loss(-STEP)) / (2.0 * STEP)
    }
}

fn to_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// A tensor on the default device.
pub(super) fn tensor<B: Backend, const D: usize>(
    values: &[f32],
    shape: [usize; D],
) -> Tensor<B, D> {
    Tensor::from_data(
        TensorData::new(values.to_vec(), shape),
        &B::Device::default(),
    )
}

/// The values of a tensor.
pub(super) fn values<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Vec<f32> {
    tensor.to_data().into_vec().expect("f32")
}

fn y(case: &Case, inputs: &[Vec<f64>; 6]) -> Vec<f64> {
    let [u, delta, a, b, c, d] = inputs;
    let (inner, state) = (case.inner, case.state);
    let mut y = vec![0.0; u.len()];
    for window in 0..case.windows {
        let mut h = vec![0.0; inner * state];
        for token in window * case.length..(window + 1) * case.length {
            for channel in 0..inner {
                let at = token * inner + channel;
                y[at] = d[channel] * u[at];
                for n in 0..state {
                    let h = &mut h[channel * state + n];
                    *h *= (delta[at] * a[channel * state + n]).exp();
                    *h += delta[at] * u[at] * b[token * state + n];
                    y[at] += c[token * state + n] * *h;
                }
            }
        }
    }
    y
}
