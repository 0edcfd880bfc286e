//! `uc plan --measure`: how fast this machine is at what the jobs of a run do. Takes less than two minutes.

use std::io::{Read, Seek, Write};
use std::mem::MaybeUninit;
use std::time::{Instant, SystemTime};

use anyhow::Context;
use camino::Utf8Path;
use rayon::prelude::*;
use uc_codec::contexts::{LayerTables, row_log2_eighths};
use uc_codec::factor::{self, Factor};
use uc_codec::steps::Steps;
use uc_codec::{TensorCode, feedback, rans};
use uc_infer::bandwidth::Reading;
use uc_simd::{Left, MatrixView, PANEL, Pairs, has_amx, has_bf16_products, multiply, pack_rows};

use crate::forecast::kept_probe;
use crate::forecast::probe::{Probe, SIDES};
use crate::report::progress::Display;
use crate::verbs::bench;

/// Every part is repeated for so many seconds, but at least once; the fastest round counts.
const SECONDS: f64 = 3.0;
/// Rows and inputs of the matrices that are quantized, narrow and wide. Their difference tells the search, which takes the same time
/// per weight, from the feedback, which grows with the width.
const QUANTIZED: [(usize, usize); 2] = [(1024, 1024), (512, 8192)];
/// Inputs whose second moments are factored.
const FACTORED: usize = 4096;
/// Outputs whose errors are fed back into one another.
const OUTPUT_BLOCK: usize = 512;
/// Rows and columns of the matrix that is coded.
const CODED: (usize, usize) = (2048, 4096);
/// Most bytes that are written to disk and read again; at most a quarter of what is free.
const DISK_BYTES: u64 = 1 << 30;
/// Bytes of one write or read.
const CHUNK: usize = 8 << 20;

/// Measures this machine with a number of threads; the disk is that of `folder`.
pub fn measure(folder: &Utf8Path, threads: u32, display: &Display) -> anyhow::Result<Probe> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads as usize);
    let pool = pool.build().context("cannot start threads")?;
    pool.install(|| {
        display.info("measuring matrix products");
        let products = SIDES.map(product_speed);
        let weight_products = weight_product_speeds(products[1]);
        display.info("measuring the codec");
        let moments = moments(FACTORED, 0.9);
        let factors = fastest(|| factor::factorize(&moments, FACTORED, 0.01).map(drop))?;
        let factors = (FACTORED as f64).powi(3) / 3.0 / factors;
        let (search, feedback) = quantization_speed()?;
        let (encode, decode) = coder_speed()?;
        display.info("measuring memory");
        // The passes read it in ordinary loops.
        let memory = bench::bandwidth(bench::machine::largest_cache(), Reading::Plain);
        display.info(&format!("measuring the disk of {folder}"));
        let disk = disk_speed(folder, DISK_BYTES)?;
        let date = humantime::format_rfc3339_seconds(SystemTime::now());
        Ok(Probe {
            program: env!("CARGO_PKG_VERSION").into(),
            date: date.to_string(),
            processor: kept_probe::processor(),
            cores: threads,
            products,
            weight_products,
            factors,
            search,
            feedback,
            encode,
            decode,
            memory: memory.bytes_per_second,
            disk,
        })
    })
}

/// Seconds of the fastest of several rounds.
fn fastest<E>(mut round: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let started = Instant::now();
    let mut best = f64::INFINITY;
    while best.is_infinite() || started.elapsed().as_secs_f64() < SECONDS {
        let start = Instant::now();
        round()?;
        best = best.min(start.elapsed().as_secs_f64().max(1e-9));
    }
    Ok(best)
}

/// Operations per second of products of square matrices, whose rows are divided among the threads.
fn product_speed(side: usize) -> f64 {
    let values = |step: usize| -> Vec<f32> {
        let values = (0..side * side).map(|i| (i * step % 1013) as f32 / 500.0 - 1.0);
        values.collect()
    };
    let (left, right) = (values(7919), values(6421));
    let rows = side.div_ceil(rayon::current_num_threads());
    let mut product = vec![0.0f32; side * side];
    let seconds = fastest(|| {
        let parts = product.par_chunks_mut(rows * side).enumerate();
        parts.for_each(|(part, out)| {
            let left = MatrixView::new(&left, side, side, side);
            let left = left.row_range(part * rows, out.len() / side);
            multiply(out, side, left, MatrixView::new(&right, side, side, side));
        });
        Ok::<(), std::convert::Infallible>(())
    });
    let seconds = seconds.unwrap_or(f64::INFINITY);
    2.0 * (side as f64).powi(3) / seconds
}

