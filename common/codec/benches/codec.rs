//! Speed of the entropy coder, of reconstruction, of error feedback and of the overlay: `cargo bench -p uc-codec`.

use criterion::measurement::WallTime;
use criterion::{
    BatchSize, BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use faer::linalg::matmul::matmul;
use faer::traits::RealField;
use faer::{Accum, Mat, Par};
use std::hint::black_box;
use std::time::Duration;
use uc_codec::contexts::{LayerTables, row_log2_eighths};
use uc_codec::steps::Steps;
use uc_codec::{LowRank, TensorCode, bf16, factor, feedback, overlay, rans, reconstruct};

/// Rows and columns of the matrix under test.
const SHAPE: (usize, usize) = (2048, 4096);

/// Approximately normal numbers, [count]: sums of twelve uniform numbers from a counter (splitmix64).
fn normal(count: usize) -> Vec<f32> {
    let uniform = |i: usize| {
        let z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..count)
        .map(|i| (0..12).map(|k| uniform(12 * i + k)).sum::<f32>() - 6.0)
        .collect()
}

/// Indices of about 5 bits, with column steps spread over two octaves.
fn code() -> TensorCode {
    let (rows, cols) = SHAPE;
    let column_log2_eighths: Vec<u8> = (0..cols).map(|j| (j * 37 % 16) as u8).collect();
    let row_step_log2_eighths: Vec<u8> = (0..rows).map(|i| (i * 29 % 8) as u8).collect();
    let steps = Steps::new(0.06, &column_log2_eighths, &row_step_log2_eighths);
    let w = normal(rows * cols);
    let q: Vec<i16> = w
        .iter()
        .enumerate()
        .map(|(i, w)| (w / (steps.columns[i % cols] * steps.rows[i / cols])).round() as i16)
        .collect();
    let row_log2_eighths = row_log2_eighths(&q, rows, &column_log2_eighths).expect("shapes agree");
    TensorCode {
        rows,
        cols,
        step: 0.06,
        column_log2_eighths,
        row_log2_eighths,
        row_step_log2_eighths,
        q,
        overlay: None,
    }
}

fn coder(criterion: &mut Criterion) {
    let code = code();
    let tables = LayerTables::build(&[&code]).expect("shapes agree");
    let encoded = rans::encode(&code, &tables).expect("own tables");
    let mut group = criterion.benchmark_group("coder");
    group
        .sample_size(10)
        .throughput(Throughput::Elements(code.q.len() as u64));
    group.bench_function("row logs", |b| {
        b.iter(|| row_log2_eighths(&code.q, code.rows, &code.column_log2_eighths))
    });
    group.bench_function("tables", |b| {
        b.iter(|| LayerTables::build(&[black_box(&code)]))
    });
    group.bench_function("encode", |b| {
        b.iter(|| rans::encode(black_box(&code), &tables))
    });
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("threads");
        group.bench_function(format!("decode, {threads} threads"), |b| {
            b.iter(|| {
                pool.install(|| {
                    let (offsets, payload) = (&encoded.tile_offsets, &encoded.payload);
                    let rows = encoded.tile_rows;
                    let logs = (&code.row_log2_eighths, &code.column_log2_eighths);
                    rans::decode(
                        code.rows, code.cols, logs.0, logs.1, &tables, rows, offsets, payload,
                    )
                })
            })
        });
    }
    group.finish();
}

fn reconstruction(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("reconstruct");
    group
        .sample_size(10)
        .throughput(Throughput::Elements((SHAPE.0 * SHAPE.1) as u64));
    for rank in [0, 16] {
        let mut code = code();
        let bits = |count| {
            normal(count)
                .iter()
                .map(|&x| bf16::round_nearest_even(x))
                .collect()
        };
        code.overlay = (rank > 0).then(|| LowRank {
            rank,
            u: bits(code.rows * rank),
            v: bits(rank * code.cols),
        });
        group.bench_function(format!("rank {rank}"), |b| {
            b.iter(|| reconstruct::reconstruct(black_box(&code)))
        });
    }
    group.finish();
}

/// A matrix product.
fn matrix_product<T: RealField>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    lhs: &Mat<T>,
    rhs: &Mat<T>,
    par: Par,
) {
    let mut product = Mat::<T>::zeros(lhs.nrows(), rhs.ncols());
    group.bench_function(name, |b| {
        b.iter(|| {
            let one = T::one_impl();
            matmul(&mut product, Accum::Replace, black_box(lhs), rhs, one, par)
        })
    });
}

/// The second moment of two components at this distance. They all correlate a little, so that none is subnormal: with subnormal
/// numbers the products of some processors take twenty times as long.
fn correlation(neighbours: f32, distance: usize) -> f32 {
    0.01 + 0.99 * neighbours.powi(distance as i32)
}

