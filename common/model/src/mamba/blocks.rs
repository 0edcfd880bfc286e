//! The scan and its gradient as tensor operations, for backends without a kernel.
//!
//! Within a block of [`STEPS`] steps all states are in memory at once, and the recurrence takes `log2(STEPS)`
//! rounds of whole-block operations (parallel prefix: Hillis and Steele 1986) instead of one round per step: on
//! a GPU, the number of operations determines the time. Blocks are computed one after the other, and so are
//! groups of windows, so no tensor of states exceeds [`BUDGET`], whatever the batch size. About a dozen of them
//! are alive at once. There is no matrix product, so no reduced precision.

use std::ops::Range;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::tensors::ScanTensors;

/// Steps per block.
const STEPS: usize = 64;
/// Largest tensor of states, in elements (128 MiB). A single window may exceed it.
const BUDGET: usize = 1 << 25;

/// `y: [windows, length, inner]`.
pub(super) fn forward<B: Backend>(scan: &ScanTensors<B>) -> Tensor<B, 3> {
    let groups = window_groups(scan).map(|windows| {
        let scan = scan.windows(windows);
        let mut start = scan.zero_states();
        let blocks = steps(scan.length()).map(|steps| {
            let block = Block::new(&scan, steps);
            let states = block.states(start.clone());
            start = last(&states);
            block.output(states)
        });
        Tensor::cat(blocks.collect(), 1)
    });
    Tensor::cat(groups.collect(), 0)
}

/// Gradients with respect to the six inputs, given `grad_y: [windows, length, inner]`.
pub(super) fn gradient<B: Backend>(scan: &ScanTensors<B>, grad_y: &Tensor<B, 3>) -> ScanTensors<B> {
    let groups = window_groups(scan).map(|windows| {
        let grad_y = grad_y.clone().slice([windows.clone()]);
        group_gradient(&scan.windows(windows), &grad_y)
    });
    let groups: Vec<_> = groups.collect();
    join(groups, 0)
}

fn group_gradient<B: Backend>(scan: &ScanTensors<B>, grad_y: &Tensor<B, 3>) -> ScanTensors<B> {
    let mut start = scan.zero_states();
    let mut grad_last = start.clone();
    let mut starts = Vec::new();
    for steps in steps(scan.length()) {
        let states = Block::new(scan, steps).states(start.clone());
        starts.push(std::mem::replace(&mut start, last(&states)));
    }
    let mut parts = Vec::new();
    for steps in steps(scan.length()).rev() {
        let grad_y = grad_y.clone().slice([0..scan.count(), steps.clone()]);
        let start = starts.pop().expect("one per block");
        let (part, grad_start) = Block::new(scan, steps).gradient(start, grad_y, grad_last);
        grad_last = grad_start;
        parts.push(part);
    }
    parts.reverse();
    join(parts, 1)
}

/// Concatenates along `dim` the tensors that have windows and steps, and sums the others, `a` and `d`.
fn join<B: Backend>(parts: Vec<ScanTensors<B>>, dim: usize) -> ScanTensors<B> {
    let cat = |field: fn(&ScanTensors<B>) -> &Tensor<B, 3>| {
        Tensor::cat(parts.iter().map(|part| field(part).clone()).collect(), dim)
    };
    let sum = |total: ScanTensors<B>, part: &ScanTensors<B>| ScanTensors {
        a: total.a + part.a.clone(),
        d: total.d + part.d.clone(),
        ..total
    };
    let sums = parts[1..].iter().fold(parts[0].clone(), sum);
    ScanTensors {
        u: cat(|part| &part.u),
        delta: cat(|part| &part.delta),
        b: cat(|part| &part.b),
        c: cat(|part| &part.c),
        ..sums
    }
}

/// Groups of windows that are computed together.
pub(super) fn window_groups<B: Backend>(
    scan: &ScanTensors<B>,
) -> impl Iterator<Item = Range<usize>> {
    let windows = scan.count();
    let [inner, state] = scan.a.dims();
    let group = (BUDGET / (STEPS * inner * state)).clamp(1, windows);
    (0..windows)
        .step_by(group)
        .map(move |first| first..(first + group).min(windows))
}

/// Blocks of steps that are computed together.
fn steps(length: usize) -> impl DoubleEndedIterator<Item = Range<usize>> {
    (0..length.div_ceil(STEPS)).map(move |block| {
        let first = block * STEPS;
        first..(first + STEPS).min(length)
    })
}

/// The last step of `[windows, steps, inner, state]`.
fn last<B: Backend>(states: &Tensor<B, 4>) -> Tensor<B, 4> {
    states.clone().narrow(1, states.dims()[1] - 1, 1)
}

/// `h[t] = decay[t] * h[t - 1] + value[t]` along dimension 1 of `[windows, steps, inner, state]`,
/// from `start: [windows, 1, inner, state]`.
///
/// After the round with distance `reach`, `value[t]` is the contribution of the steps `(t - 2 reach, t]` to step
/// `t`, and `decay[t]` the product of their decays.
fn recurrence<B: Backend>(
    mut decay: Tensor<B, 4>,
    mut value: Tensor<B, 4>,
    start: Tensor<B, 4>,
) -> Tensor<B, 4> {
    let steps = decay.dims()[1];
    let mut reach = 1;
    while reach < steps {
        let head = |t: &Tensor<B, 4>, count| t.clone().narrow(1, 0, count);
        let tail = |t: &Tensor<B, 4>| t.clone().narrow(1, reach, steps - reach);
        let reached = tail(&value) + tail(&decay) * head(&value, steps - reach);
        let product = tail(&decay) * head(&decay, steps - reach);
        value = Tensor::cat(vec![head(&value, reach), reached], 1);
        decay = Tensor::cat(vec![head(&decay, reach), product], 1);
        reach *= 2;
    }
    value + decay * start
}

