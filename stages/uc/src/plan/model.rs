//! What the driver knows of a model: the facts that `shard-loader inspect` states, and the texts to use with it.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;
use uc_store::ExitCode;
use uc_store::plan::{HubSource, ModelSource, ShardContent};
use uc_store::sha::Sha256Digest;

use crate::forecast::facts::Facts;
use crate::process::programs::{Programs, own_folder};
use crate::process::runner;
use crate::report::failure::failure;
use crate::report::progress::Display;

/// The program that knows model folders.
const INSPECTOR: &str = "shard-loader";
/// Endings of text files that the stages read.
const TEXT_ENDINGS: [&str; 4] = ["txt", "utf8", "raw", "jsonl"];
/// The variable that names the folder of downloaded models, and that folder without it.
const MODELS: (&str, &str) = ("UC_MODELS", "models");
/// The embedded model's folder below the folder of shared files.
const EMBEDDED: &str = "examples/tiny-stories";

/// What `shard-loader inspect MODEL` prints. It may say more than the driver needs.
#[derive(Debug, Deserialize)]
struct FolderFacts {
    name: String,
    layers: u32,
    linear_parameters: u64,
    total_parameters: u64,
    files: Vec<String>,
    #[serde(default)]
    shards: BTreeMap<String, ShardContent>,
}

/// What `shard-loader fetch` prints.
#[derive(Debug, Deserialize)]
struct Fetched {
    folder: Utf8PathBuf,
    name: String,
    repository: String,
    revision: String,
    commit: String,
    shards: BTreeMap<String, RemoteShard>,
}

/// A shard that the Hub has and the disk has not.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RemoteShard {
    /// Bytes.
    pub size: u64,
    /// Digest of the whole.
    pub sha256: Sha256Digest,
}

/// A model folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// Its facts for the plan.
    pub source: ModelSource,
    /// The files that determine it, absolute, in a fixed order.
    pub files: Vec<Utf8PathBuf>,
    /// What each file of weights holds, by name.
    pub shards: BTreeMap<String, ShardContent>,
    /// The files of weights that were left at the Hub, by name.
    pub remote: BTreeMap<String, RemoteShard>,
}

/// How much of a model of the Hub is downloaded before a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Everything,
    /// Of the weights only the headers.
    Headers,
}

/// Which of the two texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextUse {
    /// The text that calibrates.
    Calibration,
    /// The text to evaluate on.
    Evaluation,
}

/// Text files, and whether they are only the embedded model's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Texts {
    /// Absolute paths.
    pub files: Vec<Utf8PathBuf>,
    /// Neither given nor found beside the model.
    pub is_fallback: bool,
}

impl Model {
    /// A model by what the user named: a folder here, else a model of the Hub, which is downloaded.
    pub fn find(
        named: &Utf8Path,
        extent: Extent,
        programs: &Programs,
        display: &Display,
    ) -> anyhow::Result<Self> {
        if named.exists() || !is_hub_name(named.as_str()) {
            return Self::inspect(named, programs);
        }
        display.say(&format!(
            "{named} is no folder here; looking for it on the Hub"
        ));
        let program = programs
            .find(INSPECTOR)
            .map_err(|message| failure(ExitCode::BadPipeline, message))?;
        let mut arguments = vec!["fetch".to_owned(), "--progress".into(), "--to".into()];
        let folder = std::env::var(MODELS.0)
            .ok()
            .filter(|folder| !folder.is_empty());
        arguments.push(folder.unwrap_or_else(|| MODELS.1.into()));
        if extent == Extent::Headers {
            arguments.push("--headers".into());
        }
        arguments.push(named.to_string());
        let task = display.task(&format!("downloading {named}"), 0);
        let outcome = runner::follow(
            &program,
            &arguments,
            &mut |done, total| task.set(done, total),
            &mut |line| display.say(line),
        );
        task.finish();
        let output = outcome?;
        let fetched: Fetched = serde_json::from_slice(&output).map_err(|error| {
            let message = format!(
                "{INSPECTOR} fetch {named}: found {error}, expected where the model is as JSON"
            );
            failure(ExitCode::StageFailed, message)
        })?;
        let mut model = Self::inspect(&fetched.folder, programs)?;
        display.say(&format!(
            "{} at commit {} is in {}",
            fetched.repository, fetched.commit, fetched.folder
        ));
        model.source.name = fetched.name;
        model.source.hub = Some(HubSource {
            repository: fetched.repository,
            revision: fetched.revision,
            commit: fetched.commit,
        });
        model.remote = fetched.shards;
        Ok(model)
    }

