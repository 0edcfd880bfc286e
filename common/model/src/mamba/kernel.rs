//! The scan and its gradient on slices, for the plain CPU backend.
//!
//! A piece is one window and [`CHANNELS`] channels, computed by one thread from the first step to the last.
//! Channels are independent of each other except in the gradients of `b` and `c`, whose sums over pieces run in
//! the order of the pieces. So the bits do not depend on the number of threads. A piece writes to memory of its
//! own, which is copied into the rows of the result afterwards.

use rayon::prelude::*;
use uc_simd::{Kernel, LANES, dispatch, exp_below_zero};

use super::lanes::{Lane, load, mul, mul_add, sum};

/// Vector registers of channels per piece.
const GROUPS: usize = 4;
/// Channels per piece.
const CHANNELS: usize = GROUPS * LANES;
/// Steps whose states the backward sweep keeps in memory at once. With their decays they fit into a core's cache.
const STEPS: usize = 32;

/// The six inputs of a scan, as in [`super::tensors::ScanTensors`].
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    /// `[windows, length, inner]`
    pub u: &'a [f32],
    /// `[windows, length, inner]`
    pub delta: &'a [f32],
    /// `[inner, state]`
    pub a: &'a [f32],
    /// `[windows, length, state]`
    pub b: &'a [f32],
    /// `[windows, length, state]`
    pub c: &'a [f32],
    /// `[inner]`
    pub d: &'a [f32],
    /// Tokens of a window.
    pub length: usize,
    /// Channels.
    pub inner: usize,
    /// States of a channel.
    pub state: usize,
}

/// Gradients with respect to the six inputs, in their layouts.
pub(super) struct Gradient {
    pub u: Vec<f32>,
    pub delta: Vec<f32>,
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    pub c: Vec<f32>,
    pub d: Vec<f32>,
}

/// `y: [windows, length, inner]`.
pub(super) fn forward(input: Input<'_>) -> Vec<f32> {
    let parts: Vec<Vec<f32>> = input
        .pieces()
        .map(|piece| dispatch(Forward { piece: &piece }))
        .collect();
    input.interleave_pieces(&parts, |part| part)
}

/// Gradients with respect to the six inputs, given `grad_y: [windows, length, inner]`.
pub(super) fn gradient(input: Input<'_>, grad_y: &[f32]) -> Gradient {
    assert_eq!(grad_y.len(), input.u.len(), "y and its gradient differ");
    let parts: Vec<PieceGradient> = input
        .pieces()
        .map(|piece| {
            let grad_y = input.window(grad_y, piece.window, input.inner);
            let piece = &piece;
            dispatch(Backward { piece, grad_y })
        })
        .collect();
    Gradient {
        u: input.interleave_pieces(&parts, |part| &part.u),
        delta: input.interleave_pieces(&parts, |part| &part.delta),
        b: input.sum_within_windows(&parts, |part| &part.b),
        c: input.sum_within_windows(&parts, |part| &part.c),
        a: input.sum_over_windows(&parts, input.state, |part| &part.a),
        d: input.sum_over_windows(&parts, 1, |part| &part.d),
    }
}

impl<'a> Input<'a> {
    /// Number of pieces per window.
    fn pieces_per_window(&self) -> usize {
        self.inner.div_ceil(CHANNELS)
    }

    fn windows(&self) -> usize {
        self.u.len() / (self.length * self.inner)
    }

