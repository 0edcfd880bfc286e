use super::*;
use crate::exact::Dtype;

fn linear(
    name: &str,
    group: usize,
    rows: usize,
    column_log: &[u8],
    rank: usize,
) -> Linear<'static> {
    let cols = column_log.len();
    let q: Vec<i16> = (0..rows * cols)
        .map(|i| ((i * 37 + rows) % 23) as i16 - 11)
        .collect();
    let row_log = uc_codec::classes::row_logs(&q, rows, column_log).expect("logarithms");
    let words = |count: usize| (0..count).map(|i| 0x3c00 + (i % 50) as u16).collect();
    let overlay = (rank > 0).then(|| LowRank {
        rank,
        u: words(rows * rank),
        v: words(rank * cols),
    });
    let column_log = column_log.to_vec();
    let code = TensorCode {
        rows,
        cols,
        step: 0.0125,
        column_log,
        row_log,
        row_step_log: (0..rows as u8).map(|row| row % 5).collect(),
        q,
        overlay,
    };
    Linear {
        name: name.into(),
        group,
        code: Cow::Owned(code),
    }
}

fn sample() -> LayerContents<'static> {
    let columns: [Vec<u8>; 2] = [
        (0..40).map(|j| j % 9).collect(),
        (0..33).map(|j| 5 + j % 3).collect(),
    ];
    let extra = |name: &str, dtype: Dtype, shape: &[u64]| {
        let bytes = shape.iter().product::<u64>() * dtype.width();
        let bytes = (0..bytes).map(|b| b as u8).collect();
        ExactTensor {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
            bytes,
        }
    };
    LayerContents {
        layer: 7,
        groups: vec![
            ColumnGroup {
                input: "attn_in".into(),
                column_log: columns[0].clone(),
            },
            ColumnGroup {
                input: "o_in".into(),
                column_log: columns[1].clone(),
            },
        ],
        linears: vec![
            linear("q.weight", 0, 24, &columns[0], 0),
            linear("k.weight", 0, 8, &columns[0], 2),
            linear("o.weight", 1, 40, &columns[1], 0),
        ],
        extras: Cow::Owned(vec![
            extra("norm.weight", Dtype::BF16, &[40]),
            extra("bias", Dtype::F32, &[3]),
        ]),
    }
}

#[test]
fn a_layer_comes_back_whole_and_encodes_to_the_same_bytes() {
    let contents = sample();
    let bytes = encode_layer(&contents).expect("encoded");
    let file = LayerFile::from_bytes(bytes.clone(), "test").expect("parsed");
    assert_eq!(file.layer(), 7);
    let again = LayerContents {
        layer: file.layer(),
        groups: file.groups().to_vec(),
        linears: (0..3)
            .map(|i| {
                let header = &file.linears()[i];
                Linear {
                    name: header.name.clone(),
                    group: header.group,
                    code: Cow::Owned(file.codes(i).expect("codes")),
                }
            })
            .collect(),
        extras: file
            .extras()
            .iter()
            .enumerate()
            .map(|(i, decl)| ExactTensor {
                name: decl.name.clone(),
                dtype: decl.dtype,
                shape: decl.shape.clone(),
                bytes: file.extra_bytes(i).to_vec(),
            })
            .collect(),
    };
    assert_eq!(again, contents);
    assert_eq!(encode_layer(&again).expect("encoded"), bytes);
    let spent: u64 = file.linears().iter().map(|l| l.bytes).sum();
    assert!(spent < bytes.len() as u64);
}

#[test]
fn every_truncation_is_refused_and_no_flip_panics() {
    let bytes = encode_layer(&sample()).expect("encoded");
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
                let _ = file.reconstruct(index);
            }
        }
    }
}

/// The message of what the writer refuses after `damage`.
fn refusal(damage: impl FnOnce(&mut LayerContents<'static>)) -> String {
    let mut contents = sample();
    damage(&mut contents);
    encode_layer(&contents).expect_err("refused").to_string()
}

#[test]
fn the_writer_refuses_what_a_reader_could_not_take() {
    assert!(refusal(|c| c.layer = 1000).contains("layer index"));
    assert!(refusal(|c| c.linears[1].group = 9).contains("group of k.weight"));
    assert!(refusal(|c| c.linears[1].name = "q.weight".into()).contains("every name once"));
    assert!(refusal(|c| c.linears[1].name = "a/b".into()).contains("name \"a/b\""));
    assert!(refusal(|c| c.groups[0].column_log[0] = 200).contains("column logarithms of q.weight"));
    assert!(
        refusal(|c| c.extras.to_mut()[0].bytes.truncate(79))
            .contains("79 bytes, expected 80 bytes")
    );
}

#[test]
fn other_magic_and_versions_are_refused_by_name() {
    let bytes = encode_layer(&sample()).expect("encoded");
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
        found.contains("version 9") && found.contains("version 6"),
        "{found}"
    );
}
