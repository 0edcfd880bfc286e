//! Finds the stage programs: in the folder that `UC_STAGES` names, else in the folder of `uc` itself.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use camino::{Utf8Path, Utf8PathBuf};
use uc_store::ExitCode;
use uc_store::plan::Plan;

use crate::process::runner;
use crate::report::failure::failure;

/// The folders that are searched for programs, in order.
#[derive(Debug, Clone)]
pub struct Programs {
    folders: Vec<Utf8PathBuf>,
}

impl Programs {
    /// The search path of this process.
    pub fn from_env() -> Self {
        let from_variable = std::env::var("UC_STAGES").ok().map(Utf8PathBuf::from);
        let executable_folder = own_folder();
        Self {
            folders: from_variable.into_iter().chain(executable_folder).collect(),
        }
    }

    /// The executable file of a program name.
    pub fn find(&self, name: &str) -> Result<Utf8PathBuf, String> {
        if name.contains('/') {
            return Err(format!(
                "found the path `{name}`, expected a program's name"
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

    /// Output version of each stage, as its program reports it.
    pub fn versions<'a>(
        &self,
        commands: impl Iterator<Item = (&'a str, &'a [String])>,
    ) -> anyhow::Result<BTreeMap<String, u32>> {
        let mut known: BTreeMap<&[String], u32> = BTreeMap::new();
        let mut versions = BTreeMap::new();
        for (stage, argv) in commands {
            let version = match known.get(argv) {
                Some(version) => *version,
                None => runner::output_version(&self.for_command(argv)?, &argv[1..])?,
            };
            known.insert(argv, version);
            versions.insert(stage.to_owned(), version);
        }
        Ok(versions)
    }

    /// Updates the versions in a plan; returns whether one changed.
    pub fn refresh_versions(&self, plan: &mut Plan) -> anyhow::Result<bool> {
        let commands = plan
            .stages
            .iter()
            .map(|s| (s.name.as_str(), s.argv.as_slice()));
        let versions = self.versions(commands)?;
        let mut changed = false;
        for stage in &mut plan.stages {
            let version = versions[&stage.name];
            changed |= version != stage.version;
            stage.version = version;
        }
        Ok(changed)
    }
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

    #[test]
    fn a_program_is_an_executable_file_in_one_of_the_folders() {
        let programs = Programs {
            folders: vec!["/nonexistent".into(), "/bin".into()],
        };
        assert_eq!(programs.find("sh").expect("present"), "/bin/sh");
        let error = programs.find("no-such-stage").expect_err("absent");
        assert!(error.contains("/nonexistent nor in /bin"), "{error}");
        assert!(programs.find("../bin/sh").is_err());
    }
}