    /// The rows of one window in `values: [windows, length, width]`.
    fn window<'v>(&self, values: &'v [f32], window: usize, width: usize) -> &'v [f32] {
        &values[window * self.length * width..][..self.length * width]
    }

    /// All pieces, window by window.
    fn pieces(self) -> impl IndexedParallelIterator<Item = Piece<'a>> {
        let per_window = self.pieces_per_window();
        (0..self.windows() * per_window)
            .into_par_iter()
            .map(move |index| {
                let window = index / per_window;
                let first = index % per_window * CHANNELS;
                let end = (first + CHANNELS).min(self.inner);
                let groups = (end - first).div_ceil(LANES);
                let mut a = vec![[0.0; LANES]; groups * self.state];
                for channel in first..end {
                    let (group, lane) = ((channel - first) / LANES, (channel - first) % LANES);
                    for n in 0..self.state {
                        a[group * self.state + n][lane] = self.a[channel * self.state + n];
                    }
                }
                Piece {
                    window,
                    u: self.window(self.u, window, self.inner),
                    delta: self.window(self.delta, window, self.inner),
                    b: self.window(self.b, window, self.state),
                    c: self.window(self.c, window, self.state),
                    a,
                    d: self.d[first..end].chunks(LANES).map(load).collect(),
                    first,
                    end,
                    inner: self.inner,
                    state: self.state,
                }
            })
    }

    /// `[windows, length, inner]` from one `[length, CHANNELS]` per piece.
    fn interleave_pieces<P: Sync>(
        &self,
        parts: &[P],
        field: impl Fn(&P) -> &Vec<f32> + Sync,
    ) -> Vec<f32> {
        let mut out = vec![0.0; self.u.len()];
        let rows = out.par_chunks_mut(self.inner).enumerate();
        rows.for_each(|(row, out)| {
            let (window, step) = (row / self.length, row % self.length);
            let parts = &parts[window * self.pieces_per_window()..];
            for (part, out) in parts.iter().zip(out.chunks_mut(CHANNELS)) {
                out.copy_from_slice(&field(part)[step * CHANNELS..][..out.len()]);
            }
        });
        out
    }

    /// `[windows, length, state]`, each window the sum of its pieces' `[length, state]`.
    fn sum_within_windows<P: Sync>(
        &self,
        parts: &[P],
        field: impl Fn(&P) -> &Vec<f32> + Sync,
    ) -> Vec<f32> {
        let mut out = vec![0.0; self.b.len()];
        let size = self.length * self.state;
        let windows = out
            .par_chunks_mut(size)
            .zip(parts.par_chunks(self.pieces_per_window()));
        windows.for_each(|(out, parts)| parts.iter().for_each(|part| add(out, field(part))));
        out
    }

    /// `[inner, width]`, the sum over windows of the pieces' `[channels, width]`.
    fn sum_over_windows<P>(
        &self,
        parts: &[P],
        width: usize,
        field: impl Fn(&P) -> &Vec<f32>,
    ) -> Vec<f32> {
        let mut out = vec![0.0; self.inner * width];
        for parts in parts.chunks(self.pieces_per_window()) {
            for (part, out) in parts.iter().zip(out.chunks_mut(CHANNELS * width)) {
                add(out, field(part));
            }
        }
        out
    }
}

/// `sum += values`.
fn add(sum: &mut [f32], values: &[f32]) {
    sum.iter_mut().zip(values).for_each(|(sum, x)| *sum += x);
}

/// The inputs of one window and the parameters of its channels, `[groups, state]` registers.
struct Piece<'a> {
    window: usize,
    /// `[length, inner]`
    u: &'a [f32],
    /// `[length, inner]`
    delta: &'a [f32],
    /// `[length, state]`
    b: &'a [f32],
    /// `[length, state]`
    c: &'a [f32],
    /// `[groups, state]`; lanes beyond the last channel are 0.
    a: Vec<Lane>,
    /// `[groups]`
    d: Vec<Lane>,
    first: usize,
    end: usize,
    inner: usize,
    state: usize,
}

impl Piece<'_> {
    fn length(&self) -> usize {
        self.u.len() / self.inner
    }

    /// One register of channels at one step of `values: [length, inner]`.
    #[inline(always)]
    fn lane(&self, values: &[f32], step: usize, group: usize) -> Lane {
        let row = step * self.inner;
        load(&values[row + self.first + group * LANES..row + self.end])
    }

    /// Advances the states `h: [state]` of one register of channels by one step and passes every decay and new
    /// state to `observe`.
    #[inline(always)]
    fn advance(
        &self,
        h: &mut [Lane],
        step: usize,
        group: usize,
        mut observe: impl FnMut(usize, Lane, Lane),
    ) {
        let u = self.lane(self.u, step, group);
        let delta = self.lane(self.delta, step, group);
        let drive = mul(delta, u);
        let a = &self.a[group * self.state..][..self.state];
        let b = &self.b[step * self.state..][..self.state];
        for (n, ((h, a), b)) in h.iter_mut().zip(a).zip(b).enumerate() {
            let mut decay = [0.0; LANES];
            for i in 0..LANES {
                decay[i] = exp_below_zero(delta[i] * a[i]);
            }
            *h = mul_add(decay, *h, mul(drive, [*b; LANES]));
            observe(n, decay, *h);
        }
    }
}

/// `y` of a piece, `[length, CHANNELS]`.
struct Forward<'a> {
    piece: &'a Piece<'a>,
}

