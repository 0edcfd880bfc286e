#![allow(clippy::disallowed_methods)]

use uc_codec::LowRank;
use uc_codec::layer::CodedLinear;

use super::*;
use crate::exact::{ExactDtype, ExactTensor};

fn linear(
    name: &str,
    input: &str,
    rows: usize,
    column_log2_eighths: &[u8],
    rank: usize,
) -> CodedLinear {
    let cols = column_log2_eighths.len();
    let q: Vec<i16> = (0..rows * cols)
        .map(|i| ((i * 37 + rows) % 23) as i16 - 11)
        .collect();
    let row_log2_eighths =
        uc_codec::contexts::row_log2_eighths(&q, rows, column_log2_eighths).expect("logarithms");
    let factor = |count: usize| (0..count).map(|i| 0x3c00 + (i % 50) as u16).collect();
    let overlay = (rank > 0).then(|| LowRank {
        rank,
        u: factor(rows * rank),
        v: factor(rank * cols),
    });
    let column_log2_eighths = column_log2_eighths.to_vec();
    let code = TensorCode {
        rows,
        cols,
        step: 0.0125,
        column_log2_eighths,
        row_log2_eighths,
        row_step_log2_eighths: (0..rows).map(|row| (row % 5) as u8).collect(),
        q,
        overlay,
    };
    CodedLinear {
        name: name.into(),
        input: input.into(),
        code,
    }
}

/// Layer index, linears and exact tensors.
type Sample = (u32, Vec<CodedLinear>, Vec<ExactTensor>);

fn sample() -> Sample {
    let columns: [Vec<u8>; 2] = [
        (0..40).map(|j| j % 9).collect(),
        (0..33).map(|j| 5 + j % 3).collect(),
    ];
    let tensor = |name: &str, dtype: ExactDtype, shape: &[u64]| {
        let length = shape.iter().product::<u64>() * dtype.width();
        let bytes = (0..length).map(|b| b as u8).collect();
        ExactTensor {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
            bytes,
        }
    };
    let linears = vec![
        linear("q.weight", "attn_in", 24, &columns[0], 0),
        linear("k.weight", "attn_in", 8, &columns[0], 2),
        linear("o.weight", "o_in", 40, &columns[1], 0),
    ];
    let exact = vec![
        tensor("norm.weight", ExactDtype::BF16, &[40]),
        tensor("bias", ExactDtype::F32, &[3]),
    ];
    (7, linears, exact)
}

fn encode((layer, linears, exact): &Sample) -> Result<Vec<u8>, PackError> {
    encode_layer(*layer, linears, exact)
}

/// Everything that a reader gets from a file.
fn contents(file: &LayerFile) -> Sample {
    let linears = file.linears().iter().enumerate().map(|(i, header)| {
        let input = file.groups()[header.group].input.clone();
        CodedLinear {
            name: header.name.clone(),
            input,
            code: file.codes(i).expect("codes"),
        }
    });
    let exact = file.exact().iter().enumerate();
    let exact = exact.map(|(i, decl)| ExactTensor {
        name: decl.name.clone(),
        dtype: decl.dtype,
        shape: decl.shape.clone(),
        bytes: file.exact_bytes(i).expect("values"),
    });
    (file.layer(), linears.collect(), exact.collect())
}

#[test]
fn a_layer_round_trips_in_memory_and_on_disk() {
    let sample = sample();
    let bytes = encode(&sample).expect("encoded");
    let in_memory = LayerFile::from_bytes(bytes.clone(), "test").expect("parsed");
    assert_eq!(contents(&in_memory), sample);
    assert_eq!(in_memory.groups().len(), 2);
    let linear_bytes: u64 = in_memory.linears().iter().map(|l| l.bytes).sum();
    assert!(linear_bytes < bytes.len() as u64);

    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("layer.uc");
    std::fs::write(&path, &bytes).expect("written");
    let on_disk = LayerFile::open(&path).expect("parsed");
    assert_eq!(contents(&on_disk), sample);
    let digest = (bytes.len() as u64, Digest::hash_bytes(&bytes));
    assert_eq!(in_memory.digest().expect("hashed"), digest);
    assert_eq!(on_disk.digest().expect("hashed"), digest);
}

#[test]
fn a_header_longer_than_any_read_ahead_is_read_in_full() {
    let (layer, linears, mut exact) = sample();
    exact[0].shape = vec![1 << 20];
    exact[0].bytes = (0..2u64 << 20).map(|b| b as u8).collect();
    let sample = (layer, linears, exact);
    let bytes = encode(&sample).expect("encoded");
    let file = LayerFile::from_bytes(bytes, "test").expect("parsed");
    assert_eq!(contents(&file), sample);
}

#[test]
fn the_length_is_known_before_anything_is_written_and_other_linears_are_rejected() {
    let (layer, mut linears, exact) = sample();
    let coder = LayerCoder::new(layer, linears.as_slice(), &exact).expect("counted");
    let mut bytes = Vec::new();
    coder
        .write(linears.as_slice(), &mut bytes)
        .expect("written");
    assert_eq!(coder.length(), bytes.len() as u64);
    linears[2].code.q.fill(2000);
    let rejected = coder.write(linears.as_slice(), &mut Vec::new());
    let message = rejected.expect_err("other indices").to_string();
    assert!(message.contains("o.weight"), "{message}");
}

