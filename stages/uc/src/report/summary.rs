//! The summary of a finished run: the pack, its size, the measured quality, the cost, and the next command to try.

use std::collections::BTreeMap;

use anyhow::Context;
use camino::Utf8PathBuf;
use serde::Serialize;
use serde_json::Value;
use uc_pack::Pack;
use uc_pack::totals::Totals;
use uc_pack::verify::{Finding, Verdict};
use uc_store::ExitCode;
use uc_store::plan::{ArtifactId, HubSource, JobId, Plan, Unit};
use uc_store::run::RunDir;

use crate::artifacts::{MANIFEST, METRICS, PACK_LAYER, REMOTE_PACK};
use crate::report::colour::print_report;
use crate::report::completion::completed_jobs;
use crate::report::event_log_replay::{Replay, StageCost};
use crate::report::failure::{exit_code, failure};
use crate::report::json::print_json;
use crate::report::packs;
use crate::report::progress::Display;

/// The summary of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// The run directory.
    pub run: Utf8PathBuf,
    /// Repository and commit of a model of the Hub.
    pub hub: Option<HubSource>,
    /// Bytes received from the Hub during the run.
    pub received_bytes: u64,
    /// The pack; absent in a run that only evaluates or whose pipeline writes none.
    pub pack: Option<PackSummary>,
    /// What the evaluator measured.
    pub metrics: Option<Value>,
    /// What the texts or the model could not give: too few or shorter windows, no intervals.
    pub warnings: Vec<String>,
    /// Where the pack was uploaded, once the repository holds all of it.
    pub upload: Option<Value>,
    /// Calibration of the experts by layer; empty without experts.
    pub experts: BTreeMap<u32, ExpertCalibration>,
    /// Wall seconds of all sessions of the run.
    pub wall_seconds: f64,
    /// Cost of each stage.
    pub stages: BTreeMap<String, StageCost>,
    /// The command to try next.
    pub next: String,
}

/// How many calibration tokens reached the experts of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExpertCalibration {
    /// Tokens at every input that only routed tokens reach.
    pub tokens: BTreeMap<String, u64>,
    /// Inputs with fewer tokens than their width: their second moments were completed with the mean over all experts.
    pub filled_up: Vec<String>,
}

/// The pack.
#[derive(Debug, Clone, Serialize)]
pub struct PackSummary {
    /// Its folder.
    pub path: Utf8PathBuf,
    /// Bytes of all of its files.
    pub bytes: u64,
    /// Number of its layers.
    pub layers: usize,
    /// Sums and ratios, as stated in the manifest and recomputed by verify.
    pub totals: Totals,
    /// SHA-256 of the manifest.
    pub fingerprint: String,
    /// Layers that the repository holds and that were deleted locally.
    pub deleted_layers: usize,
    /// Verdict of verify; none if layers were deleted, each of which was verified before.
    pub verdict: Option<Verdict>,
    /// Findings of verify.
    pub findings: Vec<Finding>,
}

/// Verifies the pack and prints the summary; a pack that fails its verification is an error.
///
/// A failed run has no summary, unless only the upload failed: then the error is returned after the summary.
pub fn finish(
    run: &RunDir,
    plan: &Plan,
    outcome: anyhow::Result<()>,
    threads: u32,
    json: bool,
    display: &Display,
) -> anyhow::Result<()> {
    if let Err(error) = &outcome
        && (exit_code(error) != ExitCode::Network || !is_measured(run, plan)?)
    {
        return outcome;
    }
    let summary = summarize(run, plan, threads, display)?;
    match json {
        true => print_json(&summary)?,
        false => print_report(&text(&summary)),
    }
    match summary.pack {
        Some(pack) if pack.verdict == Some(Verdict::Fail) => {
            let message = format!("{} does not verify: uc verify {0} reports why", pack.path);
            Err(failure(ExitCode::Damaged, message))
        }
        _ => outcome,
    }
}

/// Whether the run has written and evaluated its pack; a step that the plan lacks is not required.
fn is_measured(run: &RunDir, plan: &Plan) -> anyhow::Result<bool> {
    let done = completed_jobs(run, plan)?;
    let producers = [MANIFEST, METRICS].map(|name| plan.producer(&run_artifact(name)));
    Ok(producers.iter().flatten().all(|job| done.contains(job)))
}

/// The id of an artifact that is not per layer.
fn run_artifact(name: &str) -> ArtifactId {
    ArtifactId {
        name: name.into(),
        layer: None,
    }
}

/// The content of a JSON artifact.
pub fn document(run: &RunDir, plan: &Plan, name: &str) -> anyhow::Result<Value> {
    let path = run.artifact_path(plan, &run_artifact(name))?;
    uc_input::read_json(&path, uc_input::LARGE_JSON).with_context(|| format!("cannot read {path}"))
}

