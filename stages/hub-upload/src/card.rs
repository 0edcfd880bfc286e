//! The model card: metadata, figures from the receipts, how to verify.

use std::fmt::Write;

use anyhow::Context;
use uc_pack::Manifest;

/// The card as Markdown with the Hub's front matter.
pub fn write(
    manifest: &Manifest,
    fingerprint: &str,
    metrics: &serde_json::Value,
) -> anyhow::Result<String> {
    let figure = |name: &str, part: &str| {
        metrics[name][part]
            .as_f64()
            .with_context(|| format!("the metrics have no figure {name}.{part}"))
    };
    let totals = &manifest.totals;
    let mut card = String::new();
    writeln!(
        card,
        "---\nlibrary_name: ultracompress\ntags:\n- ultracompress\n- quantized\n---\n"
    )?;
    writeln!(
        card,
        "# {}: {} bits per weight\n",
        manifest.source.name, totals.bits_per_weight_linears
    )?;
    writeln!(
        card,
        "A pack of {} layers. Bits per weight over the linears, every byte of the layer files counted: **{}**; over all \
         parameters, scaffold included: {}. The source has {} bytes, the pack {} (ratio {}).\n",
        manifest.layers.len(),
        totals.bits_per_weight_linears,
        totals.bits_per_weight_all,
        totals.source_bytes,
        totals.total_bytes,
        totals.compression_ratio
    )?;
    writeln!(
        card,
        "| figure | value | 95 % interval over windows |\n|---|---|---|"
    )?;
    for (name, label) in [
        ("teacher_ppl", "perplexity of the source"),
        ("pack_ppl", "perplexity of the pack"),
        ("ppl_ratio", "ratio"),
        ("mean_kl", "mean KL divergence, nats"),
        ("median_kl", "median KL divergence, nats"),
        ("p99_kl", "99th percentile of the KL divergence, nats"),
        ("top1_agreement", "top-1 agreement"),
    ] {
        let (value, low, high) = (
            figure(name, "value")?,
            figure(name, "low")?,
            figure(name, "high")?,
        );
        writeln!(card, "| {label} | {value:.5} | {low:.5} to {high:.5} |")?;
    }
    writeln!(
        card,
        "\nMeasured on the pack as read from disk, over {} windows of {} tokens.\n",
        metrics["windows"], metrics["window_length"]
    )?;
    writeln!(
        card,
        "## Verify\n\n```\nuc verify FOLDER\n```\n\nFingerprint (SHA-256 of `manifest.json`): `{fingerprint}`.\n"
    )?;
    writeln!(
        card,
        "Reconstruction is bit-identical to the compressed weights whose SHA-256 stand in the manifest; it is not \
         bit-identical to the source."
    )?;
    Ok(card)
}