    /// Asks the stage program about a folder.
    pub fn inspect(folder: &Utf8Path, programs: &Programs) -> anyhow::Result<Self> {
        let path = absolute(folder)?;
        let program = programs
            .find(INSPECTOR)
            .map_err(|message| failure(ExitCode::BadPipeline, message))?;
        let arguments = ["inspect".to_owned(), path.to_string()];
        let output = runner::capture(&program, &arguments, &[])?;
        Self::from_facts(path, &output)
    }

    /// Asks the stage program about a configuration alone.
    pub fn describe(
        config: &Utf8Path,
        index: Option<&Utf8Path>,
        programs: &Programs,
    ) -> anyhow::Result<Facts> {
        let program = programs
            .find(INSPECTOR)
            .map_err(|message| failure(ExitCode::BadPipeline, message))?;
        let mut arguments = vec!["describe".into(), "--config".into(), config.to_string()];
        if let Some(index) = index {
            arguments.extend(["--index".into(), index.to_string()]);
        }
        let output = runner::capture(&program, &arguments, &[])?;
        serde_json::from_slice(&output).map_err(|error| {
            let message = format!(
                "{INSPECTOR} describe {config}: found {error}, expected the description as JSON"
            );
            failure(ExitCode::StageFailed, message)
        })
    }

    fn from_facts(path: Utf8PathBuf, output: &[u8]) -> anyhow::Result<Self> {
        let refuse = |found: String, expected: &str| {
            let message = format!("{INSPECTOR} inspect {path}: found {found}, expected {expected}");
            failure(ExitCode::StageFailed, message)
        };
        let facts: FolderFacts = serde_json::from_slice(output)
            .map_err(|error| refuse(error.to_string(), "the model's facts as JSON"))?;
        if facts.layers == 0 || facts.files.is_empty() {
            let found = format!("{} layers in {} files", facts.layers, facts.files.len());
            return Err(refuse(found, "at least one of each"));
        }
        let is_plain = |name: &&String| {
            let mut parts = Utf8Path::new(name).components();
            matches!(parts.next(), Some(camino::Utf8Component::Normal(_))) && parts.next().is_none()
        };
        if let Some(name) = facts.files.iter().find(|name| !is_plain(name)) {
            return Err(refuse(format!("the file `{name}`"), "plain names"));
        }
        let mut files: Vec<_> = facts.files.iter().map(|name| path.join(name)).collect();
        files.sort();
        files.dedup();
        Ok(Self {
            source: ModelSource {
                name: facts.name,
                path,
                layers: facts.layers,
                linear_parameters: facts.linear_parameters,
                total_parameters: facts.total_parameters,
                hub: None,
            },
            files,
            shards: facts.shards,
            remote: BTreeMap::new(),
        })
    }

    /// The plain names of the files.
    pub fn file_names(&self) -> impl Iterator<Item = String> {
        self.files
            .iter()
            .filter_map(|path| path.file_name())
            .map(str::to_owned)
    }

    /// The texts to use: those given, else those beside the model, else the embedded model's.
    pub fn texts(&self, given: &[Utf8PathBuf], text_use: TextUse) -> anyhow::Result<Texts> {
        if !given.is_empty() {
            let files = given
                .iter()
                .map(|path| text_file(path))
                .collect::<Result<_, _>>()?;
            return Ok(Texts {
                files,
                is_fallback: false,
            });
        }
        let name = match text_use {
            TextUse::Calibration => "calibration.txt",
            TextUse::Evaluation => "evaluation.txt",
        };
        let own = self.source.path.join(name);
        if own.is_file() {
            return Ok(Texts {
                files: vec![own],
                is_fallback: false,
            });
        }
        let shared = share_folders()
            .into_iter()
            .map(|folder| folder.join(EMBEDDED).join(name));
        let found = shared.into_iter().find(|path| path.is_file());
        found.map_or_else(
            || {
                let option = match text_use {
                    TextUse::Calibration => "--calibration",
                    TextUse::Evaluation => "--evaluation (or --text)",
                };
                let message = format!(
                    "no text for {name}: neither {own} nor {EMBEDDED}/{name} exists; give {option} FILE"
                );
                Err(failure(ExitCode::BadInput, message))
            },
            |path| {
                Ok(Texts {
                    files: vec![path],
                    is_fallback: true,
                })
            },
        )
    }
}

