//! The plan of a run: which stages make which artifacts, and from which inputs.
//!
//! The driver makes the plan from `pipeline.toml` and the model, and writes it to `run.json`; stages only read it.
//! [`Plan::validate`] checks all of it before a stage starts.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

pub use external::{External, ExternalFile, HubSource, ModelSource, SOURCE, ShardContent, Weights};
pub use id::{ArtifactId, ArtifactRef, JobId, Unit, Which};
pub use problem::PlanProblem;

use uc_settings::Settings;

use crate::sha::Sha256Digest;

mod external;
mod id;
mod problem;
mod validate;

/// Version of `run.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlanVersion(pub u32);

/// The version that this program writes, and the newest that it reads.
pub const PLAN_VERSION: PlanVersion = PlanVersion(3);

/// What stands for the folder of the pack in the path of an artifact.
const PACK_PLACEHOLDER: &str = "{pack}";
/// Most layers of a model. The largest published models have a few hundred.
pub const MAX_LAYERS: u32 = 10_000;

/// A validated run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Version of this document.
    pub version: PlanVersion,
    /// Version of the program that made the plan.
    pub tool_version: String,
    /// The source model.
    pub model: ModelSource,
    /// Folder of the pack, absolute or relative to the run directory.
    pub pack_dir: Utf8PathBuf,
    /// The settings.
    pub settings: Settings,
    /// Inputs that no stage of the run makes, by name.
    pub externals: BTreeMap<String, External>,
    /// Files that the stages make, by name.
    pub artifacts: BTreeMap<String, Artifact>,
    /// The stages in topological order.
    pub stages: Vec<StagePlan>,
}

/// A file that a stage makes, or one file per layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// Path below the run directory. `{layer}` makes it one file per layer; `{pack}` is the folder of the pack.
    pub path: String,
    /// Whether it is deleted when its last reader has finished.
    pub temporary: bool,
}

/// A stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StagePlan {
    /// Unique name.
    pub name: String,
    /// Program and leading arguments.
    pub argv: Vec<String>,
    /// What its jobs work on.
    pub per: Per,
    /// The artifacts and external inputs that it reads.
    pub reads: Vec<ArtifactRef>,
    /// The artifacts that it writes.
    pub writes: Vec<ArtifactRef>,
    /// Sections of the settings that determine its output.
    pub settings: Vec<String>,
    /// Version of its output, as the program reports it.
    pub version: u32,
    /// Digest of the program's file. It distinguishes programs that were built from different code but report the same version.
    pub program_sha256: Sha256Digest,
    /// Largest number of CPU cores that a job uses; 0 for a job that only waits.
    pub cpus: u32,
    /// Largest amount of memory that a job is expected to use, in bytes; 0 if not declared.
    pub memory: u64,
    /// The sum in the pipeline that these bytes follow from; none in the plan of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declared_memory: Option<String>,
    /// How many layers it may be ahead of the slowest reader of its temporary outputs.
    pub max_lead: Option<u32>,
    /// Whether it runs only on request: when it is named, or when its output is needed.
    pub optional: bool,
    /// How often a job that crashed or hung is restarted.
    pub retries: u32,
    /// Seconds without an event after which a job counts as hung; 0 for never.
    pub stall_timeout: u64,
    /// The tensors of the source that its jobs read; the shards that hold them are kept while a job runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,
}

/// What the jobs of a stage work on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Per {
    /// One job per layer.
    Layer,
    /// One job for the run.
    Run,
    /// One job for each shard of the source that is absent when another job needs it.
    Shard,
}

impl StagePlan {
    /// The units of the planned jobs of the stage, for a model of `layers` layers.
    pub fn units(&self, layers: u32) -> Vec<Unit> {
        match self.per {
            Per::Run => vec![Unit::Run],
            Per::Layer => (0..layers).map(Unit::Layer).collect(),
            // Shards are fetched on demand; no job is planned.
            Per::Shard => Vec::new(),
        }
    }

    /// The unit that a number on the command line names: a shard of a per-shard stage, otherwise a layer.
    pub fn unit(&self, number: Option<u32>) -> Unit {
        match (self.per, number) {
            (_, None) => Unit::Run,
            (Per::Shard, Some(shard)) => Unit::Shard(shard),
            (Per::Layer | Per::Run, Some(layer)) => Unit::Layer(layer),
        }
    }
}

impl Plan {
    /// The stage with this name.
    pub fn stage(&self, name: &str) -> Option<&StagePlan> {
        self.stages.iter().find(|stage| stage.name == name)
    }

    /// Enables the optional stages that an artifact needs: those that write it, and those that write their inputs.
    /// Returns whether a stage writes the artifact.
    pub fn ask_for(&mut self, artifact: &str) -> bool {
        let mut wanted = vec![artifact.to_owned()];
        let mut is_made = false;
        while let Some(name) = wanted.pop() {
            let writes = |stage: &&mut StagePlan| stage.writes.iter().any(|w| w.name == name);
            for stage in self.stages.iter_mut().filter(writes) {
                is_made = true;
                if std::mem::take(&mut stage.optional) {
                    wanted.extend(stage.reads.iter().map(|read| read.name.clone()));
                }
            }
        }
        is_made
    }

