//! A job in progress: verified inputs, published outputs, events and the receipt at its end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use serde_json::Value;
use uc_settings::Settings;

use crate::atomic::{self, AtomicFile, Written};
use crate::error::StoreError;
use crate::events::{Event, EventKind};
use crate::plan::{ArtifactId, External, ExternalFile, JobId, Per, Plan, SOURCE, StagePlan, Unit};
use crate::receipt::{Key, OutputRecord, Receipt, job_key};
use crate::run::RunDir;
use crate::sha::{Sha256Digest, verify_file};
use crate::source::{self, Verified};
use crate::tensors::{TensorDecl, TensorFileWriter};

/// Names the producer of a file that no stage of the plan makes.
const EXTERNAL: &str = "outside the run";

/// The file in a resumable scratch folder that holds the key of its job.
const KEY_FILE: &str = "key.json";
/// Largest such file that is read, bytes.
const MAX_KEY: u64 = 16 << 20;
/// Least time between two reports of [`Job::progress_often`].
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// A job in progress: its inputs are verified, and it publishes its outputs.
pub struct Job<'a> {
    run: &'a RunDir,
    plan: &'a Plan,
    stage: &'a StagePlan,
    id: JobId,
    key: Key,
    inputs: BTreeMap<ArtifactId, (Utf8PathBuf, Sha256Digest)>,
    outputs: Vec<OutputRecord>,
    metrics: BTreeMap<String, Value>,
    /// When [`Job::progress_often`] last reported something.
    reported: Option<Instant>,
    emit: &'a mut (dyn FnMut(Event) + Send),
}

impl<'a> Job<'a> {
    /// Verifies every input and computes the key of the receipt.
    pub(super) fn begin(
        run: &'a RunDir,
        plan: &'a Plan,
        id: &JobId,
        verified: &mut Verified,
        emit: &'a mut (dyn FnMut(Event) + Send),
    ) -> Result<Self, StoreError> {
        let mut records = BTreeMap::new();
        let mut failure = None;
        let key = job_key(plan, id, |artifact| {
            match producer_record(run, plan, artifact) {
                Ok(record) => {
                    let record = record?;
                    let digest = Sha256Digest(record.sha256);
                    records.insert(artifact.clone(), record);
                    Some(digest)
                }
                Err(error) => {
                    failure.get_or_insert(error);
                    None
                }
            }
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        let stage = plan.stage(&id.stage).expect("job_key checked it");
        let key = key.map_err(|artifact| missing_input(plan, id, &artifact))?;
        check_unit(plan, stage, id.unit)?;
        let mut inputs = BTreeMap::new();
        for artifact in plan.inputs(stage, id.unit) {
            if let Some(external) = plan.external(&artifact) {
                source::verify_external(external, verified)?;
                let path = external
                    .files
                    .first()
                    .map(|file| file.path.clone())
                    .unwrap_or_default();
                inputs.insert(artifact, (path, external.digest));
                continue;
            }
            let path = run.artifact_path(plan, &artifact)?;
            let record = &records[&artifact];
            let digest = Sha256Digest(record.sha256);
            if !path.exists() {
                return Err(missing_input(plan, id, &artifact));
            }
            verify_file(&path, record.size, &digest)?;
            inputs.insert(artifact, (path, digest));
        }
        verify_shards(plan, stage, id, verified)?;
        let (outputs, metrics) = (Vec::new(), BTreeMap::new());
        Ok(Self {
            run,
            plan,
            stage,
            id: id.clone(),
            key,
            inputs,
            outputs,
            metrics,
            reported: None,
            emit,
        })
    }

    /// Stage and unit of the job.
    pub fn id(&self) -> &JobId {
        &self.id
    }

    /// The job's layer; an error for a per-run stage.
    pub fn layer(&self) -> Result<u32, StoreError> {
        self.id.unit.layer().ok_or_else(|| StoreError::Layer {
            stage: self.id.stage.clone(),
            found: "none".into(),
            expected: "a layer".into(),
        })
    }

    /// The run directory.
    pub fn run(&self) -> &'a RunDir {
        self.run
    }

    /// The plan.
    pub fn plan(&self) -> &'a Plan {
        self.plan
    }

