//! Tests that every kernel that this processor can run gives the same result as the portable decoder, on valid and on
//! damaged tiles.

use super::decode::{PieceDecoder, RowKernel, Tile, rows_portably};
use super::lookup::{LogarithmSet, TableLookup};
use super::{LANES, encode};
use crate::code::TensorCode;
use crate::contexts::{LayerTables, row_log2_eighths};
use crate::error::CodecError;
use proptest::prelude::*;

/// The kernels that this processor can run, by name.
fn kernels() -> Vec<(&'static str, RowKernel)> {
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
    let mut kernels: Vec<(&'static str, RowKernel)> = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if uc_simd::has_avx2() {
            kernels.push(("AVX2", super::avx2::rows));
        }
        if uc_simd::has_avx512() {
            kernels.push(("AVX-512", super::avx512::rows));
        }
    }
    kernels
}

/// A tensor of one tile whose distributions differ in width by row and column; `width` is in indices. Every `outlier`-th index
/// is far outside.
fn tensor(rows: usize, cols: usize, width: f64, seed: u64, outlier: usize) -> TensorCode {
    let mut state = seed;
    let mut uniform = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1u64 << 24) as f64
    };
    let column_log2_eighths: Vec<u8> = (0..cols).map(|_| (uniform() * 24.0) as u8).collect();
    let mut q = Vec::with_capacity(rows * cols);
    for row in 0..rows {
        let row_width = width * (1.0 + (row % 5) as f64);
        for &log in &column_log2_eighths {
            let bell = (0..6).map(|_| uniform()).sum::<f64>() - 3.0;
            q.push((bell * row_width * (-f64::from(log) / 8.0).exp2()) as i16);
        }
    }
    for (i, q) in q
        .iter_mut()
        .enumerate()
        .filter(|(i, _)| i % outlier == outlier - 1)
    {
        *q = if i % 2 == 0 { i16::MAX } else { i16::MIN };
    }
    let row_log2_eighths = row_log2_eighths(&q, rows, &column_log2_eighths).unwrap();
    TensorCode {
        rows,
        cols,
        step: 1.0,
        column_log2_eighths,
        row_log2_eighths,
        row_step_log2_eighths: vec![0; rows],
        q,
        overlay: None,
    }
}

/// Decodes `bytes` with every kernel, checks that the outcome is that of the portable decoder, and returns it.
fn agreed(code: &TensorCode, tables: &LayerTables, bytes: &[u8]) -> Result<Vec<i16>, CodecError> {
    let lookup = {
        let occurring = LogarithmSet::of(&code.row_log2_eighths);
        TableLookup::new(&occurring, &code.column_log2_eighths, tables)?
    };
    let tile = Tile {
        bytes,
        row_log2_eighths: &code.row_log2_eighths,
        lookup: &lookup,
    };
    let run = |kernel: RowKernel| {
        let mut q = vec![0i16; code.q.len()];
        tile.decode(kernel, &mut q).map(|()| q)
    };
    let portable = run(rows_portably);
    for (name, kernel) in kernels() {
        assert!(run(kernel) == portable, "{name} disagrees");
    }
    for rows in [1, 3] {
        let pieces = in_pieces(code, tables, bytes, rows);
        // The errors differ in the number of bytes that they name.
        let equal = pieces.as_ref().ok() == portable.as_ref().ok();
        assert!(equal, "pieces of {rows} rows disagree");
    }
    portable
}

/// Decodes the only tile in pieces of `rows` rows, each from no more bytes than it may need.
fn in_pieces(
    code: &TensorCode,
    tables: &LayerTables,
    bytes: &[u8],
    rows: usize,
) -> Result<Vec<i16>, CodecError> {
    let occurring = LogarithmSet::of(&code.row_log2_eighths);
    let mut decoder = PieceDecoder::new(occurring, &code.column_log2_eighths, tables)?;
    let mut used = decoder.begin(bytes)?;
    let mut q = vec![0i16; code.q.len()];
    let pieces = q.chunks_mut(rows * code.cols);
    for (q, logarithms) in pieces.zip(code.row_log2_eighths.chunks(rows)) {
        let window = &bytes[used..];
        let window = &window[..window.len().min(decoder.largest_rows(rows))];
        used += decoder.rows(window, logarithms, q)?;
    }
    decoder.finish((bytes.len() - used) as u64)?;
    Ok(q)
}

/// Tables and the bytes of the only tile.
fn encoded(code: &TensorCode) -> (LayerTables, Vec<u8>) {
    let tables = LayerTables::build(&[code]).unwrap();
    let encoded = encode(code, &tables).unwrap();
    assert_eq!(encoded.tile_offsets, [0]);
    (tables, encoded.payload)
}

#[test]
fn every_kernel_decodes_whole_groups_partial_groups_shifts_and_escapes() {
    let mut shifted = 0;
    for (rows, cols) in [
        (1, 1),
        (3, 31),
        (2, 32),
        (5, 33),
        (40, 64),
        (7, 500),
        (64, 1024),
    ] {
        for width in [0.0, 0.2, 3.0, 40.0, 900.0] {
            for outlier in [usize::MAX, 97] {
                let code = tensor(rows, cols, width, 11, outlier);
                let (tables, bytes) = encoded(&code);
                shifted += usize::from(tables.decode_tables().shifts.iter().any(|&k| k > 0));
                assert!(
                    agreed(&code, &tables, &bytes).unwrap() == code.q,
                    "{rows} {cols} {width}"
                );
            }
        }
    }
    assert!(shifted > 5, "no table with a shift was tested");
}

#[test]
fn every_truncation_and_every_flipped_byte_gives_all_kernels_the_same_outcome() {
    for width in [5.0, 300.0] {
        let code = tensor(9, 4 * LANES + 5, width, 5, 61);
        let (tables, bytes) = encoded(&code);
        for length in 0..bytes.len() {
            assert!(
                agreed(&code, &tables, &bytes[..length]).is_err(),
                "{length} bytes"
            );
        }
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x5a;
            assert!(
                agreed(&code, &tables, &bytes) != Ok(code.q.clone()),
                "byte {at}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_give_all_kernels_the_same_outcome(
        rows in 1usize..6, cols in 1usize..200, body in proptest::collection::vec(any::<u8>(), 0..2000)
    ) {
        let code = tensor(rows, cols, 9.0, 3, 50);
        let (tables, _) = encoded(&code);
        // Valid states, so that the words are read.
        let mut bytes: Vec<u8> = (0..4 * cols.min(LANES)).map(|i| u8::from(i % 4 == 3)).collect();
        bytes.extend(body);
        let _ = agreed(&code, &tables, &bytes);
    }
}