/// Error feedback compared with matrix products of as many floating-point operations, both on one thread; elements per second
/// are floating-point operations per second. The triangular sums of feedback are `m·n²/2` multiplications and as many additions;
/// with coupled rows, `m²·n/2` more of each.
fn error_feedback(criterion: &mut Criterion) {
    let one = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .expect("a thread");
    for (m, n) in [(576, 576), (1024, 2048), (512, 4096), (512, 16_384)] {
        let mut h = vec![0.0f32; n * n];
        for i in 0..n {
            for j in 0..n {
                h[i * n + j] = correlation(0.9, i.abs_diff(j));
            }
        }
        let factor = factor::factorize(&h, n, 0.01).expect("positive definite");
        let w = normal(m * n);
        let steps = Steps {
            columns: vec![0.1; n],
            rows: vec![1.0; m],
        };
        let moments: Vec<f32> = (0..m * m)
            .map(|e| correlation(0.7, (e / m).abs_diff(e % m)))
            .collect();
        let outputs = factor::factorize(&moments, m, 0.1).expect("positive definite");
        let mut group = criterion.benchmark_group(format!("feedback {m} x {n}"));
        group.sample_size(10);
        for (rows, outputs, inner) in [
            ("", None, n / 2),
            (", rows coupled", Some(&outputs), (n + m) / 2),
        ] {
            group.throughput(Throughput::Elements((2 * m * inner * n) as u64));
            group.bench_function(format!("quantize{rows}"), |b| {
                b.iter(|| {
                    one.install(|| {
                        feedback::quantize(black_box(&w), m, n, &factor, outputs, &steps)
                    })
                })
            });
            let lhs = Mat::<f32>::from_fn(m, inner, |i, j| w[i * n + j]);
            let rhs = Mat::<f32>::from_fn(inner, n, |i, j| h[i * n + j]);
            let name = format!("matrix product{rows}");
            matrix_product(&mut group, &name, &lhs, &rhs, Par::Seq);
        }
        group.finish();
    }
}

/// Factorization compared with a matrix product in f64 of as many floating-point operations, `n³/3`, both on all threads.
fn factorization(criterion: &mut Criterion) {
    for n in [4096, 16_384] {
        let powers: Vec<f32> = (0..n).map(|distance| correlation(0.9, distance)).collect();
        let entry = |e: usize| powers[(e / n).abs_diff(e % n)];
        let mut group = criterion.benchmark_group(format!("factor {n} x {n}"));
        group
            .sample_size(10)
            .sampling_mode(SamplingMode::Flat)
            .warm_up_time(Duration::from_millis(1))
            .throughput(Throughput::Elements((n * n * n / 3) as u64));
        group.bench_function("factorize", |b| {
            b.iter_batched(
                || (0..n * n).map(entry).collect(),
                |moments| factor::factorize_in_place(moments, n, 0.01),
                BatchSize::PerIteration,
            )
        });
        let lhs = Mat::<f64>::from_fn(n, n / 6, |i, j| f64::from(entry(i * n + j)));
        let rhs = Mat::<f64>::from_fn(n / 6, n, |i, j| f64::from(entry(i * n + j)));
        matrix_product(&mut group, "matrix product", &lhs, &rhs, Par::rayon(0));
        group.finish();
    }
}

/// The bound on what overlays capture of a white error, and the fit that it spares, on all threads. Elements are weights.
fn overlay_bound(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("overlay");
    for (n, with_fit) in [(576, true), (4096, false)] {
        let moments: Vec<f32> = (0..n * n)
            .map(|e| f32::from(u8::from(e / n == e % n)))
            .collect();
        let factor = factor::factorize(&moments, n, 0.01).expect("positive definite");
        let (residual, steps) = (normal(n * n), vec![1.0; n]);
        group
            .sample_size(10)
            .throughput(Throughput::Elements((n * n) as u64));
        group.bench_function(format!("bound {n} x {n}"), |b| {
            b.iter(|| {
                let shape = (n, n);
                overlay::capture_bound(black_box(&residual), shape, &moments, 0.01, &steps, 64)
            })
        });
        if with_fit {
            group.bench_function(format!("fit {n} x {n}"), |b| {
                b.iter(|| overlay::fit(black_box(residual.clone()), n, n, &factor, &steps, 64))
            });
        }
    }
    group.finish();
}

/// Baselines for the entropy coder: copying the same indices, and compressing them with zstd at level 1.
fn baselines(criterion: &mut Criterion) {
    let code = code();
    let bytes: Vec<u8> = code.q.iter().map(|&q| q as u8).collect();
    let packed = zstd::bulk::compress(&bytes, 1).expect("zstd");
    println!(
        "zstd: {:.3} bits per index",
        8.0 * packed.len() as f64 / bytes.len() as f64
    );
    let mut group = criterion.benchmark_group("yardsticks");
    group
        .sample_size(10)
        .throughput(Throughput::Elements(code.q.len() as u64));
    group.bench_function("copy indices", |b| b.iter(|| black_box(&code.q).clone()));
    group.bench_function("zstd encode", |b| {
        b.iter(|| zstd::bulk::compress(black_box(&bytes), 1))
    });
    group.bench_function("zstd decode", |b| {
        b.iter(|| zstd::bulk::decompress(black_box(&packed), bytes.len()))
    });
    group.finish();
}

criterion_group!(
    benches,
    coder,
    baselines,
    reconstruction,
    overlay_bound,
    factorization,
    error_feedback
);
criterion_main!(benches);
