//! The runtime of a stage program: arguments, the job loop, verified inputs, published outputs.
//!
//! A stage program is one `main` that calls [`main`] with its [`StageProgram`]. Started with `--jobs` it takes layers
//! one after another on standard input, so that a device context is paid for once; with `--layer N` it does one job
//! and leaves. Either way a job is: verify the inputs' hashes, run, publish the outputs, publish the receipt.
//! Nothing here computes; nothing here knows a model or a codec.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

use anyhow::Context;
use camino::Utf8PathBuf;
use serde_json::Value;

use crate::atomic::{self, AtomicFile, Written};
use crate::error::StoreError;
use crate::events::{Event, EventKind, JobRequest};
use crate::exit::ExitCode;
use crate::logging::{self, LogFormat};
use crate::plan::{ArtifactId, External, ExternalFile, JobId, Per, Plan, SOURCE, StagePlan, Unit};
use crate::receipt::{Key, OutputRecord, Receipt, job_key};
use crate::resources;
use crate::run::{RunDir, parent_process};
use crate::settings::Settings;
use crate::sha::{Sha256Digest, verify_file};
use crate::source::{self, Verified};
use crate::tensors::{TensorDecl, TensorFileWriter};

/// Arguments that every stage program takes.
#[derive(Debug, Clone, clap::Args)]
pub struct StageArgs {
    /// The run directory.
    #[arg(long, required_unless_present = "describe")]
    pub run: Option<Utf8PathBuf>,
    /// The stage of the plan; by default the one whose command is this program and task.
    #[arg(long)]
    pub stage: Option<String>,
    /// Do the job of one layer and leave.
    #[arg(long, conflicts_with = "jobs")]
    pub layer: Option<u32>,
    /// Take jobs as JSON lines on standard input until it ends; events go to standard output.
    #[arg(long)]
    pub jobs: bool,
    /// Print program and output version as JSON and leave.
    #[arg(long)]
    pub describe: bool,
    /// More log output; twice for more.
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Form of the log lines.
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// Name and output version of a stage program.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// The binary's name.
    pub name: &'static str,
    /// The task: the first argument in the plan's argv, or "" for a program with a single task.
    pub task: &'static str,
    /// Raised whenever the same input gives other output.
    pub version: u32,
}

/// What a stage does with one job.
pub trait StageProgram {
    /// Reads the job's inputs and publishes all of its outputs.
    fn run(&mut self, job: &mut Job<'_>) -> anyhow::Result<()>;

    /// The class of an error that the store does not know.
    fn classify(&self, error: &anyhow::Error) -> Option<ExitCode> {
        let _ = error;
        None
    }
}

/// Runs a stage program to its end.
pub fn main(program: Program, args: &StageArgs, mut stage: impl StageProgram) -> ExitCode {
    if args.describe {
        println!(
            "{}",
            serde_json::json!({"program": program.name, "version": program.version})
        );
        return ExitCode::Ok;
    }
    logging::init(args.verbose, false, args.log_format);
    let outcome = if args.jobs {
        serve(program, args, &mut stage)
    } else {
        once(program, args, &mut stage)
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            classify(&stage, &error)
        }
    }
}

fn classify(stage: &impl StageProgram, error: &anyhow::Error) -> ExitCode {
    // A full disk or a denied file is that, whatever library met it.
    let by_store = ExitCode::of_error(error);
    by_store
        .filter(|code| !code.is_vague())
        .or_else(|| stage.classify(error))
        .or(by_store)
        .unwrap_or(ExitCode::Internal)
}

/// Run directory, plan and the stage's name.
fn open(program: Program, args: &StageArgs) -> anyhow::Result<(RunDir, Plan, String)> {
    let root = args.run.as_deref().context("--run is required")?;
    let (run, plan) = RunDir::open(root)?;
    let ours = |stage: &&StagePlan| {
        let task = stage.argv.get(1).map_or("", String::as_str);
        let binary = stage.argv.first().map_or("", String::as_str);
        let binary = binary.rsplit('/').next().unwrap_or(binary);
        binary == program.name && task == program.task
    };
    let found = match &args.stage {
        Some(name) => plan.stage(name),
        None => plan.stages.iter().find(ours),
    };
    let Some(stage) = found else {
        return Err(StoreError::Unknown {
            kind: "stage",
            name: args
                .stage
                .clone()
                .unwrap_or_else(|| format!("{} {}", program.name, program.task)),
            known: plan
                .stages
                .iter()
                .map(|s| s.name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        }
        .into());
    };
    let name = stage.name.clone();
    Ok((run, plan, name))
}

/// One job by hand.
fn once(
    program: Program,
    args: &StageArgs,
    stage: &mut impl StageProgram,
) -> anyhow::Result<ExitCode> {
    let (run, plan, name) = open(program, args)?;
    let _run_lock = run.lock_by_hand()?;
    if _run_lock.is_none() {
        // `uc stage` holds it; without its parent this process would write beside the next driver.
        die_with_parent(&run)?;
    }
    let _lock = run.stage_lock(&name)?;
    let unit = plan.stage(&name).expect("open found it").unit(args.layer);
    let id = JobId { stage: name, unit };
    execute(
        &run,
        &plan,
        &id,
        stage,
        &mut Verified::default(),
        &mut |event| {
            if let EventKind::Metric { name, value } = event.kind {
                println!("{name}: {value}");
            }
        },
    )?;
    Ok(ExitCode::Ok)
}

/// Asks the kernel to end this process with the one that started it.
///
/// # Errors
/// If the kernel refuses.
pub fn end_with_parent() -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("cannot tie this process to its driver")
}

