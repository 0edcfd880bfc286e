//! The scan and its gradient on slices, for the plain CPU backend.
//!
//! A piece is one window and [`CHANNELS`] channels, computed by one thread from the first step to
//! the last: channels never meet, except in the gradients by `b` and `c`, whose sums over pieces
//! run in the order of the pieces. So no bit depends on the number of threads. A piece writes to
//! memory of its own, which is laid into the result's rows afterwards.

use rayon::prelude::*;
use uc_simd::{Kernel, dispatch};

use super::lanes::{Lane, fused, load, times, total};
use crate::simd::{LANES, exp_below_zero};

/// Registers of channels in one piece.
const GROUPS: usize = 4;
/// Channels of one piece.
const CHANNELS: usize = GROUPS * LANES;
/// Steps whose states the gradient holds at once: with their decays they stay in a core's cache.
const STEPS: usize = 32;

/// The six inputs of a scan, as in [`super::scan::Scan`].
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

/// Gradients by the six inputs, in their layouts.
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
    input.lay_out(&parts, |part| part)
}

/// Gradients of `sum(y * above)`; `above: [windows, length, inner]`.
pub(super) fn gradient(input: Input<'_>, above: &[f32]) -> Gradient {
    assert_eq!(above.len(), input.u.len(), "y and its gradient differ");
    let parts: Vec<Part> = input
        .pieces()
        .map(|piece| {
            let above = input.window(above, piece.window, input.inner);
            let piece = &piece;
            dispatch(Backward { piece, above })
        })
        .collect();
    Gradient {
        u: input.lay_out(&parts, |part| &part.u),
        delta: input.lay_out(&parts, |part| &part.delta),
        b: input.sum_of_chunks(&parts, |part| &part.b),
        c: input.sum_of_chunks(&parts, |part| &part.c),
        a: input.sum_of_windows(&parts, input.state, |part| &part.a),
        d: input.sum_of_windows(&parts, 1, |part| &part.d),
    }
}

impl<'a> Input<'a> {
    /// Pieces that make up a window.
    fn chunks(&self) -> usize {
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
        let chunks = self.chunks();
        (0..self.windows() * chunks)
            .into_par_iter()
            .map(move |index| {
                let window = index / chunks;
                let first = index % chunks * CHANNELS;
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
    fn lay_out<P: Sync>(&self, parts: &[P], of: impl Fn(&P) -> &Vec<f32> + Sync) -> Vec<f32> {
        let mut out = vec![0.0; self.u.len()];
        let rows = out.par_chunks_mut(self.inner).enumerate();
        rows.for_each(|(row, out)| {
            let (window, step) = (row / self.length, row % self.length);
            let parts = &parts[window * self.chunks()..];
            for (part, out) in parts.iter().zip(out.chunks_mut(CHANNELS)) {
                out.copy_from_slice(&of(part)[step * CHANNELS..][..out.len()]);
            }
        });
        out
    }

    /// `[windows, length, state]` from one `[length, state]` per piece.
    fn sum_of_chunks<P: Sync>(&self, parts: &[P], of: impl Fn(&P) -> &Vec<f32> + Sync) -> Vec<f32> {
        let mut out = vec![0.0; self.b.len()];
        let size = self.length * self.state;
        let windows = out
            .par_chunks_mut(size)
            .zip(parts.par_chunks(self.chunks()));
        windows.for_each(|(out, parts)| parts.iter().for_each(|part| add(out, of(part))));
        out
    }

    /// `[inner, width]` from one `[channels, width]` per piece.
    fn sum_of_windows<P>(
        &self,
        parts: &[P],
        width: usize,
        of: impl Fn(&P) -> &Vec<f32>,
    ) -> Vec<f32> {
        let mut out = vec![0.0; self.inner * width];
        for parts in parts.chunks(self.chunks()) {
            for (part, out) in parts.iter().zip(out.chunks_mut(CHANNELS * width)) {
                add(out, of(part));
            }
        }
        out
    }
}

/// `sum += values`.
fn add(sum: &mut [f32], values: &[f32]) {
    sum.iter_mut().zip(values).for_each(|(sum, x)| *sum += x);
}

/// One window's inputs and the coefficients of some channels, `[groups, state]` registers.
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
    /// `[groups, state]`; channels beyond the last are 0.
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

    /// Takes the states `h: [state]` of one register of channels one step on and shows every decay
    /// and new state.
    #[inline(always)]
    fn advance(
        &self,
        h: &mut [Lane],
        step: usize,
        group: usize,
        mut show: impl FnMut(usize, Lane, Lane),
    ) {
        let u = self.lane(self.u, step, group);
        let delta = self.lane(self.delta, step, group);
        let drive = times(delta, u);
        let a = &self.a[group * self.state..][..self.state];
        let b = &self.b[step * self.state..][..self.state];
        for (n, ((h, a), b)) in h.iter_mut().zip(a).zip(b).enumerate() {
            let mut decay = [0.0; LANES];
            for i in 0..LANES {
                decay[i] = exp_below_zero(delta[i] * a[i]);
            }
            *h = fused(decay, *h, times(drive, [*b; LANES]));
            show(n, decay, *h);
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
                let mut y = times(d, u);
                piece.advance(h, step, group, |n, _, h| y = fused(h, [c[n]; LANES], y));
                *out = y;
            }
        }
        out
    }
}

/// Gradients of a piece; `above: [length, inner]` is the one by `y`.
struct Backward<'a> {
    piece: &'a Piece<'a>,
    above: &'a [f32],
}

/// What a piece adds to the gradients.
struct Part {
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
    type Output = Part;

