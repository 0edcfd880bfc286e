//! The short convolution of Mamba: a causal depthwise convolution over the current token and those just before
//! it.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// `y[t] = bias + sum over k of weight[k] * x[t - (kernel - 1) + k]` in every window and channel,
/// with zero padding before the window.
///
/// `x: [windows, length, inner]`, `weight: [inner, kernel]`, `bias: [inner]`; the result has the
/// shape of `x`.
///
/// # Panics
/// If the shapes do not match.
pub(crate) fn causal_conv<B: Backend>(
    x: Tensor<B, 3>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, 3> {
    let [windows, length, inner] = x.dims();
    let [channels, kernel] = weight.dims();
    assert_eq!(channels, inner, "channels of the convolution's weight");
    let padding = Tensor::zeros([windows, kernel - 1, inner], &x.device());
    let padded = Tensor::cat(vec![padding, x], 1);
    let taps = (0..kernel).map(|k| {
        let column = weight.clone().narrow(1, k, 1).reshape([1, 1, inner]);
        padded.clone().narrow(1, k, length) * column
    });
    let y = taps.reduce(|sum, tap| sum + tap).expect("kernel > 0");
    match bias {
        Some(bias) => y + bias.reshape([1, 1, inner]),
        None => y,
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;

    use super::super::definition::{random, tensor, values};
    use super::*;
    use crate::device::Cpu;

    /// Windows, length, channels, kernel.
    const SHAPES: [[usize; 4]; 6] = [
        [1, 1, 1, 1],
        [2, 1, 3, 4],
        [3, 5, 7, 1],
        [2, 3, 4, 6],
        [1, 4, 17, 4],
        [2, 40, 70, 4],
    ];

    struct Case {
        x: Vec<f32>,
        weight: Vec<f32>,
        bias: Vec<f32>,
        grad_y: Vec<f32>,
    }

    fn case([windows, length, inner, kernel]: [usize; 4]) -> Case {
        Case {
            x: random(windows * length * inner, 1, -1.0, 1.0),
            weight: random(inner * kernel, 2, -1.0, 1.0),
            bias: random(inner, 3, -1.0, 1.0),
            grad_y: random(windows * length * inner, 4, -1.0, 1.0),
        }
    }

    /// Calls `term([token, channel, earlier token, kernel index])` for every product of the convolution.
    fn terms([windows, length, inner, kernel]: [usize; 4], mut term: impl FnMut([usize; 4])) {
        for window in 0..windows {
            for t in 0..length {
                for channel in 0..inner {
                    for k in (0..kernel).filter(|k| t + k + 1 >= kernel) {
                        let token = window * length + t;
                        term([token, channel, token + k + 1 - kernel, k]);
                    }
                }
            }
        }
    }

    fn assert_close(found: &[f32], expected: &[f64], what: &str) {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (found, expected) in found.iter().zip(expected) {
            let error = (f64::from(*found) - expected).abs();
            assert!(
                error <= 2e-6 * expected.abs().max(1.0),
                "{what}: {found} {expected}"
            );
        }
    }

    #[test]
    fn the_convolution_and_its_gradients_equal_the_definition() {
        for shape in SHAPES {
            let [windows, length, inner, kernel] = shape;
            let case = case(shape);
            let to_f64 =
                |values: &[f32]| -> Vec<f64> { values.iter().map(|&x| x.into()).collect() };
            let (x, weight, grad_y) = (to_f64(&case.x), to_f64(&case.weight), to_f64(&case.grad_y));
            let mut y = vec![0.0; x.len()];
            let (mut grad_x, mut grad_weight) = (vec![0.0; x.len()], vec![0.0; weight.len()]);
            terms(shape, |[token, channel, earlier, k]| {
                let (at, from) = (token * inner + channel, earlier * inner + channel);
                let w = channel * kernel + k;
                y[at] += weight[w] * x[from];
                grad_x[from] += grad_y[at] * weight[w];
                grad_weight[w] += grad_y[at] * x[from];
            });
            let shape_x = [windows, length, inner];
            let without_bias: Tensor<Cpu, 3> = causal_conv(
                tensor(&case.x, shape_x),
                tensor(&case.weight, [inner, kernel]),
                None,
            );
            assert_close(&values(&without_bias), &y, &format!("y {shape:?}"));

            let x: Tensor<Autodiff<Cpu>, 3> = tensor(&case.x, shape_x).require_grad();
            let weight = tensor(&case.weight, [inner, kernel]).require_grad();
            let bias = tensor(&case.bias, [inner]).require_grad();
            let found = causal_conv(x.clone(), weight.clone(), Some(bias.clone()));
            y.iter_mut()
                .zip(0..)
                .for_each(|(y, at)| *y += f64::from(case.bias[at % inner]));
            assert_close(&values(&found), &y, &format!("y with bias {shape:?}"));
            let found = (found * tensor(&case.grad_y, shape_x)).sum().backward();
            let found_x = x.grad(&found).expect("x");
            assert_close(&values(&found_x), &grad_x, &format!("x {shape:?}"));
            let found_weight = weight.grad(&found).expect("weight");
            assert_close(
                &values(&found_weight),
                &grad_weight,
                &format!("weight {shape:?}"),
            );
            let mut grad_bias = vec![0.0; inner];
            grad_y
                .iter()
                .zip(0..)
                .for_each(|(g, at)| grad_bias[at % inner] += g);
            let found_bias = bias.grad(&found).expect("bias");
            assert_close(&values(&found_bias), &grad_bias, &format!("bias {shape:?}"));
        }
    }

    #[test]
    fn a_token_depends_neither_on_later_tokens_nor_on_other_windows() {
        let [windows, length, inner, kernel] = [2, 6, 3, 4];
        let case = case([windows, length, inner, kernel]);
        let run = |x: &[f32]| {
            let x: Tensor<Cpu, 3> = tensor(x, [windows, length, inner]);
            values(&causal_conv(x, tensor(&case.weight, [inner, kernel]), None))
        };
        let mut changed = case.x.clone();
        let token = 3 * inner;
        changed[token..token + inner].fill(9.0);
        let (before, after) = (run(&case.x), run(&changed));
        let second = length * inner;
        assert_eq!(before[..token], after[..token]);
        assert_eq!(before[second..], after[second..]);
        assert!(
            before[token..second]
                .iter()
                .zip(&after[token..second])
                .all(|(a, b)| a != b)
        );
    }

    /// Seconds for one layer of Mamba-2.8B and 1024 tokens.
    #[test]
    #[ignore = "a speed measurement"]
    fn speed_at_mamba_2_8b() {
        let shape @ [windows, length, inner, kernel] = [1, 1024, 5120, 4];
        let case = case(shape);
        let shape_x = [windows, length, inner];
        let x: Tensor<Cpu, 3> = tensor(&case.x, shape_x);
        let weight: Tensor<Cpu, 2> = tensor(&case.weight, [inner, kernel]);
        for _ in 0..3 {
            let start = std::time::Instant::now();
            let y = causal_conv(x.clone(), weight.clone(), None);
            println!("{:?} forward {:?}", y.dims(), start.elapsed());
        }
        let x: Tensor<Autodiff<Cpu>, 3> = tensor(&case.x, shape_x).require_grad();
        let weight = tensor(&case.weight, [inner, kernel]);
        for _ in 0..3 {
            let start = std::time::Instant::now();
            let y = causal_conv(x.clone(), weight.clone(), None);
            println!("forward with graph {:?}", start.elapsed());
            let loss = (y * tensor(&case.grad_y, shape_x)).sum();
            let start = std::time::Instant::now();
            assert!(x.grad(&loss.backward()).is_some());
            println!("backward {:?}", start.elapsed());
        }
    }
}