/// Operations per second of products of large matrices with weights in bfloat16: with operands rounded to it, and with operands in f32. Where
/// the processor has no instructions for them, they are products in f32, whose speed is `in_f32`.
fn weight_product_speeds(in_f32: f64) -> [f64; 2] {
    let side = SIDES[1];
    let x: Vec<f32> = (0..side * side)
        .map(|i| (i * 7919 % 1013) as f32 / 500.0 - 1.0)
        .collect();
    let weights: Vec<u16> = (0..side * side)
        .map(|i| (i * 6421 % 1013) as u16 + 0x3e80)
        .collect();
    let length = uc_simd::panel_len(side);
    let band = uc_simd::left_vectors();
    let speed = |operand: fn(&[f32], usize) -> Left<'static>| {
        let mut right = vec![Pairs::ZERO; side.div_ceil(PANEL) * length];
        let seconds = fastest(|| {
            let panels = right.par_chunks_mut(length);
            let packed = panels.zip(weights.par_chunks(PANEL * side));
            packed.for_each(|(out, rows)| pack_rows(rows, side, out));
            let mut product = vec![MaybeUninit::uninit(); side * side];
            let bands = product
                .par_chunks_mut(band * side)
                .zip(x.par_chunks(band * side));
            bands.for_each(|(out, x)| {
                let size = [out.len() / side, side];
                operand(x, side).products_uninit(out, side, size, &right);
            });
            Ok::<(), std::convert::Infallible>(())
        });
        2.0 * (side as f64).powi(3) / seconds.unwrap_or(f64::INFINITY)
    };
    [
        if has_bf16_products() {
            speed(Left::from_rows)
        } else {
            in_f32
        },
        if has_amx() {
            speed(Left::from_exact_rows)
        } else {
            in_f32
        },
    ]
}

/// Second moments [side, side] in which neighbours correlate, and all a little: as in those of models, none is subnormal. With subnormal
/// numbers the products of some processors take twenty times as long.
fn moments(side: usize, correlation: f32) -> Vec<f32> {
    let powers: Vec<f32> = (0..side)
        .map(|distance| 0.01 + 0.99 * correlation.powi(distance as i32))
        .collect();
    let entries = (0..side * side).map(|e| powers[(e / side).abs_diff(e % side)]);
    entries.collect()
}

/// Approximately normal numbers: sums of twelve uniform numbers from a counter (splitmix64).
fn normal(count: usize) -> Vec<f32> {
    let uniform = |i: usize| {
        let z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 40) as f32 / (1u64 << 24) as f32
    };
    let numbers = (0..count).into_par_iter();
    numbers
        .map(|i| (0..12).map(|k| uniform(12 * i + k)).sum::<f32>() - 6.0)
        .collect()
}

/// Weights per second of the search, and operations per second of the feedback.
fn quantization_speed() -> anyhow::Result<(f64, f64)> {
    let mut points = Vec::new();
    for (rows, cols) in QUANTIZED {
        let inputs = factor::factorize(&moments(cols, 0.9), cols, 0.01)?;
        let outputs = output_factor(rows)?;
        let steps = Steps {
            columns: vec![0.1; cols],
            rows: vec![1.0; rows],
        };
        let w = normal(rows * cols);
        let seconds = fastest(|| {
            feedback::quantize(&w, rows, cols, &inputs, Some(&outputs), &steps).map(drop)
        })?;
        points.push(((cols + OUTPUT_BLOCK) as f64, seconds / (rows * cols) as f64));
    }
    Ok(search_and_feedback(points[0], points[1]))
}

/// The factor of output moments in blocks.
fn output_factor(rows: usize) -> anyhow::Result<Factor> {
    let block = moments(OUTPUT_BLOCK, 0.7);
    Ok(factor::factorize(
        &block.repeat(rows / OUTPUT_BLOCK),
        rows,
        0.1,
    )?)
}

