//! What the driver knows about a model: what `shard-loader inspect` reports, and the texts to use with it.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;
use uc_store::ExitCode;
use uc_store::model_summary::ModelSummary;
use uc_store::plan::{External, HubSource, ModelSource, ShardContent};
use uc_store::sha::Sha256Digest;

use crate::plan::overhead::Overhead;
use crate::plan::{embedded_texts, sources};
use crate::process::programs::Programs;
use crate::process::runner;
use crate::report::failure::failure;
use crate::report::progress::Display;
use crate::report::suggestion::closest;

/// The program that reads model folders.
const SHARD_LOADER: &str = "shard-loader";
/// File extensions of the texts that the stages read.
const TEXT_EXTENSIONS: [&str; 5] = ["txt", "utf8", "raw", "jsonl", "parquet"];
/// Extensions that may follow them, except after `parquet`, which is compressed inside.
const COMPRESSIONS: [&str; 2] = ["gz", "zst"];
/// The environment variable that names the folder of downloaded models, and the default.
const MODELS_FOLDER: (&str, &str) = ("UC_MODELS", "models");

/// Names of folders that a message lists, at most.
const MAX_NAMES: usize = 10;

/// What `shard-loader inspect MODEL` prints; unknown keys are ignored.
#[derive(Debug, Deserialize)]
struct Inspection {
    name: String,
    layers: u32,
    linear_parameters: u64,
    total_parameters: u64,
    files: Vec<String>,
    #[serde(default)]
    shards: BTreeMap<String, ShardContent>,
    /// The repository and commit that the path names, if the folder lies in the Hub's cache.
    #[serde(default)]
    repository: Option<String>,
    #[serde(default)]
    commit: Option<String>,
    /// What lies in the folder and is not used, or not as another program would use it.
    #[serde(default)]
    warnings: Vec<String>,
    #[serde(default)]
    overhead: Overhead,
}

/// What `shard-loader fetch` prints.
#[derive(Debug, Deserialize)]
struct Download {
    folder: Utf8PathBuf,
    name: String,
    repository: String,
    revision: String,
    commit: String,
    shards: BTreeMap<String, RemoteShard>,
}

/// A shard that is on the Hub and not on disk.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RemoteShard {
    /// Bytes.
    pub size: u64,
    /// Digest of the whole file.
    pub sha256: Sha256Digest,
}

/// A model folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Its entry in the plan.
    pub source: ModelSource,
    /// The files that determine it: absolute paths, sorted.
    pub files: Vec<Utf8PathBuf>,
    /// What each weight file holds, by file name.
    pub shards: BTreeMap<String, ShardContent>,
    /// The weight files that are still on the Hub, by file name.
    pub remote: BTreeMap<String, RemoteShard>,
    /// Whether it was downloaded from the Hub, so that its shards can be downloaded again.
    pub is_download: bool,
    /// Bits per weight of the layer files besides indices.
    pub overhead: Overhead,
    /// What the user should know about the folder.
    warnings: Vec<String>,
}

/// How much of a Hub model is downloaded before a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownloadScope {
    /// Every file.
    Everything,
    /// Every file, but only the headers of the weight files.
    Headers,
}

/// What a text is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextUse {
    /// Calibration.
    Calibration,
    /// Evaluation.
    Evaluation,
}

/// The texts to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Texts {
    /// Files, by absolute paths.
    Files(Vec<Utf8PathBuf>),
    /// The stories in this program, because no text was given and the model folder has none.
    Embedded(TextUse),
}

impl Texts {
    /// The texts as an external input, hashed. `label` is shown while they are hashed.
    pub fn describe(
        &self,
        label: &str,
        known: &External,
        threads: u32,
        display: &Display,
    ) -> anyhow::Result<External> {
        match self {
            Self::Files(files) => sources::describe(label, files, known, threads, display),
            Self::Embedded(text_use) => Ok(embedded_texts::external(*text_use)),
        }
    }

