//! The blocks of Mamba (Gu and Dao 2023, arXiv 2312.00752) and Mamba-2 (Dao and Gu 2024, arXiv 2405.21060), token after token:
//! the short convolution and the selective scan continue from the state of the sequence.

use std::sync::Arc;

use rayon::prelude::*;
use uc_model::spec::{Activation, ConvSpec, Mamba2Spec, MambaSpec};
use uc_simd::{Kernel, LANES, dispatch, exp_below_zero};

use crate::attention::{Span, columns};
use crate::error::InferError;
use crate::linear::Linear;
use crate::norm::Norm;
use crate::sequence::State;
use crate::source::Source;
use crate::vector::{activate, gate, softplus};

/// Channels of a task of the scan.
const CHANNELS: usize = 64;

/// The state of a block after some tokens.
#[derive(Debug, Clone)]
pub(crate) struct ScanState {
    /// [kernel - 1, channels] the inputs of the convolution before the next token, oldest first.
    conv: Vec<f32>,
    /// [inner, state]
    h: Vec<f32>,
}

impl ScanState {
    fn new(conv: &ShortConv, inner: usize, state: usize) -> Self {
        ScanState {
            conv: vec![0.0; (conv.kernel - 1) * conv.channels],
            h: vec![0.0; inner * state],
        }
    }

    /// Bytes of the state.
    pub(crate) fn bytes(&self) -> u64 {
        4 * (self.conv.len() + self.h.len()) as u64
    }
}

/// The state of a span.
fn state<'a>(span: &'a mut Span<'_>) -> &'a mut ScanState {
    match &mut *span.state {
        State::Scan(state) => Arc::make_mut(state),
        _ => unreachable!("a sequence has the states of its model"),
    }
}

/// A short causal depthwise convolution.
#[derive(Debug)]
struct ShortConv {
    channels: usize,
    kernel: usize,
    /// [kernel, channels]
    taps: Vec<f32>,
    /// `[channels]`
    bias: Option<Vec<f32>>,
}

impl ShortConv {
    fn new(spec: &ConvSpec, source: &dyn Source) -> Result<Self, InferError> {
        let &ConvSpec {
            channels, kernel, ..
        } = spec;
        let name = |part: &str| format!("{}.{part}", spec.name);
        let weight = source.values(&name("weight"), &[channels, 1, kernel])?;
        let taps = (0..kernel).flat_map(|k| weight.iter().skip(k).step_by(kernel));
        Ok(ShortConv {
            channels,
            kernel,
            taps: taps.copied().collect(),
            bias: match spec.bias {
                true => Some(source.values(&name("bias"), &[channels])?),
                false => None,
            },
        })
    }

    /// The convolution of `x: [tokens, channels]` after the inputs in `state`, which become the last ones.
    fn forward(&self, x: &[f32], state: &mut Vec<f32>) -> Vec<f32> {
        let width = self.channels;
        let mut inputs = std::mem::take(state);
        inputs.extend_from_slice(x);
        let mut y = Vec::with_capacity(x.len());
        for token in 0..x.len() / width {
            for channel in 0..width {
                let tap = |k: usize| {
                    self.taps[k * width + channel] * inputs[(token + k) * width + channel]
                };
                let sum = (1..self.kernel).fold(tap(0), |sum, k| sum + tap(k));
                let bias = self.bias.as_ref();
                y.push(bias.map_or(sum, |bias| sum + bias[channel]));
            }
        }
        inputs.drain(..x.len());
        *state = inputs;
        y
    }
}

/// The inputs of a scan of some channels that share B and C.
struct Scan<'a> {
    /// [tokens, inner]
    u: &'a [f32],
    /// [tokens, inner]
    delta: &'a [f32],
    /// [inner, state] decay rates.
    a: &'a [f32],
    /// [tokens, state]
    b: &'a [f32],
    /// [tokens, state]
    c: &'a [f32],
    /// `[inner]` the skip connection.
    d: &'a [f32],
}

impl Scan<'_> {
    /// `h <- exp(delta · a) h + delta · u · b`, `y = <c, h> + d · u` for every token and channel; `h: [inner, state]`,
    /// `y: [tokens, inner]`.
    fn run(&self, h: &mut [f32]) -> Vec<f32> {
        let inner = self.d.len();
        let (state, tokens) = (self.a.len() / inner, self.u.len() / inner);
        let parts: Vec<Vec<f32>> = h
            .par_chunks_mut(CHANNELS * state)
            .enumerate()
            .map(|(part, h)| {
                let mut y = vec![0.0; tokens * (h.len() / state)];
                dispatch(Channels {
                    scan: self,
                    first: part * CHANNELS,
                    h,
                    y: &mut y,
                });
                y
            })
            .collect();
        let mut y = Vec::with_capacity(tokens * inner);
        for token in 0..tokens {
            for part in &parts {
                let width = part.len() / tokens;
                y.extend_from_slice(&part[token * width..(token + 1) * width]);
            }
        }
        y
    }
}

