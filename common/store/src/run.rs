//! The run directory: where the files of a run are, and which process may work on them.
//!
//! ```text
//! run.json            the plan, ending with a seal: the SHA-256 of its text
//! lock                held by the driver
//! locks/<stage>.lock  held by a stage process
//! receipts/<stage>/<NNN|run>.receipt, .metrics.json
//! layers/, hidden/, pack/, eval/, …   the artifacts, at the paths of the plan's templates
//! scratch/<stage>/<NNN|run>/          partial state of a job
//! source/                             a model of the Hub whose shards are fetched on demand
//! logs/<stage>.log, events.jsonl
//! ```

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};

use crate::atomic::{self, AtomicFile};
use crate::error::StoreError;
use crate::plan::{ArtifactId, JobId, PLAN_VERSION, Plan, SOURCE};
use crate::sha::{Sha256Digest, hash_bytes};

/// Text before and after the digest at the end of `run.json`.
const SEAL: (&str, &str) = (",\n  \"seal\": \"", "\"\n}\n");
/// Number of digits of the digest.
const SEAL_DIGITS: usize = 64;
/// Most bytes of the note in a lock file that are read.
const MAX_LOCK_NOTE: u64 = 100;
/// How long to wait for a lock: a query of the state of a run holds it briefly.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);

/// A run directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir {
    root: Utf8PathBuf,
}

