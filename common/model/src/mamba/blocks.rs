//! The scan and its gradient as tensor operations, for backends without a kernel.
//!
//! Within a block of [`STEPS`] steps all states are held at once, and the recurrence takes
//! `log2(STEPS)` rounds of whole-block operations (Hillis & Steele 1986) instead of one round a
//! step: on a GPU the number of operations is what costs. Blocks follow each other, and so do
//! groups of windows, so that no tensor of states is larger than [`BUDGET`], whatever the batch;
//! about a dozen of them are alive at once. There is no matrix product, so no reduced precision.

use std::ops::Range;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::scan::Scan;

/// Steps of a block.
const STEPS: usize = 64;
/// Elements of the largest tensor of states (128 MiB), unless one window's block is larger.
const BUDGET: usize = 1 << 25;

/// `y: [windows, length, inner]`.
pub(super) fn forward<B: Backend>(scan: &Scan<B>) -> Tensor<B, 3> {
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

/// Gradients of `sum(y * above)`, each in the shape of its input.
pub(super) fn gradient<B: Backend>(scan: &Scan<B>, above: &Tensor<B, 3>) -> Scan<B> {
    let groups = window_groups(scan).map(|windows| {
        let above = above.clone().slice([windows.clone()]);
        gradient_of_group(&scan.windows(windows), &above)
    });
    let groups: Vec<_> = groups.collect();
    join(groups, 0)
}

fn gradient_of_group<B: Backend>(scan: &Scan<B>, above: &Tensor<B, 3>) -> Scan<B> {
    let mut start = scan.zero_states();
    let mut later = start.clone();
    let mut starts = Vec::new();
    for steps in steps(scan.length()) {
        let states = Block::new(scan, steps).states(start.clone());
        starts.push(std::mem::replace(&mut start, last(&states)));
    }
    let mut parts = Vec::new();
    for steps in steps(scan.length()).rev() {
        let above = above.clone().slice([0..scan.count(), steps.clone()]);
        let start = starts.pop().expect("one per block");
        let (part, earlier) = Block::new(scan, steps).gradient(start, above, later);
        later = earlier;
        parts.push(part);
    }
    parts.reverse();
    join(parts, 1)
}

/// Parts that follow each other along `dim` of the inputs that have one; others are summed.
fn join<B: Backend>(parts: Vec<Scan<B>>, dim: usize) -> Scan<B> {
    let cat = |of: fn(&Scan<B>) -> &Tensor<B, 3>| {
        Tensor::cat(parts.iter().map(|part| of(part).clone()).collect(), dim)
    };
    let sum = |total: Scan<B>, part: &Scan<B>| Scan {
        a: total.a + part.a.clone(),
        d: total.d + part.d.clone(),
        ..total
    };
    let sums = parts[1..].iter().fold(parts[0].clone(), sum);
    Scan {
        u: cat(|part| &part.u),
        delta: cat(|part| &part.delta),
        b: cat(|part| &part.b),
        c: cat(|part| &part.c),
        ..sums
    }
}

/// Windows that are computed at once.
pub(super) fn window_groups<B: Backend>(scan: &Scan<B>) -> impl Iterator<Item = Range<usize>> {
    let windows = scan.count();
    let [inner, state] = scan.a.dims();
    let group = (BUDGET / (STEPS * inner * state)).clamp(1, windows);
    (0..windows)
        .step_by(group)
        .map(move |first| first..(first + group).min(windows))
}

/// Steps that are computed at once.
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
/// After the round of `reach`, `value[t]` holds what the steps of `(t - 2 reach, t]` bring to step
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

/// Some steps of a scan, laid out for `[windows, steps, inner, state]`.
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
    fn new(scan: &Scan<B>, steps: Range<usize>) -> Self {
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

    /// `delta * u: [windows, steps, inner, 1]`, what `b` drives the states with.
    fn drive(&self) -> Tensor<B, 4> {
        self.delta.clone() * self.u.clone()
    }

    /// All states of the block, from the ones before it, `[windows, 1, inner, state]`.
    fn states(&self, start: Tensor<B, 4>) -> Tensor<B, 4> {
        recurrence(self.decay.clone(), self.drive() * self.b.clone(), start)
    }

    /// `y: [windows, steps, inner]`.
    fn output(self, states: Tensor<B, 4>) -> Tensor<B, 3> {
        let y = (states * self.c).sum_dim(3) + self.u * self.d;
        y.squeeze_dim(3)
    }

    /// Gradients by the block's inputs and by `start`, where `later` is the one by the block's last
    /// states that later blocks bring.
    fn gradient(
        self,
        start: Tensor<B, 4>,
        above: Tensor<B, 3>,
        later: Tensor<B, 4>,
    ) -> (Scan<B>, Tensor<B, 4>) {
        let steps = self.decay.dims()[1];
        let [inner, state] = [self.a.dims()[2], self.a.dims()[3]];
        let drive = self.drive();
        let states = self.states(start.clone());
        let above: Tensor<B, 4> = above.unsqueeze_dim(3);
        let by_c = (states.clone() * above.clone()).sum_dim(2);
        let by_h = self.by_states(above.clone(), later);
        let by_b = (by_h.clone() * drive).sum_dim(2);
        let by_drive = (by_h.clone() * self.b).sum_dim(3);
        let by_previous = by_h * self.decay;
        let previous = Tensor::cat(vec![start, states], 1).narrow(1, 0, steps);
        let by_exponent = by_previous.clone() * previous;
        let by_a = (by_exponent.clone() * self.delta.clone()).sum_dim(0);
        let by_delta = (by_exponent * self.a).sum_dim(3) + by_drive.clone() * self.u.clone();
        let by_d = (above.clone() * self.u).sum_dim(0).sum_dim(1);
        let part = Scan {
            u: (by_drive * self.delta + above * self.d).squeeze_dim(3),
            delta: by_delta.squeeze_dim(3),
            a: by_a.sum_dim(1).reshape([inner, state]),
            b: by_b.squeeze_dim(2),
            c: by_c.squeeze_dim(2),
            d: by_d.reshape([inner]),
        };
        (part, by_previous.narrow(1, 0, 1))
    }

    /// The gradient by all states: the same recurrence, from the last step to the first.
    fn by_states(&self, above: Tensor<B, 4>, later: Tensor<B, 4>) -> Tensor<B, 4> {
        let steps = self.decay.dims()[1];
        let value = (above * self.c.clone()).flip([1]);
        let decay = self.decay.clone().flip([1]);
        // Every step passes on what it has decayed by itself, and `later` is what the step after the
        // block passes on: it has decayed already.
        let decay = Tensor::cat(vec![later.ones_like(), decay], 1).narrow(1, 0, steps);
        recurrence(decay, value, later).flip([1])
    }
}