    /// Warns if they are no text for a real model. `name` is what they are for, `option` gives others.
    pub fn warn_if_embedded(&self, name: &str, option: &str, display: &Display) {
        if matches!(self, Self::Embedded(_)) {
            display.warn(&format!(
                "{name}: the generated stories of the embedded tiny model. A real model needs real text: give {option} FILE"
            ));
        }
    }
}

impl Model {
    /// The model that the user named: a local folder, else a model of the Hub, which is downloaded.
    pub fn find(
        name: &Utf8Path,
        scope: DownloadScope,
        programs: &Programs,
        display: &Display,
    ) -> anyhow::Result<Self> {
        if is_local(name)? {
            return Self::inspect_local(name, programs, display);
        }
        let folder = std::env::var(MODELS_FOLDER.0)
            .ok()
            .filter(|folder| !folder.is_empty());
        let folder = folder.unwrap_or_else(|| MODELS_FOLDER.1.into());
        Self::download(name, scope, Utf8Path::new(&folder), programs, display)
    }

    /// As [`Model::find`], but nothing of a model of the Hub is kept: its headers are downloaded to `scratch`.
    pub fn peek(
        name: &Utf8Path,
        scratch: &Utf8Path,
        programs: &Programs,
        display: &Display,
    ) -> anyhow::Result<Self> {
        if is_local(name)? {
            return Self::inspect_local(name, programs, display);
        }
        Self::download(name, DownloadScope::Headers, scratch, programs, display)
    }

    fn inspect_local(
        name: &Utf8Path,
        programs: &Programs,
        display: &Display,
    ) -> anyhow::Result<Self> {
        let model = Self::inspect(name, DownloadScope::Everything, programs)?;
        model.show_warnings(display);
        Ok(model)
    }

    /// Downloads a model of the Hub to a folder of models.
    fn download(
        name: &Utf8Path,
        scope: DownloadScope,
        folder: &Utf8Path,
        programs: &Programs,
        display: &Display,
    ) -> anyhow::Result<Self> {
        display.info(&format!(
            "{name} is not a local folder; looking for it on the Hub"
        ));
        let program = programs
            .find(SHARD_LOADER)
            .map_err(|message| failure(ExitCode::BadPipeline, message))?;
        let mut arguments = vec!["fetch".to_owned(), "--progress".into(), "--to".into()];
        arguments.push(folder.to_string());
        if scope == DownloadScope::Headers {
            arguments.push("--headers".into());
        }
        arguments.push(name.to_string());
        let task = display.task(&format!("downloading {name}"), 0);
        let outcome = runner::run_with_progress(
            &program,
            &arguments,
            &mut |done, total| task.set(done, total),
            &mut |line| display.info(line),
        );
        let output = match outcome {
            Ok(output) => output,
            Err(error) => {
                task.abandon();
                let message = format!("{name} is not a local folder, and its download failed");
                return Err(error.context(message));
            }
        };
        task.finish();
        let download: Download = serde_json::from_slice(&output).map_err(|error| {
            let message = format!(
                "{SHARD_LOADER} fetch {name}: found {error}, expected the location of the model as JSON"
            );
            failure(ExitCode::StageFailed, message)
        })?;
        let mut model = Self::inspect(&download.folder, scope, programs)?;
        model.show_warnings(display);
        display.info(&format!(
            "{} at commit {} is in {}",
            download.repository, download.commit, download.folder
        ));
        model.source.name = download.name;
        model.source.hub = Some(HubSource {
            repository: download.repository,
            revision: download.revision,
            commit: download.commit,
        });
        model.remote = download.shards;
        model.is_download = true;
        Ok(model)
    }

    fn show_warnings(&self, display: &Display) {
        for warning in &self.warnings {
            display.warn(&uc_input::printable(warning));
        }
    }

