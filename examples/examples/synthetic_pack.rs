//! Writes a pack of any size for measurements of speed: the shapes of a configuration, the statistics of a real pack.
//!
//! ```text
//! cargo run --release -p uc-examples --example synthetic_pack -- PACK CONFIG OUT
//! ```
//! PACK is a pack of the same family, CONFIG the config.json of the model to imitate (`examples/speed-configs` has some). Every row
//! and every column of a linear of OUT is one of the linear of that name in PACK, drawn at random: the indices, the steps and the
//! rate of the entropy coder are those of PACK, the text is noise. Layers of PACK are spread over those of OUT. Overlays are left
//! out. Tensors that are stored exactly are drawn in the same way; an output matrix that PACK does not have, from its embedding. The
//! tokenizer is that of the embedded tiny model.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, ensure};
use uc_codec::TensorCode;
use uc_codec::contexts::row_log2_eighths;
use uc_codec::layer::CodedLinear;
use uc_model::ModelConfig;
use uc_model::plan::{ExactSpec, LayerPlan, LinearSpec};
use uc_model::text::splitmix64;
use uc_pack::manifest::{FileEntry, Manifest, NonLayerEntry};
use uc_pack::totals::Totals;
use uc_pack::{
    DIGEST_FILE, Digest, ExactDecl, ExactTensor, LayerEntry, LayerFile, MANIFEST_FILE,
    NON_LAYER_FILE, NonLayerFile, Pack, encode_layer, layer_file_name, write_non_layer,
};

/// Files of the tokenizer.
const TOKENIZER: [&str; 2] = ["tokenizer.json", "tokenizer_config.json"];

#[expect(
    clippy::disallowed_methods,
    reason = "the program is not resumable: an interrupted pack is made again"
)]
fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pack, config_file, out] = arguments.as_slice() else {
        anyhow::bail!("usage: synthetic_pack PACK CONFIG OUT");
    };
    let (pack, out) = (Pack::open(pack)?, Path::new(out));
    let text = std::fs::read(config_file).with_context(|| config_file.clone())?;
    let config = ModelConfig::from_json(&text, Path::new(config_file), &|_| false)?;
    std::fs::create_dir_all(out)?;
    let write = |name: &str, bytes: &[u8]| -> anyhow::Result<FileEntry> {
        std::fs::write(out.join(name), bytes).with_context(|| name.to_owned())?;
        Ok(FileEntry {
            name: name.to_owned(),
            size: bytes.len() as u64,
            sha256: Digest::hash_bytes(bytes),
        })
    };
    let mut files = vec![write("config.json", &text)?];
    let embedded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tiny-stories");
    for name in TOKENIZER {
        files.push(write(name, &std::fs::read(embedded.join(name))?)?);
    }
    let mut layers = Vec::new();
    for plan in config.layer_plans() {
        let real = plan.index * pack.manifest().layers.len() / config.layers.len();
        let real = pack.layer(real as u32)?;
        let (linears, exact) = draw_layer(&real, &plan)?;
        let bytes = encode_layer(plan.index as u32, &linears, &exact)?;
        let name = layer_file_name(plan.index as u32);
        std::fs::write(out.join(&name), &bytes)?;
        let file = LayerFile::from_bytes(bytes, &name)?;
        let no_source = |_: &str| Some(Digest::hash_bytes(&[]));
        layers.push(LayerEntry::measure(&file, &plan.prefix, no_source)?);
    }
    let path = out.join(NON_LAYER_FILE);
    let mut sink = BufWriter::new(File::create(&path)?);
    write_outside(&pack.non_layer()?, &config, &mut sink)?;
    sink.flush()?;

    let mut manifest = pack.manifest().clone();
    manifest.codec.name = "synthetic".into();
    manifest.codec.settings.clear();
    let name = Path::new(config_file).file_stem().unwrap_or_default();
    manifest.source.name = format!("{} (synthetic)", name.to_string_lossy());
    manifest.source.config_sha256 = files[0].sha256;
    manifest.source.hub = None;
    manifest.layers = layers;
    manifest.non_layer = NonLayerEntry::measure(&path)?;
    manifest.files = files;
    manifest.totals = Totals::compute(&manifest, MANIFEST_FILE)?;
    let text = manifest.to_bytes();
    std::fs::write(out.join(MANIFEST_FILE), &text)?;
    std::fs::write(out.join(DIGEST_FILE), Manifest::digest_line(&text))?;
    Ok(())
}

