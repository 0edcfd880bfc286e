//! The weights of a linear in memory, and its products in both arithmetics, against their definitions.

use uc_codec::reconstruct::reconstruct;
use uc_codec::steps::factor;

use super::*;
use crate::matrix::Matrix;

/// A code with rows of zeros, some indices up to `largest` and, for a rank above 0, an overlay.
fn code(rows: usize, cols: usize, rank: usize, spread: i64, largest: i64) -> TensorCode {
    let number = |i: usize| ((i as i64 * 7919 + 13) * 104_729) % 65_521;
    let q = (0..rows * cols).map(|i| match i % 97 {
        0 => (number(i) % largest) as i16,
        _ => (number(i) % spread - spread / 2) as i16,
    });
    let words = |count: usize| {
        let value = move |i| bf16::round_nearest_even(number(i) as f32 / 65_521.0 - 0.5);
        (0..count).map(value).collect()
    };
    TensorCode {
        rows,
        cols,
        step: 0.001,
        column_log2_eighths: (0..cols).map(|j| (number(j) % 60) as u8).collect(),
        row_log2_eighths: (0..rows)
            .map(|i| if i % 5 == 3 { 0 } else { 70 + (i % 9) as u8 })
            .collect(),
        row_step_log2_eighths: (0..rows).map(|i| (number(i) % 40) as u8).collect(),
        q: q.collect(),
        overlay: (rank > 0).then(|| LowRank {
            rank,
            u: words(rows * rank),
            v: words(rank * cols),
        }),
    }
}

/// Codes of various shapes: with short blocks, a last group that is not full, overlays, and wide fields.
fn codes() -> Vec<TensorCode> {
    let shapes = [
        (300, 70, 0, 90, 32_000),
        (260, 33, 3, 90, 32_000),
        (40, 130, 2, 4000, 32_000),
        (7, 5, 0, 20_000, 32_000),
        (520, 600, 1, 40, 32_000),
        (129, 256, 0, 12, 32_000),
        // Fields of eight bits, in a few rows and in many.
        (6, 128, 0, 150, 150),
        (70, 300, 0, 220, 2000),
    ];
    let code = |(rows, cols, rank, spread, largest)| {
        let mut code = code(rows, cols, rank, spread, largest);
        // Indices of a row of zeros do not exist in a pack.
        for (i, q) in code.q.chunks_mut(cols).enumerate() {
            if code.row_log2_eighths[i] == 0 {
                q.fill(0);
            }
        }
        code
    };
    shapes.into_iter().map(code).collect()
}

#[test]
fn rows_have_the_bits_of_the_reconstruction() {
    for code in codes() {
        let (rows, cols) = (code.rows, code.cols);
        let coded = Coded::new(&code, Arithmetic::Exact);
        let expected = reconstruct(&code).expect("valid");
        let mut found = vec![0.0; rows * cols];
        coded.rows_into(0, &mut found);
        let bits: Vec<u16> = found.iter().map(|x| (x.to_bits() >> 16) as u16).collect();
        assert!(bits == expected, "{rows} {cols}");
        assert!(found.iter().all(|x| x.to_bits() & 0xffff == 0));
        for first in [4, rows / 2] {
            let mut part = vec![0.0; 2 * cols];
            coded.rows_into(first, &mut part);
            assert_eq!(part, found[first * cols..(first + 2) * cols]);
        }
    }
}

fn vectors(tokens: usize, cols: usize) -> Vec<f32> {
    let number = |i: usize| ((i * 6421 % 1009) as f32 / 504.5 - 1.0).powi(5);
    (0..tokens * cols).map(number).collect()
}

