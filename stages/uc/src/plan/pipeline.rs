//! `pipeline.toml`: parsed, fully checked, and turned into the plan of a run.
//!
//! There are two types: the wire type describes what the file may contain, [`Pipeline`] what it means. Every mistake is
//! reported before anything starts, with file, line and key. Nothing here starts a process or reads a model's weights.

mod assemble;
mod locate;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use camino::Utf8Path;
use toml::Spanned;
use uc_store::plan::{Artifact, ArtifactRef, Per, PlanProblem, Weights};
use uc_store::settings::Settings;

use crate::process::programs::Programs;
use crate::report::failure::PipelineError;

pub use assemble::{Goals, Request};

/// The pipeline that is used unless `--pipeline` names another: the file in the root of the repository.
pub const DEFAULT: &str = include_str!("../../../../pipeline.toml");

/// Name of the embedded pipeline in messages.
const DEFAULT_NAME: &str = "pipeline.toml (built in)";

/// The version of `pipeline.toml` that this program reads.
const VERSION: u32 = 2;

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
    /// Byte offset of the path in the file.
    path_at: usize,
    /// The file of the model folder without which the artifact does not exist.
    source_file: Option<String>,
}

/// A stage as the file describes it.
#[derive(Debug, Clone)]
struct StageSpec {
    name: Spanned<String>,
    argv: Spanned<Vec<String>>,
    per: Per,
    reads: Vec<Spanned<ArtifactRef>>,
    /// Additional inputs, in a run that makes them.
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

/// A setting and the value for which a stage is left out.
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

/// Bytes of a size such as "6 GiB"; none if the text is not a size.
pub fn parse_size(text: &str) -> Option<u64> {
    match wire::parse_memory(text)? {
        Memory::Bytes(bytes) => Some(bytes),
        Memory::Layers(_) => None,
    }
}

impl Pipeline {
    /// Reads a file; without a path, the embedded pipeline.
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
        // Two layers reveal every cycle and every missing producer that more layers would.
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

    /// Checks that the program of every stage exists.
    pub fn check_programs(&self, programs: &Programs) -> anyhow::Result<()> {
        for (stage, argv) in self.commands() {
            programs
                .find(&argv[0])
                .map_err(|message| self.argv_error(stage, message))?;
        }
        Ok(())
    }

    /// A mistake in the command line of a stage.
    fn argv_error(&self, stage: &str, message: String) -> PipelineError {
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

    /// Turns a problem of the plan into an error at the line that causes it.
    fn explain(&self, problem: &PlanProblem) -> PipelineError {
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

    /// Whether a stage writes an artifact.
    pub fn has_producer(&self, artifact: &str) -> bool {
        let mut writes = self.stages.iter().flat_map(|spec| &spec.writes);
        writes.any(|write| write.get_ref().name == artifact)
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

    /// The stages that goals need: those that make them and, recursively, those that make their inputs.
    fn required_stages(&self, goals: &[&str], externals: &BTreeSet<&str>) -> BTreeSet<String> {
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
