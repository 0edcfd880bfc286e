//! `uc inspect PACK`: the contents of a pack, by its manifest; `tensor` shows what one of its tensors looks like.

mod histogram;
mod source;
mod tensor;

use camino::Utf8Path;
use serde_json::json;
use uc_input::printable;
use uc_pack::manifest::Calibration;
use uc_pack::{Manifest, PackError};

use crate::cli::InspectArgs;
use crate::report::colour::print_report;
use crate::report::json::print_json;
use crate::report::packs;

/// Runs the verb.
pub fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let pack = packs::open(&args.pack)?;
    if let Some(name) = &args.tensor {
        return tensor::run(args, &pack, name);
    }
    let manifest = pack.manifest();
    match (args.layer, args.json) {
        (None, true) => print_json(manifest),
        (None, false) => {
            let fingerprint = pack.fingerprint().to_string();
            print_report(&overview(&args.pack, manifest, &fingerprint));
            Ok(())
        }
        (Some(layer), json) => show_layer(&args.pack, manifest, layer, json),
    }
}

fn overview(dir: &Utf8Path, manifest: &Manifest, fingerprint: &str) -> String {
    let totals = &manifest.totals;
    let mut lines = Vec::new();
    let mut row = |name: &str, value: String| lines.push(format!("{name:<22}{value}"));
    row("pack", dir.to_string());
    row("fingerprint", fingerprint.to_owned());
    row("pack version", manifest.pack_version.to_string());
    row(
        "written by",
        format!("{} {}", manifest.tool.name, manifest.tool.version),
    );
    row(
        "codec",
        format!("{} ({})", manifest.codec.name, manifest.codec.source),
    );
    if let Some(arithmetic) = &manifest.codec.arithmetic {
        row("  arithmetic", arithmetic.clone());
    }
    for (key, value) in &manifest.codec.settings {
        // Some names fill the column.
        row(&format!("  {key} "), value.clone());
    }
    row("source", manifest.source.name.clone());
    if let Some(hub) = &manifest.source.hub {
        row(
            "  from the Hub",
            format!("{} at {}", hub.repository, hub.commit),
        );
    }
    calibration_rows(&manifest.calibration, &mut row);
    row("layers", manifest.layers.len().to_string());
    row("linear parameters", totals.linear_parameters.to_string());
    row("all parameters", totals.total_parameters.to_string());
    row("bpw of the linears", totals.bits_per_weight_linears.clone());
    row("bpw of everything", totals.bits_per_weight_all.clone());
    row(
        "bytes",
        format!("{} (source {})", totals.total_bytes, totals.source_bytes),
    );
    row("compression ratio", totals.compression_ratio.clone());
    lines.push(String::new());
    lines.push(format!("{:<24}{:>14}  {:<18}", "file", "bytes", "sha256"));
    let layers = manifest
        .layers
        .iter()
        .map(|layer| (&layer.file, layer.size, layer.sha256));
    let non_layer = &manifest.non_layer;
    let other_files = manifest
        .files
        .iter()
        .map(|file| (&file.name, file.size, file.sha256));
    let non_layer = std::iter::once((&non_layer.file, non_layer.size, non_layer.sha256));
    for (name, size, sha256) in layers.chain(non_layer).chain(other_files) {
        let sha256 = sha256.to_string();
        lines.push(format!("{name:<24}{size:>14}  {}…", &sha256[..16]));
    }
    escaped(&lines)
}

/// The lines as one text. Their words come from the pack, so they are escaped.
fn escaped(lines: &[String]) -> String {
    let line = |line: &String| format!("{}\n", printable(line));
    lines.iter().map(line).collect()
}

/// The calibration windows, what was asked for if that is more, and the texts by name and digest.
fn calibration_rows(calibration: &Calibration, row: &mut impl FnMut(&str, String)) {
    row(
        "calibration",
        format!(
            "{} windows of {} tokens, seed {}, {} files",
            calibration.windows,
            calibration.length,
            calibration.seed,
            calibration.files.len()
        ),
    );
    if let Some(request) = &calibration.request {
        if request.windows > calibration.windows || request.length > calibration.length {
            let asked = format!("{} windows of {} tokens", request.windows, request.length);
            row("  asked for", asked);
        }
        if request.excerpts > 0 {
            let read = format!(
                "{} excerpts of {} bytes",
                request.excerpts, request.text_bytes
            );
            row("  read", read);
        }
    }
    for file in &calibration.files {
        let name = uc_input::printable(&file.name);
        row(
            "  text",
            format!("{name}  {} bytes  sha256 {}", file.size, file.sha256),
        );
    }
}

fn show_layer(dir: &Utf8Path, manifest: &Manifest, layer: u32, json: bool) -> anyhow::Result<()> {
    let entry = manifest.layers.get(layer as usize).ok_or_else(|| {
        packs::classify(PackError::NoLayer {
            origin: dir.join(uc_pack::MANIFEST_FILE).to_string(),
            layer,
            layers: manifest.layers.len() as u32,
        })
    })?;
    if json {
        return print_json(entry);
    }
    let mut lines = vec![
        format!(
            "{}  {} bytes  sha256 {}",
            entry.file, entry.size, entry.sha256
        ),
        format!("prefix {}", entry.prefix),
        format!(
            "{:<32}{:>16}{:>8}{:>6}  reconstructed sha256",
            "linear", "shape", "bpw", "rank"
        ),
    ];
    for linear in &entry.linears {
        let [rows, cols] = linear.shape;
        let bpw = linear.bits as f64 / (rows as f64 * cols as f64);
        let shape = format!("{rows}x{cols}");
        let rank = linear.rank;
        let sha256 = linear.reconstructed_sha256;
        let name = &linear.name;
        lines.push(format!(
            "{name:<32}{shape:>16}{bpw:>8.4}{rank:>6}  {sha256}"
        ));
    }
    for tensor in &entry.exact {
        let shape = json!(tensor.shape).to_string();
        lines.push(format!(
            "{:<32}{shape:>16}{:>14?}  {}",
            tensor.name, tensor.dtype, tensor.sha256
        ));
    }
    print_report(&escaped(&lines));
    Ok(())
}
