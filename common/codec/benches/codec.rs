//! Speed of the coder, of reconstruction and of error feedback: `cargo bench -p uc-codec`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use uc_codec::classes::{LayerTables, row_logs};
use uc_codec::{LowRank, TensorCode, bf16, factor, feedback, rans, reconstruct};

/// Rows and columns of the matrix under test.
const SHAPE: (usize, usize) = (2048, 4096);

/// About normal numbers, [count]: sums of twelve uniform ones from a counter (splitmix64).
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

/// Indices of about 5 bits, columns spread over two octaves.
fn code() -> TensorCode {
    let (rows, cols) = SHAPE;
    let column_log: Vec<u8> = (0..cols).map(|j| (j * 37 % 16) as u8).collect();
    let steps = uc_codec::steps::column_steps(0.06, &column_log);
    let w = normal(rows * cols);
    let q: Vec<i16> = w
        .iter()
        .enumerate()
        .map(|(i, w)| (w / steps[i % cols]).round() as i16)
        .collect();
    let row_log = row_logs(&q, rows, &column_log).expect("shapes agree");
    TensorCode {
        rows,
        cols,
        step: 0.06,
        column_log,
        row_log,
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
        b.iter(|| row_logs(&code.q, code.rows, &code.column_log))
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
                    let logs = (&code.row_log, &code.column_log);
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

/// Sums of the triangular products inside feedback: `m·n²/2` products and as many sums, `m·n²` flops.
fn error_feedback(criterion: &mut Criterion) {
    let (m, n) = (1024, 2048);
    let mut h = vec![0.0f32; n * n];
    for i in 0..n {
        for j in 0..n {
            h[i * n + j] = 0.9f32.powi(i.abs_diff(j) as i32);
        }
    }
    let factor = factor::factorize(&h, n, 0.01).expect("positive definite");
    let w = normal(m * n);
    let steps = vec![0.1; n];
    let mut group = criterion.benchmark_group("feedback");
    group
        .sample_size(10)
        .throughput(Throughput::Elements((m * n * n) as u64));
    group.bench_function("elements are m·n²: flops of the triangular sums", |b| {
        b.iter(|| feedback::quantize(black_box(&w), m, n, &factor, &steps))
    });
    group.bench_function("factorize (n³/3 of m·n²)", |b| {
        b.iter(|| factor::factorize(&h, n, 0.01))
    });
    group.finish();
}

criterion_group!(benches, coder, reconstruction, error_feedback);
criterion_main!(benches);