/// Ties this process to its driver: an orphan would write checkpoints beside a resumed run.
fn die_with_parent(run: &RunDir) -> anyhow::Result<()> {
    end_with_parent()?;
    // A driver that died before that line sends no signal: then the parent is no longer who wrote into the lock.
    let holder = run.lock_holder();
    anyhow::ensure!(
        holder.is_none() || holder == parent_process(),
        "the driver that started this process is gone"
    );
    Ok(())
}

/// Jobs from the driver until standard input ends.
fn serve(
    program: Program,
    args: &StageArgs,
    stage: &mut impl StageProgram,
) -> anyhow::Result<ExitCode> {
    let (run, plan, name) = open(program, args)?;
    die_with_parent(&run)?;
    let _lock = run.stage_lock(&name)?;
    let mut verified = Verified::default();
    for line in std::io::stdin().lock().lines() {
        let line = line.context("cannot read jobs from standard input")?;
        let request: JobRequest = serde_json::from_str(&line)
            .with_context(|| format!("job request `{line}`, expected {{\"layer\": N}}"))?;
        let id = JobId {
            stage: name.clone(),
            unit: request.unit,
        };
        if let Err(error) = execute(&run, &plan, &id, stage, &mut verified, &mut emit) {
            eprintln!("error: {id}: {error:#}");
            let class = classify(stage, &error);
            let message = format!("{error:#}");
            emit(Event {
                stage: id.stage,
                unit: id.unit,
                kind: EventKind::Failed { class, message },
            });
        }
    }
    Ok(ExitCode::Ok)
}

fn emit(event: Event) {
    let line = serde_json::to_string(&event).expect("events are plain data");
    let mut out = std::io::stdout().lock();
    // A closed pipe means that the driver is gone; the death signal ends this process.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// One job from inputs to receipt.
fn execute(
    run: &RunDir,
    plan: &Plan,
    id: &JobId,
    stage: &mut impl StageProgram,
    verified: &mut Verified,
    emit: &mut (dyn FnMut(Event) + Send),
) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut job = Job::begin(run, plan, id, verified, emit)?;
    job.event(EventKind::Started);
    let _span = tracing::info_span!("job", stage = %id.stage, unit = %id.unit).entered();
    tracing::info!("started");
    stage.run(&mut job)?;
    job.finish()?;
    let seconds = start.elapsed().as_secs_f64();
    let peak_rss_bytes = resources::peak_rss_bytes();
    tracing::info!(seconds, peak_rss_bytes, "finished");
    emit(Event {
        stage: id.stage.clone(),
        unit: id.unit,
        kind: EventKind::Finished {
            seconds,
            peak_rss_bytes,
        },
    });
    Ok(())
}

/// A job in progress: its inputs are verified, its outputs are published through it.
pub struct Job<'a> {
    run: &'a RunDir,
    plan: &'a Plan,
    stage: &'a StagePlan,
    id: JobId,
    key: Key,
    inputs: BTreeMap<ArtifactId, (Utf8PathBuf, Sha256Digest)>,
    outputs: Vec<OutputRecord>,
    metrics: BTreeMap<String, Value>,
    emit: &'a mut (dyn FnMut(Event) + Send),
}

