//! `uc verify PACK`: recomputes every hash and reports every finding.

use uc_input::printable;
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
    let threads = session::threads(args.threads);
    let report = packs::verify(&args.pack, threads, args.expect, display)?;
    match args.json {
        true => print_json(&report)?,
        false => print_report(&text(&report)),
    }
    let pack = printable(args.pack.as_str());
    let is_other = report.expected_fingerprint.is_some()
        && report.fingerprint.is_some()
        && report.fingerprint != report.expected_fingerprint;
    match report.verdict {
        Verdict::Pass => Ok(()),
        Verdict::Fail if is_other => {
            let message = format!("{pack} is another pack than the expected one");
            Err(failure(ExitCode::Damaged, message))
        }
        Verdict::Fail => {
            let message = format!("{pack} does not match its manifest");
            Err(failure(ExitCode::Damaged, message))
        }
    }
}

/// Most findings that the text names.
const SHOWN_FINDINGS: usize = 20;

/// The report as text. What comes from the pack is escaped.
fn text(report: &VerifyReport) -> String {
    let mut lines = facts(report);
    for finding in report.findings.iter().take(SHOWN_FINDINGS) {
        let severity = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let tensor = finding.tensor.iter().map(|name| format!(" {name}"));
        let tensor: String = tensor.collect();
        let (file, message) = (&finding.file, &finding.message);
        lines.push(format!("{severity}: {file}{tensor}: {message}"));
    }
    let hidden = report.findings.len().saturating_sub(SHOWN_FINDINGS) as u64;
    let hidden = hidden + report.findings_omitted;
    if hidden > 0 {
        lines.push(format!(
            "… and {hidden} more findings; --json lists the first 1000"
        ));
    }
    let verdict = match (report.verdict, report.expected_fingerprint) {
        (Verdict::Pass, None) => {
            "PASS: consistent in itself; authenticity is shown by an expected fingerprint \
             (--expect) or a signature"
        }
        (Verdict::Pass, Some(_)) => "PASS: consistent in itself, with the expected fingerprint",
        (Verdict::Fail, _) => "FAIL",
    };
    lines.push(format!("{:<22}{verdict}", "verdict"));
    lines
        .iter()
        .map(|line| format!("{}\n", printable(line)))
        .collect()
}

/// What was found out about the pack, one line each.
fn facts(report: &VerifyReport) -> Vec<String> {
    let mut lines = Vec::new();
    let mut row = |name: &str, value: String| lines.push(format!("{name:<22}{value}"));
    let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "unknown".into());
    let version = report.pack_version.map(|version| version.to_string());
    row("pack version", or_unknown(version));
    row("codec", or_unknown(report.codec_name.clone()));
    row("codec source", or_unknown(report.codec_source.clone()));
    row("n_layers", report.n_layers.to_string());
    let bits = report.bits_per_weight_linears.clone();
    row("bpw of the linears", or_unknown(bits));
    let bits = report.bits_per_weight_all.clone();
    row("bpw of everything", or_unknown(bits));
    let spot = report.spot_check.as_ref().map(|spot| {
        let verdict = if spot.matches { "matches" } else { "DIFFERS" };
        format!("{} {} {verdict}", spot.tensor, spot.sha256)
    });
    row("SHA-256 spot check", or_unknown(spot));
    let (linears, exact) = (report.layer0_linears, report.layer0_exact);
    row(
        "layer 0",
        format!("{linears} linears, {exact} exact tensors"),
    );
    let non_layer = match report.non_layer_present {
        true => "present",
        false => "MISSING",
    };
    row("non-layer", non_layer.into());
    row("tensors recomputed", report.tensors_checked.to_string());
    row("bytes hashed", report.bytes_checked.to_string());
    let fingerprint = report.fingerprint.map(|digest| digest.to_string());
    row("fingerprint", or_unknown(fingerprint));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use uc_pack::verify::{Finding, Request, verify};

    #[test]
    fn text_of_a_pack_moves_no_cursor_and_at_most_twenty_findings_are_shown() {
        let folder = tempfile::tempdir().expect("folder");
        let mut report = verify(folder.path(), Request::default(), &|_| {});
        report.codec_name = Some("\u{1b}[2J\u{1b}[Hverdict PASS\r\nx".into());
        let finding = Finding {
            severity: Severity::Error,
            file: "\u{202e}file".into(),
            tensor: None,
            message: "a\nb".into(),
        };
        report.findings = vec![finding; 25];
        let text = text(&report);
        let is_plain = |c: char| c == '\n' || !(c.is_control() || c == '\u{202e}');
        assert!(text.chars().all(is_plain), "{text:?}");
        assert_eq!(text.matches("error:").count(), 20);
        assert!(text.contains("… and 5 more findings"), "{text}");
        assert!(text.ends_with("verdict               FAIL\n"), "{text}");
    }
}
