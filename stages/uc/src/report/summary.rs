//! What a finished run says at its end: the pack, its size, what it lost, what it cost, and what to do next.

use std::collections::BTreeMap;

use anyhow::Context;
use camino::Utf8PathBuf;
use serde::Serialize;
use serde_json::Value;
use uc_pack::Pack;
use uc_pack::totals::Totals;
use uc_pack::verify::{Finding, Verdict};
use uc_store::ExitCode;
use uc_store::plan::{ArtifactId, HubSource, JobId, Unit};

use crate::plan::planning;
use crate::report::event_log_replay::StageCost;
use crate::report::event_log_writer;
use crate::report::failure::{exit_code, failure};
use crate::report::packs;
use crate::report::progress::Display;
use crate::session;
use crate::session::Session;
use crate::verbs::print_json;

/// The summary of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// The run directory.
    pub run: Utf8PathBuf,
    /// Repository and commit of a model of the Hub.
    pub hub: Option<HubSource>,
    /// Bytes that came from the Hub while the run went on.
    pub received_bytes: u64,
    /// The pack; absent in a run that only evaluates or whose pipeline makes none.
    pub pack: Option<PackSummary>,
    /// What the evaluator measured.
    pub metrics: Option<Value>,
    /// Where the pack was sent, once the repository holds all of it.
    pub upload: Option<Value>,
    /// Calibration of the experts by layer; empty without experts.
    pub experts: BTreeMap<u32, Experts>,
    /// Wall seconds of all sessions of the run.
    pub wall_seconds: f64,
    /// What each stage took.
    pub stages: BTreeMap<String, StageCost>,
    /// The command to try next.
    pub next: String,
}

/// How the calibration text reached the experts of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Experts {
    /// Tokens at every input that only some tokens pass.
    pub tokens: BTreeMap<String, u64>,
    /// Inputs with fewer tokens than values: their second moments were filled up with the mean of all experts'.
    pub filled_up: Vec<String>,
}

/// The pack's part.
#[derive(Debug, Clone, Serialize)]
pub struct PackSummary {
    /// Its folder.
    pub path: Utf8PathBuf,
    /// Bytes of all of its files.
    pub bytes: u64,
    /// Number of its layers.
    pub layers: usize,
    /// Sums and ratios as the manifest states and verify recomputes them.
    pub totals: Totals,
    /// SHA-256 of the manifest.
    pub fingerprint: String,
    /// Layers that the repository holds and that were deleted here.
    pub freed_layers: usize,
    /// Verdict of verify; none where layers were freed, each of which was verified before it went.
    pub verdict: Option<Verdict>,
    /// What verify found.
    pub findings: Vec<Finding>,
}

/// Verifies the pack and prints the summary; a pack that fails its verification is an error.
///
/// A run whose work failed has no summary, but one that was only not sent has: then that error is passed on after it.
pub fn finish(
    session: &Session,
    outcome: anyhow::Result<()>,
    threads: u32,
    json: bool,
    display: &Display,
) -> anyhow::Result<()> {
    if let Err(error) = &outcome
        && (exit_code(error) != ExitCode::Network || !is_measured(session)?)
    {
        return outcome;
    }
    let summary = summarise(session, threads, display)?;
    match json {
        true => print_json(&summary)?,
        false => print!("{}", text(&summary)),
    }
    match summary.pack {
        Some(pack) if pack.verdict == Some(Verdict::Fail) => {
            let message = format!("{} does not verify: uc verify {0} says why", pack.path);
            Err(failure(ExitCode::Damaged, message))
        }
        _ => outcome,
    }
}

/// Whether the run made and measured its pack, as far as it is to do either.
fn is_measured(session: &Session) -> anyhow::Result<bool> {
    let plan = &session.plan;
    let done = session::done(&session.run, plan)?;
    let made = ["manifest", "metrics"].map(|name| plan.producer(&whole(name)));
    Ok(made.iter().flatten().all(|job| done.contains(job)))
}

/// An artifact that is one for all layers.
fn whole(name: &str) -> ArtifactId {
    ArtifactId {
        name: name.into(),
        layer: None,
    }
}

/// The document of an artifact.
fn document(session: &Session, name: &str) -> anyhow::Result<Value> {
    let path = session.run.artifact_path(&session.plan, &whole(name))?;
    let text = std::fs::read(&path).with_context(|| format!("cannot read {path}"))?;
    serde_json::from_slice(&text).with_context(|| format!("{path} is no JSON"))
}