/// The weights of a linear, reconstructed in pieces.
fn in_pieces(file: &LayerFile, index: usize) -> Result<Vec<u16>, PackError> {
    let mut weights = Vec::new();
    let mut sink = |piece: &[u16]| weights.extend_from_slice(piece);
    file.reconstruct_pieces(index, &mut PieceBuffers::default(), &mut sink)?;
    Ok(weights)
}

#[test]
fn pieces_of_a_linear_of_several_tiles_are_its_weights() {
    let columns: Vec<u8> = (0..2100).map(|j| (j % 7) as u8).collect();
    let wide = linear("wide.weight", "wide_in", 700, &columns, 2);
    let narrow = linear("narrow.weight", "narrow_in", 70_000, &[3], 1);
    let bytes = encode_layer(0, &[wide, narrow], &[]).expect("encoded");
    let file = LayerFile::from_bytes(bytes, "test").expect("parsed");
    for index in 0..2 {
        let whole = file.reconstruct(index).expect("whole");
        assert!(in_pieces(&file, index).expect("pieces") == whole);
    }
}

#[test]
fn a_few_bytes_that_claim_the_largest_linear_are_refused_or_read_in_little_memory() {
    // 2^24 rows of 2^18 columns need 65536 tiles.
    let header = |tiles: usize| {
        let mut bytes = LAYER_HEADER.to_vec();
        bytes.extend(b"\x01i\x00\x00\x04\x00\x02\x00\x00\x00\x00\x00");
        bytes.extend(b"\x01w\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x80\x3f");
        bytes.extend([2, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0]);
        bytes.extend((0..tiles).flat_map(|_| 128u32.to_le_bytes()));
        bytes
    };
    let error = LayerFile::from_bytes(header(3), "test").expect_err("too short");
    assert!(error.to_string().contains("tile length"), "{error}");
    let mut bytes = header(65536);
    while bytes.len() % 8 != 0 {
        bytes.push(0);
    }
    bytes.extend((0..65536 * 32).flat_map(|_| (1u32 << 16).to_le_bytes()));
    let file = LayerFile::from_bytes(bytes, "test").expect("consistent in itself");
    assert_eq!(
        (file.linears()[0].rows, file.linears()[0].cols),
        (1 << 24, 1 << 18)
    );
    // 2^42 weights do not fit; the attempt is an error.
    assert!(file.reconstruct(0).is_err());
}

/// The fixed part of a layer file with one group, one linear and tables in which context 0 always has the symbol 0.
const LAYER_HEADER: &[u8] = b"UCLAYER\0\x07\0\0\0\x01\0\x01\0\0\0\0\0\x04\0\0\0\0\x02\x02\x00";

#[test]
fn every_truncation_is_rejected_and_no_bit_flip_panics() {
    let bytes = encode(&sample()).expect("encoded");
    for end in 0..bytes.len() {
        assert!(
            LayerFile::from_bytes(bytes[..end].to_vec(), "test").is_err(),
            "cut at {end}"
        );
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(LayerFile::from_bytes(longer, "test").is_err());
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        if let Ok(file) = LayerFile::from_bytes(flipped, "test") {
            for index in 0..file.linears().len() {
                let whole = file.reconstruct(index);
                let pieces = in_pieces(&file, index);
                assert_eq!(whole.ok(), pieces.ok(), "byte {at}");
            }
        }
    }
}

/// The writer's error message for a sample changed by `damage`.
fn writer_error(damage: impl FnOnce(&mut Sample)) -> String {
    let mut sample = sample();
    damage(&mut sample);
    encode(&sample).expect_err("rejected").to_string()
}

#[test]
fn the_writer_rejects_what_a_reader_would_reject() {
    assert!(writer_error(|s| s.0 = 1000).contains("layer index"));
    assert!(writer_error(|s| s.1[1].name = "q.weight".into()).contains("every name once"));
    assert!(writer_error(|s| s.1[1].name = "a/b".into()).contains("name \"a/b\""));
    assert!(writer_error(|s| s.1[0].code.row_log2_eighths.truncate(3)).contains("q.weight"));
    let message = writer_error(|s| s.2[0].bytes.truncate(79));
    assert!(message.contains("79 bytes, expected 80 bytes"), "{message}");
}

#[test]
fn a_wrong_magic_or_version_is_rejected_and_the_error_says_so() {
    let bytes = encode(&sample()).expect("encoded");
    let mut other = bytes.clone();
    other[0] = b'X';
    assert!(matches!(
        LayerFile::from_bytes(other, "test"),
        Err(PackError::Magic { .. })
    ));
    let mut newer = bytes;
    newer[8] = 9;
    let found = LayerFile::from_bytes(newer, "test")
        .expect_err("newer")
        .to_string();
    assert!(
        found.contains("version 9") && found.contains("version 7"),
        "{found}"
    );
}