/// A block of steps of a scan, shaped to broadcast to `[windows, steps, inner, state]`.
struct Block<B: Backend> {
    /// `[windows, steps, inner, 1]`
    u: Tensor<B, 4>,
    /// `[windows, steps, inner, 1]`
    delta: Tensor<B, 4>,
    /// `[1, 1, inner, state]`
    a: Tensor<B, 4>,
    /// `[windows, steps, 1, state]`
    b: Tensor<B, 4>,
    /// `[windows, steps, 1, state]`
    c: Tensor<B, 4>,
    /// `[1, 1, inner, 1]`
    d: Tensor<B, 4>,
    /// `[windows, steps, inner, state]`
    decay: Tensor<B, 4>,
}

impl<B: Backend> Block<B> {
    fn new(scan: &ScanTensors<B>, steps: Range<usize>) -> Self {
        let part = |t: &Tensor<B, 3>| t.clone().slice([0..scan.count(), steps.clone()]);
        let delta = part(&scan.delta).unsqueeze_dim(3);
        let a = scan.a.clone().unsqueeze();
        Block {
            u: part(&scan.u).unsqueeze_dim(3),
            decay: (delta.clone() * a.clone()).exp(),
            delta,
            a,
            b: part(&scan.b).unsqueeze_dim(2),
            c: part(&scan.c).unsqueeze_dim(2),
            d: scan.d.clone().reshape([1, 1, -1, 1]),
        }
    }

    /// `delta * u: [windows, steps, inner, 1]`, which `b` multiplies.
    fn drive(&self) -> Tensor<B, 4> {
        self.delta.clone() * self.u.clone()
    }

    /// All states of the block, given the states before it, `start: [windows, 1, inner, state]`.
    fn states(&self, start: Tensor<B, 4>) -> Tensor<B, 4> {
        recurrence(self.decay.clone(), self.drive() * self.b.clone(), start)
    }

    /// `y: [windows, steps, inner]`.
    fn output(self, states: Tensor<B, 4>) -> Tensor<B, 3> {
        let y = (states * self.c).sum_dim(3) + self.u * self.d;
        y.squeeze_dim(3)
    }

    /// Gradients with respect to the block's inputs and to `start`. `grad_last` is the gradient that later blocks
    /// propagate to the block's last states, already multiplied by the decay of the step after the block.
    fn gradient(
        self,
        start: Tensor<B, 4>,
        grad_y: Tensor<B, 3>,
        grad_last: Tensor<B, 4>,
    ) -> (ScanTensors<B>, Tensor<B, 4>) {
        let steps = self.decay.dims()[1];
        let [inner, state] = [self.a.dims()[2], self.a.dims()[3]];
        let drive = self.drive();
        let states = self.states(start.clone());
        let grad_y: Tensor<B, 4> = grad_y.unsqueeze_dim(3);
        let grad_c = (states.clone() * grad_y.clone()).sum_dim(2);
        let grad_h = self.state_gradients(grad_y.clone(), grad_last);
        let grad_b = (grad_h.clone() * drive).sum_dim(2);
        let grad_drive = (grad_h.clone() * self.b).sum_dim(3);
        let grad_previous = grad_h * self.decay;
        let previous = Tensor::cat(vec![start, states], 1).narrow(1, 0, steps);
        let grad_exponent = grad_previous.clone() * previous;
        let grad_a = (grad_exponent.clone() * self.delta.clone()).sum_dim(0);
        let grad_delta = (grad_exponent * self.a).sum_dim(3) + grad_drive.clone() * self.u.clone();
        let grad_d = (grad_y.clone() * self.u).sum_dim(0).sum_dim(1);
        let part = ScanTensors {
            u: (grad_drive * self.delta + grad_y * self.d).squeeze_dim(3),
            delta: grad_delta.squeeze_dim(3),
            a: grad_a.sum_dim(1).reshape([inner, state]),
            b: grad_b.squeeze_dim(2),
            c: grad_c.squeeze_dim(2),
            d: grad_d.reshape([inner]),
        };
        (part, grad_previous.narrow(1, 0, 1))
    }

    /// The gradient with respect to all states: the same recurrence, from the last step to the first.
    fn state_gradients(&self, grad_y: Tensor<B, 4>, grad_last: Tensor<B, 4>) -> Tensor<B, 4> {
        let steps = self.decay.dims()[1];
        let value = (grad_y * self.c.clone()).flip([1]);
        let decay = self.decay.clone().flip([1]);
        // A step propagates its gradient multiplied by its own decay. `grad_last` comes from the step after the
        // block and has already been multiplied.
        let decay = Tensor::cat(vec![grad_last.ones_like(), decay], 1).narrow(1, 0, steps);
        recurrence(decay, value, grad_last).flip([1])
    }
}