/// Linears and exact tensors of a layer, drawn from a real one.
fn draw_layer(
    real: &LayerFile,
    plan: &LayerPlan,
) -> anyhow::Result<(Vec<CodedLinear>, Vec<ExactTensor>)> {
    let mut linears = Vec::new();
    for spec in &plan.linears {
        let index = real.linears().iter().position(|l| l.name == spec.name);
        let index = index.with_context(|| format!("{} has no {}", real.origin(), spec.name))?;
        let code = real.codes(index)?;
        linears.push(draw_linear(&code, spec, plan.index)?);
    }
    let mut exact = Vec::new();
    for spec in &plan.exact {
        let index = real.exact().iter().position(|e| e.name == spec.name);
        let index = index.with_context(|| format!("{} has no {}", real.origin(), spec.name))?;
        let decl = declare(&real.exact()[index], spec)?;
        let bytes = real.exact_bytes(index)?;
        exact.push(ExactTensor {
            bytes: draw_values(&bytes, &real.exact()[index], &decl),
            name: decl.name,
            dtype: decl.dtype,
            shape: decl.shape,
        });
    }
    Ok((linears, exact))
}

/// A linear of the wanted shape. Linears with the same input draw the same columns.
fn draw_linear(real: &TensorCode, spec: &LinearSpec, layer: usize) -> anyhow::Result<CodedLinear> {
    let (rows, cols) = (spec.rows, spec.cols);
    let columns = draw(cols, real.cols, &format!("{layer} {}", spec.input));
    let sources = draw(rows, real.rows, &format!("{layer} {}", spec.name));
    let of_columns = |values: &[u8]| columns.iter().map(|&j| values[j]).collect::<Vec<_>>();
    let of_rows = |values: &[u8]| sources.iter().map(|&i| values[i]).collect::<Vec<_>>();
    let mut q = Vec::with_capacity(rows * cols);
    for &source in &sources {
        let row = &real.q[source * real.cols..(source + 1) * real.cols];
        q.extend(columns.iter().map(|&j| row[j]));
    }
    let column_log2_eighths = of_columns(&real.column_log2_eighths);
    let mut widths = row_log2_eighths(&q, rows, &column_log2_eighths)?;
    for (width, &source) in widths.iter_mut().zip(&sources) {
        // A row of zeros by definition.
        if real.row_log2_eighths[source] == 0 {
            *width = 0;
        }
    }
    Ok(CodedLinear {
        name: spec.name.clone(),
        input: spec.input.clone(),
        code: TensorCode {
            rows,
            cols,
            step: real.step,
            column_log2_eighths,
            row_log2_eighths: widths,
            row_step_log2_eighths: of_rows(&real.row_step_log2_eighths),
            q,
            overlay: None,
        },
    })
}

/// Writes the tensors outside the layers.
fn write_outside(
    real: &NonLayerFile,
    config: &ModelConfig,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let find = |name: &str| real.tensors().iter().find(|tensor| tensor.name == name);
    let embedding = || find(&config.embedding.weight);
    let mut decls = Vec::new();
    let mut sources = Vec::new();
    for spec in config.non_layer_plan() {
        let source = find(&spec.name).or_else(embedding);
        let source = source.with_context(|| format!("no {}", spec.name))?;
        decls.push(declare(source, &spec)?);
        sources.push(source);
    }
    write_non_layer(out, &decls, |index, sink| {
        let source = sources[index];
        let bytes = real.read(&source.name).map_err(std::io::Error::other)?;
        sink.write_all(&draw_values(&bytes, source, &decls[index]))
    })?;
    Ok(())
}

/// The descriptor of a tensor with the type of another one.
fn declare(real: &ExactDecl, spec: &ExactSpec) -> anyhow::Result<ExactDecl> {
    ensure!(
        real.shape.len() == spec.shape.len() && (1..=2).contains(&spec.shape.len()),
        "{}: found shape {:?}, expected {} dimensions",
        real.name,
        real.shape,
        spec.shape.len()
    );
    Ok(ExactDecl {
        name: spec.name.clone(),
        dtype: real.dtype,
        shape: spec.shape.iter().map(|&n| n as u64).collect(),
    })
}

/// Values of the wanted shape, of one or two dimensions, drawn by row and column.
fn draw_values(bytes: &[u8], real: &ExactDecl, wanted: &ExactDecl) -> Vec<u8> {
    let width = real.dtype.width() as usize;
    let matrix = |shape: &[u64]| match *shape {
        [cols] => [1, cols as usize],
        [rows, cols] => [rows as usize, cols as usize],
        _ => [0, 0],
    };
    let ([real_rows, real_cols], [rows, cols]) = (matrix(&real.shape), matrix(&wanted.shape));
    let columns = draw(cols, real_cols, &format!("{} columns", wanted.name));
    let mut values = Vec::with_capacity(rows * cols * width);
    for row in draw(rows, real_rows, &wanted.name) {
        let row = &bytes[row * real_cols * width..(row + 1) * real_cols * width];
        for &column in &columns {
            values.extend_from_slice(&row[column * width..(column + 1) * width]);
        }
    }
    values
}

/// `count` numbers below `limit` that depend on `name`.
fn draw(count: usize, limit: usize, name: &str) -> Vec<usize> {
    let seed = name
        .bytes()
        .fold(0, |seed, byte| splitmix64(seed, byte.into()));
    let number = |index| (splitmix64(seed, index) % limit as u64) as usize;
    (0..count as u64).map(number).collect()
}
