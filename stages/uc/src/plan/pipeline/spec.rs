//! A checked pipeline: settings, artifacts and stages with their positions in the file.

use std::collections::{BTreeMap, BTreeSet};

use toml::Spanned;
use uc_settings::Settings;
use uc_store::plan::{Artifact, ArtifactRef, Per, PlanProblem, Weights};

use super::locate;
use super::memory::Memory;
use crate::report::failure::PipelineError;

/// A checked pipeline.
#[derive(Debug, Clone)]
pub struct Pipeline {
    pub(super) file: String,
    pub(super) text: String,
    pub(super) settings: Settings,
    pub(super) artifacts: BTreeMap<String, ArtifactSpec>,
    /// In the order of the file.
    pub(super) stages: Vec<StageSpec>,
}

/// An artifact as the file describes it.
#[derive(Debug, Clone)]
pub(super) struct ArtifactSpec {
    pub(super) artifact: Artifact,
    /// Byte offset of the path in the file.
    pub(super) path_at: usize,
    /// The artifact exists only if the model folder holds this file; `*` for one artifact per file.
    pub(super) source_file: Option<String>,
}

/// A stage as the file describes it.
#[derive(Debug, Clone)]
pub(super) struct StageSpec {
    pub(super) name: Spanned<String>,
    pub(super) argv: Spanned<Vec<String>>,
    pub(super) per: Per,
    pub(super) reads: Vec<Spanned<ArtifactRef>>,
    /// Additional inputs, if a stage of the run writes them.
    pub(super) reads_if_made: Vec<Spanned<ArtifactRef>>,
    pub(super) writes: Vec<Spanned<ArtifactRef>>,
    pub(super) settings: Vec<Spanned<String>>,
    pub(super) cpus: Cpus,
    /// As in the file, and parsed.
    pub(super) declared_memory: Option<String>,
    pub(super) memory: Memory,
    pub(super) max_lead: Option<u32>,
    pub(super) optional: bool,
    pub(super) unless: Option<Condition>,
    pub(super) retries: u32,
    pub(super) stall_timeout: u64,
    pub(super) weights: Option<Weights>,
}

/// A setting, and the value at which a stage is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) key: String,
    pub(super) value: String,
}

impl Condition {
    pub(super) fn holds(&self, settings: &Settings) -> bool {
        let (section, field) = self.key.split_once('.').unwrap_or_default();
        settings.fields(section).get(field) == Some(&self.value)
    }
}

/// The CPU cores that a stage claims.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Cpus {
    All,
    Count(u32),
    Percent(u32),
}

impl Pipeline {
    /// Whether a stage writes an artifact.
    pub fn has_producer(&self, artifact: &str) -> bool {
        let mut writes = self.stages.iter().flat_map(|spec| &spec.writes);
        writes.any(|write| write.get_ref().name == artifact)
    }

    /// A mistake at a byte offset of the file.
    pub(super) fn error(&self, at: usize, message: impl Into<String>) -> PipelineError {
        locate::error(&self.file, &self.text, at, message)
    }

    /// Turns a problem of the plan into an error at the line that causes it.
    pub(super) fn explain(&self, problem: &PlanProblem) -> PipelineError {
        let stage_name = |job: &str| job.split(" of layer ").next().unwrap_or(job).to_owned();
        let at = match problem {
            PlanProblem::UnknownArtifact {
                stage, artifact, ..
            } => self.reference_at(stage, |reference| reference.name == *artifact),
            PlanProblem::BadReference {
                stage, reference, ..
            } => self.reference_at(stage, |listed| listed.to_string() == *reference),
            PlanProblem::NoProducer { stage, artifact } => self
                .reference_at(&stage_name(stage), |reference| {
                    reference.name == artifact.name
                }),
            PlanProblem::TwoProducers {
                artifact, second, ..
            } => self.write_at(&stage_name(second), |reference| {
                reference.name == artifact.name
            }),
            PlanProblem::Cycle { path } => path
                .first()
                .map_or(0, |job| self.reference_at(&stage_name(job), |_| true)),
            PlanProblem::UnknownSection { stage, section, .. } => self
                .spec(stage)
                .and_then(|spec| {
                    let mut sections = spec.settings.iter();
                    sections.find(|listed| listed.get_ref() == section)
                })
                .map_or(0, |listed| listed.span().start),
            PlanProblem::BadPath { artifact, .. } => {
                self.artifacts.get(artifact).map_or(0, |spec| spec.path_at)
            }
            PlanProblem::BadName {
                kind: "stage",
                name,
            } => self.spec(name).map_or(0, |spec| spec.name.span().start),
            PlanProblem::BadName { name, .. } => {
                self.artifacts.get(name).map_or(0, |spec| spec.path_at)
            }
            PlanProblem::NoProgram { stage } => {
                self.spec(stage).map_or(0, |spec| spec.argv.span().start)
            }
            PlanProblem::TooManyLayers { .. } => 0,
            PlanProblem::TwoStages { stage } => {
                self.spec(stage).map_or(0, |spec| spec.name.span().start)
            }
        };
        self.error(at, problem.to_string())
    }

    fn spec(&self, stage: &str) -> Option<&StageSpec> {
        self.stages.iter().find(|spec| spec.name.get_ref() == stage)
    }

    /// Byte offset at which a stage mentions an artifact; inputs are searched first.
    fn reference_at(&self, stage: &str, matches: impl Fn(&ArtifactRef) -> bool) -> usize {
        self.spec(stage).map_or(0, |spec| {
            spec.reads
                .iter()
                .chain(&spec.reads_if_made)
                .chain(&spec.writes)
                .find(|reference| matches(reference.get_ref()))
                .map_or(spec.name.span().start, |reference| reference.span().start)
        })
    }

    /// Byte offset at which a stage lists an output.
    fn write_at(&self, stage: &str, matches: impl Fn(&ArtifactRef) -> bool) -> usize {
        self.spec(stage).map_or(0, |spec| {
            spec.writes
                .iter()
                .find(|reference| matches(reference.get_ref()))
                .map_or(spec.name.span().start, |reference| reference.span().start)
        })
    }

    /// The stages that are needed for the goals: those that write them and, recursively, those that write their inputs.
    pub(super) fn required_stages(
        &self,
        goals: &[&str],
        externals: &BTreeSet<&str>,
    ) -> BTreeSet<String> {
        let mut pending: Vec<String> = goals.iter().map(ToString::to_string).collect();
        let mut visited = BTreeSet::new();
        let mut stages = BTreeSet::new();
        while let Some(name) = pending.pop() {
            if externals.contains(name.as_str()) || !visited.insert(name.clone()) {
                continue;
            }
            for spec in &self.stages {
                let writes_it = spec.writes.iter().any(|w| w.get_ref().name == name);
                if writes_it && stages.insert(spec.name.get_ref().clone()) {
                    pending.extend(spec.reads.iter().map(|read| read.get_ref().name.clone()));
                }
            }
        }
        stages
    }
}