impl Kernel for Forward<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run(self) -> Vec<f32> {
        let piece = self.piece;
        let mut states = vec![[0.0; LANES]; piece.a.len()];
        let mut out = vec![0.0; piece.length() * CHANNELS];
        let (rows, _) = out.as_chunks_mut::<LANES>();
        for (step, row) in rows.chunks_exact_mut(GROUPS).enumerate() {
            let c = &piece.c[step * piece.state..][..piece.state];
            let groups = states.chunks_exact_mut(piece.state).zip(row);
            for (group, (h, out)) in groups.enumerate() {
                let (u, d) = (piece.lane(piece.u, step, group), piece.d[group]);
                let mut y = mul(d, u);
                piece.advance(h, step, group, |n, _, h| y = mul_add(h, [c[n]; LANES], y));
                *out = y;
            }
        }
        out
    }
}

/// The gradients of a piece, given `grad_y: [length, inner]`.
struct Backward<'a> {
    piece: &'a Piece<'a>,
    grad_y: &'a [f32],
}

/// The contribution of a piece to the gradients.
struct PieceGradient {
    /// `[length, CHANNELS]`
    u: Vec<f32>,
    /// `[length, CHANNELS]`
    delta: Vec<f32>,
    /// `[channels, state]`
    a: Vec<f32>,
    /// `[length, state]`
    b: Vec<f32>,
    /// `[length, state]`
    c: Vec<f32>,
    /// `[channels]`
    d: Vec<f32>,
}

impl Kernel for Backward<'_> {
    type Output = PieceGradient;

    #[inline(always)]
    fn run(self) -> PieceGradient {
        let Backward { piece, grad_y } = self;
        let (length, state, registers) = (piece.length(), piece.state, piece.a.len());
        let starts = block_starts(piece);
        let mut sweep = BackwardSweep::new(piece);
        let mut part = PieceGradient {
            u: vec![0.0; length * CHANNELS],
            delta: vec![0.0; length * CHANNELS],
            a: Vec::new(),
            b: vec![0.0; length * state],
            c: vec![0.0; length * state],
            d: Vec::new(),
        };
        for (block, start) in starts.chunks_exact(registers).enumerate().rev() {
            let first = block * STEPS;
            let count = STEPS.min(length - first);
            sweep.recompute(piece, start, first, count);
            for index in (0..count).rev() {
                let step = first + index;
                sweep.step_back(piece, grad_y, step, index, &mut part);
            }
        }
        let channels = piece.end - piece.first;
        part.a = vec![0.0; channels * state];
        for (channel, out) in part.a.chunks_exact_mut(state).enumerate() {
            for (n, out) in out.iter_mut().enumerate() {
                *out = sweep.a[channel / LANES * state + n][channel % LANES];
            }
        }
        part.d = sweep.d.as_flattened()[..channels].to_vec();
        part
    }
}

/// The states before every block of steps, `[blocks, groups, state]`.
#[inline(always)]
fn block_starts(piece: &Piece<'_>) -> Vec<Lane> {
    let (length, registers) = (piece.length(), piece.a.len());
    let mut states = vec![[0.0; LANES]; registers];
    let mut starts = Vec::with_capacity(length.div_ceil(STEPS) * registers);
    for step in 0..length {
        if step % STEPS == 0 {
            starts.extend_from_slice(&states);
        }
        for (group, h) in states.chunks_exact_mut(piece.state).enumerate() {
            piece.advance(h, step, group, |_, _, _| ());
        }
    }
    starts
}

/// The running values of the backward sweep through a piece.
struct BackwardSweep {
    /// The states before the block and after each of its steps, `[1 + STEPS, groups, state]`.
    states: Vec<Lane>,
    /// The decays of each of its steps, `[STEPS, groups, state]`.
    decays: Vec<Lane>,
    /// The gradient that later steps propagate to the states, `[groups, state]`.
    grad_later: Vec<Lane>,
    /// Gradient of `a`, `[groups, state]`.
    a: Vec<Lane>,
    /// Gradient of `d`, `[groups]`.
    d: Vec<Lane>,
    /// Gradient of `b` at one step, not yet summed over lanes, `[state]`.
    b: Vec<Lane>,
    /// Gradient of `c` at one step, not yet summed over lanes, `[state]`.
    c: Vec<Lane>,
}

impl BackwardSweep {
    fn new(piece: &Piece<'_>) -> Self {
        let registers = piece.a.len();
        let zeros = |count| vec![[0.0; LANES]; count];
        BackwardSweep {
            states: zeros((1 + STEPS) * registers),
            decays: zeros(STEPS * registers),
            grad_later: zeros(registers),
            a: zeros(registers),
            d: zeros(piece.d.len()),
            b: zeros(piece.state),
            c: zeros(piece.state),
        }
    }

