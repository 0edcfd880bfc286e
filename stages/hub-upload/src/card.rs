//! The model card: metadata, sizes, metrics, and how to download and verify the pack.

use std::fmt::Write;

use anyhow::Context;
use serde_json::Value;
use uc_pack::Manifest;
use uc_pack::licence::{self, Licence};
use uc_store::stage::Job;

use crate::readme::Card;
use crate::{read_json, remote};

/// Writes `model-card`. In a run without evaluation the card says that nothing was measured.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
    let path = job.input("manifest")?;
    let folder = path.parent().context("the manifest has no folder")?;
    let (manifest, fingerprint) = Manifest::read(folder)?;
    let metrics: Option<Value> = match job.input("metrics") {
        Ok(path) => Some(read_json(&path)?),
        Err(_) => None,
    };
    let repository = remote::read_repository(job)?;
    let card = Card {
        keys: front_matter(&manifest, licence::find(folder.as_std_path(), &manifest)),
        text: render(
            &manifest,
            &fingerprint.to_string(),
            metrics.as_ref(),
            &repository.repository,
        )?,
    };
    let mut file = job.output("model-card")?;
    file.append(card.file().as_bytes())?;
    job.commit("model-card", file)?;
    Ok(())
}

/// The keys of the front matter, which the Hub reads.
fn front_matter(manifest: &Manifest, licence: Option<Licence>) -> Vec<(&'static str, Vec<String>)> {
    let one = |value: &str| vec![value.to_owned()];
    let mut keys = vec![("library_name", one("ultracompress"))];
    match licence {
        Some(Licence::Known(id)) => keys.push(("license", one(id))),
        Some(Licence::Other(file)) => keys.extend([
            ("license", one("other")),
            ("license_name", one("see-license-file")),
            ("license_link", one(&file)),
        ]),
        None => {}
    }
    if let Some(model) = manifest.source.hub_name() {
        keys.push(("base_model", one(model)));
        keys.push(("base_model_relation", one("quantized")));
    }
    let mut tags = vec!["ultracompress".to_owned(), "quantized".into()];
    let bits = manifest.totals.bits_per_weight_linears.parse::<f64>();
    tags.extend(bits.ok().map(|bits| format!("{}-bit", bits.round())));
    keys.push(("tags", tags));
    keys
}

/// The text in Markdown.
fn render(
    manifest: &Manifest,
    fingerprint: &str,
    metrics: Option<&Value>,
    repository: &str,
) -> anyhow::Result<String> {
    let totals = &manifest.totals;
    let source = &manifest.source.name;
    let mut card = String::new();
    writeln!(
        card,
        "# {source}: {} bits per weight\n",
        totals.bits_per_weight_linears
    )?;
    writeln!(
        card,
        "A pack of {} layers, made by ultracompress {}. Its weights are reconstructed with exact arithmetic, and a hash \
         covers each tensor.\n",
        manifest.layers.len(),
        manifest.tool.version
    )?;
    write_sizes(&mut card, manifest)?;
    match metrics {
        Some(metrics) => write_metrics(&mut card, metrics)?,
        None => writeln!(
            card,
            "\n## Metrics\n\nNothing was measured: the run skipped the evaluation. `uc eval` measures a pack."
        )?,
    }
    writeln!(
        card,
        "\n## Download and verify\n\n```\nhf download {repository} --local-dir PACK\nuc verify PACK --expect {fingerprint}\n```\n\n\
         `uc verify` recomputes the SHA-256 of every file and of every tensor that the pack reconstructs. \
         The fingerprint behind `--expect`, the SHA-256 of `manifest.json`, identifies every byte of the pack. Without it, the \
         pack is only shown to be consistent in itself.\n\n\
         On every machine, reconstruction gives the same compressed weights, bit for bit; the manifest lists their SHA-256. \
         They differ from the weights of the source."
    )?;
    Ok(card)
}

/// The table of sizes, with what each one counts.
fn write_sizes(card: &mut String, manifest: &Manifest) -> std::fmt::Result {
    let totals = &manifest.totals;
    writeln!(card, "| size | value | counts |\n|---|---|---|")?;
    let mut row = |name: &str, value: &str, counted: String| {
        writeln!(card, "| {name} | {value} | {counted} |")
    };
    row(
        "bits per weight, linears",
        &totals.bits_per_weight_linears,
        format!(
            "every byte of the layer files, {} bits, over {} weights",
            totals.linear_bits, totals.linear_parameters
        ),
    )?;
    row(
        "bits per weight, whole pack",
        &totals.bits_per_weight_all,
        format!(
            "layer files, non-layer tensors and description, {} bytes, over {} parameters",
            totals.total_bytes, totals.total_parameters
        ),
    )?;
    row(
        "compression ratio",
        &totals.compression_ratio,
        format!(
            "{} bytes of the source over {} bytes of the pack",
            totals.source_bytes, totals.total_bytes
        ),
    )
}

/// The table of metrics with their confidence intervals, and what they were measured on.
fn write_metrics(card: &mut String, metrics: &Value) -> anyhow::Result<()> {
    let metric = |name: &str, part: &str| {
        let value = metrics[name][part].as_f64();
        value.with_context(|| format!("the metrics have no value {name}.{part}"))
    };
    writeln!(
        card,
        "\n## Metrics\n\n| metric | value | 95 % confidence interval over windows |\n|---|---|---|"
    )?;
    for (name, label) in [
        ("teacher_ppl", "perplexity of the source"),
        ("pack_ppl", "perplexity of the pack"),
        ("ppl_ratio", "ratio of the perplexities"),
        ("mean_kl", "mean KL divergence, nats"),
        ("median_kl", "median KL divergence, nats"),
        ("p99_kl", "99th percentile of the KL divergence, nats"),
        ("top1_agreement", "top-1 agreement"),
    ] {
        let value = metric(name, "value")?;
        // One window gives no interval.
        let interval = match (metric(name, "low"), metric(name, "high")) {
            (Ok(low), Ok(high)) => format!("{low:.6} to {high:.6}"),
            _ => "none: one window".into(),
        };
        writeln!(card, "| {label} | {value:.6} | {interval} |")?;
    }
    let unquoted = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let texts = metrics["texts"].as_array().map(Vec::as_slice);
    let texts: Vec<String> = texts
        .unwrap_or_default()
        .iter()
        .map(|text| {
            format!(
                "{} (SHA-256 `{}`)",
                unquoted(&text["name"]),
                unquoted(&text["sha256"])
            )
        })
        .collect();
    writeln!(
        card,
        "\nMeasured on the pack as read from disk, against the source, over {} windows of {} tokens ({} tokens \
         compared) of {}; seed {}, windows `{}`.",
        metrics["windows"],
        metrics["window_length"],
        metrics["tokens"],
        texts.join(", "),
        metrics["seed"],
        unquoted(&metrics["windows_sha256"]),
    )?;
    Ok(())
}
