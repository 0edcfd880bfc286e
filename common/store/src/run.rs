//! The run directory: where everything of a run is, and who may work on it.
//!
//! ```text
//! run.json            the plan
//! lock                held by the driver
//! locks/<stage>.lock  held by a stage process
//! receipts/<stage>/<NNN|run>.receipt, .figures.json
//! layers/, hidden/, pack/, eval/, …   the artifacts, by the plan's templates
//! scratch/<stage>/<NNN|run>/          a job's own partial state
//! logs/<stage>.log, events.jsonl
//! ```

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};

use camino::{Utf8Path, Utf8PathBuf};

use crate::atomic;
use crate::error::StoreError;
use crate::plan::{ArtifactId, JobId, PLAN_VERSION, Plan};

/// A run directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir {
    root: Utf8PathBuf,
}

/// A lock on a run directory or a stage of it, released when dropped (or when the process dies).
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl RunDir {
    /// Makes the directory if needed and publishes the plan.
    pub fn create(root: &Utf8Path, plan: &Plan) -> Result<Self, StoreError> {
        plan.validate()?;
        plan.settings.validate()?;
        atomic::create_dir_all(root)?;
        let run = Self {
            root: root.to_owned(),
        };
        atomic::write_json(&run.plan_path(), plan)?;
        Ok(run)
    }

    /// Opens a directory and checks its plan.
    pub fn open(root: &Utf8Path) -> Result<(Self, Plan), StoreError> {
        let run = Self {
            root: root.to_owned(),
        };
        let path = run.plan_path();
        let text = std::fs::read(&path).map_err(StoreError::io("open the run's plan", &path))?;
        let bad = |error: serde_json::Error| {
            StoreError::malformed(&path, "plan", error.to_string(), "a plan as `uc` writes it")
        };
        // The version is read first: a newer plan may have fields that this program does not know.
        #[derive(serde::Deserialize)]
        struct VersionOnly {
            version: u32,
        }
        let VersionOnly { version } = serde_json::from_slice(&text).map_err(bad)?;
        if version > PLAN_VERSION.0 {
            return Err(StoreError::Newer {
                path,
                what: "plan",
                found: version,
                supported: PLAN_VERSION.0,
            });
        }
        let plan: Plan = serde_json::from_slice(&text).map_err(bad)?;
        plan.validate()?;
        plan.settings.validate()?;
        Ok((run, plan))
    }

    /// The directory itself.
    pub fn root(&self) -> &Utf8Path {
        &self.root
    }

    /// `run.json`.
    pub fn plan_path(&self) -> Utf8PathBuf {
        self.root.join("run.json")
    }

    /// The receipt of a job.
    pub fn receipt_path(&self, job: &JobId) -> Utf8PathBuf {
        self.root
            .join("receipts")
            .join(&job.stage)
            .join(format!("{}.receipt", layer_name(job.layer)))
    }

    /// The figures that a job reported, beside its receipt.
    pub fn figures_path(&self, job: &JobId) -> Utf8PathBuf {
        self.receipt_path(job).with_extension("figures.json")
    }

    /// The log of a stage's stderr.
    pub fn log_path(&self, stage: &str) -> Utf8PathBuf {
        self.root.join("logs").join(format!("{stage}.log"))
    }

    /// The log of events.
    pub fn events_path(&self) -> Utf8PathBuf {
        self.root.join("events.jsonl")
    }

    /// A job's scratch folder; made on demand, removed when the job completes.
    pub fn work_path(&self, job: &JobId) -> Utf8PathBuf {
        self.root
            .join("scratch")
            .join(&job.stage)
            .join(layer_name(job.layer))
    }

    /// The file of an artifact instance.
    pub fn artifact_path(&self, plan: &Plan, id: &ArtifactId) -> Result<Utf8PathBuf, StoreError> {
        plan.path(&self.root, id)
            .ok_or_else(|| StoreError::Unknown {
                kind: "artifact",
                name: id.to_string(),
                known: plan
                    .artifacts
                    .keys()
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }

    /// Takes the driver's lock and sweeps what killed processes left.
    pub fn lock(&self) -> Result<Lock, StoreError> {
        let lock = take(&self.root.join("lock"))?;
        atomic::sweep_scratch(&self.root)?;
        Ok(lock)
    }

    /// Takes the lock of one stage, so that two processes never write the same checkpoint.
    pub fn stage_lock(&self, stage: &str) -> Result<Lock, StoreError> {
        take(&self.root.join("locks").join(format!("{stage}.lock")))
    }
}

fn layer_name(layer: Option<u32>) -> String {
    layer.map_or_else(|| "run".into(), |layer| format!("{layer:03}"))
}

fn take(path: &Utf8Path) -> Result<Lock, StoreError> {
    let mut file = atomic::open_lock(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // The holder's note is for people; an unreadable one must not hide the fact of the lock.
            let _ = Read::by_ref(&mut file)
                .take(100)
                .read_to_string(&mut holder);
            return Err(StoreError::Locked {
                path: path.to_owned(),
                holder: holder.trim().into(),
            });
        }
        Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", path)(error)),
    }
    let note = format!("process {}\n", std::process::id());
    file.set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| file.write_all(note.as_bytes()))
        .map_err(StoreError::io("write", path))?;
    Ok(Lock { _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests_support::{folder, small_plan};

    #[test]
    fn a_plan_comes_back_and_a_newer_one_is_refused_with_both_numbers() {
        let (_keep, folder) = folder();
        let plan = small_plan();
        RunDir::create(&folder, &plan).expect("created");
        let (run, found) = RunDir::open(&folder).expect("opened");
        assert_eq!(found, plan);
        let text = std::fs::read_to_string(run.plan_path()).expect("text");
        let newer = text.replace("\"version\": 1,\n  \"tool", "\"version\": 9,\n  \"tool");
        assert_ne!(text, newer);
        atomic::write_bytes(&run.plan_path(), newer.as_bytes()).expect("written");
        let error = RunDir::open(&folder).expect_err("newer").to_string();
        assert!(
            error.contains('9') && error.contains("up to version 1"),
            "{error}"
        );
        atomic::write_bytes(&run.plan_path(), b"{").expect("written");
        assert!(matches!(
            RunDir::open(&folder),
            Err(StoreError::Malformed { .. })
        ));
        assert!(matches!(
            RunDir::open(&folder.join("absent")),
            Err(StoreError::Io { .. })
        ));
    }

    #[test]
    fn a_second_driver_is_refused_and_told_who_holds_the_lock() {
        let (_keep, folder) = folder();
        let run = RunDir::create(&folder, &small_plan()).expect("created");
        let first = run.lock().expect("first");
        let error = run.lock().expect_err("second").to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(first);
        run.lock().expect("free again");
        let _stage = run.stage_lock("quantize").expect("stage");
        assert!(matches!(
            run.stage_lock("quantize"),
            Err(StoreError::Locked { .. })
        ));
        run.stage_lock("evaluator").expect("another stage");
    }
}