    /// All planned jobs, optional stages included, in the order of the stages and then of the layers.
    pub fn jobs(&self) -> Vec<JobId> {
        self.stages
            .iter()
            .flat_map(|stage| {
                stage
                    .units(self.model.layers)
                    .into_iter()
                    .map(|unit| JobId {
                        stage: stage.name.clone(),
                        unit,
                    })
            })
            .collect()
    }

    /// Whether an artifact is one file per layer.
    fn is_per_layer(&self, name: &str) -> bool {
        match self.artifacts.get(name) {
            Some(artifact) => artifact.path.contains("{layer}"),
            None => false,
        }
    }

    fn resolve(&self, reference: &ArtifactRef, unit: Unit) -> Vec<ArtifactId> {
        let name = &reference.name;
        if !self.is_per_layer(name) {
            return vec![ArtifactId {
                name: name.clone(),
                layer: None,
            }];
        }
        match (reference.which, unit.layer()) {
            (Which::Same, Some(layer)) => vec![ArtifactId::at(name, layer)],
            (Which::Next, Some(layer)) => vec![ArtifactId::at(name, layer + 1)],
            (Which::Same | Which::Next, None) => (0..self.model.layers)
                .map(|layer| ArtifactId::at(name, layer))
                .collect(),
            (Which::First, _) => vec![ArtifactId::at(name, 0)],
            (Which::Last, _) => vec![ArtifactId::at(name, self.model.layers)],
        }
    }

    /// The inputs of a job, external ones included.
    pub fn inputs(&self, stage: &StagePlan, unit: Unit) -> Vec<ArtifactId> {
        stage
            .reads
            .iter()
            .flat_map(|reference| self.resolve(reference, unit))
            .collect()
    }

    /// The outputs of a job.
    pub fn outputs(&self, stage: &StagePlan, unit: Unit) -> Vec<ArtifactId> {
        stage
            .writes
            .iter()
            .flat_map(|reference| self.resolve(reference, unit))
            .collect()
    }

    /// The external input of this name, if there is one.
    pub fn external(&self, id: &ArtifactId) -> Option<&External> {
        self.externals.get(&id.to_string())
    }

    /// The job that makes an artifact.
    pub fn producer(&self, id: &ArtifactId) -> Option<JobId> {
        self.stages.iter().find_map(|stage| {
            stage
                .writes
                .iter()
                .filter(|reference| reference.name == id.name)
                .find_map(|reference| {
                    let unit = match (stage.per, reference.which, id.layer) {
                        (Per::Run, ..) => Unit::Run,
                        (Per::Layer, Which::Same, Some(layer)) => Unit::Layer(layer),
                        (Per::Layer, Which::Next, Some(layer)) => {
                            Unit::Layer(layer.checked_sub(1)?)
                        }
                        _ => return None,
                    };
                    let in_range = unit.layer().is_none_or(|layer| layer < self.model.layers);
                    let makes = in_range && self.outputs(stage, unit).contains(id);
                    makes.then(|| JobId {
                        stage: stage.name.clone(),
                        unit,
                    })
                })
        })
    }

    /// The jobs that read an artifact; `with_optional` includes those of optional stages.
    pub fn consumers(&self, id: &ArtifactId, with_optional: bool) -> Vec<JobId> {
        let mut jobs = Vec::new();
        for stage in self
            .stages
            .iter()
            .filter(|stage| with_optional || !stage.optional)
        {
            if stage
                .reads
                .iter()
                .all(|reference| reference.name != id.name)
            {
                continue;
            }
            for unit in stage.units(self.model.layers) {
                if self.inputs(stage, unit).contains(id) {
                    jobs.push(JobId {
                        stage: stage.name.clone(),
                        unit,
                    });
                }
            }
        }
        jobs
    }

    /// The file of an artifact below the run directory `root`, or the first file of an external input.
    pub fn path(&self, root: &Utf8Path, id: &ArtifactId) -> Option<Utf8PathBuf> {
        if let Some(external) = self.external(id) {
            return external.files.first().map(|file| file.path.clone());
        }
        let template = &self.artifacts.get(&id.name)?.path;
        let mut path = template.replace(PACK_PLACEHOLDER, self.pack_dir.as_str());
        if let Some(layer) = id.layer {
            path = path.replace("{layer}", &format!("{layer:03}"));
        }
        Some(root.join(path)) // an absolute pack folder replaces `root`
    }

    /// The folder outside the run directory into which the run writes its pack, if there is one.
    pub fn pack_outside(&self) -> Option<&Utf8Path> {
        let in_pack = |name: &str| {
            let artifact = self.artifacts.get(name);
            artifact.is_some_and(|artifact| artifact.path.starts_with(PACK_PLACEHOLDER))
        };
        let mut writes = self.stages.iter().flat_map(|stage| &stage.writes);
        let is_outside = self.pack_dir.is_absolute() && writes.any(|write| in_pack(&write.name));
        is_outside.then_some(&*self.pack_dir)
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod tests_support;
