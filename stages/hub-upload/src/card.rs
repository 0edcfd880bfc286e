//! The model card: metadata, figures from the receipts, how to get the pack and verify it.

use std::fmt::Write;

use anyhow::Context;
use serde_json::Value;
use uc_pack::Manifest;
use uc_store::stage::Job;

use crate::{read_json, remote};

/// Writes `model-card`; in a run without evaluation it says that nothing was measured.
pub fn run(job: &mut Job<'_>) -> anyhow::Result<()> {
    let path = job.input("manifest")?;
    let folder = path.parent().context("the manifest has no folder")?;
    let (manifest, fingerprint) = Manifest::read(folder)?;
    let metrics: Option<Value> = match job.input("metrics") {
        Ok(path) => Some(read_json(&path)?),
        Err(_) => None,
    };
    let repository = remote::repository(job)?;
    let card = write(
        &manifest,
        &fingerprint.to_string(),
        metrics.as_ref(),
        &repository.repository,
    )?;
    let mut file = job.output("model-card")?;
    file.append(card.as_bytes())?;
    job.commit("model-card", file)?;
    Ok(())
}

/// The card as Markdown with the Hub's front matter.
fn write(
    manifest: &Manifest,
    fingerprint: &str,
    metrics: Option<&Value>,
    repository: &str,
) -> anyhow::Result<String> {
    let totals = &manifest.totals;
    let source = &manifest.source.name;
    let mut card = String::from("---\nlibrary_name: ultracompress\n");
    // Only a name that the Hub can know: a local folder's is nobody's base model.
    if source.matches('/').count() == 1 {
        writeln!(card, "base_model: {source}\nbase_model_relation: quantized")?;
    }
    writeln!(card, "tags:\n- ultracompress\n- quantized\n---\n")?;
    writeln!(
        card,
        "# {source}: {} bits per weight\n",
        totals.bits_per_weight_linears
    )?;
    writeln!(
        card,
        "A pack of {} layers, made by ultracompress {}: weights that are re-derived by exact arithmetic, each covered \
         by a hash.\n",
        manifest.layers.len(),
        manifest.tool.version
    )?;
    sizes(&mut card, manifest)?;
    match metrics {
        Some(metrics) => figures(&mut card, metrics)?,
        None => writeln!(
            card,
            "\n## Figures\n\nNothing was measured: the run left the evaluation out. `uc eval` measures a pack."
        )?,
    }
    writeln!(
        card,
        "\n## Get it and verify it\n\n```\nhf download {repository} --local-dir PACK\nuc verify PACK\n```\n\n\
         `uc verify` recomputes the SHA-256 of every file and of every tensor that the pack reconstructs. \
         Fingerprint (SHA-256 of `manifest.json`), which stands for every byte of the pack:\n\n\
         `{fingerprint}`\n\n\
         Reconstruction gives the compressed weights whose SHA-256 stand in the manifest, bit for bit, on every \
         machine; they are not the source's weights bit for bit."
    )?;
    Ok(card)
}

/// Bits and bytes, with what is counted.
fn sizes(card: &mut String, manifest: &Manifest) -> std::fmt::Result {
    let totals = &manifest.totals;
    writeln!(card, "| size | value | counted |\n|---|---|---|")?;
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
        "bits per weight, everything",
        &totals.bits_per_weight_all,
        format!(
            "layers, scaffold and description, {} bytes, over {} parameters",
            totals.total_bytes, totals.total_parameters
        ),
    )?;
    row(
        "compression ratio",
        &totals.compression_ratio,
        format!(
            "{} bytes of the source over {} of the pack",
            totals.source_bytes, totals.total_bytes
        ),
    )
}

/// What the evaluator measured, with its intervals.
fn figures(card: &mut String, metrics: &Value) -> anyhow::Result<()> {
    let figure = |name: &str, part: &str| {
        let value = metrics[name][part].as_f64();
        value.with_context(|| format!("the metrics have no figure {name}.{part}"))
    };
    writeln!(
        card,
        "\n## Figures\n\n| figure | value | 95 % interval over windows |\n|---|---|---|"
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
        let value = figure(name, "value")?;
        let (low, high) = (figure(name, "low")?, figure(name, "high")?);
        writeln!(card, "| {label} | {value:.6} | {low:.6} to {high:.6} |")?;
    }
    let word = |value: &Value| match value {
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
                word(&text["name"]),
                word(&text["sha256"])
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
        word(&metrics["windows_sha256"]),
    )?;
    Ok(())
}
