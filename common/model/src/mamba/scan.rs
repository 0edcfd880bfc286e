//! The selective scan as one differentiable operation, dispatched by backend.
//!
//! burn defines custom operations per backend type, and code that is generic in `B: Backend` does not know that
//! type. The usual solution is a trait that every caller has to name in its bounds. It is avoided here: the
//! backends of this crate are a closed list ([`crate::device`], each with and without [`Autodiff`]), so the type
//! is looked up and the tensors are converted through [`Any`](std::any::Any).

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::tensors::ScanTensors;
use super::{blocks, kernel};
#[cfg(feature = "cuda")]
use crate::device::Cuda;
use crate::device::{Cpu, cast, is, slice, tensor};

/// The selective scan of Mamba (Gu & Dao 2023, algorithm 2): in every window and channel
/// `h[t] = exp(delta[t] a) h[t-1] + delta[t] u[t] b[t]` from `h = 0`, `y[t] = <c[t], h[t]> + d u[t]`.
///
/// `u`, `delta: [windows, length, inner]`, `a: [inner, state]`, `b`, `c: [windows, length, state]`,
/// `d: [inner]`; the result has the shape of `u`. `delta` is the output of softplus, so it is not negative, and
/// `a` is `-exp(A_log)`, so it is negative: their product must not exceed 0. On the CPU a decay is at least
/// `e^-87`. Differentiable with respect to all six inputs on `Autodiff` of both devices. On other backends the
/// graph of the tensor operations is recorded, which is correct but large.
///
/// # Panics
/// If the shapes do not match, or one is empty.
pub(crate) fn selective_scan<B: Backend>(
    u: Tensor<B, 3>,
    delta: Tensor<B, 3>,
    a: Tensor<B, 2>,
    b: Tensor<B, 3>,
    c: Tensor<B, 3>,
    d: Tensor<B, 1>,
) -> Tensor<B, 3> {
    let scan = ScanTensors {
        u,
        delta,
        a,
        b,
        c,
        d,
    };
    scan.check();
    if is::<B, Autodiff<Cpu>>() {
        return cast(record::<Cpu>(cast(scan)));
    }
    #[cfg(feature = "cuda")]
    if is::<B, Autodiff<Cuda>>() {
        return cast(record::<Cuda>(cast(scan)));
    }
    forward(&scan)
}

/// The scan, without a graph.
fn forward<B: Backend>(scan: &ScanTensors<B>) -> Tensor<B, 3> {
    if is::<B, Cpu>() {
        let y = on_slices(scan, kernel::forward);
        return from_values(y, scan.u.dims(), &scan.u);
    }
    blocks::forward(scan)
}

/// Gradients of `sum(y * grad_y)` by the six inputs, without a graph.
fn gradient<B: Backend>(scan: &ScanTensors<B>, grad_y: Tensor<B, 3>) -> ScanTensors<B> {
    if !is::<B, Cpu>() {
        return blocks::gradient(scan, &grad_y);
    }
    let grad_y = grad_y.into_data();
    let found = on_slices(scan, |input| kernel::gradient(input, slice(&grad_y)));
    ScanTensors {
        u: from_values(found.u, scan.u.dims(), &scan.u),
        delta: from_values(found.delta, scan.u.dims(), &scan.u),
        a: from_values(found.a, scan.a.dims(), &scan.u),
        b: from_values(found.b, scan.b.dims(), &scan.u),
        c: from_values(found.c, scan.c.dims(), &scan.u),
        d: from_values(found.d, scan.d.dims(), &scan.u),
    }
}

/// Passes the values of the tensors to `work`; for the plain CPU backend.
fn on_slices<B: Backend, R>(scan: &ScanTensors<B>, work: impl FnOnce(kernel::Input<'_>) -> R) -> R {
    let [inner, state] = scan.a.dims();
    let [u, delta] = [&scan.u, &scan.delta].map(|t| t.clone().into_data());
    let [b, c] = [&scan.b, &scan.c].map(|t| t.clone().into_data());
    let (a, d) = (scan.a.clone().into_data(), scan.d.clone().into_data());
    work(kernel::Input {
        u: slice(&u),
        delta: slice(&delta),
        a: slice(&a),
        b: slice(&b),
        c: slice(&c),
        d: slice(&d),
        length: scan.length(),
        inner,
        state,
    })
}

/// A tensor on the device of `like`.
fn from_values<B: Backend, const D: usize>(
    values: Vec<f32>,
    shape: [usize; D],
    like: &Tensor<B, 3>,
) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values, shape), &like.device())
}

