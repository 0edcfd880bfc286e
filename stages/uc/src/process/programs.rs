//! Finds the stage programs: in the folder that `UC_STAGES` names, else in the folder of `uc` itself.
//!
//! Owns the list of programs that may be started. A pipeline file or a run directory may come from a stranger, so neither can
//! name any other program, unless the user allows it by name on the command line.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::{Arc, Mutex, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use uc_store::plan::{Plan, StagePlan};
use uc_store::sha::{Sha256Digest, hash_file};
use uc_store::{ExitCode, StoreError};

use crate::process::runner;
use crate::report::failure::failure;

/// The stage programs of the built-in pipeline. No other program is started unless the user allows it.
const STAGE_PROGRAMS: [&str; 7] = [
    "shard-loader",
    "teacher-cache",
    "quantize",
    "overlay-fit",
    "pack-writer",
    "evaluator",
    "hub-upload",
];

/// What a stage's program reports about itself, and the digest of its file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StageVersion {
    /// Version of the output.
    pub version: u32,
    /// Digest of the program's file.
    pub sha256: Sha256Digest,
}

/// What identifies the content of a file until it is written or replaced: size, inode, and time of its last change.
type FileStamp = (u64, u64, i64, i64);

/// The folders that are searched for programs, in order, and the programs that may be started.
#[derive(Debug, Clone)]
pub struct Programs {
    folders: Vec<Utf8PathBuf>,
    /// Names of further programs that the user allows.
    allowed: Vec<String>,
    /// Digests of program files that this process has hashed.
    digests: Arc<Mutex<BTreeMap<Utf8PathBuf, (FileStamp, Sha256Digest)>>>,
}

impl Programs {
    /// The search path of this process.
    pub fn from_env() -> Self {
        let from_variable = std::env::var("UC_STAGES").ok().map(Utf8PathBuf::from);
        let executable_folder = own_folder();
        Self {
            folders: from_variable.into_iter().chain(executable_folder).collect(),
            allowed: Vec::new(),
            digests: Arc::default(),
        }
    }

    /// Also allows programs that the user named on the command line.
    #[must_use]
    pub fn allowing(mut self, names: &[String]) -> Self {
        self.allowed.extend_from_slice(names);
        self
    }

    /// The programs that the user allowed.
    pub fn further(&self) -> &[String] {
        &self.allowed
    }

    /// Whether a program may be started.
    pub fn is_allowed(&self, name: &str) -> bool {
        STAGE_PROGRAMS.contains(&name) || self.allowed.iter().any(|allowed| allowed == name)
    }

    /// The executable file of a program name.
    pub fn find(&self, name: &str) -> Result<Utf8PathBuf, String> {
        if name.contains('/') {
            let name = uc_input::printable(name);
            return Err(format!(
                "found the path `{name}`, expected a program's name"
            ));
        }
        if !self.is_allowed(name) {
            let name = uc_input::printable(name);
            let known = STAGE_PROGRAMS.join(", ");
            return Err(format!(
                "found the program `{name}`, expected one of {known}; if you trust the program, add --allow-program {name}"
            ));
        }
        let candidates = self.folders.iter().map(|folder| folder.join(name));
        candidates
            .into_iter()
            .find(|path| is_executable(path))
            .ok_or_else(|| {
                let folders: Vec<_> = self.folders.iter().map(|f| f.as_str()).collect();
                format!("program `{name}` not found in {}", folders.join(" nor in "))
            })
    }

    /// The executable file of a stage's command.
    pub fn for_command(&self, argv: &[String]) -> anyhow::Result<Utf8PathBuf> {
        let name = argv.first().map_or("", String::as_str);
        self.find(name)
            .map_err(|message| failure(ExitCode::BadPipeline, message))
    }