    /// Inspects a model folder with the stage program. `scope` is what was downloaded of it.
    fn inspect(
        folder: &Utf8Path,
        scope: DownloadScope,
        programs: &Programs,
    ) -> anyhow::Result<Self> {
        let path = absolute(folder)?;
        let program = programs
            .find(SHARD_LOADER)
            .map_err(|message| failure(ExitCode::BadPipeline, message))?;
        let arguments = ["inspect".to_owned(), path.to_string()];
        let more: &[&str] = match scope {
            DownloadScope::Everything => &[],
            DownloadScope::Headers => &["--headers"],
        };
        let output = runner::capture(&program, &arguments, more)?;
        Self::from_inspection(path, &output)
    }

    /// The shapes of the model's tensors.
    pub fn summary(&self, programs: &Programs) -> anyhow::Result<ModelSummary> {
        Self::describe(&self.source.path.join(uc_pack::CONFIG_FILE), None, programs)
    }

    /// Summarizes a configuration with the stage program; needs no weights.
    pub fn describe(
        config: &Utf8Path,
        index: Option<&Utf8Path>,
        programs: &Programs,
    ) -> anyhow::Result<ModelSummary> {
        let program = programs
            .find(SHARD_LOADER)
            .map_err(|message| failure(ExitCode::BadPipeline, message))?;
        let mut arguments = vec!["describe".into(), "--config".into(), config.to_string()];
        if let Some(index) = index {
            arguments.extend(["--index".into(), index.to_string()]);
        }
        let output = runner::capture(&program, &arguments, &[])?;
        serde_json::from_slice(&output).map_err(|error| {
            let message = format!(
                "{SHARD_LOADER} describe {config}: found {error}, expected the summary as JSON"
            );
            failure(ExitCode::StageFailed, message)
        })
    }

    fn from_inspection(path: Utf8PathBuf, output: &[u8]) -> anyhow::Result<Self> {
        let invalid = |found: String, expected: &str| {
            let message =
                format!("{SHARD_LOADER} inspect {path}: found {found}, expected {expected}");
            failure(ExitCode::StageFailed, message)
        };
        let inspection: Inspection = serde_json::from_slice(output)
            .map_err(|error| invalid(error.to_string(), "the inspection as JSON"))?;
        if inspection.layers == 0 || inspection.files.is_empty() {
            let found = format!(
                "{} layers in {} files",
                inspection.layers,
                inspection.files.len()
            );
            return Err(invalid(found, "at least one of each"));
        }
        let is_file_name = |name: &&String| {
            let mut parts = Utf8Path::new(name).components();
            matches!(parts.next(), Some(camino::Utf8Component::Normal(_))) && parts.next().is_none()
        };
        if let Some(name) = inspection.files.iter().find(|name| !is_file_name(name)) {
            return Err(invalid(format!("the file `{name}`"), "plain file names"));
        }
        let mut files: Vec<_> = inspection
            .files
            .iter()
            .map(|name| path.join(name))
            .collect();
        files.sort();
        files.dedup();
        let origin = inspection.repository.zip(inspection.commit);
        Ok(Self {
            source: ModelSource {
                name: inspection.name,
                path,
                layers: inspection.layers,
                linear_parameters: inspection.linear_parameters,
                total_parameters: inspection.total_parameters,
                hub: origin.map(|(repository, commit)| HubSource {
                    repository,
                    revision: commit.clone(),
                    commit,
                }),
            },
            files,
            shards: inspection.shards,
            remote: BTreeMap::new(),
            is_download: false,
            overhead: inspection.overhead,
            warnings: inspection.warnings,
        })
    }

    /// The file names without folders.
    pub fn file_names(&self) -> impl Iterator<Item = String> {
        self.files
            .iter()
            .filter_map(|path| path.file_name())
            .map(str::to_owned)
    }