    #[inline(always)]
    fn run(self) -> Part {
        let Backward { piece, above } = self;
        let (length, state, registers) = (piece.length(), piece.state, piece.a.len());
        let starts = starts(piece);
        let mut sweep = Sweep::new(piece);
        let mut part = Part {
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
            for within in (0..count).rev() {
                let step = first + within;
                sweep.back(piece, above, step, within, &mut part);
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
fn starts(piece: &Piece<'_>) -> Vec<Lane> {
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

/// The running values of the way back through a piece.
struct Sweep {
    /// Before the block and after each of its steps, `[1 + STEPS, groups, state]`.
    states: Vec<Lane>,
    /// Of each of its steps, `[STEPS, groups, state]`.
    decays: Vec<Lane>,
    /// What later steps add to the gradient by the states, `[groups, state]`.
    later: Vec<Lane>,
    /// Gradient by `a`, `[groups, state]`.
    a: Vec<Lane>,
    /// Gradient by `d`, `[groups]`.
    d: Vec<Lane>,
    /// Gradient of one step by `b`, not yet summed over lanes, `[state]`.
    b: Vec<Lane>,
    /// Gradient of one step by `c`, not yet summed over lanes, `[state]`.
    c: Vec<Lane>,
}

impl Sweep {
    fn new(piece: &Piece<'_>) -> Self {
        let registers = piece.a.len();
        let zeros = |count| vec![[0.0; LANES]; count];
        Sweep {
            states: zeros((1 + STEPS) * registers),
            decays: zeros(STEPS * registers),
            later: zeros(registers),
            a: zeros(registers),
            d: zeros(piece.d.len()),
            b: zeros(piece.state),
            c: zeros(piece.state),
        }
    }

    /// States and decays of `count` steps from `first` on, before which the states are `start`.
    #[inline(always)]
    fn recompute(&mut self, piece: &Piece<'_>, start: &[Lane], first: usize, count: usize) {
        let registers = start.len();
        self.states[..registers].copy_from_slice(start);
        let decays = self.decays.chunks_exact_mut(registers);
        for (within, decays) in decays.take(count).enumerate() {
            let (before, after) = self.states.split_at_mut((within + 1) * registers);
            let after = &mut after[..registers];
            after.copy_from_slice(&before[within * registers..]);
            let groups = after.chunks_exact_mut(piece.state);
            for (group, h) in groups.enumerate() {
                let decays = &mut decays[group * piece.state..][..piece.state];
                piece.advance(h, first + within, group, |n, decay, _| decays[n] = decay);
            }
        }
    }

    /// The way back through one step, the block's `within`th.
    #[inline(always)]
    fn back(
        &mut self,
        piece: &Piece<'_>,
        above: &[f32],
        step: usize,
        within: usize,
        part: &mut Part,
    ) {
        let (state, registers) = (piece.state, piece.a.len());
        let b = &piece.b[step * state..][..state];
        let c = &piece.c[step * state..][..state];
        self.b.fill([0.0; LANES]);
        self.c.fill([0.0; LANES]);
        for group in 0..piece.d.len() {
            let u = piece.lane(piece.u, step, group);
            let delta = piece.lane(piece.delta, step, group);
            let above = piece.lane(above, step, group);
            let drive = times(delta, u);
            let at = group * state;
            let before = &self.states[within * registers + at..][..state];
            let after = &self.states[(within + 1) * registers + at..][..state];
            let decays = &self.decays[within * registers + at..][..state];
            let a = &piece.a[at..][..state];
            let later = &mut self.later[at..][..state];
            let by_a = &mut self.a[at..][..state];
            let (by_b, by_c) = (&mut self.b[..state], &mut self.c[..state]);
            // Gradients by `delta * u`, and by `delta` inside the decays.
            let (mut by_drive, mut by_delta) = ([0.0; LANES], [0.0; LANES]);
            for n in 0..state {
                let by_h = fused(above, [c[n]; LANES], later[n]);
                let decayed = times(by_h, decays[n]);
                let by_exponent = times(decayed, before[n]);
                later[n] = decayed;
                by_a[n] = fused(by_exponent, delta, by_a[n]);
                by_delta = fused(by_exponent, a[n], by_delta);
                by_drive = fused(by_h, [b[n]; LANES], by_drive);
                by_b[n] = fused(by_h, drive, by_b[n]);
                by_c[n] = fused(above, after[n], by_c[n]);
            }
            let out = step * CHANNELS + group * LANES;
            let by_u = fused(by_drive, delta, times(above, piece.d[group]));
            part.u[out..][..LANES].copy_from_slice(&by_u);
            part.delta[out..][..LANES].copy_from_slice(&fused(by_drive, u, by_delta));
            self.d[group] = fused(above, u, self.d[group]);
        }
        let sums = self.b.iter().zip(&self.c).enumerate();
        for (n, (by_b, by_c)) in sums {
            part.b[step * state + n] = total(*by_b);
            part.c[step * state + n] = total(*by_c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::definition::Case;
    use super::*;

    #[test]
    fn wide_and_plain_instruction_sets_give_the_same_bits() {
        let case = Case::new(1, 40, 37, 5);
        let (above, [u, delta, a, b, c, d]) = (case.above(), &case.inputs);
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
        let wide = dispatch(Forward { piece });
        assert_eq!(wide, Forward { piece }.run());
        let above = &above[..];
        let wide = dispatch(Backward { piece, above });
        let plain = Backward { piece, above }.run();
        let all = |part: Part| [part.u, part.delta, part.a, part.b, part.c, part.d];
        assert_eq!(all(wide), all(plain));
    }
}
