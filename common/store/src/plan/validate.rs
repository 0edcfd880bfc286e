//! Everything that can be wrong with a plan, checked before a stage starts.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Component, Utf8Path};
use uc_settings::Settings;

use super::{
    ArtifactId, JobId, MAX_LAYERS, PACK_PLACEHOLDER, Per, Plan, PlanProblem, SOURCE, StagePlan,
    Which,
};
use crate::error::StoreError;

/// Most characters of the name of a stage or artifact.
const MAX_NAME: usize = 100;

impl Plan {
    /// Checks the whole plan.
    pub fn validate(&self) -> Result<(), PlanProblem> {
        let mut names = BTreeSet::new();
        if self.model.layers > MAX_LAYERS {
            return Err(PlanProblem::TooManyLayers {
                layers: self.model.layers,
            });
        }
        self.check_pack_folder()?;
        for (name, artifact) in &self.artifacts {
            check_name("artifact", name)?;
            check_template(name, &artifact.path)?;
        }
        for stage in &self.stages {
            if !names.insert(&stage.name) {
                return Err(PlanProblem::TwoStages {
                    stage: stage.name.clone(),
                });
            }
            check_name("stage", &stage.name)?;
            if stage.argv.is_empty() {
                return Err(PlanProblem::NoProgram {
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

    /// Checks that the folder of the pack lies below the run directory or is absolute, and that nothing in an absolute one is
    /// deleted: a run deletes only files in its own directory.
    fn check_pack_folder(&self) -> Result<(), PlanProblem> {
        let parts = self.pack_dir.components();
        let mut names = parts.skip_while(|part| *part == Utf8Component::RootDir);
        if !names.all(|part| matches!(part, Utf8Component::Normal(_))) {
            return Err(PlanProblem::BadPath {
                artifact: "the pack".into(),
                path: self.pack_dir.to_string(),
                reason: "expected an absolute folder, or one below the run directory, without `..`",
            });
        }
        let deleted = self.artifacts.iter().find(|(_, artifact)| {
            artifact.temporary && artifact.path.starts_with(PACK_PLACEHOLDER)
        });
        match deleted {
            Some((name, _)) if self.pack_dir.is_absolute() => Err(PlanProblem::BadPath {
                artifact: name.clone(),
                path: self.pack_dir.to_string(),
                reason: "expected a pack inside the run directory, because this file is deleted once it is not needed any \
                         more, and a run deletes only files in its own directory; leave out --out",
            }),
            _ => Ok(()),
        }
    }

    /// Places the shards that are fetched on demand, and the files beside them, in the folder `source` of the run directory,
    /// whatever folder a plan names: they are written and deleted there.
    ///
    /// # Errors
    /// For a path without a file name.
    pub(crate) fn confine_shards(&mut self, root: &Utf8Path) -> Result<(), StoreError> {
        if self.shards().next().is_none() {
            return Ok(());
        }
        let root = camino::absolute_utf8(root).map_err(StoreError::io("locate", root))?;
        let folder = root.join(SOURCE);
        let source = self.externals.get_mut(SOURCE);
        for file in source.into_iter().flat_map(|source| &mut source.files) {
            let name = file.path.file_name().ok_or_else(|| PlanProblem::BadPath {
                artifact: SOURCE.into(),
                path: file.path.to_string(),
                reason: "expected a file name",
            })?;
            file.path = folder.join(name);
        }
        self.model.path = folder;
        Ok(())
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

/// Checks the name of a stage or artifact, from which names of files follow.
fn check_name(kind: &'static str, name: &str) -> Result<(), PlanProblem> {
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(is_allowed) {
        return Ok(());
    }
    Err(PlanProblem::BadName {
        kind,
        name: uc_input::printable(name).into_owned(),
    })
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
    let normal = |part: Utf8Component<'_>| matches!(part, Utf8Component::Normal(_));
    if !Utf8Path::new(plain).components().all(normal) {
        return refuse("expected a path below the run directory, without `..`");
    }
    Ok(())
}
