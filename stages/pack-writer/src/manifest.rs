//! Task `manifest`: writes every file of the pack except the layers.
//!
//! These are the non-layer tensors, the model's configuration and tokenizer, and the manifest with its digest.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Context;
use camino::Utf8Path;
use uc_model::SourceFolder;
use uc_model::device::DeviceKind;
use uc_model::text::WindowSet;
use uc_pack::manifest::{
    Calibration, Codec, FileEntry, HubSource, NonLayerEntry, Source, Tool, WindowRequest,
};
use uc_pack::totals::Totals;
use uc_pack::{Digest, ExactDecl, FORMAT_VERSION, LayerEntry, Manifest, write_non_layer};
use uc_store::atomic::Written;
use uc_store::plan::External;
use uc_store::stage::Job;
use uc_store::tensors::TensorFile;

/// The release that last changed the bytes of a pack, which the manifest records as the version of its tool. Releases that
/// write the same bytes for the same input keep it, so that they give the same fingerprint. For the same reason the manifest
/// names neither the revision nor the machine that the program was built from and ran on.
const ENCODER_VERSION: &str = "0.3.0";
/// The sections of settings that decide the bytes of a pack. Those of the evaluation do not.
const RECORDED_SECTIONS: [&str; 5] = ["model", "calibration", "allocation", "quantize", "overlay"];
/// Rows of a non-layer tensor that are copied at a time.
const COPY_ROWS: usize = 4096;
/// Outputs that are copies of files of the source. The file name of the output is that of the source file.
const COPIED_FILES: [&str; 5] = [
    "pack-config",
    "pack-tokenizer",
    "pack-tokenizer-config",
    "pack-special-tokens",
    "pack-generation-config",
];
/// Largest file that is copied, in bytes.
const MAX_COPIED: u64 = uc_input::LARGE_JSON;
/// Beginning of the names of further outputs of this kind, one for each file that describes the model.
const DESCRIPTIONS: &str = "pack-description-";

/// Writes the pack's files other than the layers. The manifest and its digest come last.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
    let files = copy_source_files(job)?;
    let non_layer = copy_non_layer(job)?;
    let manifest = build_manifest(job, files, non_layer)?;

    let text = manifest.to_bytes();
    let mut file = job.output("manifest")?;
    file.append(&text)?;
    job.commit("manifest", file)?;
    let mut digest = job.output("manifest-digest")?;
    digest.append(Manifest::digest_line(&text).as_bytes())?;
    job.commit("manifest-digest", digest)?;
    job.metric(
        "bpw linears",
        manifest.totals.bits_per_weight_linears.clone(),
    );
    job.metric("bpw all", manifest.totals.bits_per_weight_all.clone());
    job.metric(
        "compression ratio",
        manifest.totals.compression_ratio.clone(),
    );
    Ok(())
}

/// Copies config.json and the tokenizer's files, so that the pack is self-contained.
fn copy_source_files(job: &mut Job<'_>) -> anyhow::Result<Vec<FileEntry>> {
    let mut entries = Vec::new();
    let names = job.plan().artifacts.keys();
    let descriptions = names.filter(|name| name.starts_with(DESCRIPTIONS));
    let outputs = COPIED_FILES.into_iter().map(str::to_owned);
    let outputs: Vec<String> = outputs.chain(descriptions.cloned()).collect();
    for output in &outputs {
        // The plan has no such output if the source has no such file.
        let Ok(path) = job.output_path(output) else {
            continue;
        };
        let name = path
            .file_name()
            .context("an output without a file name")?
            .to_owned();
        let from = job.plan().model.path.join(&name);
        let bytes =
            uc_input::read(&from, MAX_COPIED).with_context(|| format!("cannot read {from}"))?;
        let mut file = job.output(output)?;
        file.append(&bytes)?;
        let written = job.commit(output, file)?;
        entries.push(file_entry(&name, &written));
    }
    Ok(entries)
}

fn file_entry(name: &str, written: &Written) -> FileEntry {
    FileEntry {
        name: name.into(),
        size: written.size,
        sha256: Digest(written.sha256.0),
    }
}

/// Copies the non-layer tensors to `scaffold.uc`, a few rows at a time.
fn copy_non_layer(job: &mut Job<'_>) -> anyhow::Result<NonLayerEntry> {
    let source = TensorFile::open(&job.input("non-layer")?)?;
    let decls: Vec<ExactDecl> = source
        .tensors()
        .map(uc_layer_quantizer::exact_decl)
        .collect::<anyhow::Result<_>>()?;
    let mut file = job.output("pack-non-layer")?;
    write_non_layer(&mut file, &decls, |index, sink: &mut dyn Write| {
        let decl = &decls[index];
        let rows = decl.shape.first().map_or(1, |&rows| rows as usize);
        for first in (0..rows).step_by(COPY_ROWS) {
            let count = COPY_ROWS.min(rows - first);
            let bytes = source
                .read_rows(&decl.name, first, count)
                .map_err(std::io::Error::other)?;
            sink.write_all(&bytes)?;
        }
        Ok(())
    })?;
    job.commit("pack-non-layer", file)?;
    Ok(NonLayerEntry::measure(job.output_path("pack-non-layer")?)?)
}