    /// The texts to use: those given, else the one in the model folder, else the stories in this program.
    pub fn texts(&self, given: &[Utf8PathBuf], text_use: TextUse) -> anyhow::Result<Texts> {
        if !given.is_empty() {
            let files = given
                .iter()
                .map(|path| text_file(path))
                .collect::<Result<_, _>>()?;
            return Ok(Texts::Files(files));
        }
        let name = match text_use {
            TextUse::Calibration => "calibration.txt",
            TextUse::Evaluation => "evaluation.txt",
        };
        let in_model_folder = self.source.path.join(name);
        match in_model_folder.is_file() {
            true => Ok(Texts::Files(vec![in_model_folder])),
            false => Ok(Texts::Embedded(text_use)),
        }
    }
}

/// Whether a text has the form `owner/name[@revision]`; `shard-loader` finds out whether such a model exists.
fn is_hub_name(text: &str) -> bool {
    let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(is_allowed)
    };
    let parts = repo.split_once('/');
    !revision.is_empty() && parts.is_some_and(|(owner, name)| is_part(owner) && is_part(name))
}

/// Whether the name is a path, and not a model of the Hub. A mistyped path is refused.
fn is_local(name: &Utf8Path) -> anyhow::Result<bool> {
    if name.exists() || !is_hub_name(name.as_str()) {
        return Ok(true);
    }
    match mistyped_path(name) {
        Some(message) => Err(failure(ExitCode::BadInput, message)),
        None => Ok(false),
    }
}

/// What is wrong with a name that looks like one of the Hub, but whose first part is a local folder: it is taken for a
/// mistyped path. A name with a revision is never a path.
fn mistyped_path(name: &Utf8Path) -> Option<String> {
    let parent = name.parent().filter(|parent| parent.is_dir())?;
    if name.as_str().contains('@') {
        return None;
    }
    let entries = parent.read_dir_utf8().into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().is_dir())
        .map(|entry| uc_input::printable(entry.file_name()).into_owned())
        .collect();
    names.sort();
    let found = match names.len() {
        0 => "no folders".to_owned(),
        count => {
            let more = if count > MAX_NAMES { ", …" } else { "" };
            format!("{}{more}", names[..count.min(MAX_NAMES)].join(", "))
        }
    };
    Some(format!(
        "{name}: no such folder; {parent} exists and holds {found}. For the model {name} of the Hub, write {name}@main"
    ))
}

/// Checks the extension of a text file and makes its path absolute.
fn text_file(path: &Utf8Path) -> anyhow::Result<Utf8PathBuf> {
    let name = path.file_name().unwrap_or_default();
    let (name, is_compressed) = match name.rsplit_once('.') {
        Some((name, last)) if COMPRESSIONS.contains(&last) => (name, true),
        _ => (name, false),
    };
    let extension = name.rsplit_once('.').map_or("", |(_, last)| last);
    if !TEXT_EXTENSIONS.contains(&extension) || is_compressed && extension == "parquet" {
        let message = format!(
            "text {path}: unsupported kind of file, expected one of .{}, all but the last also followed by .gz or .zst",
            TEXT_EXTENSIONS.join(", .")
        );
        return Err(failure(ExitCode::BadInput, message));
    }
    absolute(path)
}

/// The absolute path of an existing file or folder.
///
/// # Errors
/// If there is none; the message names the most similar one.
pub fn absolute(path: &Utf8Path) -> anyhow::Result<Utf8PathBuf> {
    path.canonicalize_utf8().map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => similar_path(path),
            _ => None,
        };
        let hint = hint.map_or_else(String::new, |path| format!("; did you mean {path}?"));
        anyhow::Error::from(error).context(format!("cannot open {path}{hint}"))
    })
}

