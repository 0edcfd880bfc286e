//! The plan of a run: which stages make which artifacts of which layers, from what.
//!
//! `run.json` holds it. The driver makes it from `pipeline.toml` and the model; stages only read it. Everything that
//! can be wrong with it is found by [`Plan::validate`] before a stage starts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

pub use external::{External, ExternalFile, HubSource, ModelSource, SOURCE, ShardContent, Weights};
pub use problem::PlanProblem;

use uc_settings::Settings;

mod external;
mod problem;

/// Version of `run.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlanVersion(pub u32);

/// The version that this program writes and the newest that it reads.
pub const PLAN_VERSION: PlanVersion = PlanVersion(2);

/// A validated run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Version of this document.
    pub version: PlanVersion,
    /// Version of the program that made it.
    pub tool_version: String,
    /// The source model.
    pub model: ModelSource,
    /// Where the pack is, absolute or relative to the run directory.
    pub pack_dir: Utf8PathBuf,
    /// What determines the output.
    pub settings: Settings,
    /// Inputs that no stage of this run makes.
    pub externals: BTreeMap<String, External>,
    /// What the stages make, by name.
    pub artifacts: BTreeMap<String, Artifact>,
    /// The stages in topological order.
    pub stages: Vec<StagePlan>,
}

/// Something that a stage makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// Path below the run directory; `{layer}` makes it one per layer, `{pack}` is the pack's folder.
    pub path: String,
    /// Whether it is deleted once its last reader has finished.
    pub temporary: bool,
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StagePlan {
    /// Unique name.
    pub name: String,
    /// Program and leading arguments.
    pub argv: Vec<String>,
    /// One job per layer, or one for the run.
    pub per: Per,
    /// What it reads.
    pub reads: Vec<ArtifactRef>,
    /// What it writes.
    pub writes: Vec<ArtifactRef>,
    /// Sections of the settings that determine its output.
    pub settings: Vec<String>,
    /// Version of the program's output, as the program itself reports it.
    pub version: u32,
    /// Processor cores a job takes at most; a job that only waits takes none.
    pub cpus: u32,
    /// Memory a job is expected to take at most, bytes; 0 when not declared.
    pub memory: u64,
    /// How many layers it may be ahead of the slowest reader of its outputs.
    pub max_lead: Option<u32>,
    /// Left out unless asked for, by its name or by what it makes.
    pub optional: bool,
    /// How often a died or hung job is started again.
    pub retries: u32,
    /// Seconds without any event after which a job counts as hung; 0 never.
    pub stall_timeout: u64,
    /// The tensors of the source that its jobs read; their shards are there while a job runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,
}

/// How many jobs a stage has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Per {
    /// One per layer.
    Layer,
    /// One.
    Run,
    /// One per shard of the source that is not there, whenever a job needs it; the job's number is that of the file in
    /// the outside input `source`.
    Shard,
}

/// Which instance of an artifact a stage means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Which {
    /// `name`: the job's own layer; from a per-run stage every layer.
    Same,
    /// `name+1`: the layer after the job's.
    Next,
    /// `name@0`: layer 0.
    First,
    /// `name@last`: the index one past the last layer.
    Last,
}

/// A reference to an artifact, as `pipeline.toml` writes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArtifactRef {
    /// Artifact or external name.
    pub name: String,
    /// Which instance.
    pub which: Which,
}

/// One instance of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ArtifactId {
    /// Artifact name.
    pub name: String,
    /// Layer index, for artifacts that are one per layer.
    pub layer: Option<u32>,
}

/// What one job of a stage works on; the counterpart of [`Per`].
///
/// Serialized as two fields, `layer` and `shard`, of which at most one is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "UnitFields", try_from = "UnitFields")]
pub enum Unit {
    /// The whole run.
    Run,
    /// A layer.
    Layer(u32),
    /// A shard of the source: the position of its file in the external input `source`.
    Shard(u32),
}

/// The serialized form of [`Unit`].
#[derive(Serialize, Deserialize)]
struct UnitFields {
    layer: Option<u32>,
    shard: Option<u32>,
}

/// A job: one stage on one unit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId {
    /// Stage name.
    pub stage: String,
    /// What the job works on.
    pub unit: Unit,
}

impl From<Unit> for UnitFields {
    fn from(unit: Unit) -> Self {
        Self {
            layer: unit.layer(),
            shard: unit.shard(),
        }
    }
}

