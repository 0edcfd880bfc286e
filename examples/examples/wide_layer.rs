//! Makes the inputs of the codec's stages for one layer of any size, to measure their memory and time without the passes that
//! compute these inputs.
//!
//! ```text
//! cargo run --release -p uc-examples --example wide_layer -- model CONFIG MODEL ROWS
//! cargo run --release -p uc-examples --example wide_layer -- run RUN ROWS
//! ```
//! `model` writes the folder of a model with the configuration CONFIG, whose layers have random weights in the first ROWS rows of
//! every linear and zeros in the others. `run` writes the artifacts of the layers of the run RUN of that model: weights, second
//! moments, sensitivity and allocation, with their receipts, so that `rates`, `quantize`, `overlay-fit` and `pack-writer` can be run one
//! after another (`quantize layer --run RUN --layer 0`). Zeros are holes of the files. Time falls with ROWS; memory is that of the whole
//! layer if ROWS is at least 1024, because rows of zeros are read, held and written like others.
//!
//! Rows and columns of the weights have log-normal sizes, and so have the inputs, with a few outliers; neighbouring inputs and outputs
//! are correlated. The tokenizer is that of the embedded tiny model.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, bail};
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;
use uc_codec::allocate::{Allocation, BitAllocation, LayerAllocation};
use uc_model::ModelConfig;
use uc_model::plan::{LayerPlan, LinearSpec};
use uc_model::text::splitmix64;
use uc_store::plan::{ArtifactId, Plan};
use uc_store::receipt::{OutputRecord, Receipt};
use uc_store::run::RunDir;
use uc_store::sha::hash_file;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["model", config, out, rows] => make_model(config.as_ref(), out.as_ref(), rows.parse()?),
        ["run", run, rows] => make_artifacts(run.into(), rows.parse()?),
        _ => bail!("usage: wide_layer model CONFIG MODEL ROWS, or wide_layer run RUN ROWS"),
    }
}

/// Normal deviates, each the same wherever it is used.
struct Random(u64);

impl Random {
    /// Deviate number `index`.
    fn normal(&self, index: usize) -> f32 {
        let words = (0..3).map(|word| splitmix64(self.0, 3 * index as u64 + word));
        let parts = words.flat_map(|word| (0..4).map(move |part| word >> (16 * part) & 0xffff));
        parts.sum::<u64>() as f32 / 65536.0 - 6.0
    }

    /// A log-normal size; one in a thousand is an outlier.
    fn size(&self, index: usize) -> f32 {
        let outlier = if index % 1000 == 999 { 20.0 } else { 1.0 };
        outlier * (0.5 * self.normal(index)).exp()
    }
}

/// A safetensors file whose zeros are holes.
struct SparseFile {
    file: File,
    /// Offset and size of each tensor.
    places: BTreeMap<String, (u64, u64)>,
}

/// Name, type, bytes of an element and shape of a tensor.
type Declared = (String, &'static str, u64, Vec<usize>);

impl SparseFile {
    #[expect(
        clippy::disallowed_methods,
        reason = "the program is not resumable: an interrupted file is made again"
    )]
    fn create(path: &Path, tensors: &[Declared]) -> anyhow::Result<Self> {
        let (mut header, mut places, mut end) = (serde_json::Map::new(), BTreeMap::new(), 0);
        for (name, dtype, width, shape) in tensors {
            let size = width * shape.iter().product::<usize>() as u64;
            let offsets = [end, end + size];
            header.insert(
                name.clone(),
                json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}),
            );
            places.insert(name.clone(), (end, size));
            end += size;
        }
        let mut text = serde_json::to_vec(&header)?;
        text.resize(text.len().next_multiple_of(4096) - 8, b' ');
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let file = File::create(path).with_context(|| path.display().to_string())?;
        let data = 8 + text.len() as u64;
        file.write_all_at(&(text.len() as u64).to_le_bytes(), 0)?;
        file.write_all_at(&text, 8)?;
        file.set_len(data + end)?;
        places.values_mut().for_each(|(start, _)| *start += data);
        Ok(Self { file, places })
    }

    fn put(&self, tensor: &str, offset: u64, bytes: &[u8]) -> anyhow::Result<()> {
        let (start, size) = self.places[tensor];
        anyhow::ensure!(
            offset + bytes.len() as u64 <= size,
            "{tensor}: too many bytes"
        );
        Ok(self.file.write_all_at(bytes, start + offset)?)
    }
}