fn summarise(session: &Session, threads: u32, display: &Display) -> anyhow::Result<Summary> {
    let plan = &session.plan;
    let root = session.run.root();
    let pack = match plan.artifacts.contains_key("manifest") {
        true => Some(pack_summary(session, threads, display)?),
        false => None,
    };
    let metrics = plan.artifacts.contains_key("metrics");
    let metrics = metrics.then(|| document(session, "metrics")).transpose()?;
    let sent = plan.producer(&whole(planning::UPLOADED));
    let sent = sent.filter(|job| plan.stage(&job.stage).is_some_and(|stage| !stage.optional));
    let upload = match sent {
        Some(job) if session::done(&session.run, plan)?.contains(&job) => {
            Some(document(session, planning::UPLOADED)?)
        }
        _ => None,
    };
    let mut experts = BTreeMap::new();
    for layer in 0..plan.model.layers {
        if let Some(found) = experts_of(session, layer) {
            experts.insert(layer, found);
        }
    }
    let next = match (&pack, &metrics) {
        (Some(pack), None) => {
            // Of a source that comes and goes no whole copy is here.
            let gone = plan
                .model
                .hub
                .as_ref()
                .filter(|_| plan.shards().next().is_some());
            let model = gone.map_or_else(
                || plan.model.path.to_string(),
                |hub| format!("{}@{}", hub.repository, hub.commit),
            );
            format!("uc eval {} --model {model} --text FILE", pack.path)
        }
        (Some(pack), Some(_)) => format!("uc inspect {} --layer 0", pack.path),
        (None, _) => format!("uc status {root}"),
    };
    let history = event_log_writer::history(&session.run);
    Ok(Summary {
        run: root.to_owned(),
        hub: plan.model.hub.clone(),
        received_bytes: history.received,
        pack,
        metrics,
        upload,
        experts,
        wall_seconds: history.wall_seconds,
        stages: history.costs(),
        next,
    })
}

/// What `teacher-cache` noted of a layer with experts.
fn experts_of(session: &Session, layer: u32) -> Option<Experts> {
    let id = JobId {
        stage: "teacher-cache".into(),
        unit: Unit::Layer(layer),
    };
    let path = session.run.metrics_path(&id);
    let text = std::fs::read(&path).unwrap_or_default();
    // Figures are for people and no hash covers them: damaged ones are left out, the pack does not depend on them.
    let mut metrics: BTreeMap<String, Value> = serde_json::from_slice(&text).ok()?;
    let tokens = metrics.remove("tokens of experts")?;
    let filled_up = metrics.remove("inputs filled up").unwrap_or_default();
    Some(Experts {
        tokens: serde_json::from_value(tokens).ok()?,
        filled_up: serde_json::from_value(filled_up).ok()?,
    })
}

fn pack_summary(session: &Session, threads: u32, display: &Display) -> anyhow::Result<PackSummary> {
    let path = session.run.root().join(&session.plan.pack_dir);
    let pack = packs::open(&path)?;
    let freed_layers = freed(session, &pack);
    let report = match freed_layers {
        0 => Some(packs::verify(&path, threads, display)?),
        _ => None,
    };
    Ok(PackSummary {
        bytes: packs::bytes(&path, &pack),
        layers: pack.manifest().layers.len(),
        freed_layers,
        totals: pack.manifest().totals.clone(),
        fingerprint: pack.fingerprint().to_string(),
        verdict: report.as_ref().map(|report| report.verdict),
        findings: report.map_or_else(Vec::new, |report| report.findings),
        path,
    })
}

/// Layers that are not here because the retention rule deleted them.
fn freed(session: &Session, pack: &Pack) -> usize {
    let artifact = session.plan.artifacts.get(planning::LAYER);
    let layers = pack.manifest().layers.iter();
    let absent = layers.filter(|layer| !pack.path(&layer.file).exists());
    match artifact.is_some_and(|artifact| artifact.temporary) {
        true => absent.count(),
        false => 0,
    }
}