fn summarize(
    run: &RunDir,
    plan: &Plan,
    threads: u32,
    display: &Display,
) -> anyhow::Result<Summary> {
    let pack = match plan.artifacts.contains_key(MANIFEST) {
        true => Some(pack_summary(run, plan, threads, display)?),
        false => None,
    };
    let is_evaluated = plan.artifacts.contains_key(METRICS);
    let metrics = is_evaluated
        .then(|| document(run, plan, METRICS))
        .transpose()?;
    let upload_job = plan
        .producer(&run_artifact(REMOTE_PACK))
        .filter(|job| plan.stage(&job.stage).is_some_and(|stage| !stage.optional));
    let upload = match upload_job {
        Some(job) if completed_jobs(run, plan)?.contains(&job) => {
            Some(document(run, plan, REMOTE_PACK)?)
        }
        _ => None,
    };
    let mut experts = BTreeMap::new();
    for layer in 0..plan.model.layers {
        if let Some(calibration) = expert_calibration(run, layer) {
            experts.insert(layer, calibration);
        }
    }
    let replay = Replay::read(run);
    let mut warnings = warnings(run, plan, metrics.as_ref());
    warnings.extend(pack.as_ref().and_then(|pack| unused_budget(plan, pack)));
    Ok(Summary {
        run: run.root().to_owned(),
        warnings,
        hub: plan.model.hub.clone(),
        received_bytes: replay.received_bytes,
        next: next_command(run, plan, pack.as_ref(), metrics.is_some()),
        pack,
        metrics,
        upload,
        experts,
        wall_seconds: replay.wall_seconds,
        stages: replay.costs(),
    })
}

/// The command to try next.
fn next_command(
    run: &RunDir,
    plan: &Plan,
    pack: Option<&PackSummary>,
    is_evaluated: bool,
) -> String {
    match pack {
        Some(pack) if is_evaluated => format!("uc inspect {} --layer 0", pack.path),
        Some(pack) => {
            // There is no complete local copy of a source whose shards are fetched on demand.
            let remote = plan
                .model
                .hub
                .as_ref()
                .filter(|_| plan.shards().next().is_some());
            let model = remote.map_or_else(
                || plan.model.path.to_string(),
                |hub| format!("{}@{}", hub.repository, hub.commit),
            );
            format!("uc eval {} --model {model} --text FILE", pack.path)
        }
        None => format!("uc status {}", run.root()),
    }
}

/// Bits per weight that a pack may have below its budget without a word.
const MUCH_UNUSED: f64 = 0.05;

/// The stages that draw windows, with the name of their text.
const WINDOW_STAGES: [(&str, &str); 2] = [
    ("calibration", "calibration"),
    ("eval-windows", "evaluation"),
];

/// What the windows of the run lack, one sentence each.
fn warnings(run: &RunDir, plan: &Plan, metrics: Option<&Value>) -> Vec<String> {
    let mut warnings = Vec::new();
    for (stage, text) in WINDOW_STAGES {
        if plan.stage(stage).is_none() {
            continue;
        }
        let id = JobId {
            stage: stage.into(),
            unit: Unit::Run,
        };
        let shortfalls =
            recorded_metrics(run, &id).and_then(|mut metrics| metrics.remove("shortfalls"));
        let sentences: Vec<String> = shortfalls
            .and_then(|sentences| serde_json::from_value(sentences).ok())
            .unwrap_or_default();
        warnings.extend(
            sentences
                .iter()
                .map(|sentence| format!("{text}: {sentence}")),
        );
    }
    if metrics.is_some_and(|metrics| metrics["windows"] == 1) {
        warnings.push("evaluation: one window gives no confidence intervals".into());
    }
    warnings
}

/// A sentence about a budget that the pack does not use, if that is much.
fn unused_budget(plan: &Plan, pack: &PackSummary) -> Option<String> {
    let requested = plan.settings.quantize.bpw;
    let totals = &pack.totals;
    let used = totals.linear_bits as f64 / totals.linear_parameters.max(1) as f64;
    (requested - used > MUCH_UNUSED).then(|| {
        format!(
            "budget: {used:.3} of {requested:.3} bits per weight are used; with more, the weights would not be reconstructed \
             more precisely in bfloat16"
        )
    })
}

/// The metrics of a job. No hash covers them and the pack does not depend on them: damaged ones are left out.
fn recorded_metrics(run: &RunDir, id: &JobId) -> Option<BTreeMap<String, Value>> {
    uc_input::read_json(run.metrics_path(id), uc_input::SMALL_JSON).ok()
}

/// What `teacher-cache` recorded for a layer with experts.
fn expert_calibration(run: &RunDir, layer: u32) -> Option<ExpertCalibration> {
    let id = JobId {
        stage: "teacher-cache".into(),
        unit: Unit::Layer(layer),
    };
    let mut metrics = recorded_metrics(run, &id)?;
    let tokens = metrics.remove("tokens of experts")?;
    let filled_up = metrics.remove("inputs filled up").unwrap_or_default();
    Some(ExpertCalibration {
        tokens: serde_json::from_value(tokens).ok()?,
        filled_up: serde_json::from_value(filled_up).ok()?,
    })
}

