//! The model card of an export, README.md: what was made, from which pack, and how to make it again.

use std::fmt::Write;
use std::path::Path;

use serde_json::Value;
use uc_input::printable;
use uc_pack::Pack;
use uc_pack::licence::{self, Licence};

use crate::Format;
use crate::report::Report;

/// The text of the card; `evaluation` is what was measured of the export against the pack.
pub fn render(pack: &Pack, format: Format, report: &Report, evaluation: Option<&Value>) -> String {
    let manifest = pack.manifest();
    let mut card = front_matter(pack, format);
    let name = printable(&manifest.source.name);
    let fingerprint = report.pack_fingerprint;
    let bits = &manifest.totals.bits_per_weight_linears;
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = writeln!(card, "{text}");
    };
    line(format_args!(
        "# {name}: {bits} bits per weight, as {}\n",
        format.title()
    ));
    line(format_args!(
        "The weights that the pack `{fingerprint}` of {name} reconstructs, written by ultracompress {} for programs that do not \
         read packs. The pack has {bits} bits per weight in its linears; this export is larger and no more exact.\n",
        report.tool_version
    ));
    line(format_args!("{}\n", format.accuracy()));
    for note in &report.notes {
        line(format_args!("- {note}"));
    }
    if !report.notes.is_empty() {
        line(format_args!(""));
    }
    line(format_args!("## What the export adds\n"));
    line(format_args!("{}\n", measured(evaluation)));
    line(format_args!("## Make it again\n"));
    line(format_args!(
        "```\nuc verify PACK --expect {fingerprint}\nuc export PACK --expect {fingerprint} {} --out DIR\n```\n",
        format.options()
    ));
    line(format_args!(
        "`export.json` lists the files with their SHA-256. The pack's manifest lists the SHA-256 of every tensor that it \
         reconstructs; each was compared while this export was written.\n"
    ));
    line(format_args!("## Load it\n\n```\n{}\n```", format.usage()));
    card
}

/// What was measured of the export against the pack.
fn measured(evaluation: Option<&Value>) -> String {
    let Some(metrics) = evaluation else {
        return "Not measured. `uc eval EXPORT --model PACK --text TEXT` compares the export with its pack and states the result \
                here."
            .into();
    };
    let value = |name: &str, part: &str| metrics[name][part].as_f64().unwrap_or(f64::NAN);
    format!(
        "Against the pack's own weights: mean KL divergence {:.3e} nats, median {:.3e}, top-1 agreement {:.4}, ratio of the \
         perplexities {:.6} ({} windows of {} tokens, seed {}).",
        value("mean_kl", "value"),
        value("median_kl", "value"),
        value("top1_agreement", "value"),
        value("ppl_ratio", "value"),
        metrics["windows"],
        metrics["window_length"],
        metrics["seed"],
    )
}

/// The keys that the Hub reads.
fn front_matter(pack: &Pack, format: Format) -> String {
    let manifest = pack.manifest();
    let mut text = "---\n".to_owned();
    let mut key = |name: &str, value: &str| {
        let _ = writeln!(text, "{name}: {value}");
    };
    key("library_name", format.library());
    let folder = pack.path("");
    match licence::find(Path::new(&folder), manifest) {
        Some(Licence::Known(id)) => key("license", id),
        Some(Licence::Other(file)) => {
            key("license", "other");
            key("license_name", "see-license-file");
            key("license_link", &file);
        }
        None => {}
    }
    if let Some(model) = manifest.source.hub_name() {
        key("base_model", model);
        key("base_model_relation", "quantized");
    }
    text.push_str("tags:\n- ultracompress\n---\n\n");
    text
}
