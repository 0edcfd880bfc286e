//! Assembles the plan of a run from a pipeline and a model.

use std::collections::{BTreeMap, BTreeSet};

use camino::Utf8PathBuf;
use uc_settings::Settings;
use uc_store::model_summary::ModelSummary;
use uc_store::plan::{Artifact, External, ModelSource, PLAN_VERSION, Per, Plan, SOURCE, StagePlan};

use super::descriptions::ANY_FILE;
use super::memory::{self, Shapes};
use super::spec::{ArtifactSpec, Cpus, Pipeline, StageSpec};
use crate::process::programs::StageVersion;
use crate::report::failure::PipelineError;

/// The external inputs that `uc` provides.
const EXTERNAL_INPUTS: [&str; 3] = ["source", "calibration-text", "evaluation-text"];

/// What a run must produce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goals<'a> {
    /// Every stage of the pipeline.
    Everything,
    /// Only what these artifacts need.
    Only(&'a [&'a str]),
}

/// The inputs of a plan besides the pipeline: the model and the options of one run.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The model.
    pub model: ModelSource,
    /// The shapes of its tensors, from which the memory of the stages follows; none where only a pipeline is checked.
    pub summary: Option<ModelSummary>,
    /// Names of the model's files.
    pub source_files: BTreeSet<String>,
    /// Folder of the pack, to be written or read.
    pub pack_dir: Utf8PathBuf,
    /// The settings with all overrides applied.
    pub settings: Settings,
    /// External inputs.
    pub externals: BTreeMap<String, External>,
    /// What the run must produce.
    pub goals: Goals<'a>,
    /// Processor cores available to the run.
    pub cpus: u32,
    /// Output version of each stage, and the digest of its program.
    pub versions: BTreeMap<String, StageVersion>,
}

impl Request<'_> {
    /// A model of two layers with every optional file: enough to check all references of a pipeline.
    pub(super) fn probe(pipeline: &Pipeline) -> Self {
        let empty = || External {
            files: Vec::new(),
            digest: uc_store::sha::hash_bytes(b""),
        };
        Self {
            model: ModelSource {
                name: "probe".into(),
                path: "/".into(),
                layers: 2,
                linear_parameters: 2,
                total_parameters: 2,
                hub: None,
            },
            summary: None,
            source_files: pipeline
                .artifacts
                .values()
                .filter_map(|spec| spec.source_file.clone())
                .map(|file| file.replace(ANY_FILE, "LICENSE"))
                .collect(),
            pack_dir: "pack".into(),
            settings: pipeline.settings.clone(),
            externals: EXTERNAL_INPUTS.map(|name| (name.into(), empty())).into(),
            goals: Goals::Everything,
            cpus: 1,
            versions: BTreeMap::new(),
        }
    }
}

impl Pipeline {
    /// The plan of a run; problems are reported at their line in the pipeline.
    pub fn assemble(&self, request: &Request<'_>) -> Result<Plan, PipelineError> {
        let pipeline = self.with_descriptions(&request.source_files);
        pipeline.assemble_files(request)
    }

    /// The plan of a pipeline in which every artifact is one file, or one file per layer.
    fn assemble_files(&self, request: &Request<'_>) -> Result<Plan, PipelineError> {
        let external_names: BTreeSet<&str> = request
            .externals
            .keys()
            .map(|name| name.split('@').next().unwrap_or(name))
            .collect();
        let required = match request.goals {
            Goals::Everything => None,
            Goals::Only(goals) => {
                self.check_goals(goals)?;
                Some(self.required_stages(goals, &external_names))
            }
        };
        let is_disabled = |stage: &StageSpec| {
            let unless = stage.unless.as_ref();
            unless.is_some_and(|condition| condition.holds(&request.settings))
        };
        let omitted = self.omitted_artifacts(request, is_disabled);
        let selected: Vec<&StageSpec> = self
            .stages
            .iter()
            .filter(|spec| !is_disabled(spec))
            .filter(|spec| {
                let is_required = |names: &BTreeSet<String>| names.contains(spec.name.get_ref());
                required.as_ref().is_none_or(is_required) || spec.per == Per::Shard
            })
            .collect();
        let produced: BTreeSet<&str> = selected
            .iter()
            .flat_map(|spec| &spec.writes)
            .map(|write| write.get_ref().name.as_str())
            .filter(|name| !omitted.contains(name))
            .collect();
        let stages: Vec<StagePlan> = selected
            .iter()
            .map(|spec| spec.plan(request, &omitted, &produced))
            .collect();
        let referenced: BTreeSet<&str> = stages
            .iter()
            .flat_map(|stage| stage.reads.iter().chain(&stage.writes))
            .map(|reference| reference.name.as_str())
            .collect();
        let artifacts: BTreeMap<String, Artifact> = self
            .artifacts
            .iter()
            .filter(|(name, _)| !omitted.contains(name.as_str()))
            .filter(|(name, _)| required.is_none() || referenced.contains(name.as_str()))
            // A single external file needs no entry; one per layer does, for its path pattern.
            .filter(|(name, _)| !request.externals.contains_key(*name))
            .map(|(name, spec)| (name.clone(), spec.artifact.clone()))
            .collect();
        let plan = Plan {
            version: PLAN_VERSION,
            tool_version: env!("CARGO_PKG_VERSION").into(),
            model: request.model.clone(),
            pack_dir: request.pack_dir.clone(),
            settings: request.settings.clone(),
            externals: request.externals.clone(),
            artifacts,
            stages,
        };
        plan.validate().map_err(|problem| self.explain(&problem))?;
        Ok(plan)
    }

