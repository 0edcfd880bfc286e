//! Stores the weights of a model folder in a pack unchanged, so that `uc eval` can measure the result of another codec with
//! the same evaluator, windows and teacher.
//!
//! ```text
//! cargo run --release -p uc-examples --example exact_pack -- PACK CANDIDATE OUT
//! ```
//! PACK is any pack of the teacher. CANDIDATE is a Hugging Face folder with the other codec's weights under the teacher's
//! names. OUT gets the non-layer tensors of PACK, and every linear of CANDIDATE as an exact tensor: nothing is compressed. A
//! pack must have at least one coded linear; here it is a single zero that no model reads.

use std::path::Path;

use anyhow::{Context, ensure};
use uc_codec::TensorCode;
use uc_codec::layer::CodedLinear;
use uc_model::SourceFolder;
use uc_pack::totals::Totals;
use uc_pack::{
    DIGEST_FILE, Digest, ExactDtype, ExactTensor, LayerEntry, LayerFile, MANIFEST_FILE, Manifest,
    Pack, encode_layer,
};

#[expect(
    clippy::disallowed_methods,
    reason = "the program is not resumable: an interrupted copy is made again"
)]
fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pack, candidate, out] = arguments.as_slice() else {
        anyhow::bail!("usage: exact_pack PACK CANDIDATE OUT");
    };
    let (pack, out) = (Pack::open(pack)?, Path::new(out));
    let candidate = SourceFolder::open(Path::new(candidate))?;
    std::fs::create_dir_all(out)?;
    let mut manifest = pack.manifest().clone();
    let mut copied: Vec<&str> = vec![&manifest.non_layer.file];
    copied.extend(manifest.files.iter().map(|file| file.name.as_str()));
    for name in copied {
        std::fs::copy(pack.path(name), out.join(name)).with_context(|| name.to_owned())?;
    }
    for entry in &mut manifest.layers {
        let file = pack.layer(entry.index)?;
        let (linear, exact) = exact_layer(&file, &entry.prefix, &candidate)?;
        let bytes = encode_layer(entry.index, &[linear], &exact)?;
        std::fs::write(out.join(&entry.file), &bytes)?;
        let file = LayerFile::from_bytes(bytes, &entry.file)?;
        *entry = LayerEntry::measure(&file, &entry.prefix, |_| Some(Digest::hash_bytes(&[])))?;
    }
    manifest.codec.name = "exact".into();
    manifest.codec.settings.clear();
    manifest.totals = Totals::compute(&manifest, MANIFEST_FILE)?;
    let text = manifest.to_bytes();
    std::fs::write(out.join(MANIFEST_FILE), &text)?;
    std::fs::write(out.join(DIGEST_FILE), Manifest::digest_line(&text))?;
    Ok(())
}

/// The content of a layer: the candidate's linears as exact f32 tensors, the pack's exact tensors, and the one coded linear.
fn exact_layer(
    file: &LayerFile,
    prefix: &str,
    candidate: &SourceFolder,
) -> anyhow::Result<(CodedLinear, Vec<ExactTensor>)> {
    let mut exact = Vec::new();
    for linear in file.linears() {
        let name = format!("{prefix}{}", linear.name);
        let values = candidate.read_f32(&name)?;
        ensure!(
            values.len() == linear.rows * linear.cols,
            "{name} has {} weights, expected {} x {}",
            values.len(),
            linear.rows,
            linear.cols
        );
        exact.push(ExactTensor {
            name: linear.name.clone(),
            dtype: ExactDtype::F32,
            shape: vec![linear.rows as u64, linear.cols as u64],
            bytes: values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        });
    }
    for (index, decl) in file.exact().iter().enumerate() {
        exact.push(ExactTensor {
            name: decl.name.clone(),
            dtype: decl.dtype,
            shape: decl.shape.clone(),
            bytes: file.exact_bytes(index)?,
        });
    }
    let code = TensorCode {
        rows: 1,
        cols: 1,
        step: 1.0,
        column_log2_eighths: vec![0],
        row_log2_eighths: vec![0],
        row_step_log2_eighths: vec![0],
        q: vec![0],
        overlay: None,
    };
    let linear = CodedLinear {
        name: "none".into(),
        input: "none".into(),
        code,
    };
    Ok((linear, exact))
}
