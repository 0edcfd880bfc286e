//! A working session on a run directory: what has to be done and why, then the doing.

use std::collections::{BTreeMap, BTreeSet};

use uc_store::freshness::{self, Freshness, PendingWork, Reason, topological};
use uc_store::plan::{ArtifactId, JobId, Plan};
use uc_store::receipt::{Receipt, job_key};
use uc_store::resources;
use uc_store::run::{Lock, RunDir};
use uc_store::sha::Sha256Digest;

use crate::forecast;
use crate::plan::model::Model;
use crate::process::programs::Programs;
use crate::process::signals::Listener;
use crate::report::progress::Display;
use crate::schedule::driver::Driver;
use crate::schedule::driver::source::Source;
use crate::schedule::scheduler::Budget;

/// Share of the machine's memory that jobs may claim, percent.
const MEMORY_SHARE: u64 = 80;

/// An open run, locked for this process.
#[derive(Debug)]
pub struct Session {
    /// The directory.
    pub run: RunDir,
    /// Its plan.
    pub plan: Plan,
    /// Held until the session ends.
    pub _lock: Lock,
}

impl Session {
    /// Does all that is to be done.
    pub fn work(
        &self,
        programs: &Programs,
        threads: u32,
        display: &mut Display,
        signals: &Listener,
    ) -> anyhow::Result<()> {
        let work = freshness::plan_work(&self.plan, &self.run)?;
        let to_do = work.to_run(&self.plan).len();
        let all = work.states.len();
        display.say(&format!("{}: {to_do} of {all} jobs to do", self.run.root()));
        for line in changes(&self.plan, &work) {
            display.say(&format!("stale: {line}"));
        }
        if display.verbosity() > 0 {
            for line in explain(&self.plan, &work) {
                display.detail(&line);
            }
        }
        let budget = Budget {
            cpus: threads,
            memory: resources::total_memory_bytes() / 100 * MEMORY_SHARE,
        };
        let source = Source::of(&self.plan, &work, budget)?;
        if let Some(source) = &source {
            let others = self.disk_beside_source(programs, budget);
            display.say(&source.statement(&self.plan, others));
        }
        Driver::new(
            &self.plan, &self.run, programs, budget, work, source, display, signals,
        )?
        .run()
    }

    /// Most bytes of pack and intermediate files, where the settings tell; nothing depends on it.
    fn disk_beside_source(&self, programs: &Programs, budget: Budget) -> Option<u64> {
        let folder = &self.plan.model.path;
        let index = folder.join("model.safetensors.index.json");
        let index = index.exists().then_some(index);
        let facts = Model::describe(&folder.join("config.json"), index.as_deref(), programs);
        forecast::disk(&facts.ok()?, &self.plan, budget)
    }
}

/// The number of threads to use.
pub fn threads(asked: Option<u32>) -> u32 {
    asked.unwrap_or_else(resources::available_cpus).max(1)
}

/// The jobs whose receipts belong to the plan as it is; hashes no outputs.
pub fn done(run: &RunDir, plan: &Plan) -> anyhow::Result<BTreeSet<JobId>> {
    let mut done = BTreeSet::new();
    let mut digests: BTreeMap<ArtifactId, Sha256Digest> = BTreeMap::new();
    for id in topological(plan, &plan.jobs()) {
        let Ok(key) = job_key(plan, &id, |input| digests.get(input).copied())? else {
            continue;
        };
        // An unreadable receipt is as good as none; `uc plan` says what is wrong with it.
        let receipt = Receipt::read(run, &id).ok().flatten();
        if let Some(receipt) = receipt.filter(|receipt| receipt.key == key) {
            done.insert(id);
            let outputs = receipt.outputs.into_iter();
            digests.extend(outputs.map(|o| (o.artifact, Sha256Digest(o.sha256))));
        }
    }
    Ok(done)
}

/// Why jobs that were done before have to run again, a line per stage and reason.
fn changes(plan: &Plan, work: &PendingWork) -> Vec<String> {
    grouped(plan, work, |reason| {
        !matches!(
            reason,
            Reason::NoReceipt | Reason::Waits(_) | Reason::Needed { .. }
        )
    })
}

/// Everything that has to run and why, a line per stage and reason.
pub fn explain(plan: &Plan, work: &PendingWork) -> Vec<String> {
    grouped(plan, work, |_| true)
}

fn grouped(plan: &Plan, work: &PendingWork, wanted: impl Fn(&Reason) -> bool) -> Vec<String> {
    let mut lines = Vec::new();
    for stage in &plan.stages {
        let mut groups: BTreeMap<String, Vec<Option<u32>>> = BTreeMap::new();
        for unit in stage.units(plan.model.layers) {
            let id = JobId {
                stage: stage.name.clone(),
                unit,
            };
            let Some(Freshness::Stale(reasons)) = work.states.get(&id) else {
                continue;
            };
            let words: Vec<String> = reasons
                .iter()
                .filter(|reason| wanted(reason))
                .map(without_layers)
                .collect();
            if !words.is_empty() {
                groups
                    .entry(words.join("; "))
                    .or_default()
                    .push(unit.layer());
            }
        }
        let mut groups: Vec<_> = groups.into_iter().collect();
        groups.sort_by_key(|(_, layers)| layers[0]);
        for (words, layers) in groups {
            lines.push(format!("{}{}: {words}", stage.name, ranges(&layers)));
        }
    }
    lines
}

/// A reason in words that are the same for every layer.
fn without_layers(reason: &Reason) -> String {
    match reason {
        Reason::Waits(id) => format!("waits for {}", id.name),
        Reason::Needed { artifact, by } => {
            format!(
                "{} was deleted and {} needs it again",
                artifact.name, by.stage
            )
        }
        Reason::MissingOutput(id) => format!("output {} is missing", id.name),
        Reason::Changed { field, .. } if field.starts_with("input.") => {
            let name = field
                .trim_start_matches("input.")
                .split('@')
                .next()
                .unwrap_or(field);
            format!("input {name} changed")
        }
        other => other.to_string(),
    }
}

/// Layers as " layers 0-3, 7".
fn ranges(layers: &[Option<u32>]) -> String {
    let layers: Vec<u32> = layers.iter().flatten().copied().collect();
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for layer in layers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == layer => *last = layer,
            _ => parts.push((layer, layer)),
        }
    }
    let text = |(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    let texts: Vec<String> = parts.iter().map(text).collect();
    match parts.as_slice() {
        [] => String::new(),
        [(first, last)] if first == last => format!(" layer {first}"),
        _ => format!(" layers {}", texts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_named_by_ranges() {
        let layers = |all: &[u32]| all.iter().copied().map(Some).collect::<Vec<_>>();
        assert_eq!(ranges(&[None]), "");
        assert_eq!(ranges(&layers(&[4])), " layer 4");
        assert_eq!(ranges(&layers(&[0, 1, 2, 5, 7, 8])), " layers 0-2, 5, 7-8");
    }

    #[test]
    fn reasons_of_different_layers_read_the_same() {
        let changed = |field: &str| Reason::Changed {
            field: field.into(),
            old: "a".into(),
            new: "b".into(),
        };
        assert_eq!(
            without_layers(&changed("input.codes@003")),
            "input codes changed"
        );
        assert_eq!(
            without_layers(&changed("stage.version")),
            "`stage.version` changed a -> b"
        );
    }
}