    /// The artifacts that a run does not have: copies of files that the model lacks, and outputs of disabled stages.
    fn omitted_artifacts(
        &self,
        request: &Request<'_>,
        is_disabled: impl Fn(&StageSpec) -> bool,
    ) -> BTreeSet<&str> {
        let is_absent = |spec: &ArtifactSpec| {
            let file = spec.source_file.as_ref();
            file.is_some_and(|file| !request.source_files.contains(file))
        };
        let artifacts = self.artifacts.iter();
        let absent = artifacts
            .filter(|(_, spec)| is_absent(spec))
            .map(|(name, _)| name.as_str());
        let disabled = self.stages.iter().filter(|stage| is_disabled(stage));
        let not_written = disabled
            .flat_map(|stage| &stage.writes)
            .map(|reference| reference.get_ref().name.as_str());
        absent.chain(not_written).collect()
    }

    fn check_goals(&self, goals: &[&str]) -> Result<(), PipelineError> {
        for goal in goals {
            if !self.has_producer(goal) {
                let message = format!("no stage writes `{goal}`, which this command must produce");
                return Err(self.error(0, message));
            }
        }
        Ok(())
    }
}

impl StageSpec {
    /// The stage in the plan of a run.
    fn plan(
        &self,
        request: &Request<'_>,
        omitted: &BTreeSet<&str>,
        produced: &BTreeSet<&str>,
    ) -> StagePlan {
        let present = |list: &[toml::Spanned<uc_store::plan::ArtifactRef>]| {
            list.iter()
                .map(|reference| reference.get_ref().clone())
                .filter(|reference| !omitted.contains(reference.name.as_str()))
                .collect::<Vec<_>>()
        };
        let if_made = self.reads_if_made.iter().map(|read| read.get_ref().clone());
        let if_made = if_made.filter(|read| produced.contains(read.name.as_str()));
        let versions = &request.versions;
        let StageVersion { version, sha256 } = versions
            .get(self.name.get_ref())
            .copied()
            .unwrap_or_default();
        StagePlan {
            name: self.name.get_ref().clone(),
            argv: self.argv.get_ref().clone(),
            per: self.per,
            reads: present(&self.reads).into_iter().chain(if_made).collect(),
            writes: present(&self.writes),
            settings: self.settings.iter().map(|s| s.get_ref().clone()).collect(),
            version,
            program_sha256: sha256,
            cpus: match self.cpus {
                Cpus::All => u32::MAX,
                Cpus::Count(count) => count,
                Cpus::Percent(percent) => (request.cpus * percent).div_ceil(100),
            },
            memory: match &request.summary {
                Some(model) => self.memory.bytes(&Shapes {
                    model,
                    settings: &request.settings,
                    source_width: memory::source_width(model, request.externals.get(SOURCE)),
                    threads: request.cpus,
                }),
                None => 0,
            },
            declared_memory: self.declared_memory.clone(),
            max_lead: self.max_lead,
            // Shards are fetched on demand: no job list contains them.
            optional: self.optional || self.per == Per::Shard,
            retries: self.retries,
            stall_timeout: self.stall_timeout,
            weights: self.weights,
        }
    }
}