    /// Recomputes states and decays of `count` steps starting at `first`; `start` are the states before them.
    #[inline(always)]
    fn recompute(&mut self, piece: &Piece<'_>, start: &[Lane], first: usize, count: usize) {
        let registers = start.len();
        self.states[..registers].copy_from_slice(start);
        let decays = self.decays.chunks_exact_mut(registers);
        for (index, decays) in decays.take(count).enumerate() {
            let (before, after) = self.states.split_at_mut((index + 1) * registers);
            let after = &mut after[..registers];
            after.copy_from_slice(&before[index * registers..]);
            let groups = after.chunks_exact_mut(piece.state);
            for (group, h) in groups.enumerate() {
                let decays = &mut decays[group * piece.state..][..piece.state];
                piece.advance(h, first + index, group, |n, decay, _| decays[n] = decay);
            }
        }
    }

    /// The backward pass of `step`, which has this index in its block.
    #[inline(always)]
    fn step_back(
        &mut self,
        piece: &Piece<'_>,
        grad_y: &[f32],
        step: usize,
        index: usize,
        part: &mut PieceGradient,
    ) {
        let (state, registers) = (piece.state, piece.a.len());
        let b = &piece.b[step * state..][..state];
        let c = &piece.c[step * state..][..state];
        self.b.fill([0.0; LANES]);
        self.c.fill([0.0; LANES]);
        for group in 0..piece.d.len() {
            let u = piece.lane(piece.u, step, group);
            let delta = piece.lane(piece.delta, step, group);
            let grad_y = piece.lane(grad_y, step, group);
            let drive = mul(delta, u);
            let at = group * state;
            let before = &self.states[index * registers + at..][..state];
            let after = &self.states[(index + 1) * registers + at..][..state];
            let decays = &self.decays[index * registers + at..][..state];
            let a = &piece.a[at..][..state];
            let grad_later = &mut self.grad_later[at..][..state];
            let grad_a = &mut self.a[at..][..state];
            let (grad_b, grad_c) = (&mut self.b[..state], &mut self.c[..state]);
            // Gradients of `delta * u`, and of `delta` inside the decays.
            let (mut grad_drive, mut grad_delta) = ([0.0; LANES], [0.0; LANES]);
            for n in 0..state {
                let grad_h = mul_add(grad_y, [c[n]; LANES], grad_later[n]);
                let decayed = mul(grad_h, decays[n]);
                let grad_exponent = mul(decayed, before[n]);
                grad_later[n] = decayed;
                grad_a[n] = mul_add(grad_exponent, delta, grad_a[n]);
                grad_delta = mul_add(grad_exponent, a[n], grad_delta);
                grad_drive = mul_add(grad_h, [b[n]; LANES], grad_drive);
                grad_b[n] = mul_add(grad_h, drive, grad_b[n]);
                grad_c[n] = mul_add(grad_y, after[n], grad_c[n]);
            }
            let out = step * CHANNELS + group * LANES;
            let grad_u = mul_add(grad_drive, delta, mul(grad_y, piece.d[group]));
            part.u[out..][..LANES].copy_from_slice(&grad_u);
            part.delta[out..][..LANES].copy_from_slice(&mul_add(grad_drive, u, grad_delta));
            self.d[group] = mul_add(grad_y, u, self.d[group]);
        }
        let sums = self.b.iter().zip(&self.c).enumerate();
        for (n, (grad_b, grad_c)) in sums {
            part.b[step * state + n] = sum(*grad_b);
            part.c[step * state + n] = sum(*grad_c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::definition::Case;
    use super::*;

    #[test]
    fn all_instruction_sets_give_the_same_bits() {
        let case = Case::new(1, 40, 37, 5);
        let (grad_y, [u, delta, a, b, c, d]) = (case.grad_y(), &case.inputs);
        let (length, inner, state) = (case.length, case.inner, case.state);
        let input = Input {
            u,
            delta,
            a,
            b,
            c,
            d,
            length,
            inner,
            state,
        };
        let pieces: Vec<_> = input.pieces().collect();
        let [piece] = &pieces[..] else {
            panic!("{} pieces", pieces.len());
        };
        let dispatched = dispatch(Forward { piece });
        assert_eq!(dispatched, Forward { piece }.run());
        let grad_y = &grad_y[..];
        let dispatched = dispatch(Backward { piece, grad_y });
        let baseline = Backward { piece, grad_y }.run();
        let all = |part: PieceGradient| [part.u, part.delta, part.a, part.b, part.c, part.d];
        assert_eq!(all(dispatched), all(baseline));
    }
}