/// Some channels of a scan.
struct Channels<'a> {
    scan: &'a Scan<'a>,
    /// The first channel.
    first: usize,
    /// [channels, state]
    h: &'a mut [f32],
    /// [tokens, channels]
    y: &'a mut [f32],
}

impl Kernel for Channels<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let scan = self.scan;
        let inner = scan.d.len();
        let state = scan.a.len() / inner;
        let channels = self.h.len() / state;
        for (token, y) in self.y.chunks_exact_mut(channels).enumerate() {
            let b = &scan.b[token * state..(token + 1) * state];
            let c = &scan.c[token * state..(token + 1) * state];
            for (index, (y, h)) in y.iter_mut().zip(self.h.chunks_exact_mut(state)).enumerate() {
                let channel = self.first + index;
                let (u, delta) = (
                    scan.u[token * inner + channel],
                    scan.delta[token * inner + channel],
                );
                let a = &scan.a[channel * state..(channel + 1) * state];
                let mut sums = [0.0_f32; LANES];
                for n in 0..state {
                    let decay = exp_below_zero(delta * a[n]);
                    h[n] = decay.mul_add(h[n], delta * u * b[n]);
                    sums[n % LANES] = c[n].mul_add(h[n], sums[n % LANES]);
                }
                *y = sums.iter().sum::<f32>() + scan.d[channel] * u;
            }
        }
    }
}

/// `-exp(A_log)`.
fn decay_rates(mut a_log: Vec<f32>) -> Vec<f32> {
    a_log.iter_mut().for_each(|a| *a = -libm::expf(*a));
    a_log
}

/// The weights of a Mamba block.
#[derive(Debug)]
pub(crate) struct Mamba {
    inner: usize,
    state: usize,
    dt_rank: usize,
    activation: Activation,
    pub(crate) in_proj: Linear,
    conv: ShortConv,
    pub(crate) x_proj: Linear,
    pub(crate) dt_proj: Linear,
    /// [inner, state]
    a: Vec<f32>,
    /// `[inner]`
    d: Vec<f32>,
    pub(crate) out_proj: Linear,
}

impl Mamba {
    pub(crate) fn new(spec: &MambaSpec, source: &dyn Source) -> Result<Self, InferError> {
        Ok(Mamba {
            inner: spec.inner,
            state: spec.state,
            dt_rank: spec.dt_rank,
            activation: spec.activation,
            in_proj: Linear::new(&spec.in_proj, source)?,
            conv: ShortConv::new(&spec.conv, source)?,
            x_proj: Linear::new(&spec.x_proj, source)?,
            dt_proj: Linear::new(&spec.dt_proj, source)?,
            a: decay_rates(source.values("mixer.A_log", &[spec.inner, spec.state])?),
            d: source.values("mixer.D", &[spec.inner])?,
            out_proj: Linear::new(&spec.out_proj, source)?,
        })
    }

    /// The state before the first token.
    pub(crate) fn empty_state(&self) -> ScanState {
        ScanState::new(&self.conv, self.inner, self.state)
    }

    /// `x: [tokens, hidden]` to the same shape.
    pub(crate) fn forward(&self, x: &[f32], spans: &mut [Span<'_>]) -> Vec<f32> {
        let (inner, state_size) = (self.inner, self.state);
        let projected = self.in_proj.forward(x);
        let part = |first| columns(&projected, 2 * inner, first, inner);
        let (inputs, mut y) = (part(0), part(inner));
        let mut u = Vec::with_capacity(inputs.len());
        for span in &mut *spans {
            let rows = span.first * inner..(span.first + span.count) * inner;
            u.extend(self.conv.forward(&inputs[rows], &mut state(span).conv));
        }
        activate(&mut u, self.activation);
        let dt_b_c = self.x_proj.forward(&u);
        let width = self.dt_rank + 2 * state_size;
        let part = |first, count| columns(&dt_b_c, width, first, count);
        let mut delta = self.dt_proj.forward(&part(0, self.dt_rank));
        delta.iter_mut().for_each(|delta| *delta = softplus(*delta));
        let (b, c) = (
            part(self.dt_rank, state_size),
            part(self.dt_rank + state_size, state_size),
        );
        let mut scanned = Vec::with_capacity(u.len());
        for span in spans {
            let rows = |width: usize| span.first * width..(span.first + span.count) * width;
            let scan = Scan {
                u: &u[rows(inner)],
                delta: &delta[rows(inner)],
                a: &self.a,
                b: &b[rows(state_size)],
                c: &c[rows(state_size)],
                d: &self.d,
            };
            scanned.extend(scan.run(&mut state(span).h));
        }
        gate(&mut y, &scanned, self.activation);
        self.out_proj.forward(&y)
    }
}

/// The weights of a Mamba-2 block.
#[derive(Debug)]
pub(crate) struct Mamba2 {
    heads: usize,
    head_dim: usize,
    groups: usize,
    state: usize,
    dt_limits: [f32; 2],
    activation: Activation,
    pub(crate) in_proj: Linear,
    conv: ShortConv,
    /// `[heads]`
    dt_bias: Vec<f32>,
    /// [inner, state], those of a head repeated for its channels.
    a: Vec<f32>,
    /// `[inner]`
    d: Vec<f32>,
    norm: Norm,
    pub(crate) out_proj: Linear,
}

impl Mamba2 {
    pub(crate) fn new(spec: &Mamba2Spec, source: &dyn Source) -> Result<Self, InferError> {
        let of_heads = |name: &str| source.values(name, &[spec.heads]);
        let repeated = |values: Vec<f32>, count: usize| -> Vec<f32> {
            let repeated = values
                .into_iter()
                .flat_map(|x| std::iter::repeat_n(x, count));
            repeated.collect()
        };
        let rates = decay_rates(of_heads("mixer.A_log")?);
        Ok(Mamba2 {
            heads: spec.heads,
            head_dim: spec.head_dim,
            groups: spec.groups,
            state: spec.state,
            dt_limits: spec.dt_limits.map(|limit| limit as f32),
            activation: spec.activation,
            in_proj: Linear::new(&spec.in_proj, source)?,
            conv: ShortConv::new(&spec.conv, source)?,
            dt_bias: of_heads("mixer.dt_bias")?,
            a: repeated(rates, spec.head_dim * spec.state),
            d: repeated(of_heads("mixer.D")?, spec.head_dim),
            norm: Norm::new(&spec.norm, source)?,
            out_proj: Linear::new(&spec.out_proj, source)?,
        })
    }