impl TryFrom<UnitFields> for Unit {
    type Error = String;

    fn try_from(fields: UnitFields) -> Result<Self, String> {
        match (fields.layer, fields.shard) {
            (None, None) => Ok(Unit::Run),
            (Some(layer), None) => Ok(Unit::Layer(layer)),
            (None, Some(shard)) => Ok(Unit::Shard(shard)),
            (Some(layer), Some(shard)) => Err(format!(
                "found layer {layer} and shard {shard}, expected one of them"
            )),
        }
    }
}

impl Unit {
    /// The layer, if the unit is one.
    pub fn layer(self) -> Option<u32> {
        match self {
            Unit::Layer(layer) => Some(layer),
            Unit::Run | Unit::Shard(_) => None,
        }
    }

    /// The shard, if the unit is one.
    pub fn shard(self) -> Option<u32> {
        match self {
            Unit::Shard(shard) => Some(shard),
            Unit::Run | Unit::Layer(_) => None,
        }
    }

    /// The name of files and folders that belong to the unit: `run`, or the number in three digits.
    pub fn file_name(self) -> String {
        match self {
            Unit::Run => "run".into(),
            Unit::Layer(number) | Unit::Shard(number) => format!("{number:03}"),
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unit::Run => f.write_str("the run"),
            Unit::Layer(layer) => write!(f, "layer {layer}"),
            Unit::Shard(shard) => write!(f, "shard {shard}"),
        }
    }
}

impl fmt::Display for ArtifactRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = match self.which {
            Which::Same => "",
            Which::Next => "+1",
            Which::First => "@0",
            Which::Last => "@last",
        };
        write!(f, "{}{suffix}", self.name)
    }
}

impl FromStr for ArtifactRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, which) = if let Some(name) = text.strip_suffix("+1") {
            (name, Which::Next)
        } else if let Some(name) = text.strip_suffix("@0") {
            (name, Which::First)
        } else if let Some(name) = text.strip_suffix("@last") {
            (name, Which::Last)
        } else {
            (text, Which::Same)
        };
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || !name.chars().all(plain) {
            return Err(format!(
                "`{text}` is no artifact reference; expected `name`, `name+1`, `name@0` or `name@last` \
                 with a name of a-z, 0-9 and -"
            ));
        }
        Ok(Self {
            name: name.into(),
            which,
        })
    }
}

impl Serialize for ArtifactRef {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ArtifactRef {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl ArtifactId {
    /// An instance of an artifact that is one per layer.
    pub fn at(name: &str, layer: u32) -> Self {
        Self {
            name: name.into(),
            layer: Some(layer),
        }
    }
}

impl fmt::Display for ArtifactId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            None => f.write_str(&self.name),
            Some(layer) => write!(f, "{}@{layer:03}", self.name),
        }
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.unit {
            Unit::Run => f.write_str(&self.stage),
            unit => write!(f, "{} of {unit}", self.stage),
        }
    }
}