/// Speeds from two measurements of (operations of feedback per weight, seconds per weight). Neither part is taken to be less than
/// a tenth of the time, which noise could otherwise make of it.
fn search_and_feedback(narrow: (f64, f64), wide: (f64, f64)) -> (f64, f64) {
    let slope = (wide.1 - narrow.1) / (wide.0 - narrow.0);
    let per_operation = slope.clamp(0.1 * wide.1 / wide.0, 0.9 * narrow.1 / narrow.0);
    let per_weight = narrow.1 - per_operation * narrow.0;
    (1.0 / per_weight, 1.0 / per_operation)
}

/// Symbols per second that are encoded, and decoded.
fn coder_speed() -> anyhow::Result<(f64, f64)> {
    let (rows, cols) = CODED;
    let column_log2_eighths: Vec<u8> = (0..cols).map(|j| (j * 37 % 16) as u8).collect();
    let row_step_log2_eighths = vec![0; rows];
    let steps = Steps::new(0.06, &column_log2_eighths, &row_step_log2_eighths);
    let w = normal(rows * cols);
    let indices = w.iter().enumerate();
    let q: Vec<i16> = indices
        .map(|(i, w)| (w / steps.columns[i % cols]).round() as i16)
        .collect();
    let code = TensorCode {
        rows,
        cols,
        step: 0.06,
        row_log2_eighths: row_log2_eighths(&q, rows, &column_log2_eighths)?,
        column_log2_eighths,
        row_step_log2_eighths,
        q,
        overlay: None,
    };
    let tables = LayerTables::build(&[&code])?;
    let encoded = rans::encode(&code, &tables)?;
    let encoding = fastest(|| rans::encode(&code, &tables).map(drop))?;
    let decoding = fastest(|| {
        let (logs, offsets) = (&code.row_log2_eighths, &encoded.tile_offsets);
        rans::decode(
            rows,
            cols,
            logs,
            &code.column_log2_eighths,
            &tables,
            encoded.tile_rows,
            offsets,
            &encoded.payload,
        )
        .map(drop)
    })?;
    let symbols = (rows * cols) as f64;
    Ok((symbols / encoding, symbols / decoding))
}

/// Bytes per second that are read from the file system of a folder, and written to it, in a file without a name.
fn disk_speed(folder: &Utf8Path, most: u64) -> anyhow::Result<[f64; 2]> {
    let failed = || format!("cannot measure the disk of {folder}");
    let disk = rustix::fs::statvfs(folder.as_std_path());
    let free = disk.map_or(most, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    let chunks = (most.min(free / 4) as usize / CHUNK).max(1);
    let chunk: Vec<u8> = normal(CHUNK / 4)
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    let mut file = tempfile::tempfile_in(folder).with_context(failed)?;
    let start = Instant::now();
    for _ in 0..chunks {
        file.write_all(&chunk).with_context(failed)?;
    }
    file.sync_all().with_context(failed)?;
    let writing = start.elapsed().as_secs_f64();
    // What is still in the cache of files would be read from memory. A file system that ignores the advice looks faster.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    file.rewind().with_context(failed)?;
    let mut buffer = vec![0; CHUNK];
    let start = Instant::now();
    for _ in 0..chunks {
        file.read_exact(&mut buffer).with_context(failed)?;
    }
    let reading = start.elapsed().as_secs_f64();
    let bytes = (chunks * CHUNK) as f64;
    Ok([bytes / reading.max(1e-9), bytes / writing.max(1e-9)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_and_feedback_are_told_apart_by_the_width() {
        // 100 per weight and 0.5 per operation.
        let at = |operations: f64| (operations, 100.0 + 0.5 * operations);
        let (search, feedback) = search_and_feedback(at(100.0), at(1000.0));
        assert!((search - 0.01).abs() < 1e-9 && (feedback - 2.0).abs() < 1e-9);
        // Noise that makes wide matrices faster still leaves speeds above 0.
        let (search, feedback) = search_and_feedback((100.0, 10.0), (1000.0, 5.0));
        assert!(search > 0.0 && feedback > 0.0, "{search} {feedback}");
    }

    #[test]
    fn a_disk_has_speeds() {
        let folder = tempfile::tempdir().expect("folder");
        let folder = Utf8Path::from_path(folder.path()).expect("UTF-8");
        let [read, write] = disk_speed(folder, 2 * CHUNK as u64).expect("measured");
        assert!(read > 0.0 && write > 0.0);
        assert!(disk_speed(&folder.join("absent"), 1).is_err());
    }
}
