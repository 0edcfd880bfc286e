//! `uc verify PACK`: recomputes every hash and reports every finding.

use uc_pack::verify::{Severity, Verdict, VerifyReport};
use uc_store::ExitCode;

use crate::cli::VerifyArgs;
use crate::report::colour::print_report;
use crate::report::failure::failure;
use crate::report::json::print_json;
use crate::report::packs;
use crate::report::progress::Display;
use crate::session;

/// Runs the verb.
pub fn run(args: &VerifyArgs, display: &Display) -> anyhow::Result<()> {
    let report = packs::verify(&args.pack, session::threads(args.threads), display)?;
    match args.json {
        true => print_json(&report)?,
        false => print_report(&text(&report)),
    }
    match report.verdict {
        Verdict::Pass => Ok(()),
        Verdict::Fail => Err(failure(
            ExitCode::Damaged,
            format!("{} does not match its manifest", args.pack),
        )),
    }
}

/// The report as text.
fn text(report: &VerifyReport) -> String {
    let mut lines = Vec::new();
    let mut row = |name: &str, value: String| lines.push(format!("{name:<22}{value}"));
    let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "unknown".into());
    row(
        "pack version",
        or_unknown(report.pack_version.map(|version| version.to_string())),
    );
    row("codec", or_unknown(report.codec_name.clone()));
    row("codec source", or_unknown(report.codec_source.clone()));
    row("n_layers", report.n_layers.to_string());
    row(
        "bpw of the linears",
        or_unknown(report.bits_per_weight_linears.clone()),
    );
    row(
        "bpw of everything",
        or_unknown(report.bits_per_weight_all.clone()),
    );
    let spot = report.spot_check.as_ref().map(|spot| {
        let verdict = if spot.matches { "matches" } else { "DIFFERS" };
        format!("{} {} {verdict}", spot.tensor, spot.sha256)
    });
    row("SHA-256 spot check", or_unknown(spot));
    row(
        "layer 0",
        format!(
            "{} linears, {} exact tensors",
            report.layer0_linears, report.layer0_exact
        ),
    );
    row(
        "non-layer",
        if report.non_layer_present {
            "present"
        } else {
            "MISSING"
        }
        .into(),
    );
    row("tensors recomputed", report.tensors_checked.to_string());
    row("bytes hashed", report.bytes_checked.to_string());
    row(
        "fingerprint",
        or_unknown(report.fingerprint.map(|digest| digest.to_string())),
    );
    for finding in &report.findings {
        let severity = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let tensor = finding
            .tensor
            .as_ref()
            .map(|name| format!(" {name}"))
            .unwrap_or_default();
        lines.push(format!(
            "{severity}: {}{tensor}: {}",
            finding.file, finding.message
        ));
    }
    let errors = report
        .findings
        .iter()
        .filter(|f| f.severity == Severity::Error)
        .count();
    let verdict = match report.verdict {
        Verdict::Pass => "PASS".to_owned(),
        Verdict::Fail => format!("FAIL ({errors} errors)"),
    };
    lines.push(format!("{:<22}{verdict}", "verdict"));
    lines.join("\n") + "\n"
}
