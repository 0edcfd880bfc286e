//! Everything that can be wrong with a plan, checked before a stage starts.

use std::collections::{BTreeMap, BTreeSet};

use camino::Utf8Path;
use uc_settings::Settings;

use super::{ArtifactId, JobId, Per, Plan, PlanProblem, StagePlan, Which};

impl Plan {
    /// Checks the whole plan.
    pub fn validate(&self) -> Result<(), PlanProblem> {
        let mut names = BTreeSet::new();
        for (name, artifact) in &self.artifacts {
            check_template(name, &artifact.path)?;
        }
        for stage in &self.stages {
            if !names.insert(&stage.name) {
                return Err(PlanProblem::TwoStages {
                    stage: stage.name.clone(),
                });
            }
            self.check_references(stage)?;
            if let Some(section) = stage
                .settings
                .iter()
                .find(|name| !Settings::SECTIONS.contains(&name.as_str()))
            {
                return Err(PlanProblem::UnknownSection {
                    stage: stage.name.clone(),
                    section: section.clone(),
                    known: Settings::SECTIONS.join(", "),
                });
            }
        }
        let producers = self.check_producers()?;
        self.check_cycles(&producers)
    }

    fn check_references(&self, stage: &StagePlan) -> Result<(), PlanProblem> {
        let both = stage
            .reads
            .iter()
            .map(|r| (r, "reads"))
            .chain(stage.writes.iter().map(|w| (w, "writes")));
        for (reference, direction) in both {
            let is_artifact = self.artifacts.contains_key(&reference.name);
            let is_external = self.externals.contains_key(&reference.name);
            if !is_artifact && (direction == "writes" || !is_external) {
                let known: BTreeSet<_> =
                    self.artifacts.keys().chain(self.externals.keys()).collect();
                return Err(PlanProblem::UnknownArtifact {
                    stage: stage.name.clone(),
                    direction,
                    artifact: reference.name.clone(),
                    known: known.into_iter().cloned().collect::<Vec<_>>().join(", "),
                });
            }
            let refuse = |reason| {
                Err(PlanProblem::BadReference {
                    stage: stage.name.clone(),
                    reference: reference.to_string(),
                    reason,
                })
            };
            let per_layer = self.is_per_layer(&reference.name);
            match (reference.which, stage.per) {
                (Which::Next | Which::First | Which::Last, _) if !per_layer => {
                    return refuse("the artifact's path has no {layer}");
                }
                (Which::Next, Per::Run) => {
                    return refuse("only a per-layer stage has a next layer");
                }
                (Which::Same, Per::Layer) if direction == "writes" && !per_layer => {
                    return refuse("a per-layer stage would overwrite one file for each layer");
                }
                (Which::First | Which::Last, Per::Layer) if direction == "writes" => {
                    return refuse("a per-layer stage would overwrite the file of one layer");
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn check_producers(&self) -> Result<BTreeMap<ArtifactId, JobId>, PlanProblem> {
        let mut producers: BTreeMap<ArtifactId, JobId> = BTreeMap::new();
        for job in self.jobs() {
            let stage = self.stage(&job.stage).expect("from the list");
            for artifact in self.outputs(stage, job.unit) {
                if let Some(first) = producers.insert(artifact.clone(), job.clone()) {
                    return Err(PlanProblem::TwoProducers {
                        artifact,
                        first: first.to_string(),
                        second: job.to_string(),
                    });
                }
            }
        }
        for job in self.jobs() {
            let stage = self.stage(&job.stage).expect("from the list");
            for artifact in self.inputs(stage, job.unit) {
                if self.external(&artifact).is_none() && !producers.contains_key(&artifact) {
                    return Err(PlanProblem::NoProducer {
                        stage: job.to_string(),
                        artifact,
                    });
                }
            }
        }
        Ok(producers)
    }

    fn check_cycles(&self, producers: &BTreeMap<ArtifactId, JobId>) -> Result<(), PlanProblem> {
        // Kahn (1962): the jobs that remain when no more can start form a cycle, or wait for one.
        let mut pending: BTreeMap<JobId, BTreeSet<JobId>> = BTreeMap::new();
        for job in self.jobs() {
            let stage = self.stage(&job.stage).expect("from the list");
            let on = self.inputs(stage, job.unit);
            let on = on
                .iter()
                .filter(|id| self.external(id).is_none())
                .filter_map(|id| producers.get(id));
            pending.insert(job, on.cloned().collect());
        }
        let mut readers: BTreeMap<JobId, Vec<JobId>> = BTreeMap::new();
        for (job, producers) in &pending {
            for producer in producers {
                readers
                    .entry(producer.clone())
                    .or_default()
                    .push(job.clone());
            }
        }
        let mut ready: Vec<JobId> = pending
            .iter()
            .filter(|(_, producers)| producers.is_empty())
            .map(|(job, _)| job.clone())
            .collect();
        while let Some(job) = ready.pop() {
            pending.remove(&job);
            for reader in readers.remove(&job).unwrap_or_default() {
                let on = pending
                    .get_mut(&reader)
                    .expect("not started before its inputs");
                on.remove(&job);
                if on.is_empty() {
                    ready.push(reader);
                }
            }
        }
        let Some(start) = pending.keys().next().cloned() else {
            return Ok(());
        };
        let mut path = vec![start.clone()];
        loop {
            let next = pending[path.last().expect("not empty")]
                .iter()
                .next()
                .expect("a pending job waits for another")
                .clone();
            if let Some(at) = path.iter().position(|job| *job == next) {
                let mut cycle: Vec<_> = path[at..].iter().map(ToString::to_string).collect();
                cycle.push(next.to_string());
                return Err(PlanProblem::Cycle { path: cycle });
            }
            path.push(next);
        }
    }
}

/// Checks that a path template stays below the run directory and has no unknown placeholders.
fn check_template(artifact: &str, path: &str) -> Result<(), PlanProblem> {
    let refuse = |reason| {
        Err(PlanProblem::BadPath {
            artifact: artifact.into(),
            path: path.into(),
            reason,
        })
    };
    let plain = path.replace("{layer}", "0");
    let plain = plain.strip_prefix("{pack}/").unwrap_or(&plain);
    if plain.contains(['{', '}']) {
        return refuse("expected only the placeholders {layer}, and {pack} as the first folder");
    }
    if plain.is_empty() || plain.ends_with('/') {
        return refuse("expected a file name");
    }
    let normal = |part: camino::Utf8Component<'_>| matches!(part, camino::Utf8Component::Normal(_));
    if !Utf8Path::new(plain).components().all(normal) {
        return refuse("expected a path below the run directory, without `..`");
    }
    Ok(())
}