/// Whether a text may be `owner/name[@revision]`; whether there is such a model `shard-loader` finds out.
fn is_hub_name(text: &str) -> bool {
    let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(plain)
    };
    let parts = repo.split_once('/');
    !revision.is_empty() && parts.is_some_and(|(owner, name)| is_part(owner) && is_part(name))
}

/// Folders that may hold the project's shared files.
fn share_folders() -> Vec<Utf8PathBuf> {
    let named = std::env::var("UC_SHARE").ok().map(Utf8PathBuf::from);
    let own = own_folder();
    let above = own
        .iter()
        .flat_map(|folder| folder.ancestors())
        .map(Utf8Path::to_owned);
    named.into_iter().chain(above).collect()
}

fn text_file(path: &Utf8Path) -> anyhow::Result<Utf8PathBuf> {
    let ending = path.extension().unwrap_or("");
    if !TEXT_ENDINGS.contains(&ending) {
        let message = format!(
            "text {path}: found the ending `{ending}`, expected one of {}",
            TEXT_ENDINGS.join(", ")
        );
        return Err(failure(ExitCode::BadInput, message));
    }
    absolute(path)
}

/// The absolute path of something that exists.
pub fn absolute(path: &Utf8Path) -> anyhow::Result<Utf8PathBuf> {
    path.canonicalize_utf8()
        .map_err(|error| anyhow::Error::from(error).context(format!("cannot open {path}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(folder: &Utf8Path) -> Model {
        let facts = r#"{"name":"m","layers":1,"linear_parameters":4,"total_parameters":9,
            "files":["model.safetensors","config.json"],"family":"llama"}"#;
        Model::from_facts(folder.to_owned(), facts.as_bytes()).expect("facts")
    }

    #[test]
    fn facts_become_a_source_with_sorted_absolute_files() {
        let model = model(Utf8Path::new("/m"));
        assert_eq!(model.files, ["/m/config.json", "/m/model.safetensors"]);
        assert_eq!(model.source.layers, 1);
    }

    #[test]
    fn models_of_the_hub_are_told_from_paths() {
        for hub in [
            "a/b",
            "meta-llama/Llama-3.1-8B",
            "a/b@main",
            "a/b@refs/pr/1",
        ] {
            assert!(is_hub_name(hub), "{hub}");
        }
        for path in [
            "a", "/a/b", "./a/b", "../b", "a/b/c", "a/", "a/b@", "a b/c", ".a/b",
        ] {
            assert!(!is_hub_name(path), "{path}");
        }
    }

    #[test]
    fn facts_that_leave_the_folder_or_say_nothing_are_refused() {
        for facts in [
            "",
            r#"{"name":"m","layers":0,"linear_parameters":4,"total_parameters":9,"files":["a"]}"#,
            r#"{"name":"m","layers":1,"linear_parameters":4,"total_parameters":9,"files":[]}"#,
            r#"{"name":"m","layers":1,"linear_parameters":4,"total_parameters":9,"files":["../a"]}"#,
        ] {
            assert!(
                Model::from_facts("/m".into(), facts.as_bytes()).is_err(),
                "{facts}"
            );
        }
    }

    #[test]
    fn given_texts_win_over_those_beside_the_model_and_endings_are_checked() {
        let keep = tempfile::tempdir().expect("folder");
        let folder = Utf8Path::from_path(keep.path()).expect("utf-8");
        let folder = folder.canonicalize_utf8().expect("absolute");
        let model = model(&folder);
        for name in ["calibration.txt", "other.jsonl", "weights.bin"] {
            uc_store::atomic::write_bytes(&folder.join(name), b"text").expect("written");
        }
        let beside = model.texts(&[], TextUse::Calibration).expect("found");
        assert_eq!(beside.files, [folder.join("calibration.txt")]);
        assert!(!beside.is_fallback);
        let given = [folder.join("other.jsonl")];
        assert_eq!(
            model
                .texts(&given, TextUse::Calibration)
                .expect("given")
                .files,
            given
        );
        for bad in ["weights.bin", "absent.txt"] {
            assert!(
                model
                    .texts(&[folder.join(bad)], TextUse::Evaluation)
                    .is_err(),
                "{bad}"
            );
        }
    }
}