/// The definition of `fast`, in plain loops; [tokens, rows].
fn fast_by_definition(code: &TensorCode, x: &[f32]) -> Vec<f32> {
    let (rows, cols) = (code.rows, code.cols);
    let levels = uc_codec::trellis::levels(&code.q, cols, &code.row_log2_eighths);
    let mut order: Vec<usize> = (0..cols).collect();
    order.sort_by_key(|&j| code.column_log2_eighths[j]);
    let mut out = Vec::new();
    for x in x.chunks_exact(cols) {
        let scaled = order
            .iter()
            .map(|&j| x[j] * factor(code.column_log2_eighths[j]));
        let scaled: Vec<f32> = scaled.collect();
        let panels: Vec<(f32, Vec<i64>)> = scaled
            .chunks(PANEL)
            .map(|panel| {
                let largest = panel.iter().fold(0.0f32, |a, x| a.max(x.abs()));
                let inverse = 32_512.0 / largest;
                let integers = panel.iter().map(|x| (x * inverse).round_ties_even() as i64);
                (largest / 32_512.0, integers.collect())
            })
            .collect();
        // V x is a product in f32 of its own.
        let inner = code.overlay.as_ref().map(|overlay| {
            let mut inner = vec![0.0; overlay.rank];
            let x: Vec<f32> = order.iter().map(|&j| x[j]).collect();
            for (inner, v) in inner.iter_mut().zip(overlay.v.chunks_exact(cols)) {
                let v: Vec<f32> = order.iter().map(|&j| bf16::to_f32(v[j])).collect();
                kernel::products(&v, &x, cols, std::slice::from_mut(inner));
            }
            inner
        });
        for row in 0..rows {
            let mut y = 0.0f32;
            for ((scale, integers), columns) in panels.iter().zip(order.chunks(PANEL)) {
                let products = integers.iter().zip(columns);
                let sum: i64 = products
                    .map(|(a, &j)| a * i64::from(levels[row * cols + j]))
                    .sum();
                y = scale.mul_add(sum as f32, y);
            }
            y *= code.step * factor(code.row_step_log2_eighths[row]);
            if let (Some(overlay), Some(inner)) = (&code.overlay, &inner) {
                let u = &overlay.u[row * overlay.rank..(row + 1) * overlay.rank];
                for (&u, inner) in u.iter().zip(inner) {
                    y = bf16::to_f32(u).mul_add(*inner, y);
                }
            }
            out.push(y);
        }
    }
    out
}

#[test]
fn fast_products_have_the_bits_of_the_definition_for_any_number_of_tokens() {
    for code in codes() {
        let matrix = Matrix::Coded(Coded::new(&code, Arithmetic::Fast));
        for tokens in [1, 2, 3, 4, 6, 8, 9, 16, 37] {
            let x = vectors(tokens, code.cols);
            let expected = fast_by_definition(&code, &x);
            for (found, expected) in matrix.product(&x).iter().zip(expected) {
                assert_eq!(
                    found.to_bits(),
                    expected.to_bits(),
                    "{} {} {tokens}: {found} {expected}",
                    code.rows,
                    code.cols
                );
            }
        }
    }
}

#[test]
fn fast_products_are_close_to_exact_ones() {
    for code in codes() {
        let x = vectors(3, code.cols);
        let [fast, exact] = [Arithmetic::Fast, Arithmetic::Exact]
            .map(|arithmetic| Matrix::Coded(Coded::new(&code, arithmetic)).product(&x));
        let square = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let errors: Vec<f32> = fast.iter().zip(&exact).map(|(a, b)| a - b).collect();
        let error = (square(&errors) / square(&exact)).sqrt();
        // Mostly the rounding of the contract's weights to bfloat16, which fast arithmetic does without.
        assert!(error < 4e-3, "{} {}: {error}", code.rows, code.cols);
    }
}

#[test]
fn activations_that_are_not_finite_give_products_that_are_not() {
    let code = &codes()[4];
    let matrix = Matrix::Coded(Coded::new(code, Arithmetic::Fast));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = vectors(2, code.cols);
        x[code.cols + 3] = bad;
        let found = matrix.product(&x);
        let (first, second) = found.split_at(code.rows);
        assert!(first.iter().all(|y| y.is_finite()));
        assert!(second.iter().all(|y| y.is_nan()), "{bad}");
    }
}

#[test]
fn products_of_one_input_are_those_of_each_matrix() {
    let codes = codes();
    for arithmetic in [Arithmetic::Fast, Arithmetic::Exact] {
        for tokens in [1, 3] {
            let code = &codes[4];
            let columns = Columns::new(&code.column_log2_eighths);
            let shared = |_| {
                let overlay = code.overlay.clone();
                let mut builder = CodedBuilder::new(
                    code.rows,
                    code.step,
                    columns.clone(),
                    overlay,
                    arithmetic,
                    None,
                );
                builder.rows(&code.q, &code.row_log2_eighths, &code.row_step_log2_eighths);
                Matrix::Coded(builder.finish())
            };
            let values = vectors(11, code.cols);
            let matrices = [
                shared(0),
                Matrix::Coded(Coded::new(code, arithmetic)),
                Matrix::Dense {
                    values: crate::matrix::Dense::F32(values),
                    cols: code.cols,
                },
                shared(1),
            ];
            let x = vectors(tokens, code.cols);
            let found = crate::product::products(&matrices.each_ref(), &x);
            for (found, matrix) in found.iter().zip(&matrices) {
                assert_eq!(*found, matrix.product(&x));
            }
            assert_eq!(found[0], found[1]);
        }
    }
}