    /// The settings.
    pub fn settings(&self) -> &'a Settings {
        &self.plan.settings
    }

    /// The verified file of an input of which the job reads one instance.
    pub fn input(&self, name: &str) -> Result<Utf8PathBuf, StoreError> {
        self.find(|id| id.name == name, name)
            .map(|(path, _)| path.clone())
    }

    /// The verified file of one layer's instance of an input.
    pub fn input_at(&self, name: &str, layer: u32) -> Result<Utf8PathBuf, StoreError> {
        let wanted = ArtifactId::at(name, layer);
        self.find(|id| *id == wanted, name)
            .map(|(path, _)| path.clone())
    }

    /// The verified files of an external input.
    pub fn external(&self, name: &str) -> Result<&'a External, StoreError> {
        let id = ArtifactId {
            name: name.into(),
            layer: None,
        };
        let external = self
            .plan
            .external(&id)
            .filter(|_| self.inputs.contains_key(&id));
        external
            .ok_or_else(|| self.unknown("external input of this stage", name, self.inputs.keys()))
    }

    /// The shard of the source that the job of a per-shard stage fetches; an error for any other stage.
    pub fn shard(&self) -> Result<&'a ExternalFile, StoreError> {
        let shard = self.id.unit.shard().and_then(|wanted| {
            let mut shards = self.plan.shards();
            shards.find(|(shard, _)| *shard == wanted as usize)
        });
        let (_, file) = shard.ok_or_else(|| StoreError::Layer {
            stage: self.id.stage.clone(),
            found: "none".into(),
            expected: "a shard".into(),
        })?;
        Ok(file)
    }

    /// The digest of an input of which the job reads one instance.
    pub fn input_digest(&self, name: &str) -> Result<Sha256Digest, StoreError> {
        self.find(|id| id.name == name, name)
            .map(|(_, digest)| *digest)
    }

    fn find(
        &self,
        matches: impl Fn(&ArtifactId) -> bool,
        name: &str,
    ) -> Result<&(Utf8PathBuf, Sha256Digest), StoreError> {
        let input = self
            .inputs
            .iter()
            .find(|(id, _)| matches(id))
            .map(|(_, file)| file);
        input.ok_or_else(|| self.unknown("input of this stage", name, self.inputs.keys()))
    }

    fn unknown<'k>(
        &self,
        kind: &'static str,
        name: &str,
        known: impl Iterator<Item = &'k ArtifactId>,
    ) -> StoreError {
        let known = known
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        StoreError::Unknown {
            kind,
            name: name.into(),
            known,
        }
    }

    fn output_id(&self, name: &str) -> Result<ArtifactId, StoreError> {
        let outputs = self.plan.outputs(self.stage, self.id.unit);
        outputs
            .iter()
            .find(|id| id.name == name)
            .cloned()
            .ok_or_else(|| self.unknown("output of this stage", name, outputs.iter()))
    }

    /// The path of an output, for libraries that need it before the data.
    pub fn output_path(&self, name: &str) -> Result<Utf8PathBuf, StoreError> {
        self.run.artifact_path(self.plan, &self.output_id(name)?)
    }

    /// Opens an output for writing. [`Job::commit`] publishes it.
    pub fn output(&self, name: &str) -> Result<AtomicFile, StoreError> {
        self.run.create_artifact(self.plan, &self.output_id(name)?)
    }

    /// Opens a tensor file for writing. [`Job::commit_tensors`] publishes it.
    pub fn output_tensors(
        &self,
        name: &str,
        tensors: &[TensorDecl],
    ) -> Result<TensorFileWriter, StoreError> {
        TensorFileWriter::begin(self.output(name)?, tensors)
    }

    /// Publishes an output.
    pub fn commit(&mut self, name: &str, file: AtomicFile) -> Result<Written, StoreError> {
        let artifact = self.output_id(name)?;
        let written = file.commit()?;
        self.record(artifact, written);
        Ok(written)
    }

    /// Publishes a tensor file.
    pub fn commit_tensors(
        &mut self,
        name: &str,
        file: TensorFileWriter,
    ) -> Result<Written, StoreError> {
        let artifact = self.output_id(name)?;
        let written = file.commit()?;
        self.record(artifact, written);
        Ok(written)
    }

    fn record(&mut self, artifact: ArtifactId, written: Written) {
        self.outputs.push(OutputRecord {
            artifact,
            size: written.size,
            sha256: written.sha256.0,
        });
    }

    /// Reports the progress of the job, if it is complete or a second has passed since the last report.
    pub fn progress_often(&mut self, done: u64, total: u64, unit: &str) {
        let now = Instant::now();
        let is_due = self
            .reported
            .is_none_or(|last| now - last >= REPORT_INTERVAL);
        if is_due || done == total {
            self.reported = Some(now);
            self.progress(done, total, unit);
        }
    }

    /// Reports the progress of the job.
    pub fn progress(&mut self, done: u64, total: u64, unit: &str) {
        self.event(EventKind::Progress {
            done,
            total,
            unit: unit.into(),
        });
    }

    /// Reports that an operation failed for an external reason and will be retried after `wait`.
    pub fn retrying(&mut self, attempt: u32, attempts: u32, wait: Duration, error: &str) {
        self.event(EventKind::Retrying {
            attempt,
            attempts,
            wait_seconds: wait.as_secs_f64(),
            error: error.into(),
        });
    }

    /// Tells the user something; without a driver it goes to the log.
    pub fn note(&mut self, message: impl Into<String>) {
        let message = message.into();
        tracing::warn!("{message}");
        self.event(EventKind::Note { message });
    }

    /// Reports a metric; it is also saved next to the receipt.
    pub fn metric(&mut self, name: &str, value: impl Into<Value>) {
        let value = value.into();
        self.metrics.insert(name.into(), value.clone());
        self.event(EventKind::Metric {
            name: name.into(),
            value,
        });
    }

    pub(super) fn event(&mut self, kind: EventKind) {
        (self.emit)(Event {
            stage: self.id.stage.clone(),
            unit: self.id.unit,
            kind,
        });
    }

    /// The job's scratch folder, with what an interrupted job of the same key left in it. What a job with another key left, because
    /// other inputs, settings or programs determined it, is removed.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::Malformed`] if a folder on the way is a link.
    pub fn resumable_dir(&self) -> Result<Utf8PathBuf, StoreError> {
        let path = self.work_dir()?;
        let key_file = path.join(KEY_FILE);
        let found: Option<Key> = uc_input::read_json(&key_file, MAX_KEY).ok();
        if found.as_ref() != Some(&self.key) {
            atomic::remove_dir_below(self.run.root(), &path)?;
            atomic::write_json_below(self.run.root(), &key_file, &self.key)?;
        }
        Ok(path)
    }

    /// The job's scratch folder. It survives a crash and is removed when the job finishes.
    pub fn work_dir(&self) -> Result<Utf8PathBuf, StoreError> {
        let path = self.run.work_path(&self.id);
        atomic::create_dir_below(self.run.root(), &path)?;
        Ok(path)
    }

    /// Publishes metrics and receipt, provided that every declared output has been published.
    pub(super) fn finish(self) -> Result<(), StoreError> {
        for artifact in self.plan.outputs(self.stage, self.id.unit) {
            if !self
                .outputs
                .iter()
                .any(|record| record.artifact == artifact)
            {
                return Err(StoreError::OutputNotCommitted {
                    stage: self.id.stage,
                    artifact: artifact.to_string(),
                });
            }
        }
        if !self.metrics.is_empty() {
            let path = self.run.metrics_path(&self.id);
            atomic::write_json_below(self.run.root(), &path, &self.metrics)?;
        }
        let mut outputs = self.outputs;
        outputs.sort_by(|a, b| a.artifact.cmp(&b.artifact));
        let receipt = Receipt {
            stage: self.id.stage.clone(),
            unit: self.id.unit,
            key: self.key,
            outputs,
        };
        receipt.write(self.run)?;
        self.run.remove_work(&self.id)
    }
}