fn pack_summary(
    run: &RunDir,
    plan: &Plan,
    threads: u32,
    display: &Display,
) -> anyhow::Result<PackSummary> {
    let path = run.root().join(&plan.pack_dir);
    let pack = packs::open(&path)?;
    let deleted_layers = count_deleted_layers(plan, &pack);
    let report = match deleted_layers {
        0 => Some(packs::verify(&path, threads, None, display)?),
        _ => None,
    };
    Ok(PackSummary {
        bytes: packs::bytes(&path, &pack),
        layers: pack.manifest().layers.len(),
        deleted_layers,
        totals: pack.manifest().totals.clone(),
        fingerprint: pack.fingerprint().to_string(),
        verdict: report.as_ref().map(|report| report.verdict),
        findings: report.map_or_else(Vec::new, |report| report.findings),
        path,
    })
}

/// Number of layers that were deleted locally after their upload.
fn count_deleted_layers(plan: &Plan, pack: &Pack) -> usize {
    let artifact = plan.artifacts.get(PACK_LAYER);
    let layers = pack.manifest().layers.iter();
    let absent = layers.filter(|layer| !pack.path(&layer.file).exists());
    match artifact.is_some_and(|artifact| artifact.temporary) {
        true => absent.count(),
        false => 0,
    }
}

/// The summary as text.
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
    for warning in &summary.warnings {
        row("warning", warning.clone());
    }
    expert_rows(&summary.experts, &mut row);
    if let Some(pack) = &summary.pack {
        let verdict = match pack.verdict {
            Some(Verdict::Pass) => "PASS, every file and every reconstructed tensor".into(),
            Some(Verdict::Fail) => "FAIL".into(),
            None => format!(
                "{} of {} layers are only in the repository; each passed before it was deleted",
                pack.deleted_layers, pack.layers
            ),
        };
        row("verify", verdict);
        row("fingerprint", pack.fingerprint.clone());
    }
    if let Some(upload) = &summary.upload {
        let field = |key: &str| upload[key].as_str().unwrap_or_default().to_owned();
        row(
            "uploaded to",
            format!(
                "{} at commit {} ({} files, {} bytes)",
                field("repository"),
                field("commit"),
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

/// How many inputs of experts had too few tokens.
fn expert_rows(experts: &BTreeMap<u32, ExpertCalibration>, row: &mut impl FnMut(&str, String)) {
    if experts.is_empty() {
        return;
    }
    let inputs: usize = experts.values().map(|e| e.tokens.len()).sum();
    let filled_up: usize = experts.values().map(|e| e.filled_up.len()).sum();
    let fewest = experts.values().flat_map(|e| e.tokens.values()).min();
    row(
        "experts",
        format!(
            "{filled_up} of {inputs} inputs had too few tokens (fewest {}); --json names them",
            fewest.copied().unwrap_or(0)
        ),
    );
}

/// The evaluator's metrics as rows.
fn metric_rows(metrics: &Value, row: &mut impl FnMut(&str, String)) {
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
        let asked = match count("requested_windows") {
            Some(asked) if asked > windows => format!("{windows} of {asked} windows"),
            _ => format!("{windows} windows"),
        };
        row("evaluated on", format!("{asked}, {tokens} tokens"));
    }
}

/// A metric with its interval, in the form `value (low to high)`; without one if there is none.
fn estimate(metric: &Value, digits: usize) -> Option<String> {
    let part = |key: &str| metric.get(key).and_then(Value::as_f64);
    let value = metric.as_f64().or_else(|| part("value"))?;
    Some(match (part("low"), part("high")) {
        (Some(low), Some(high)) => format!("{value:.digits$} ({low:.digits$} to {high:.digits$})"),
        _ => format!("{value:.digits$}"),
    })
}

/// Seconds, or minutes from two minutes on.
fn minutes(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 120.0 => format!("{seconds:.1} s"),
        seconds => format!("{:.1} min", seconds / 60.0),
    }
}

/// Bytes with a binary unit.
fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_shown_with_their_interval_and_missing_ones_left_out() {
        let metrics = serde_json::json!({
            "teacher_ppl": {"value": 3.94, "low": 3.9, "high": 4.0},
            "top1_agreement": 0.95,
            "pack_ppl": {"value": 4.0, "low": null, "high": null},
            "windows": 4, "tokens": 1000,
        });
        let mut rows = Vec::new();
        metric_rows(&metrics, &mut |name, value| {
            rows.push(format!("{name}: {value}"))
        });
        let expected = [
            "PPL teacher: 3.9400 (3.9000 to 4.0000)",
            "PPL pack: 4.0000",
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