/// A lock on a run directory or on one of its stages, released when dropped and when the process dies.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl RunDir {
    /// Creates the directory if needed, and publishes the plan.
    pub fn create(root: &Utf8Path, plan: &Plan) -> Result<Self, StoreError> {
        plan.validate()?;
        plan.settings.validate()?;
        atomic::create_dir_all(root)?;
        let run = Self {
            root: root.to_owned(),
        };
        let text = sealed(plan).map_err(StoreError::io("encode", &run.plan_path()))?;
        atomic::write_bytes_below(root, &run.plan_path(), text.as_bytes())?;
        Ok(run)
    }

    /// A run directory that may not have a plan yet.
    pub fn at(root: &Utf8Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Locks a directory and opens it. The plan is read after the lock is taken, so no other process can change it.
    pub fn open_locked(root: &Utf8Path) -> Result<(Self, Plan, Lock), StoreError> {
        // No lock file is created in a folder that is not a run directory.
        Self::open(root)?;
        let lock = Self::at(root).lock()?;
        let (run, plan) = Self::open(root)?;
        Ok((run, plan, lock))
    }

    /// Opens a directory and checks its plan.
    pub fn open(root: &Utf8Path) -> Result<(Self, Plan), StoreError> {
        let run = Self {
            root: root.to_owned(),
        };
        let path = run.plan_path();
        let text = uc_input::read(&path, uc_input::LARGE_JSON)
            .map_err(StoreError::io("open the run's plan", &path))?;
        let bad = |error: serde_json::Error| {
            StoreError::malformed(
                &path,
                "plan",
                error.to_string(),
                "a plan as written by `uc`",
            )
        };
        // The version is read first, because a plan of another version may have unknown fields.
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
        if version < PLAN_VERSION.0 {
            let found = format!("version {version}");
            let expected = format!(
                "version {}; `uc compress` with this run directory writes the plan again",
                PLAN_VERSION.0
            );
            return Err(StoreError::malformed(&path, "plan", found, expected));
        }
        let mut plan: Plan = serde_json::from_slice(&unsealed(&text, &path)?).map_err(bad)?;
        plan.confine_shards(root)?;
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
            .join(format!("{}.receipt", job.unit.file_name()))
    }

    /// The metrics of a job, next to its receipt.
    pub fn metrics_path(&self, job: &JobId) -> Utf8PathBuf {
        self.receipt_path(job).with_extension("metrics.json")
    }

    /// The log of the standard error of a stage.
    pub fn log_path(&self, stage: &str) -> Utf8PathBuf {
        self.root.join("logs").join(format!("{stage}.log"))
    }

    /// The log of events.
    pub fn events_path(&self) -> Utf8PathBuf {
        self.root.join("events.jsonl")
    }

    /// The scratch folder of a job; created on demand, removed when the job finishes.
    pub fn work_path(&self, job: &JobId) -> Utf8PathBuf {
        self.root
            .join("scratch")
            .join(&job.stage)
            .join(job.unit.file_name())
    }

    /// Deletes the scratch folder of a job, if there is one.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn remove_work(&self, job: &JobId) -> Result<(), StoreError> {
        atomic::remove_dir_below(&self.root, &self.work_path(job))
    }

    /// The file of an artifact.
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

    /// The folder below which a file of the run is created and deleted: the run directory, or the folder of the pack if it is
    /// elsewhere.
    fn base_of<'a>(&'a self, plan: &'a Plan, path: &Utf8Path) -> &'a Utf8Path {
        let is_in_pack = !path.starts_with(&self.root) && path.starts_with(&plan.pack_dir);
        if is_in_pack {
            &plan.pack_dir
        } else {
            &self.root
        }
    }

    /// Opens the file of an artifact for writing.
    pub fn create_artifact(&self, plan: &Plan, id: &ArtifactId) -> Result<AtomicFile, StoreError> {
        let path = self.artifact_path(plan, id)?;
        AtomicFile::create_below(self.base_of(plan, &path), &path)
    }

    /// Deletes the file of a temporary artifact, which lies in the run directory.
    pub fn remove_artifact(&self, plan: &Plan, id: &ArtifactId) -> Result<(), StoreError> {
        atomic::remove_file_below(&self.root, &self.artifact_path(plan, id)?)
    }

    /// Deletes a shard of a source that is fetched on demand, by its file name.
    pub fn remove_shard(&self, name: &str) -> Result<(), StoreError> {
        atomic::remove_file_below(&self.root, &self.root.join(SOURCE).join(name))
    }

    /// Deletes the receipt of a job, so that the job runs again.
    pub fn remove_receipt(&self, job: &JobId) -> Result<(), StoreError> {
        atomic::remove_file_below(&self.root, &self.receipt_path(job))
    }

    /// Takes the driver's lock and removes the scratch files of killed processes.
    pub fn lock(&self) -> Result<Lock, StoreError> {
        let lock = self.take(&self.root.join("lock"))?;
        atomic::sweep_scratch(&self.root)?;
        Ok(lock)
    }

    /// Takes the driver's lock for a stage program that was started by hand, so that no driver works at the same time.
    /// Returns `None` if the parent, `uc stage`, holds the lock for it.
    pub fn lock_by_hand(&self) -> Result<Option<Lock>, StoreError> {
        let path = self.root.join("lock");
        match self.take_once(&path) {
            Err(StoreError::Locked { .. }) if self.lock_holder() == parent_process() => Ok(None),
            Err(StoreError::Locked { .. }) => self.take(&path).map(Some),
            other => other.map(Some),
        }
    }

    /// The process that wrote into the driver's lock last, whether or not it still holds it.
    pub fn lock_holder(&self) -> Option<u32> {
        let note = uc_input::read_text(self.root.join("lock"), MAX_LOCK_NOTE).ok()?;
        note.trim().strip_prefix("process ")?.parse().ok()
    }

    /// Takes the lock of a stage, so that two processes never write the same checkpoint.
    pub fn stage_lock(&self, stage: &str) -> Result<Lock, StoreError> {
        self.take(&self.root.join("locks").join(format!("{stage}.lock")))
    }

    /// Takes a lock, and waits up to [`LOCK_PATIENCE`] for its holder to release it.
    fn take(&self, path: &Utf8Path) -> Result<Lock, StoreError> {
        let start = Instant::now();
        loop {
            match self.take_once(path) {
                Err(StoreError::Locked { .. }) if start.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                other => return other,
            }
        }
    }

    fn take_once(&self, path: &Utf8Path) -> Result<Lock, StoreError> {
        let mut file = atomic::open_lock_below(&self.root, path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // The note of the holder is for display only; if it cannot be read, the lock is reported without it.
                let _ = Read::by_ref(&mut file)
                    .take(MAX_LOCK_NOTE)
                    .read_to_string(&mut holder);
                return Err(StoreError::Locked {
                    path: path.to_owned(),
                    holder: uc_input::printable(holder.trim()).into_owned(),
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
}

/// The parent process.
pub fn parent_process() -> Option<u32> {
    let parent = rustix::process::getppid()?;
    u32::try_from(parent.as_raw_nonzero().get()).ok()
}

/// The text of `run.json`. Its last field is the digest of the text without that field, so that a flipped byte is not
/// mistaken for another setting.
fn sealed(plan: &Plan) -> std::io::Result<String> {
    let text = serde_json::to_string_pretty(plan)?;
    let digest = hash_bytes(text.as_bytes());
    let unclosed = text.trim_end_matches("\n}");
    Ok(format!("{unclosed}{}{digest}{}", SEAL.0, SEAL.1))
}

/// The text of the plan without its seal, which is checked.
fn unsealed(text: &[u8], path: &Utf8Path) -> Result<Vec<u8>, StoreError> {
    let no_seal = || {
        let found = format!("{} bytes that do not end with a seal", text.len());
        StoreError::malformed(path, "plan", found, "a plan as written by `uc`")
    };
    let parts = text.strip_suffix(SEAL.1.as_bytes()).and_then(|text| {
        let (text, digits) = text.split_at_checked(text.len().checked_sub(SEAL_DIGITS)?)?;
        let unclosed = text.strip_suffix(SEAL.0.as_bytes())?;
        let digest: Sha256Digest = std::str::from_utf8(digits).ok()?.parse().ok()?;
        Some((unclosed, digest))
    });
    let (unclosed, expected) = parts.ok_or_else(no_seal)?;
    let plan = [unclosed, b"\n}"].concat();
    let found = hash_bytes(&plan);
    if found != expected {
        return Err(StoreError::Hash {
            path: path.to_owned(),
            found,
            expected,
        });
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests_support::{folder, small_plan};

    #[test]
    fn a_plan_is_read_back_and_one_of_another_version_is_refused_with_both_versions() {
        let (_keep, folder) = folder();
        let plan = small_plan();
        RunDir::create(&folder, &plan).expect("created");
        let (run, opened) = RunDir::open(&folder).expect("opened");
        assert_eq!(opened, plan);
        let text = std::fs::read_to_string(run.plan_path()).expect("text");
        let newer = text.replace("\"version\": 3,\n  \"tool", "\"version\": 9,\n  \"tool");
        assert_ne!(text, newer);
        atomic::write_bytes(&run.plan_path(), newer.as_bytes()).expect("written");
        let error = RunDir::open(&folder).expect_err("newer").to_string();
        assert!(
            error.contains('9') && error.contains("up to version 3"),
            "{error}"
        );
        let older = text.replace("\"version\": 3,\n  \"tool", "\"version\": 2,\n  \"tool");
        atomic::write_bytes(&run.plan_path(), older.as_bytes()).expect("written");
        let error = RunDir::open(&folder).expect_err("older");
        assert!(
            matches!(&error, StoreError::Malformed { found, expected, .. }
                if found == "version 2" && expected.contains("version 3; `uc compress`")),
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
    fn every_changed_byte_of_the_plan_is_detected() {
        let (_keep, folder) = folder();
        let run = RunDir::create(&folder, &small_plan()).expect("created");
        let text = std::fs::read(run.plan_path()).expect("text");
        let path = run.plan_path();
        for at in 0..text.len() {
            let mut flipped = text.clone();
            flipped[at] ^= 1;
            unsealed(&flipped, &path).expect_err("damaged");
            unsealed(&text[..at], &path).expect_err("cut");
        }
        atomic::write_bytes(&path, &text[..text.len() - 9]).expect("written");
        let error = RunDir::open(&folder).expect_err("cut").to_string();
        assert!(error.contains("run.json"), "{error}");
        // A complete plan without a seal.
        atomic::write_json(&run.plan_path(), &small_plan()).expect("written");
        RunDir::open(&folder).expect_err("no seal");
    }

    #[test]
    fn a_lock_that_is_held_for_a_moment_is_waited_for() {
        let (_keep, folder) = folder();
        let run = RunDir::create(&folder, &small_plan()).expect("created");
        drop(run.lock().expect("file"));
        let query = File::open(folder.join("lock")).expect("file");
        query.lock_shared().expect("held");
        let releasing = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            drop(query);
        });
        run.lock().expect("free again");
        releasing.join().expect("ended");
    }

    #[test]
    fn a_stage_started_by_hand_and_a_driver_exclude_each_other() {
        let (_keep, folder) = folder();
        let run = RunDir::create(&folder, &small_plan()).expect("created");
        let driver = run.lock().expect("driver");
        assert_eq!(run.lock_holder(), Some(std::process::id()));
        assert!(matches!(run.lock_by_hand(), Err(StoreError::Locked { .. })));
        drop(driver);
        let hand = run.lock_by_hand().expect("free").expect("its own");
        assert!(matches!(run.lock(), Err(StoreError::Locked { .. })));
        // Held by the parent process, as if that were `uc stage`.
        drop(hand);
        let parent = run.take_once(&folder.join("lock")).expect("held");
        let note = format!("process {}\n", parent_process().expect("parent"));
        (&parent._file).seek(SeekFrom::Start(0)).expect("start");
        parent._file.set_len(0).expect("cut");
        (&parent._file).write_all(note.as_bytes()).expect("note");
        assert!(run.lock_by_hand().expect("allowed").is_none());
    }

    #[test]
    fn a_second_driver_is_refused_with_the_holder_of_the_lock() {
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