/// The scan, recorded as one operation of the graph.
fn record<I: Backend>(scan: ScanTensors<Autodiff<I>>) -> Tensor<Autodiff<I>, 3> {
    let inputs = scan.into_primitives();
    let nodes = inputs.each_ref().map(|input| input.node.clone());
    let scan = ScanTensors::<I>::from_primitives(inputs.map(|input| input.primitive));
    let y = forward(&scan).into_primitive().tensor();
    let operation = SelectiveScan.prepare::<NoCheckpointing>(nodes);
    tensor(match operation.compute_bound().stateful() {
        OpsKind::Tracked(tracked) => tracked.finish(scan, y),
        OpsKind::UnTracked(untracked) => untracked.finish(y),
    })
}

/// The backward operation of a scan; the graph keeps the inputs of the scan as its state.
#[derive(Debug)]
struct SelectiveScan;

impl<I: Backend> Backward<I, 6> for SelectiveScan {
    type State = ScanTensors<I>;

    fn backward(
        self,
        ops: Ops<ScanTensors<I>, 6>,
        gradients: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let grad_y = tensor(gradients.consume::<I>(&ops.node));
        let found = gradient(&ops.state, grad_y).into_primitives();
        for (parent, found) in ops.parents.iter().zip(found) {
            if let Some(parent) = parent {
                gradients.register::<I>(parent.id, found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rayon::ThreadPoolBuilder;

    use super::super::definition::{Case, tensor, values};
    use super::*;

    /// Windows, length, inner, state: all 1, and sizes below and above a register of channels, a piece and a
    /// block of steps.
    const SHAPES: [[usize; 4]; 7] = [
        [1, 1, 1, 1],
        [3, 1, 5, 4],
        [2, 9, 16, 16],
        [1, 33, 17, 3],
        [2, 64, 64, 2],
        [2, 70, 70, 3],
        [1, 131, 130, 5],
    ];
    /// Largest accepted error, relative to the largest value of the result.
    const ERROR: f64 = 3e-6;

    fn assert_close(found: &[f32], expected: &[f64], what: &str) {
        assert_eq!(found.len(), expected.len(), "{what}");
        let largest = expected.iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            let error = (f64::from(*found) - expected).abs() / largest;
            assert!(error <= ERROR, "{what}[{i}]: {found} for {expected}");
        }
    }

    /// The values, in the order of the fields.
    fn all_values<B: Backend>(scan: &ScanTensors<B>) -> [Vec<f32>; 6] {
        [
            values(&scan.u),
            values(&scan.delta),
            values(&scan.a),
            values(&scan.b),
            values(&scan.c),
            values(&scan.d),
        ]
    }

    fn scan<B: Backend>(input: ScanTensors<B>) -> Tensor<B, 3> {
        let ScanTensors {
            u,
            delta,
            a,
            b,
            c,
            d,
        } = input;
        selective_scan(u, delta, a, b, c, d)
    }

    /// The scan of a case, with gradients required for all inputs.
    fn tracked(case: &Case) -> ScanTensors<Autodiff<Cpu>> {
        let input = case.scan::<Autodiff<Cpu>>();
        ScanTensors {
            u: input.u.require_grad(),
            delta: input.delta.require_grad(),
            a: input.a.require_grad(),
            b: input.b.require_grad(),
            c: input.c.require_grad(),
            d: input.d.require_grad(),
        }
    }

    /// Gradients of `sum(y * grad_y)` that the graph of `y` gives.
    fn graph_gradients(
        input: &ScanTensors<Autodiff<Cpu>>,
        y: Tensor<Autodiff<Cpu>, 3>,
        grad_y: &[f32],
    ) -> ScanTensors<Cpu> {
        let grad_y = tensor(grad_y, y.dims());
        let found = (y * grad_y).sum().backward();
        ScanTensors {
            u: input.u.grad(&found).expect("u"),
            delta: input.delta.grad(&found).expect("delta"),
            a: input.a.grad(&found).expect("a"),
            b: input.b.grad(&found).expect("b"),
            c: input.c.grad(&found).expect("c"),
            d: input.d.grad(&found).expect("d"),
        }
    }

    #[test]
    fn kernel_and_blocks_equal_the_definition() {
        for shape in SHAPES {
            let [windows, length, inner, state] = shape;
            let case = Case::new(windows, length, inner, state);
            let input = case.scan::<Cpu>();
            let expected = case.y();
            let blocks = blocks::forward(&input);
            assert_close(&values(&blocks), &expected, &format!("blocks {shape:?}"));
            let kernel = scan(input);
            assert_close(&values(&kernel), &expected, &format!("kernel {shape:?}"));
        }
    }

    #[test]
    fn gradients_with_respect_to_all_six_inputs_equal_central_differences() {
        /// Elements of each input that are checked.
        const CHECKED: usize = 40;
        for shape in SHAPES {
            let [windows, length, inner, state] = shape;
            let case = Case::new(windows, length, inner, state);
            let (input, grad_y) = (case.scan::<Cpu>(), case.grad_y());
            let grad_tensor = tensor(&grad_y, [windows, length, inner]);
            let kernel = all_values(&gradient(&input, grad_tensor.clone()));
            let blocks = all_values(&blocks::gradient(&input, &grad_tensor));
            for (which, name) in ["u", "delta", "a", "b", "c", "d"].iter().enumerate() {
                let count = kernel[which].len();
                assert_eq!(count, case.inputs[which].len(), "{name} {shape:?}");
                let picks = (0..count).rev().step_by(count.div_ceil(CHECKED));
                let picks: Vec<usize> = picks.collect();
                let expected: Vec<f64> = picks
                    .iter()
                    .map(|&index| case.derivative(which, index, &grad_y))
                    .collect();
                for (implementation, found) in [("kernel", &kernel), ("blocks", &blocks)] {
                    let found: Vec<f32> = picks.iter().map(|&index| found[which][index]).collect();
                    assert_close(
                        &found,
                        &expected,
                        &format!("{implementation} {name} {shape:?}"),
                    );
                }
            }
        }
    }

    #[test]
    fn the_recorded_operation_gives_the_bits_of_the_kernel() {
        let case = Case::new(2, 40, 20, 4);
        let (input, grad_y) = (tracked(&case), case.grad_y());
        let y = scan(input.clone());
        assert_eq!(values(&y), values(&scan(case.scan::<Cpu>())));
        let found = graph_gradients(&input, y, &grad_y);
        let expected = gradient(&case.scan::<Cpu>(), tensor(&grad_y, [2, 40, 20]));
        assert_eq!(all_values(&found), all_values(&expected));
    }

    #[test]
    fn autodiff_of_the_tensor_operations_gives_the_same_gradients() {
        let case = Case::new(2, 70, 6, 4);
        let (input, grad_y) = (tracked(&case), case.grad_y());
        let found = graph_gradients(&input, blocks::forward(&input), &grad_y);
        let expected = gradient(&case.scan::<Cpu>(), tensor(&grad_y, [2, 70, 6]));
        for (found, expected) in all_values(&found).iter().zip(all_values(&expected)) {
            let expected: Vec<f64> = expected.iter().map(|&x| f64::from(x)).collect();
            assert_close(found, &expected, "graph");
        }
    }

    #[test]
    fn windows_are_computed_in_groups_if_their_states_exceed_the_budget() {
        let case = Case::new(3, 2, 1 << 10, 1 << 8);
        let (input, grad_y) = (case.scan::<Cpu>(), tensor(&case.grad_y(), [3, 2, 1 << 10]));
        assert_eq!(blocks::window_groups(&input).count(), 2);
        let to_f64 = |x: &f32| f64::from(*x);
        let expected: Vec<f64> = values(&scan(input.clone())).iter().map(to_f64).collect();
        assert_close(&values(&blocks::forward(&input)), &expected, "y");
        let found = all_values(&blocks::gradient(&input, &grad_y));
        for (found, expected) in found.iter().zip(all_values(&gradient(&input, grad_y))) {
            let expected: Vec<f64> = expected.iter().map(to_f64).collect();
            assert_close(found, &expected, "gradient");
        }
    }

    #[test]
    fn only_required_gradients_are_computed() {
        let case = Case::new(1, 5, 3, 2);
        let input = case.scan::<Autodiff<Cpu>>();
        let input = ScanTensors {
            u: input.u.require_grad(),
            ..input
        };
        let found = scan(input.clone()).sum().backward();
        assert!(input.u.grad(&found).is_some());
        assert!(input.delta.grad(&found).is_none());
        assert!(input.a.grad(&found).is_none());
        let untracked = scan(case.scan::<Autodiff<Cpu>>());
        assert_eq!(values(&untracked), values(&scan(case.scan::<Cpu>())));
    }

    #[test]
    fn a_tensor_used_twice_gets_the_sum_of_both_gradients() {
        let case = Case::new(1, 6, 4, 4);
        let plain = tracked(&case);
        let y = scan(ScanTensors {
            b: plain.c.clone(),
            ..plain.clone()
        });
        let found = plain.c.grad(&y.sum().backward()).expect("c");
        let same = case.scan::<Cpu>();
        let same = ScanTensors {
            b: same.c.clone(),
            ..same
        };
        let expected = gradient(&same, Tensor::ones([1, 6, 4], &Default::default()));
        assert_eq!(values(&found), values(&(expected.b + expected.c)));
    }

    #[test]
    fn windows_are_independent_of_each_other() {
        let case = Case::new(3, 35, 18, 4);
        let (input, grad_y) = (case.scan::<Cpu>(), tensor(&case.grad_y(), [3, 35, 18]));
        for forward in [scan, |input| blocks::forward(&input)] {
            let together = forward(input.clone());
            for window in 0..3 {
                let alone = forward(input.windows(window..window + 1));
                let expected = together.clone().narrow(0, window, 1);
                assert_eq!(values(&alone), values(&expected), "window {window}");
            }
        }
        let together = gradient(&input, grad_y.clone());
        for window in 0..3 {
            let grad_y = grad_y.clone().narrow(0, window, 1);
            let alone = gradient(&input.windows(window..window + 1), grad_y);
            let expected = together.windows(window..window + 1);
            assert_eq!(values(&alone.u), values(&expected.u), "window {window}");
            assert_eq!(values(&alone.b), values(&expected.b), "window {window}");
        }
    }

    #[test]
    fn one_and_two_threads_give_the_same_bits() {
        let case = Case::new(2, 50, 150, 4);
        let run = |threads| {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("a pool").install(|| {
                let input = case.scan::<Cpu>();
                let grad_y = tensor(&case.grad_y(), [2, 50, 150]);
                let found = gradient(&input, grad_y);
                (values(&scan(input)), all_values(&found))
            })
        };
        assert_eq!(run(1), run(2));
    }

    #[test]
    fn gradients_stay_finite_if_decays_underflow() {
        let mut case = Case::new(1, 40, 3, 2);
        case.inputs[1].iter_mut().for_each(|delta| *delta *= 400.0);
        let input = case.scan::<Cpu>();
        assert_close(&values(&scan(input.clone())), &case.y(), "y");
        let grad_y = tensor(&case.grad_y(), [1, 40, 3]);
        let blocks = blocks::gradient(&input, &grad_y);
        for found in [gradient(&input, grad_y), blocks] {
            assert!(all_values(&found).concat().iter().all(|x| x.is_finite()));
        }
    }

    #[test]
    #[should_panic(expected = "delta")]
    fn mismatched_shapes_are_refused() {
        let input = Case::new(1, 4, 3, 2).scan::<Cpu>();
        scan(ScanTensors {
            delta: input.delta.clone().narrow(1, 0, 3),
            ..input
        });
    }

    /// Seconds for one layer of Mamba-2.8B and 1024 tokens.
    #[test]
    #[ignore = "a speed measurement"]
    fn speed_at_mamba_2_8b() {
        for [windows, length] in [[1, 1024], [4, 256]] {
            let case = Case::new(windows, length, 5120, 16);
            let (plain, grad_y) = (case.scan::<Cpu>(), case.grad_y());
            for _ in 0..3 {
                let start = Instant::now();
                let y = scan(plain.clone());
                println!("{:?} forward {:?}", y.dims(), start.elapsed());
            }
            for _ in 0..3 {
                let input = tracked(&case);
                let y = scan(input.clone());
                let loss = (y * tensor(&grad_y, [windows, length, 5120])).sum();
                let start = Instant::now();
                let found = loss.backward();
                println!("{windows} x {length} backward {:?}", start.elapsed());
                assert!(input.u.grad(&found).is_some());
            }
        }
    }
}
