//! Measures the benefit of a low-rank overlay at the widths of large models, on synthetic layers; prints JSON.
//!
//! ```text
//! cargo run --release -p uc-examples --example overlay_width -- 1024 2048 4096
//! ```
//! A layer of n inputs and n outputs has second moments with eigenvalues `1/(1 + i)` in a random basis (a Hadamard matrix
//! between random signs), and normal weights plus a strong component of rank 16. It is quantized at 5 bits as in the pipeline,
//! and overlays are fitted to the residual. For several ranks, the program prints the fraction of the output error that the
//! overlay removes, and the ratio of the error with overlay, its bits taken from the indices, to the error without. A ratio
//! below 1 means that the overlay is worth its bits. The second ratio assumes that the same factors are stored in
//! eight bits. It also prints what the bound allows rank 1 to remove, whether it excludes all ranks up to 64, and the seconds of one
//! quantization of the layer with coupled rows (`quantize` makes three or more), of the bound and of the fit.

use std::time::Instant;

use anyhow::Context;
use serde_json::json;
use uc_codec::contexts::row_log2_eighths;
use uc_codec::rate::{self, RateProbe, SampledRows};
use uc_codec::steps::{Steps, step_log2_eighths};
use uc_codec::{Matrix, TensorCode, factor, feedback, overlay};
use uc_model::text::splitmix64;

/// Rate of the indices, bits per weight.
const BITS: f64 = 5.0;
/// Rank of the strong component of the weights.
const STRONG_RANK: usize = 16;

fn main() -> anyhow::Result<()> {
    let mut measured = Vec::new();
    for width in std::env::args().skip(1) {
        let n: usize = width.parse().context("usage: overlay_width WIDTH …")?;
        anyhow::ensure!(n.is_power_of_two(), "{n} is not a power of two");
        measured.push(measure(n)?);
    }
    println!("{}", serde_json::to_string_pretty(&measured)?);
    Ok(())
}

/// A random generator: its seed, and how many numbers it has generated.
struct Random(u64, u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.1 += 1;
        splitmix64(self.0, self.1)
    }

    fn normals(&mut self, count: usize) -> Vec<f32> {
        let uniform = |bits: u64| (bits >> 40) as f32 / (1u64 << 24) as f32;
        (0..count)
            .map(|_| (0..12).map(|_| uniform(self.bits())).sum::<f32>() - 6.0)
            .collect()
    }

    fn signs(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| if self.bits() & 1 == 0 { 1.0 } else { -1.0 })
            .collect()
    }
}

/// Orthonormal Walsh-Hadamard transform of `x`, whose length is a power of two.
fn hadamard(x: &mut [f32]) {
    let mut half = 1;
    while half < x.len() {
        for pair in x.chunks_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let scale = 1.0 / (x.len() as f32).sqrt();
    x.iter_mut().for_each(|x| *x *= scale);
}

/// Second moments [n, n] with eigenvalues `1/(1 + i)`.
fn moments(n: usize, random: &mut Random) -> Vec<f32> {
    let signs = random.signs(n);
    let mut h = vec![0.0f32; n * n];
    for row in 0..n {
        // Row `row` of diag(signs) · Q · diag(λ) · Qᵀ · diag(signs), Q being symmetric.
        let values = &mut h[row * n..(row + 1) * n];
        values[row] = signs[row];
        hadamard(values);
        values
            .iter_mut()
            .enumerate()
            .for_each(|(i, x)| *x /= 1.0 + i as f32);
        hadamard(values);
        values
            .iter_mut()
            .zip(&signs)
            .for_each(|(x, sign)| *x *= sign);
    }
    for row in 0..n {
        for col in 0..row {
            h[row * n + col] = h[col * n + row];
        }
    }
    h
}

/// Moments [n, n] of output gradients that fall with the distance of the outputs, but not to subnormal numbers.
fn output_moments(n: usize) -> Vec<f32> {
    let powers: Vec<f32> = (0..n)
        .map(|distance| 0.01 + 0.99 * 0.7f32.powi(distance as i32))
        .collect();
    (0..n * n)
        .map(|e| powers[(e / n).abs_diff(e % n)])
        .collect()
}

/// Weights [n, n] with a strong component of low rank.
fn weights(n: usize, random: &mut Random) -> Vec<f32> {
    let mut w = random.normals(n * n);
    let (u, v) = (
        random.normals(n * STRONG_RANK),
        random.normals(STRONG_RANK * n),
    );
    for (i, row) in w.chunks_mut(n).enumerate() {
        for r in 0..STRONG_RANK {
            let u = u[i * STRONG_RANK + r] / (1.0 + r as f32);
            row.iter_mut()
                .zip(&v[r * n..])
                .for_each(|(x, v)| *x += u * v);
        }
        row.iter_mut().for_each(|x| *x *= 0.02);
    }
    w
}

/// Quantizes a layer of width n and fits overlays to it.
fn measure(n: usize) -> anyhow::Result<serde_json::Value> {
    let mut random = Random(n as u64, 0);
    let moments = moments(n, &mut random);
    let factor = factor::factorize(&moments, n, 0.001)?;
    let w = weights(n, &mut random);
    let (column_log2_eighths, base) = step_log2_eighths(&factor.inv_diag)?;
    let row_step_log2_eighths = vec![0; n];
    let rate_probe = RateProbe {
        sampled: &SampledRows::new(&Matrix::new(&w, n, n)?, 256)?,
        factor: &factor,
        column_log2_eighths: &column_log2_eighths,
        row_step_log2_eighths: &row_step_log2_eighths,
        progress: &|| {},
    };
    let step = rate::choose_step(rate_probe, base, None, BITS)?.step;
    let steps = Steps::new(step, &column_log2_eighths, &row_step_log2_eighths);
    let q = feedback::quantize(&w, n, n, &factor, None, &steps)?;
    let outputs = factor::factorize(&output_moments(n), n, 0.1)?;
    let start = Instant::now();
    feedback::quantize(&w, n, n, &factor, Some(&outputs), &steps)?;
    let quantize_seconds = start.elapsed().as_secs_f64();
    let row_log2_eighths = row_log2_eighths(&q, n, &column_log2_eighths)?;
    let code = TensorCode {
        rows: n,
        cols: n,
        step,
        column_log2_eighths,
        row_log2_eighths,
        row_step_log2_eighths,
        q,
        overlay: None,
    };
    let residual = code.residual(&Matrix::new(&w, n, n)?)?;
    let start = Instant::now();
    let bound = overlay::capture_bound(&residual, (n, n), &moments, 0.001, &steps.rows, 64)?;
    let bound_seconds = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let fit = overlay::fit(residual.clone(), n, n, &factor, &steps.rows, 64)?;
    let fit_seconds = start.elapsed().as_secs_f64();
    let ranks = [1, 4, 16, 32, 64].map(|rank| {
        let bits = overlay::bits_per_weight(rank, n, n);
        let relative_error = |bits: f64| (1.0 - fit.captured_energy(rank)) * (2.0 * bits).exp2();
        json!({
            "rank": rank,
            "captured": fit.captured_energy(rank),
            "bits_per_weight": bits,
            "error_at_equal_bits": relative_error(bits),
            "error_at_equal_bits_with_8_bit_factors": relative_error(bits / 2.0),
        })
    });
    Ok(json!({
        "width": n,
        "best_rank": fit.best_rank(),
        "ranks": ranks,
        "bound_of_rank_1": bound.captured(1),
        "excluded_by_the_bound": bound.excludes(n, n, 64),
        "seconds": { "quantize": quantize_seconds, "bound": bound_seconds, "fit": fit_seconds },
    }))
}
