//! `uc status RUN`: what is done, by the receipts. Hashes no outputs: that is `uc plan`'s work.

use std::collections::BTreeMap;
use std::fs::TryLockError;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use uc_store::freshness::topological;
use uc_store::plan::{ArtifactId, Plan};
use uc_store::receipt::{Receipt, job_key};
use uc_store::run::RunDir;
use uc_store::sha::Sha256Digest;

use crate::cli::StatusArgs;
use crate::journal::{self, StageCost};
use crate::verbs::print_json;

/// The state of a run.
#[derive(Debug, Serialize)]
struct Status {
    run: Utf8PathBuf,
    model: String,
    layers: u32,
    pack: Utf8PathBuf,
    /// Whether a driver works on it now.
    active: bool,
    done: u64,
    total: u64,
    wall_seconds: f64,
    stages: Vec<StageStatus>,
}

/// The state of one stage.
#[derive(Debug, Serialize)]
struct StageStatus {
    name: String,
    optional: bool,
    done: u64,
    total: u64,
    /// What its jobs took, by the log of events.
    cost: StageCost,
    /// What its jobs reported of themselves, by layer.
    figures: BTreeMap<String, serde_json::Value>,
}

/// Runs the verb.
pub fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let (run, plan) = RunDir::open(&args.run)?;
    let status = status(&run, &plan)?;
    match args.json {
        true => print_json(&status),
        false => {
            print!("{}", text(&status));
            Ok(())
        }
    }
}

fn status(run: &RunDir, plan: &Plan) -> anyhow::Result<Status> {
    let mut cost = journal::cost(run);
    let mut done: BTreeMap<String, u64> = BTreeMap::new();
    let mut digests: BTreeMap<ArtifactId, Sha256Digest> = BTreeMap::new();
    for id in topological(plan, &plan.jobs()) {
        let Ok(key) = job_key(plan, &id, |input| digests.get(input).copied())? else {
            continue;
        };
        // An unreadable receipt is as good as none; `uc plan` says what is wrong with it.
        let receipt = Receipt::read(run, &id).ok().flatten();
        if let Some(receipt) = receipt.filter(|receipt| receipt.key == key) {
            *done.entry(id.stage.clone()).or_default() += 1;
            let outputs = receipt.outputs.into_iter();
            digests.extend(outputs.map(|o| (o.artifact, Sha256Digest(o.sha256))));
        }
    }
    let stages: Vec<StageStatus> = plan
        .stages
        .iter()
        .map(|stage| StageStatus {
            name: stage.name.clone(),
            optional: stage.optional,
            done: done.get(&stage.name).copied().unwrap_or(0),
            total: stage.layers(plan.model.layers).len() as u64,
            cost: cost.stages.remove(&stage.name).unwrap_or_default(),
            figures: figures(run, plan, &stage.name),
        })
        .collect();
    let counted = || stages.iter().filter(|stage| !stage.optional);
    Ok(Status {
        run: run.root().to_owned(),
        model: plan.model.name.clone(),
        layers: plan.model.layers,
        pack: run.root().join(&plan.pack_dir),
        active: is_locked(&run.root().join("lock")),
        done: counted().map(|stage| stage.done).sum(),
        total: counted().map(|stage| stage.total).sum(),
        wall_seconds: cost.wall_seconds,
        stages,
    })
}

fn figures(run: &RunDir, plan: &Plan, stage: &str) -> BTreeMap<String, serde_json::Value> {
    let jobs = plan.jobs().into_iter().filter(|id| id.stage == stage);
    jobs.filter_map(|id| {
        let text = std::fs::read(run.figures_path(&id)).ok()?;
        let label = id
            .layer
            .map_or_else(|| "run".into(), |layer| format!("{layer:03}"));
        Some((label, serde_json::from_slice(&text).ok()?))
    })
    .collect()
}

/// Whether a driver holds the lock; asks without taking it for longer than the question.
fn is_locked(path: &Utf8Path) -> bool {
    let Ok(file) = std::fs::File::open(path) else {
        return false;
    };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

fn text(status: &Status) -> String {
    let state = match (status.done == status.total, status.active) {
        (true, _) => "complete",
        (false, true) => "running",
        (false, false) => "stopped",
    };
    let mut lines = vec![
        format!("run    {}", status.run),
        format!("model  {} ({} layers)", status.model, status.layers),
        format!("pack   {}", status.pack),
        format!(
            "state  {state}, {} of {} jobs done",
            status.done, status.total
        ),
    ];
    let width = status
        .stages
        .iter()
        .map(|stage| stage.name.len())
        .max()
        .unwrap_or(0);
    for stage in &status.stages {
        let note = if stage.optional && stage.done == 0 {
            "  (only when asked for)"
        } else {
            ""
        };
        let seconds = stage.cost.seconds;
        lines.push(format!(
            "  {:width$}  {:>4}/{:<4} {seconds:>9.1} s{note}",
            stage.name, stage.done, stage.total
        ));
    }
    if state == "stopped" {
        lines.push(format!("continue with: uc resume {}", status.run));
    }
    lines.join("\n") + "\n"
}