/// The summary for people.
fn text(summary: &Summary) -> String {
    let mut lines = Vec::new();
    let mut row = |name: &str, value: String| lines.push(format!("{name:<22}{value}"));
    if let Some(hub) = &summary.hub {
        row("source", format!("{} at {}", hub.repository, hub.commit));
    }
    if summary.received_bytes > 0 {
        row("received from the Hub", size(summary.received_bytes));
    }
    if let Some(pack) = &summary.pack {
        row("pack", pack.path.to_string());
        row(
            "size",
            format!("{} ({} bytes)", size(pack.bytes), pack.bytes),
        );
        row(
            "bpw of the linears",
            pack.totals.bits_per_weight_linears.clone(),
        );
        row("bpw of everything", pack.totals.bits_per_weight_all.clone());
        row("compression ratio", pack.totals.compression_ratio.clone());
    }
    if let Some(metrics) = &summary.metrics {
        metric_rows(metrics, &mut row);
    }
    if !summary.experts.is_empty() {
        let inputs: usize = summary.experts.values().map(|e| e.tokens.len()).sum();
        let filled: usize = summary.experts.values().map(|e| e.filled_up.len()).sum();
        let fewest = summary
            .experts
            .values()
            .flat_map(|e| e.tokens.values())
            .min();
        row(
            "experts",
            format!(
                "{filled} of {inputs} inputs had too few tokens (fewest {}); --json names them",
                fewest.copied().unwrap_or(0)
            ),
        );
    }
    if let Some(pack) = &summary.pack {
        let verdict = match pack.verdict {
            Some(Verdict::Pass) => "PASS, every file and every reconstructed tensor".into(),
            Some(Verdict::Fail) => "FAIL".into(),
            None => format!(
                "{} of {} layers are only in the repository; each passed before it went",
                pack.freed_layers, pack.layers
            ),
        };
        row("verify", verdict);
        row("fingerprint", pack.fingerprint.clone());
    }
    if let Some(upload) = &summary.upload {
        let word = |key: &str| upload[key].as_str().unwrap_or_default().to_owned();
        row(
            "uploaded to",
            format!(
                "{} at commit {} ({} files, {} bytes)",
                word("repository"),
                word("commit"),
                upload["files"],
                upload["bytes"]
            ),
        );
    }
    row("wall time", minutes(summary.wall_seconds));
    let mut stages: Vec<_> = summary.stages.iter().collect();
    stages.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
    for (name, cost) in stages {
        let peak = size(cost.peak_rss_bytes);
        row(
            &format!("  {name}"),
            format!("{:>10}   peak {peak}", minutes(cost.seconds)),
        );
    }
    row("run", summary.run.to_string());
    row("next", summary.next.clone());
    lines.join("\n") + "\n"
}

/// The evaluator's metrics as rows.
pub fn metric_rows(metrics: &Value, row: &mut impl FnMut(&str, String)) {
    let names = [
        ("PPL teacher", "teacher_ppl", 4),
        ("PPL pack", "pack_ppl", 4),
        ("PPL ratio", "ppl_ratio", 5),
        ("mean KL", "mean_kl", 6),
        ("median KL", "median_kl", 6),
        ("99% KL", "p99_kl", 6),
        ("top-1 agreement", "top1_agreement", 4),
    ];
    for (label, key, digits) in names {
        if let Some(value) = estimate(&metrics[key], digits) {
            row(label, value);
        }
    }
    let count = |key: &str| metrics[key].as_u64();
    if let (Some(windows), Some(tokens)) = (count("windows"), count("tokens")) {
        row(
            "evaluated on",
            format!("{windows} windows, {tokens} tokens"),
        );
    }
}

/// A figure with its interval, as `value (low to high)`.
fn estimate(figure: &Value, digits: usize) -> Option<String> {
    if let Some(value) = figure.as_f64() {
        return Some(format!("{value:.digits$}"));
    }
    let part = |key: &str| figure.get(key).and_then(Value::as_f64);
    let (value, low, high) = (part("value")?, part("low")?, part("high")?);
    Some(format!(
        "{value:.digits$} ({low:.digits$} to {high:.digits$})"
    ))
}

fn minutes(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 120.0 => format!("{seconds:.1} s"),
        seconds => format!("{:.1} min", seconds / 60.0),
    }
}

/// Bytes in a unit for people.
fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_shown_with_their_interval_and_missing_ones_left_out() {
        let metrics = serde_json::json!({
            "teacher_ppl": {"value": 3.94, "low": 3.9, "high": 4.0},
            "top1_agreement": 0.95,
            "pack_ppl": {"value": 4.0},
            "windows": 4, "tokens": 1000,
        });
        let mut rows = Vec::new();
        metric_rows(&metrics, &mut |name, value| {
            rows.push(format!("{name}: {value}"))
        });
        let expected = [
            "PPL teacher: 3.9400 (3.9000 to 4.0000)",
            "top-1 agreement: 0.9500",
            "evaluated on: 4 windows, 1000 tokens",
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn times_and_sizes_have_a_unit() {
        assert_eq!(minutes(90.0), "90.0 s");
        assert_eq!(minutes(150.0), "2.5 min");
        assert_eq!(size(3 << 20), "3.00 MiB");
    }
}