impl<'a> Job<'a> {
    /// Verifies every input and computes the key of the receipt to come.
    fn begin(
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
        let missing = |what: &ArtifactId| StoreError::MissingInput {
            what: what.to_string(),
            needed_by: id.to_string(),
            producer: plan
                .producer(what)
                .map_or_else(|| "outside".into(), |job| job.to_string()),
        };
        let key = key.map_err(|artifact| missing(&artifact))?;
        let shard = |number: u32| plan.shards().any(|(shard, _)| shard == number as usize);
        let is_expected = match stage.per {
            Per::Shard => id.unit.shard().is_some_and(shard),
            _ => stage.units(plan.model.layers).contains(&id.unit),
        };
        if !is_expected {
            return Err(StoreError::Layer {
                stage: stage.name.clone(),
                found: match id.unit {
                    Unit::Run => "none".into(),
                    Unit::Layer(number) | Unit::Shard(number) => number.to_string(),
                },
                expected: match stage.per {
                    Per::Run => "none (the stage has one job for the run)".into(),
                    Per::Layer => format!("0 to {}", plan.model.layers.saturating_sub(1)),
                    Per::Shard => "the number of a shard that is fetched on demand".into(),
                },
            });
        }
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
                return Err(missing(&artifact));
            }
            verify_file(&path, record.size, &digest)?;
            inputs.insert(artifact, (path, digest));
        }
        for number in plan.shards_of(stage, id.unit) {
            let file = &plan.externals[SOURCE].files[number];
            if !file.path.exists() {
                return Err(StoreError::MissingInput {
                    what: file.path.to_string(),
                    needed_by: id.to_string(),
                    producer: plan.fetcher().map_or_else(
                        || "outside".into(),
                        |fetcher| format!("{} --layer {number}", fetcher.name),
                    ),
                });
            }
            source::verify_file(file, verified)?;
        }
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
            emit,
        })
    }

    /// The job's layer; an error for a per-run stage.
    pub fn layer(&self) -> Result<u32, StoreError> {
        self.id.unit.layer().ok_or_else(|| StoreError::Layer {
            stage: self.id.stage.clone(),
            found: "none".into(),
            expected: "a layer".into(),
        })
    }

    /// The plan.
    pub fn plan(&self) -> &'a Plan {
        self.plan
    }

    /// The settings.
    pub fn settings(&self) -> &'a Settings {
        &self.plan.settings
    }

    /// The verified file of an input that the job reads once.
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

    /// The files behind an outside input, verified like every other.
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
            .ok_or_else(|| self.unknown("outside input of this stage", name, self.inputs.keys()))
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

    /// The digest of an input that the job reads once.
    pub fn input_digest(&self, name: &str) -> Result<Sha256Digest, StoreError> {
        self.find(|id| id.name == name, name)
            .map(|(_, digest)| *digest)
    }

    fn find(
        &self,
        matches: impl Fn(&ArtifactId) -> bool,
        name: &str,
    ) -> Result<&(Utf8PathBuf, Sha256Digest), StoreError> {
        let found = self
            .inputs
            .iter()
            .find(|(id, _)| matches(id))
            .map(|(_, value)| value);
        found.ok_or_else(|| self.unknown("input of this stage", name, self.inputs.keys()))
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

    /// Where an output will be; for streams and libraries that need the name before the data.
    pub fn output_path(&self, name: &str) -> Result<Utf8PathBuf, StoreError> {
        self.run.artifact_path(self.plan, &self.output_id(name)?)
    }

    /// Opens an output for writing; it exists after [`Job::commit`].
    pub fn output(&self, name: &str) -> Result<AtomicFile, StoreError> {
        AtomicFile::create(&self.output_path(name)?)
    }

    /// Opens a tensor file as output; it exists after [`Job::commit_tensors`].
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

    /// Tells how far the job is.
    pub fn progress(&mut self, done: u64, total: u64, unit: &str) {
        self.event(EventKind::Progress {
            done,
            total,
            unit: unit.into(),
        });
    }

    /// Tells that what failed for a cause outside of the job is tried again after a wait.
    pub fn retrying(&mut self, attempt: u32, attempts: u32, wait: Duration, error: &str) {
        self.event(EventKind::Retrying {
            attempt,
            attempts,
            wait_seconds: wait.as_secs_f64(),
            error: error.into(),
        });
    }

    /// Reports a figure; it is also kept beside the receipt.
    pub fn metric(&mut self, name: &str, value: impl Into<Value>) {
        let value = value.into();
        self.metrics.insert(name.into(), value.clone());
        self.event(EventKind::Metric {
            name: name.into(),
            value,
        });
    }

    fn event(&mut self, kind: EventKind) {
        (self.emit)(Event {
            stage: self.id.stage.clone(),
            unit: self.id.unit,
            kind,
        });
    }

    /// A folder for the job's own partial state; it survives a crash and goes when the job completes.
    pub fn work_dir(&self) -> Result<Utf8PathBuf, StoreError> {
        let path = self.run.work_path(&self.id);
        atomic::create_dir_all(&path)?;
        Ok(path)
    }

    /// Publishes metrics and receipt once every declared output is there.
    fn finish(self) -> Result<(), StoreError> {
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
            atomic::write_json(&self.run.metrics_path(&self.id), &self.metrics)?;
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
        atomic::remove_dir_all(&self.run.work_path(&self.id))
    }
}

/// What the producer of an artifact recorded about it; `None` while it is not made.
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

#[cfg(test)]
mod tests;