    /// Version and digest of each stage's program. Each program is asked once, without arguments of a pipeline or a run.
    pub fn versions<'a>(
        &self,
        commands: impl Iterator<Item = (&'a str, &'a [String])>,
    ) -> anyhow::Result<BTreeMap<String, StageVersion>> {
        let mut known: BTreeMap<Utf8PathBuf, StageVersion> = BTreeMap::new();
        let mut versions = BTreeMap::new();
        for (stage, argv) in commands {
            let path = self.for_command(argv)?;
            let version = match known.get(&path) {
                Some(version) => *version,
                None => StageVersion {
                    version: runner::output_version(&path)?,
                    sha256: self.digest(&path)?,
                },
            };
            known.insert(path, version);
            versions.insert(stage.to_owned(), version);
        }
        Ok(versions)
    }

    /// Updates versions and digests of programs in a plan; returns whether one changed.
    pub fn refresh_versions(&self, plan: &mut Plan) -> anyhow::Result<bool> {
        self.refresh(plan, |_| true)
    }

    /// Like [`Programs::refresh_versions`] for the programs that may be started; the others keep what the plan says about them.
    /// Returns the names of the others.
    pub fn refresh_known_versions(&self, plan: &mut Plan) -> anyhow::Result<BTreeSet<String>> {
        self.refresh(plan, |stage| self.is_allowed(&stage.argv[0]))?;
        let names = plan.stages.iter().map(|stage| stage.argv[0].clone());
        Ok(names.filter(|name| !self.is_allowed(name)).collect())
    }

    fn refresh(
        &self,
        plan: &mut Plan,
        is_included: impl Fn(&StagePlan) -> bool,
    ) -> anyhow::Result<bool> {
        let included = plan.stages.iter().filter(|stage| is_included(stage));
        let commands = included.map(|s| (s.name.as_str(), s.argv.as_slice()));
        let versions = self.versions(commands)?;
        let mut changed = false;
        for stage in &mut plan.stages {
            if let Some(now) = versions.get(&stage.name) {
                changed |= (now.version, now.sha256) != (stage.version, stage.program_sha256);
                stage.version = now.version;
                stage.program_sha256 = now.sha256;
            }
        }
        Ok(changed)
    }

    /// The program of a stage, which must have the bytes that the plan was made with.
    ///
    /// # Errors
    /// If the program is missing or not allowed, or if it was replaced since this session began.
    pub fn for_stage(&self, stage: &StagePlan) -> anyhow::Result<Utf8PathBuf> {
        let path = self.for_command(&stage.argv)?;
        if self.digest(&path)? == stage.program_sha256 {
            return Ok(path);
        }
        let message = format!(
            "{path} was replaced since this session began, expected the same program to its end; continue with uc resume"
        );
        Err(failure(ExitCode::StageFailed, message))
    }

    /// Digest of a program's file, which is read again only if its size, inode or time of change differs.
    fn digest(&self, path: &Utf8Path) -> Result<Sha256Digest, StoreError> {
        let metadata = std::fs::metadata(path).map_err(StoreError::io("open", path))?;
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        let stamp = (metadata.len(), metadata.ino(), changed.0, changed.1);
        let lock = || self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().get(path).copied();
        if let Some((_, digest)) = known.filter(|(known, _)| *known == stamp) {
            return Ok(digest);
        }
        let (digest, _) = hash_file(path)?;
        lock().insert(path.to_owned(), (stamp, digest));
        Ok(digest)
    }
}

/// The programs of a run that were built again with other bytes although they report the same version as before.
pub fn rebuilt_programs(before: &Plan, now: &Plan) -> Vec<String> {
    let is_rebuilt = |stage: &&StagePlan| {
        before.stage(&stage.name).is_some_and(|old| {
            old.argv[0] == stage.argv[0]
                && old.version == stage.version
                && old.program_sha256 != stage.program_sha256
        })
    };
    let rebuilt = now.stages.iter().filter(is_rebuilt);
    let mut names: Vec<String> = rebuilt.map(|stage| stage.argv[0].clone()).collect();
    names.sort();
    names.dedup();
    names
}

/// What to tell the user about rebuilt programs; none if there are none.
pub fn rebuilt_warning(before: &Plan, now: &Plan) -> Option<String> {
    let names = rebuilt_programs(before, now);
    (!names.is_empty()).then(|| {
        format!(
            "{}: other bytes than when this run was last worked on, although the version is the same; their jobs run again",
            names.join(", ")
        )
    })
}

/// The folder of this executable.
pub fn own_folder() -> Option<Utf8PathBuf> {
    let path = std::env::current_exe().ok()?;
    let path = Utf8PathBuf::from_path_buf(path).ok()?;
    path.parent().map(Utf8Path::to_owned)
}

fn is_executable(path: &Utf8Path) -> bool {
    std::fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::pipeline::{DEFAULT, Pipeline};

    fn programs(folders: &[&str]) -> Programs {
        Programs {
            folders: folders.iter().map(Into::into).collect(),
            allowed: Vec::new(),
            digests: Arc::default(),
        }
    }

    #[test]
    fn a_program_is_an_executable_file_in_one_of_the_folders() {
        let programs = programs(&["/nonexistent", "/bin"]).allowing(&["sh".into(), "none".into()]);
        assert_eq!(programs.find("sh").expect("present"), "/bin/sh");
        let error = programs.find("none").expect_err("absent");
        assert!(error.contains("/nonexistent nor in /bin"), "{error}");
        assert!(programs.find("../bin/sh").is_err());
    }

    #[test]
    fn only_listed_programs_and_those_that_the_user_names_are_found() {
        let error = programs(&["/bin"]).find("sh").expect_err("not listed");
        assert!(
            error.contains("`sh`") && error.contains("--allow-program sh"),
            "{error}"
        );
        let error = programs(&["/bin"])
            .find("a\u{1b}[2Jb")
            .expect_err("not listed");
        assert!(!error.contains('\u{1b}'), "{error}");
    }

    #[test]
    fn the_list_of_programs_is_that_of_the_built_in_pipeline() {
        let pipeline = Pipeline::parse("built in", DEFAULT).expect("valid");
        let used: BTreeSet<&str> = pipeline.commands().map(|(_, argv)| &*argv[0]).collect();
        assert_eq!(used, BTreeSet::from(STAGE_PROGRAMS));
    }

    #[test]
    fn a_program_with_other_bytes_has_another_digest_also_within_a_session() {
        let temporary = tempfile::tempdir().expect("folder");
        let path = Utf8Path::from_path(temporary.path())
            .expect("utf-8")
            .join("p");
        let programs = programs(&[]);
        uc_store::atomic::write_bytes(&path, b"one").expect("written");
        let first = programs.digest(&path).expect("hashed");
        assert_eq!(programs.digest(&path).expect("known"), first);
        uc_store::atomic::write_bytes(&path, b"two").expect("replaced");
        assert_ne!(programs.digest(&path).expect("hashed"), first);
        uc_store::atomic::write_bytes(&path, b"one").expect("an identical rebuild");
        assert_eq!(programs.digest(&path).expect("hashed"), first);
    }
}