/// The manifest of the pack: the records of all layers, and what the pack was made from.
fn build_manifest(
    job: &mut Job<'_>,
    files: Vec<FileEntry>,
    non_layer: NonLayerEntry,
) -> anyhow::Result<Manifest> {
    let plan = job.plan();
    let config = files
        .iter()
        .find(|file| file.name == "config.json")
        .context("no config.json")?;
    let source = Source {
        name: plan.model.name.clone(),
        config_sha256: config.sha256,
        files: external_files(job.external("source")?),
        dtypes: dtype_counts(&plan.model.path)?,
        hub: plan.model.hub.as_ref().map(|hub| HubSource {
            repository: hub.repository.clone(),
            commit: hub.commit.clone(),
        }),
    };
    let settings = RECORDED_SECTIONS.into_iter().flat_map(|section| {
        let fields = plan.settings.fields(section);
        fields
            .into_iter()
            .map(move |(name, value)| (format!("{section}.{name}"), value))
    });
    let mut manifest = Manifest {
        pack_version: u32::from(FORMAT_VERSION),
        tool: Tool {
            name: "ultracompress".into(),
            version: ENCODER_VERSION.into(),
        },
        codec: Codec {
            name: "uc-feedback-rans".into(),
            source: "open".into(),
            format: u32::from(FORMAT_VERSION),
            arithmetic: Some(arithmetic(plan.settings.model.device.into()).into()),
            settings: settings.collect(),
        },
        source,
        calibration: calibration(job)?,
        layers: layer_records(job)?,
        non_layer,
        files,
        totals: Totals::default(),
    };
    manifest.totals = Totals::compute(&manifest, "manifest.json")?;
    Ok(manifest)
}

/// Number format and backend of the forward passes on a device.
fn arithmetic(device: DeviceKind) -> &'static str {
    match device {
        DeviceKind::Cpu => "f32, burn-flex on the CPU",
        DeviceKind::Cuda => "f32, burn-cuda on an NVIDIA GPU",
    }
}

/// The records that the layers' jobs wrote, by layer.
fn layer_records(job: &Job<'_>) -> anyhow::Result<Vec<LayerEntry>> {
    let layers = job.plan().model.layers;
    let mut records = Vec::with_capacity(layers as usize);
    for layer in 0..layers {
        let path = job.input_at("layer-record", layer)?;
        let record: LayerEntry = uc_input::read_json(&path, uc_input::LARGE_JSON)
            .with_context(|| format!("cannot read {path}"))?;
        records.push(record);
    }
    Ok(records)
}

/// Names, sizes and digests of the files of an external input.
fn external_files(external: &External) -> Vec<FileEntry> {
    let entry = |file: &uc_store::plan::ExternalFile| FileEntry {
        name: file.path.file_name().unwrap_or_default().into(),
        size: file.size,
        sha256: Digest(file.sha256.0),
    };
    external.files.iter().map(entry).collect()
}

/// Number of source tensors by dtype.
fn dtype_counts(model: &Utf8Path) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    for tensor in SourceFolder::open(model.as_std_path())?.tensors() {
        *counts.entry(tensor.dtype.name().to_owned()).or_insert(0) += 1;
    }
    Ok(counts)
}

/// The calibration text and its windows.
fn calibration(job: &Job<'_>) -> anyhow::Result<Calibration> {
    let path = job.input("calibration-windows")?;
    let set: WindowSet =
        uc_input::read_json(&path, u64::MAX).with_context(|| format!("cannot read {path}"))?;
    let sha256: uc_store::sha::Sha256Digest =
        set.sha256.parse().context("digest of the windows")?;
    Ok(Calibration {
        files: external_files(job.external("calibration-text")?),
        windows: set.windows.len() as u64,
        length: set.length as u64,
        seed: set.seed,
        windows_sha256: Digest(sha256.0),
        tokens: set.tokens() as u64,
        request: Some(WindowRequest {
            windows: set.requested_windows as u64,
            length: set.requested_length as u64,
            text_bytes: set.text_bytes,
            excerpts: set.excerpts.unwrap_or(0),
        }),
    })
}
