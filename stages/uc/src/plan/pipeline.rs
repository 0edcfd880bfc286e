//! `pipeline.toml`: read, checked whole, and turned into the plan of a run.
//!
//! Two types: the wire type is what the file may say, [`Pipeline`] is what it means. Every mistake is refused here,
//! before anything starts, with file, line and key. Nothing here starts a process or looks at a model's weights.

mod assemble;
mod locate;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use camino::Utf8Path;
use toml::Spanned;
use uc_settings::Settings;
use uc_store::plan::{Artifact, ArtifactRef, Per, PlanProblem, Weights};

pub use assemble::{Goals, Request};

/// The pipeline that is used unless `--pipeline` names another; the file at the project's root.
pub const DEFAULT: &str = include_str!("../../../../pipeline.toml");

/// Name of the embedded pipeline in messages.
const DEFAULT_NAME: &str = "pipeline.toml (built in)";

/// The version of `pipeline.toml` that this program reads.
const VERSION: u32 = 2;

/// A mistake in a pipeline file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {key}: {message}")]
pub struct PipelineError {
    /// The file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// The key, with its table.
    pub key: String,
    /// What was found and what was expected.
    pub message: String,
}

/// A checked pipeline.
#[derive(Debug, Clone)]
pub struct Pipeline {
    file: String,
    text: String,
    settings: Settings,
    artifacts: BTreeMap<String, ArtifactSpec>,
    /// In the order of the file.
    stages: Vec<StageSpec>,
}

/// An artifact as the file describes it.
#[derive(Debug, Clone)]
struct ArtifactSpec {
    artifact: Artifact,
    path_at: usize,
    source_file: Option<String>,
}

/// A stage as the file describes it.
#[derive(Debug, Clone)]
struct StageSpec {
    name: Spanned<String>,
    argv: Spanned<Vec<String>>,
    per: Per,
    reads: Vec<Spanned<ArtifactRef>>,
    /// Read too, in a run that makes them.
    reads_if_made: Vec<Spanned<ArtifactRef>>,
    writes: Vec<Spanned<ArtifactRef>>,
    settings: Vec<Spanned<String>>,
    cpus: Cpus,
    memory: Memory,
    max_lead: Option<u32>,
    optional: bool,
    unless: Option<Condition>,
    retries: u32,
    stall_timeout: u64,
    weights: Option<Weights>,
}

/// A setting and the value at which a stage is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    key: String,
    value: String,
}

impl Condition {
    fn holds(&self, settings: &Settings) -> bool {
        let (section, field) = self.key.split_once('.').unwrap_or_default();
        settings.fields(section).get(field) == Some(&self.value)
    }
}

/// A stage's claim on the processors.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Cpus {
    All,
    Count(u32),
    Percent(u32),
}

/// A stage's claim on the memory.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Memory {
    Bytes(u64),
    /// Multiples of one layer's linears in f32.
    Layers(f64),
}

/// Bytes of a size such as "6 GiB"; none if it is not one.
pub fn bytes_of(text: &str) -> Option<u64> {
    match wire::memory_of(text)? {
        Memory::Bytes(bytes) => Some(bytes),
        Memory::Layers(_) => None,
    }
}