    fn inner(&self) -> usize {
        self.heads * self.head_dim
    }

    /// The state before the first token.
    pub(crate) fn empty_state(&self) -> ScanState {
        ScanState::new(&self.conv, self.inner(), self.state)
    }

    /// `x: [tokens, hidden]` to the same shape.
    pub(crate) fn forward(&self, x: &[f32], spans: &mut [Span<'_>]) -> Vec<f32> {
        let (inner, channels) = (self.inner(), self.conv.channels);
        let projected = self.in_proj.forward(x);
        let width = inner + channels + self.heads;
        let part = |first, count| columns(&projected, width, first, count);
        let (mut y, inputs) = (part(0, inner), part(inner, channels));
        let mut xbc = Vec::with_capacity(inputs.len());
        for span in &mut *spans {
            let rows = span.first * channels..(span.first + span.count) * channels;
            xbc.extend(self.conv.forward(&inputs[rows], &mut state(span).conv));
        }
        activate(&mut xbc, self.activation);
        let delta = self.delta(&part(inner + channels, self.heads));
        let mut scanned = vec![0.0; y.len()];
        for span in spans {
            self.scan(&xbc, &delta, span, &mut scanned);
        }
        gate(&mut y, &scanned, self.activation);
        self.norm.apply_groups(&mut y, self.groups);
        self.out_proj.forward(&y)
    }

    /// The scans of all groups of a span, into its rows of `out: [tokens, inner]`.
    fn scan(&self, xbc: &[f32], delta: &[f32], span: &mut Span<'_>, out: &mut [f32]) {
        let (inner, state_size, channels) = (self.inner(), self.state, self.conv.channels);
        let width = inner / self.groups;
        let rows = |width: usize| span.first * width..(span.first + span.count) * width;
        let (xbc, delta) = (&xbc[rows(channels)], &delta[rows(inner)]);
        let out = &mut out[rows(inner)];
        let h = &mut state(span).h;
        for group in 0..self.groups {
            let (first, b) = (group * width, inner + group * state_size);
            let c = b + self.groups * state_size;
            let states = first * state_size..(first + width) * state_size;
            let scan = Scan {
                u: &columns(xbc, channels, first, width),
                delta: &columns(delta, inner, first, width),
                a: &self.a[states.clone()],
                b: &columns(xbc, channels, b, state_size),
                c: &columns(xbc, channels, c, state_size),
                d: &self.d[first..first + width],
            };
            let y = scan.run(&mut h[states]);
            let rows = out.chunks_exact_mut(inner).zip(y.chunks_exact(width));
            rows.for_each(|(out, y)| out[first..first + width].copy_from_slice(y));
        }
    }

    /// From the projected time steps `[tokens, heads]` to those of every channel.
    fn delta(&self, dt: &[f32]) -> Vec<f32> {
        let [low, high] = self.dt_limits;
        let mut delta = Vec::with_capacity(dt.len() * self.head_dim);
        for dt in dt.chunks_exact(self.heads) {
            for (dt, bias) in dt.iter().zip(&self.dt_bias) {
                let step = softplus(dt + bias).max(low).min(high);
                delta.extend(std::iter::repeat_n(step, self.head_dim));
            }
        }
        delta
    }
}