impl StagePlan {
    /// The units of the stage's planned jobs, in a model of `layers` layers.
    pub fn units(&self, layers: u32) -> Vec<Unit> {
        match self.per {
            Per::Run => vec![Unit::Run],
            Per::Layer => (0..layers).map(Unit::Layer).collect(),
            // Shards are fetched on demand, not by plan.
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
    /// The stage of a name.
    pub fn stage(&self, name: &str) -> Option<&StagePlan> {
        self.stages.iter().find(|stage| stage.name == name)
    }

    /// Has the optional stages run that an artifact needs: those that write it, and those that write what they read.
    /// Whether any stage writes it.
    pub fn ask_for(&mut self, artifact: &str) -> bool {
        let mut wanted = vec![artifact.to_owned()];
        let mut found = false;
        while let Some(name) = wanted.pop() {
            let writes = |stage: &&mut StagePlan| stage.writes.iter().any(|w| w.name == name);
            for stage in self.stages.iter_mut().filter(writes) {
                found = true;
                if std::mem::take(&mut stage.optional) {
                    wanted.extend(stage.reads.iter().map(|read| read.name.clone()));
                }
            }
        }
        found
    }

    /// Every job in an order in which each comes after what it reads, optional stages last in line like the others.
    pub fn jobs(&self) -> Vec<JobId> {
        // Layer-major within runs of per-layer stages would also do; stage order alone is enough for a correct walk
        // except where a stage reads its own previous layer, and layers ascend within a stage.
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

    /// Whether an artifact or external of this name is one per layer.
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

    /// What a job reads, externals included.
    pub fn inputs(&self, stage: &StagePlan, unit: Unit) -> Vec<ArtifactId> {
        stage
            .reads
            .iter()
            .flat_map(|reference| self.resolve(reference, unit))
            .collect()
    }

    /// What a job writes.
    pub fn outputs(&self, stage: &StagePlan, unit: Unit) -> Vec<ArtifactId> {
        stage
            .writes
            .iter()
            .flat_map(|reference| self.resolve(reference, unit))
            .collect()
    }

    /// The outside input behind an instance, if it is one.
    pub fn external(&self, id: &ArtifactId) -> Option<&External> {
        self.externals.get(&id.to_string())
    }

    /// The job that makes an instance.
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

    /// The jobs that read an instance; `with_optional` counts stages that run only when asked for.
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

    /// The file of an instance, below `root`; for an external its (first) file.
    pub fn path(&self, root: &Utf8Path, id: &ArtifactId) -> Option<Utf8PathBuf> {
        if let Some(external) = self.external(id) {
            return external.files.first().map(|file| file.path.clone());
        }
        let template = &self.artifacts.get(&id.name)?.path;
        let mut path = template.replace("{pack}", self.pack_dir.as_str());
        if let Some(layer) = id.layer {
            path = path.replace("{layer}", &format!("{layer:03}"));
        }
        Some(root.join(path)) // an absolute pack folder replaces the root
    }

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
            let refuse = |why| {
                Err(PlanProblem::BadReference {
                    stage: stage.name.clone(),
                    reference: reference.to_string(),
                    why,
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
                    return refuse("a per-layer stage would write one file again for each layer");
                }
                (Which::First | Which::Last, Per::Layer) if direction == "writes" => {
                    return refuse(
                        "a per-layer stage would write one layer's file again and again",
                    );
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
        // Kahn 1962: what is left when nothing can start any more waits in a circle.
        let mut waiting: BTreeMap<JobId, BTreeSet<JobId>> = BTreeMap::new();
        for job in self.jobs() {
            let stage = self.stage(&job.stage).expect("from the list");
            let on = self.inputs(stage, job.unit);
            let on = on
                .iter()
                .filter(|id| self.external(id).is_none())
                .filter_map(|id| producers.get(id));
            waiting.insert(job, on.cloned().collect());
        }
        let mut readers: BTreeMap<JobId, Vec<JobId>> = BTreeMap::new();
        for (job, on) in &waiting {
            for producer in on {
                readers
                    .entry(producer.clone())
                    .or_default()
                    .push(job.clone());
            }
        }
        let mut ready: Vec<JobId> = waiting
            .iter()
            .filter(|(_, on)| on.is_empty())
            .map(|(job, _)| job.clone())
            .collect();
        while let Some(job) = ready.pop() {
            waiting.remove(&job);
            for reader in readers.remove(&job).unwrap_or_default() {
                let on = waiting
                    .get_mut(&reader)
                    .expect("not started before its inputs");
                on.remove(&job);
                if on.is_empty() {
                    ready.push(reader);
                }
            }
        }
        let Some(start) = waiting.keys().next().cloned() else {
            return Ok(());
        };
        let mut path = vec![start.clone()];
        loop {
            let next = waiting[path.last().expect("not empty")]
                .iter()
                .next()
                .expect("waits")
                .clone();
            if let Some(at) = path.iter().position(|job| *job == next) {
                let mut circle: Vec<_> = path[at..].iter().map(ToString::to_string).collect();
                circle.push(next.to_string());
                return Err(PlanProblem::Cycle { path: circle });
            }
            path.push(next);
        }
    }
}

/// A template must stay below its root and know only the two placeholders.
fn check_template(artifact: &str, path: &str) -> Result<(), PlanProblem> {
    let refuse = |why| {
        Err(PlanProblem::BadPath {
            artifact: artifact.into(),
            path: path.into(),
            why,
        })
    };
    let plain = path.replace("{layer}", "0");
    let plain = plain.strip_prefix("{pack}/").unwrap_or(&plain);
    if plain.contains(['{', '}']) {
        return refuse("placeholders are {layer}, and {pack} as the first folder");
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

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod tests_support;