/// The path with the most similar name in the same folder.
fn similar_path(path: &Utf8Path) -> Option<Utf8PathBuf> {
    let parent = path.parent()?;
    let folder = match parent.as_str() {
        "" => Utf8Path::new("."),
        _ => parent,
    };
    let names = folder.read_dir_utf8().ok()?.flatten();
    let names: Vec<String> = names.map(|entry| entry.file_name().to_owned()).collect();
    let name = closest(path.file_name()?, names.iter().map(String::as_str))?;
    Some(parent.join(uc_input::printable(name).as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(folder: &Utf8Path) -> Model {
        let inspection = r#"{"name":"m","layers":1,"linear_parameters":4,"total_parameters":9,
            "files":["model.safetensors","config.json"],"family":"llama"}"#;
        Model::from_inspection(folder.to_owned(), inspection.as_bytes()).expect("valid")
    }

    #[test]
    fn an_inspection_becomes_a_source_with_sorted_absolute_files() {
        let model = model(Utf8Path::new("/m"));
        assert_eq!(model.files, ["/m/config.json", "/m/model.safetensors"]);
        assert_eq!(model.source.layers, 1);
    }

    #[test]
    fn models_of_the_hub_are_distinguished_from_paths() {
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
    fn a_path_whose_parent_exists_is_not_looked_for_on_the_hub() {
        let temporary = tempfile::tempdir().expect("folder");
        let folder = Utf8Path::from_path(temporary.path()).expect("utf-8");
        std::fs::create_dir(folder.join("llama")).expect("folder");
        let message = mistyped_path(&folder.join("lama")).expect("a path");
        assert!(message.contains("holds llama"), "{message}");
        assert!(mistyped_path(&folder.join("lama@main")).is_none());
        assert!(mistyped_path(&folder.join("absent/lama")).is_none());
        assert!(mistyped_path(Utf8Path::new("no-such-owner/lama")).is_none());
    }

    #[test]
    fn inspections_that_are_empty_or_leave_the_folder_are_rejected() {
        for inspection in [
            "",
            r#"{"name":"m","layers":0,"linear_parameters":4,"total_parameters":9,"files":["a"]}"#,
            r#"{"name":"m","layers":1,"linear_parameters":4,"total_parameters":9,"files":[]}"#,
            r#"{"name":"m","layers":1,"linear_parameters":4,"total_parameters":9,"files":["../a"]}"#,
        ] {
            assert!(
                Model::from_inspection("/m".into(), inspection.as_bytes()).is_err(),
                "{inspection}"
            );
        }
    }

    #[test]
    fn given_texts_take_precedence_over_the_models_own_and_extensions_are_checked() {
        let temporary = tempfile::tempdir().expect("folder");
        let folder = Utf8Path::from_path(temporary.path()).expect("utf-8");
        let folder = folder.canonicalize_utf8().expect("absolute");
        let model = model(&folder);
        for name in ["calibration.txt", "other.jsonl", "weights.bin"] {
            uc_store::atomic::write_bytes(&folder.join(name), b"text").expect("written");
        }
        let in_folder = model.texts(&[], TextUse::Calibration).expect("found");
        assert_eq!(
            in_folder,
            Texts::Files(vec![folder.join("calibration.txt")])
        );
        let none = model.texts(&[], TextUse::Evaluation).expect("embedded");
        assert_eq!(none, Texts::Embedded(TextUse::Evaluation));
        let given = [folder.join("other.jsonl")];
        assert_eq!(
            model.texts(&given, TextUse::Calibration).expect("given"),
            Texts::Files(given.to_vec())
        );
        for name in ["a.jsonl.gz", "a.txt.zst", "a.parquet"] {
            let given = [folder.join(name)];
            uc_store::atomic::write_bytes(&given[0], b"text").expect("written");
            let texts = model.texts(&given, TextUse::Evaluation).expect("given");
            assert_eq!(texts, Texts::Files(given.to_vec()));
        }
        uc_store::atomic::write_bytes(&folder.join("a.parquet.gz"), b"text").expect("written");
        for bad in ["weights.bin", "absent.txt", "a.parquet.gz"] {
            assert!(
                model
                    .texts(&[folder.join(bad)], TextUse::Evaluation)
                    .is_err(),
                "{bad}"
            );
        }
    }
}