impl Pipeline {
    /// Reads a file, or takes the embedded pipeline.
    pub fn load(path: Option<&Utf8Path>) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self::parse(DEFAULT_NAME, DEFAULT)?);
        };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the pipeline {path}"))?;
        Ok(Self::parse(path.as_str(), &text)?)
    }

    /// Parses and checks a whole pipeline.
    pub fn parse(file: &str, text: &str) -> Result<Self, PipelineError> {
        let pipeline = wire::parse(file, text)?;
        // Two layers show every circle and every missing producer that more layers would show.
        pipeline.assemble(&Request::probe(&pipeline))?;
        Ok(pipeline)
    }

    /// The settings of the file.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Program and first arguments of every stage, with the stage's name.
    pub fn commands(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.stages.iter().map(|stage| {
            (
                stage.name.get_ref().as_str(),
                stage.argv.get_ref().as_slice(),
            )
        })
    }

    /// A mistake in the command line of a stage.
    pub fn argv_error(&self, stage: &str, message: String) -> PipelineError {
        let at = self
            .stages
            .iter()
            .find(|spec| spec.name.get_ref() == stage)
            .map_or(0, |spec| spec.argv.span().start);
        self.error(at, message)
    }

    fn error(&self, at: usize, message: impl Into<String>) -> PipelineError {
        locate::error(&self.file, &self.text, at, message)
    }

    /// Gives a problem of the plan the line that causes it.
    fn explain(&self, problem: &PlanProblem) -> PipelineError {
        let stage_of = |job: &str| job.split(" of layer ").next().unwrap_or(job).to_owned();
        let at = match problem {
            PlanProblem::UnknownArtifact {
                stage, artifact, ..
            } => self.reference_at(stage, |reference| reference.name == *artifact),
            PlanProblem::BadReference {
                stage, reference, ..
            } => self.reference_at(stage, |found| found.to_string() == *reference),
            PlanProblem::NoProducer { stage, artifact } => self
                .reference_at(&stage_of(stage), |reference| {
                    reference.name == artifact.name
                }),
            PlanProblem::TwoProducers {
                artifact, second, ..
            } => self.write_at(&stage_of(second), |reference| {
                reference.name == artifact.name
            }),
            PlanProblem::Cycle { path } => path
                .first()
                .map_or(0, |job| self.reference_at(&stage_of(job), |_| true)),
            PlanProblem::UnknownSection { stage, section, .. } => self
                .spec(stage)
                .and_then(|spec| {
                    let mut sections = spec.settings.iter();
                    sections.find(|found| found.get_ref() == section)
                })
                .map_or(0, |found| found.span().start),
            PlanProblem::BadPath { artifact, .. } => {
                self.artifacts.get(artifact).map_or(0, |spec| spec.path_at)
            }
            PlanProblem::TwoStages { stage } => {
                self.spec(stage).map_or(0, |spec| spec.name.span().start)
            }
        };
        self.error(at, problem.to_string())
    }

    fn spec(&self, stage: &str) -> Option<&StageSpec> {
        self.stages.iter().find(|spec| spec.name.get_ref() == stage)
    }

    /// Where a stage mentions an artifact, reads first.
    fn reference_at(&self, stage: &str, wanted: impl Fn(&ArtifactRef) -> bool) -> usize {
        self.spec(stage).map_or(0, |spec| {
            spec.reads
                .iter()
                .chain(&spec.reads_if_made)
                .chain(&spec.writes)
                .find(|reference| wanted(reference.get_ref()))
                .map_or(spec.name.span().start, |reference| reference.span().start)
        })
    }

    /// Whether a stage writes an artifact.
    pub fn makes(&self, artifact: &str) -> bool {
        let mut writes = self.stages.iter().flat_map(|spec| &spec.writes);
        writes.any(|write| write.get_ref().name == artifact)
    }

    fn write_at(&self, stage: &str, wanted: impl Fn(&ArtifactRef) -> bool) -> usize {
        self.spec(stage).map_or(0, |spec| {
            spec.writes
                .iter()
                .find(|reference| wanted(reference.get_ref()))
                .map_or(spec.name.span().start, |reference| reference.span().start)
        })
    }

    /// The stages that goals need: those that make them, and what those read, back to the outside inputs.
    fn needed(&self, goals: &[&str], outside: &BTreeSet<&str>) -> BTreeSet<String> {
        let mut wanted: Vec<String> = goals.iter().map(ToString::to_string).collect();
        let mut seen = BTreeSet::new();
        let mut stages = BTreeSet::new();
        while let Some(name) = wanted.pop() {
            if outside.contains(name.as_str()) || !seen.insert(name.clone()) {
                continue;
            }
            for spec in &self.stages {
                let makes = spec.writes.iter().any(|w| w.get_ref().name == name);
                if makes && stages.insert(spec.name.get_ref().clone()) {
                    wanted.extend(spec.reads.iter().map(|read| read.get_ref().name.clone()));
                }
            }
        }
        stages
    }
}
