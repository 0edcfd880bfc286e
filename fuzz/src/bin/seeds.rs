//! Writes the seeds: small valid files of each kind, made by the writers. Run it after a change of the format.

use std::path::Path;

use uc_codec::layer::CodedLinear;
use uc_codec::{LowRank, TensorCode, contexts, pack_small};
use uc_pack::{ExactDecl, ExactDtype, ExactTensor, encode_layer, write_non_layer};

fn main() {
    for (number, (rows, cols, width, rank)) in [
        (5, 3, 2, 0),
        (9, 40, 7, 2),
        (33, 33, 300, 0),
        (300, 2, 40, 1),
    ]
    .into_iter()
    .enumerate()
    {
        let linears = [
            linear("a.weight", "x", rows, cols, width, rank),
            linear("b.weight", "x", rows + 1, cols, 1, 0),
        ];
        let bytes = encode_layer(number as u32, &linears, &[norm()]).expect("a layer");
        write("layer", number, &bytes);
    }
    let decl = |name: &str, shape: &[u64]| ExactDecl {
        name: name.into(),
        dtype: ExactDtype::BF16,
        shape: shape.to_vec(),
    };
    for (number, decls) in [vec![decl("a", &[3, 5]), decl("b", &[])], vec![]]
        .iter()
        .enumerate()
    {
        let mut bytes = Vec::new();
        write_non_layer(&mut bytes, decls, |i, sink| {
            let length = decls[i].byte_len("seed").expect("a size");
            sink.write_all(&vec![7; length as usize])
        })
        .expect("a file");
        write("non_layer", number, &bytes);
    }
    let lists: [&[u8]; 4] = [
        &[],
        &[77; 50],
        &[1, 2, 3, 200, 4, 5, 6, 7],
        &[0, 255, 128, 3],
    ];
    for (number, values) in lists.iter().enumerate() {
        let mut bytes = (values.len() as u16).to_le_bytes().to_vec();
        bytes.extend(pack_small(values));
        write("packed", number, &bytes);
    }
}

fn write(target: &str, number: usize, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    std::fs::create_dir_all(&folder).expect("folder");
    std::fs::write(folder.join(format!("seed-{number}")), bytes).expect("seed");
}

fn norm() -> ExactTensor {
    ExactTensor {
        name: "norm.weight".into(),
        dtype: ExactDtype::F32,
        shape: vec![3],
        bytes: vec![1; 12],
    }
}

fn linear(
    name: &str,
    input: &str,
    rows: usize,
    cols: usize,
    width: i16,
    rank: usize,
) -> CodedLinear {
    let q: Vec<i16> = (0..rows * cols)
        .map(|i| (i as i16).wrapping_mul(7919) % (width + 1))
        .collect();
    let column_log2_eighths: Vec<u8> = (0..cols).map(|j| (j % 5) as u8).collect();
    let row_log2_eighths =
        contexts::row_log2_eighths(&q, rows, &column_log2_eighths).expect("logarithms");
    let factor = |count: usize| (0..count).map(|i| 0x3c00 + i as u16 % 50).collect();
    let code = TensorCode {
        rows,
        cols,
        step: 0.01,
        column_log2_eighths,
        row_log2_eighths,
        row_step_log2_eighths: (0..rows).map(|row| (row % 3) as u8).collect(),
        q,
        overlay: (rank > 0).then(|| LowRank {
            rank,
            u: factor(rows * rank),
            v: factor(rank * cols),
        }),
    };
    CodedLinear {
        name: name.into(),
        input: input.into(),
        code,
    }
}