/// What the producer of an artifact recorded about it; `None` if it has not been made.
fn producer_record(
    run: &RunDir,
    plan: &Plan,
    id: &ArtifactId,
) -> Result<Option<OutputRecord>, StoreError> {
    let Some(producer) = plan.producer(id) else {
        return Ok(None);
    };
    let receipt = Receipt::read(run, &producer)?;
    Ok(receipt.and_then(|receipt| receipt.output(id).cloned()))
}

/// Checks that a stage of the plan has a job for this unit.
fn check_unit(plan: &Plan, stage: &StagePlan, unit: Unit) -> Result<(), StoreError> {
    let is_shard = |number: u32| plan.shards().any(|(shard, _)| shard == number as usize);
    let is_expected = match stage.per {
        Per::Shard => unit.shard().is_some_and(is_shard),
        Per::Run | Per::Layer => stage.units(plan.model.layers).contains(&unit),
    };
    if is_expected {
        return Ok(());
    }
    Err(StoreError::Layer {
        stage: stage.name.clone(),
        found: match unit {
            Unit::Run => "none".into(),
            Unit::Layer(number) | Unit::Shard(number) => number.to_string(),
        },
        expected: match stage.per {
            Per::Run => "none (the stage has one job for the run)".into(),
            Per::Layer => format!("0 to {}", plan.model.layers.saturating_sub(1)),
            Per::Shard => "the number of a shard that is fetched on demand".into(),
        },
    })
}

/// Verifies the shards of the source that a job reads.
fn verify_shards(
    plan: &Plan,
    stage: &StagePlan,
    id: &JobId,
    verified: &mut Verified,
) -> Result<(), StoreError> {
    for number in plan.shards_of(stage, id.unit) {
        let file = &plan.externals[SOURCE].files[number];
        if !file.path.exists() {
            return Err(StoreError::MissingInput {
                what: file.path.to_string(),
                needed_by: id.to_string(),
                producer: plan.fetcher().map_or_else(
                    || EXTERNAL.into(),
                    |fetcher| format!("{} --layer {number}", fetcher.name),
                ),
            });
        }
        source::verify_file(file, verified)?;
    }
    Ok(())
}

fn missing_input(plan: &Plan, id: &JobId, artifact: &ArtifactId) -> StoreError {
    StoreError::MissingInput {
        what: artifact.to_string(),
        needed_by: id.to_string(),
        producer: plan
            .producer(artifact)
            .map_or_else(|| EXTERNAL.into(), |job| job.to_string()),
    }
}
