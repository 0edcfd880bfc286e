//! Products of a compressed linear in both arithmetics, beside the rate at which this machine reads memory.
//!
//! `cargo bench -p uc-infer --bench products`. The number of threads is RAYON_NUM_THREADS. The unit is weights, whatever the
//! number of tokens; for the reads it is bytes.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use rayon::prelude::*;
use uc_codec::TensorCode;
use uc_infer::{Arithmetic, Coded, Dense, Matrix};

/// Shape of the linear: 64 M weights, more than caches hold.
const ROWS: usize = 16_384;
const COLS: usize = 4096;

/// Approximately normal indices, whose columns and rows differ; those of a pack of 5 bits have the spread 1.
fn code(relative: f32) -> TensorCode {
    let mut state = 1u64;
    let mut uniform = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let column_logs: Vec<u8> = (0..COLS).map(|_| (uniform() * 16.0) as u8).collect();
    let mut q = Vec::with_capacity(ROWS * COLS);
    for _ in 0..ROWS {
        let spread = relative * (5.0 + 8.0 * uniform());
        for &log in &column_logs {
            let normal = uniform() + uniform() + uniform() + uniform() - 2.0;
            let width = spread * 1.73 * (-f32::from(log) / 16.0).exp2();
            q.push((normal * width).round() as i16);
        }
    }
    TensorCode {
        rows: ROWS,
        cols: COLS,
        step: 0.001,
        column_log2_eighths: column_logs,
        row_log2_eighths: vec![64; ROWS],
        row_step_log2_eighths: vec![0; ROWS],
        q,
        overlay: None,
    }
}

/// The sum of many words: what reading memory costs at least.
fn read(words: &[u64]) -> u64 {
    let sums = words.par_chunks(1 << 16).map(|words| {
        let mut sums = [0u64; 32];
        for words in words.as_chunks::<32>().0 {
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum = sum.wrapping_add(*word);
            }
        }
        sums.into_iter().fold(0, u64::wrapping_add)
    });
    sums.reduce(|| 0, u64::wrapping_add)
}

fn benchmarks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("products");
    group.sample_size(10);
    let words = vec![1u64; 1 << 26];
    group.throughput(Throughput::Bytes(8 * words.len() as u64));
    group.bench_function("read", |bencher| bencher.iter(|| read(black_box(&words))));
    drop(words);

    group.throughput(Throughput::Elements((ROWS * COLS) as u64));
    for (name, spread, arithmetic, tokens) in [
        ("fast", 1.0, Arithmetic::Fast, &[1, 4, 16, 128][..]),
        ("exact", 1.0, Arithmetic::Exact, &[1, 4, 16, 128]),
        // Nearly all rows have fields of more than 8 bits.
        ("fast, 8 bits", 8.0, Arithmetic::Fast, &[1, 16, 128]),
    ] {
        let matrix = Matrix::Coded(Coded::new(&code(spread), arithmetic));
        for &tokens in tokens {
            let x: Vec<f32> = (0..tokens * COLS)
                .map(|i| (i % 1009) as f32 - 504.0)
                .collect();
            group.bench_function(BenchmarkId::new(name, tokens), |bencher| {
                bencher.iter(|| matrix.product(black_box(&x)))
            });
        }
    }
    for (name, cols, tokens) in [
        ("bf16", COLS, 1),
        ("bf16, short rows", 576, 1),
        ("bf16", COLS, 4),
        ("bf16", COLS, 16),
    ] {
        let values = vec![half::bf16::from_f32(0.01); 3 * ROWS * cols];
        group.throughput(Throughput::Elements(values.len() as u64));
        let matrix = Matrix::Dense {
            values: Dense::Bf16(values),
            cols,
        };
        let x: Vec<f32> = (0..tokens * cols)
            .map(|i| (i % 1009) as f32 - 504.0)
            .collect();
        group.bench_function(BenchmarkId::new(name, tokens), |bencher| {
            bencher.iter(|| matrix.product(black_box(&x)))
        });
    }
    group.finish();
}

fn main() {
    // On a thread of the pool, as the runtime does, so that no product waits for another thread to wake up.
    let pool = rayon::ThreadPoolBuilder::new().build().expect("threads");
    pool.install(|| {
        let mut criterion = Criterion::default().configure_from_args();
        benchmarks(&mut criterion);
        criterion.final_summary();
    });
}
