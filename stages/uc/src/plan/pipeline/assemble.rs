//! From a pipeline and a model to the plan of a run.

use std::collections::{BTreeMap, BTreeSet};

use camino::Utf8PathBuf;
use uc_settings::Settings;
use uc_store::plan::{Artifact, External, ModelSource, PLAN_VERSION, Per, Plan, StagePlan};

use super::{Cpus, Memory, Pipeline, PipelineError, StageSpec};

/// The outside inputs that `uc` provides.
fn known_inputs() -> [&'static str; 3] {
    ["source", "calibration-text", "evaluation-text"]
}

/// What a run is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goals<'a> {
    /// Every stage of the pipeline.
    Everything,
    /// Only what these artifacts need.
    Only(&'a [&'a str]),
}

/// What the pipeline does not know: the model and the wishes of one run.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The model's facts.
    pub model: ModelSource,
    /// Names of the model's files.
    pub source_files: BTreeSet<String>,
    /// Where the pack goes or is.
    pub pack_dir: Utf8PathBuf,
    /// The settings with all overrides.
    pub settings: Settings,
    /// Outside inputs.
    pub externals: BTreeMap<String, External>,
    /// What is wanted.
    pub goals: Goals<'a>,
    /// Processor cores to share out.
    pub cpus: u32,
    /// Output version of each stage's program.
    pub versions: BTreeMap<String, u32>,
}

impl Request<'_> {
    /// A model of two layers with every optional file: enough to check all references of a pipeline.
    pub(super) fn probe(pipeline: &Pipeline) -> Self {
        let nothing = || External {
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
            source_files: pipeline
                .artifacts
                .values()
                .filter_map(|spec| spec.source_file.clone())
                .collect(),
            pack_dir: "pack".into(),
            settings: pipeline.settings.clone(),
            externals: known_inputs().map(|name| (name.into(), nothing())).into(),
            goals: Goals::Everything,
            cpus: 1,
            versions: BTreeMap::new(),
        }
    }
}

impl Pipeline {
    /// The plan of a run; its problems are named with their line in the pipeline.
    pub fn assemble(&self, request: &Request<'_>) -> Result<Plan, PipelineError> {
        let outside: BTreeSet<&str> = request
            .externals
            .keys()
            .map(|name| name.split('@').next().unwrap_or(name))
            .collect();
        let needed = match request.goals {
            Goals::Everything => None,
            Goals::Only(goals) => {
                self.check_goals(goals)?;
                Some(self.needed(goals, &outside))
            }
        };
        let absent = |spec: &super::ArtifactSpec| {
            let file = spec.source_file.as_ref();
            file.is_some_and(|file| !request.source_files.contains(file))
        };
        let switched_off = |stage: &&StageSpec| {
            let unless = stage.unless.as_ref();
            unless.is_some_and(|condition| condition.holds(&request.settings))
        };
        let unmade = self.stages.iter().filter(switched_off).flat_map(|stage| {
            let names = stage.writes.iter();
            names.map(|reference| reference.get_ref().name.as_str())
        });
        let left_out: BTreeSet<&str> = self
            .artifacts
            .iter()
            .filter(|(_, spec)| absent(spec))
            .map(|(name, _)| name.as_str())
            .chain(unmade)
            .collect();
        let part: Vec<&StageSpec> = self
            .stages
            .iter()
            .filter(|spec| !switched_off(spec))
            .filter(|spec| {
                let wanted = needed.as_ref();
                let is_needed = |needed: &BTreeSet<String>| needed.contains(spec.name.get_ref());
                wanted.is_none_or(is_needed) || spec.per == Per::Shard
            })
            .collect();
        let made: BTreeSet<&str> = part
            .iter()
            .flat_map(|spec| &spec.writes)
            .map(|write| write.get_ref().name.as_str())
            .filter(|name| !left_out.contains(name))
            .collect();
        let stages: Vec<StagePlan> = part
            .iter()
            .map(|spec| spec.plan(request, &left_out, &made))
            .collect();
        let whole = needed.is_none();
        let mentioned: BTreeSet<&str> = stages
            .iter()
            .flat_map(|stage| stage.reads.iter().chain(&stage.writes))
            .map(|reference| reference.name.as_str())
            .collect();
        let artifacts: BTreeMap<String, Artifact> = self
            .artifacts
            .iter()
            .filter(|(name, _)| !left_out.contains(name.as_str()))
            // A single file from outside needs no entry; one per layer does, for its form.
            .filter(|(name, _)| whole || mentioned.contains(name.as_str()))
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

    fn check_goals(&self, goals: &[&str]) -> Result<(), PipelineError> {
        for goal in goals {
            if !self.makes(goal) {
                let message = format!("no stage writes `{goal}`, which this command is for");
                return Err(self.error(0, message));
            }
        }
        Ok(())
    }
}

impl StageSpec {
    fn plan(
        &self,
        request: &Request<'_>,
        left_out: &BTreeSet<&str>,
        made: &BTreeSet<&str>,
    ) -> StagePlan {
        let present = |list: &[toml::Spanned<uc_store::plan::ArtifactRef>]| {
            list.iter()
                .map(|reference| reference.get_ref().clone())
                .filter(|reference| !left_out.contains(reference.name.as_str()))
                .collect::<Vec<_>>()
        };
        let if_made = self.reads_if_made.iter().map(|read| read.get_ref().clone());
        let if_made = if_made.filter(|read| made.contains(read.name.as_str()));
        StagePlan {
            name: self.name.get_ref().clone(),
            argv: self.argv.get_ref().clone(),
            per: self.per,
            reads: present(&self.reads).into_iter().chain(if_made).collect(),
            writes: present(&self.writes),
            settings: self.settings.iter().map(|s| s.get_ref().clone()).collect(),
            version: request
                .versions
                .get(self.name.get_ref())
                .copied()
                .unwrap_or(0),
            cpus: match self.cpus {
                Cpus::All => u32::MAX,
                Cpus::Count(count) => count,
                Cpus::Percent(percent) => (request.cpus * percent).div_ceil(100),
            },
            memory: match self.memory {
                Memory::Bytes(bytes) => bytes,
                Memory::Layers(count) => {
                    let model = &request.model;
                    let layer = model.linear_parameters / u64::from(model.layers.max(1)) * 4;
                    (count * layer as f64) as u64
                }
            },
            max_lead: self.max_lead,
            // Shards come by need: no walk over the run asks for them.
            optional: self.optional || self.per == Per::Shard,
            retries: self.retries,
            stall_timeout: self.stall_timeout,
            weights: self.weights,
        }
    }
}