fn bf16_bytes(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values
        .flat_map(|x| half::bf16::from_f32(x).to_le_bytes())
        .collect()
}

/// Writes random weights into the first `rows` rows of a linear, and ones into exact tensors.
fn put_layer(file: &SparseFile, plan: &LayerPlan, prefix: &str, rows: usize) -> anyhow::Result<()> {
    for (number, linear) in plan.linears.iter().enumerate() {
        let random = Random(number as u64 + 1);
        let columns: Vec<f32> = (0..linear.cols).map(|j| random.size(j)).collect();
        for row in 0..rows.min(linear.rows) {
            let first = linear.cols * (row + 2);
            let scale = random.size(linear.cols + row) * 0.02;
            let weights = columns.iter().enumerate();
            let weights =
                weights.map(|(j, column)| random.normal(first + j) * scale * column.sqrt());
            let offset = (2 * row * linear.cols) as u64;
            file.put(
                &format!("{prefix}{}", linear.name),
                offset,
                &bf16_bytes(weights),
            )?;
        }
    }
    for exact in &plan.exact {
        let count: usize = exact.shape.iter().product();
        let ones = bf16_bytes(std::iter::repeat_n(1.0, count));
        file.put(&format!("{prefix}{}", exact.name), 0, &ones)?;
    }
    Ok(())
}

fn declared_layer(plan: &LayerPlan, prefix: &str) -> Vec<Declared> {
    let linears = plan.linears.iter();
    let linears = linears.map(|linear| (&linear.name, vec![linear.rows, linear.cols]));
    let exact = plan
        .exact
        .iter()
        .map(|exact| (&exact.name, exact.shape.clone()));
    let tensors = linears.chain(exact);
    tensors
        .map(|(name, shape)| (format!("{prefix}{name}"), "BF16", 2, shape))
        .collect()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the program is not resumable: an interrupted model is made again"
)]
fn make_model(config_file: &Path, out: &Path, rows: usize) -> anyhow::Result<()> {
    let text = std::fs::read(config_file)?;
    let config = ModelConfig::from_json(&text, config_file, &|_| false)?;
    std::fs::create_dir_all(out)?;
    std::fs::write(out.join("config.json"), &text)?;
    let embedded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tiny-stories");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(embedded.join(name), out.join(name))?;
    }
    let plans: Vec<LayerPlan> = config.layer_plans().collect();
    let mut tensors: Vec<Declared> = Vec::new();
    for plan in &plans {
        tensors.extend(declared_layer(plan, &plan.prefix));
    }
    for exact in config.non_layer_plan() {
        tensors.push((exact.name.clone(), "BF16", 2, exact.shape.clone()));
    }
    let file = SparseFile::create(&out.join("model.safetensors"), &tensors)?;
    for plan in &plans {
        put_layer(&file, plan, &plan.prefix, rows)?;
    }
    for exact in config.non_layer_plan() {
        let random = Random(7);
        let count: usize = exact.shape.iter().product();
        let values = (0..count).map(|index| random.normal(index) * 0.02);
        file.put(&exact.name, 0, &bf16_bytes(values))?;
    }
    Ok(())
}

/// Writes the second moments [width, block] of correlated values of log-normal sizes: those of neighbours within 128.
fn put_moments(
    file: &SparseFile,
    name: &str,
    width: usize,
    block: usize,
    seed: u64,
) -> anyhow::Result<()> {
    const NEIGHBOURS: usize = 128;
    let random = Random(seed);
    let sizes: Vec<f32> = (0..width).map(|index| random.size(index)).collect();
    for i in 0..width {
        let first = i - i % NEIGHBOURS;
        let row = (first..width.min(first + NEIGHBOURS))
            .map(|j| sizes[i] * sizes[j] * 0.9f32.powi(i.abs_diff(j) as i32));
        let bytes: Vec<u8> = row.flat_map(f32::to_le_bytes).collect();
        file.put(name, 4 * (i * block + first % block) as u64, &bytes)?;
    }
    Ok(())
}

