//! `uc verify PACK`: recomputes every hash and says everything that is wrong.

use uc_pack::verify::{Severity, Verdict, VerifyReport};
use uc_store::ExitCode;

use crate::cli::VerifyArgs;
use crate::report::failure::failure;
use crate::report::packs;
use crate::report::progress::Display;
use crate::session;
use crate::verbs::print_json;

/// Runs the verb.
pub fn run(args: &VerifyArgs, display: &Display) -> anyhow::Result<()> {
    let report = packs::verify(&args.pack, session::threads(args.threads), display)?;
    match args.json {
        true => print_json(&report)?,
        false => print!("{}", text(&report)),
    }
    match report.verdict {
        Verdict::Pass => Ok(()),
        Verdict::Fail => Err(failure(
            ExitCode::Damaged,
            format!("{} is not what its manifest says", args.pack),
        )),
    }
}

/// The report for people.
pub fn text(report: &VerifyReport) -> String {
    let mut lines = Vec::new();
    let mut row = |name: &str, value: String| lines.push(format!("{name:<22}{value}"));
    let known = |text: Option<String>| text.unwrap_or_else(|| "unknown".into());
    row(
        "pack version",
        known(report.pack_version.map(|version| version.to_string())),
    );
    row("codec", known(report.codec_name.clone()));
    row("codec source", known(report.codec_source.clone()));
    row("n_layers", report.n_layers.to_string());
    row(
        "bpw of the linears",
        known(report.bits_per_weight_linears.clone()),
    );
    row(
        "bpw of everything",
        known(report.bits_per_weight_all.clone()),
    );
    let spot = report.spot_check.as_ref().map(|spot| {
        let verdict = if spot.matches { "matches" } else { "DIFFERS" };
        format!("{} {} {verdict}", spot.tensor, spot.sha256)
    });
    row("SHA-256 spot check", known(spot));
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
        known(report.fingerprint.map(|digest| digest.to_string())),
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