fn make_artifacts(run: Utf8PathBuf, rows: usize) -> anyhow::Result<()> {
    let (run, plan) = RunDir::open(&run)?;
    let config = ModelConfig::load(plan.model.path.as_std_path())?;
    let settings = &plan.settings.calibration;
    let max_input_block = settings.max_input_block as usize;
    for layer in config.layer_plans() {
        let at = |name: &str| ArtifactId::at(name, layer.index as u32);
        let weights = at("weights");
        let path = run.artifact_path(&plan, &weights)?;
        let file = SparseFile::create(path.as_std_path(), &declared_layer(&layer, ""))?;
        put_layer(&file, &layer, "", rows)?;
        record(&run, &plan, &weights, &path)?;

        let blocks = layer.inputs.iter();
        let blocks = blocks.map(|input| (input, input.width.min(max_input_block)));
        let name = |input: &str| format!("{input}.second_moment");
        let declared: Vec<Declared> = blocks
            .clone()
            .map(|(input, block)| (name(&input.name), "F32", 4, vec![input.width, block]))
            .collect();
        for artifact in ["sensitivity-statistics", "statistics"] {
            let path = run.artifact_path(&plan, &at(artifact))?;
            let file = SparseFile::create(path.as_std_path(), &declared)?;
            for (seed, (input, block)) in blocks.clone().enumerate() {
                put_moments(&file, &name(&input.name), input.width, block, seed as u64)?;
            }
            record(&run, &plan, &at(artifact), &path)?;
        }
        let max_output_block = settings.max_output_block as usize;
        make_sensitivity(&run, &plan, &layer, max_output_block)?;
    }
    make_allocation(&run, &plan, &config, rows)
}

/// Writes the second moments of the output gradients.
fn make_sensitivity(
    run: &RunDir,
    plan: &Plan,
    layer: &LayerPlan,
    max_output_block: usize,
) -> anyhow::Result<()> {
    let id = ArtifactId::at("sensitivity", layer.index as u32);
    let path = run.artifact_path(plan, &id)?;
    let block = |linear: &LinearSpec| {
        let routed = layer.input(&linear.input).is_some_and(|input| input.routed);
        linear.rows.min(if routed { 128 } else { max_output_block })
    };
    let name = |linear: &LinearSpec| format!("{}.output_moment", linear.name);
    let linears = layer.linears.iter();
    let declared: Vec<Declared> = linears
        .map(|linear| (name(linear), "F32", 4, vec![linear.rows, block(linear)]))
        .collect();
    let file = SparseFile::create(path.as_std_path(), &declared)?;
    for (seed, linear) in layer.linears.iter().enumerate() {
        let rows = linear.rows;
        put_moments(
            &file,
            &name(linear),
            rows,
            block(linear),
            1000 + seed as u64,
        )?;
    }
    record(run, plan, &id, &path)
}

/// Five bits for every weight of the rows that are not zero.
fn make_allocation(
    run: &RunDir,
    plan: &Plan,
    config: &ModelConfig,
    rows: usize,
) -> anyhow::Result<()> {
    let mut layers = Vec::new();
    for layer in config.layer_plans() {
        let (mut linears, mut nonzero) = (Vec::new(), 0);
        for linear in &layer.linears {
            let share = rows.min(linear.rows) as f64 / linear.rows as f64;
            nonzero += rows.min(linear.rows) * linear.cols;
            linears.push(BitAllocation {
                name: linear.name.clone(),
                bits: 4.9 * share,
                lambda: None,
                regular: true,
            });
        }
        layers.push(LayerAllocation {
            file_bits: 5 * nonzero as u64,
            linears,
        });
    }
    let id = ArtifactId {
        name: "allocation".into(),
        layer: None,
    };
    let path = run.artifact_path(plan, &id)?;
    uc_store::atomic::write_json(&path, &Allocation { layers })?;
    record(run, plan, &id, &path)
}

/// Writes the receipt of the job that would have made an artifact. Its key is empty, so that `uc` would make it again.
fn record(run: &RunDir, plan: &Plan, id: &ArtifactId, path: &Utf8Path) -> anyhow::Result<()> {
    let job = plan
        .producer(id)
        .with_context(|| format!("no stage makes {id}"))?;
    let (digest, size) = hash_file(path)?;
    let mut receipt = Receipt::read(run, &job)?.unwrap_or(Receipt {
        stage: job.stage.clone(),
        unit: job.unit,
        key: BTreeMap::new(),
        outputs: Vec::new(),
    });
    receipt.outputs.retain(|output| output.artifact != *id);
    receipt.outputs.push(OutputRecord {
        artifact: id.clone(),
        size,
        sha256: digest.0,
    });
    Ok(receipt.write(run)?)
}
