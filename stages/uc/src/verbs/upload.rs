//! `uc upload RUN --repo OWNER/NAME`: uploads the pack of a run with the upload stages of the pipeline, or only lists what would
//! be uploaded.

use camino::Utf8Path;
use indicatif::BinaryBytes;
use serde::Serialize;
use uc_pack::Manifest;
use uc_store::output;
use uc_store::run::RunDir;

use crate::cli::UploadArgs;
use crate::plan::planning;
use crate::process::programs::{Programs, rebuilt_warning};
use crate::process::signals::Listener;
use crate::report::json::print_json;
use crate::report::progress::Display;
use crate::schedule::limits::Limits;
use crate::session::{self, Session};
use crate::verbs::work_and_summarize;

/// Runs the verb.
pub fn run(args: &UploadArgs, display: &mut Display, signals: &Listener) -> anyhow::Result<()> {
    if args.dry_run {
        return dry_run(args);
    }
    let programs = Programs::from_env().allowing(&args.trust.allow_program);
    let threads = session::threads(args.threads);
    let limits = Limits::new(threads, None)?;
    let (run, mut plan, _lock) = RunDir::open_locked(&args.run)?;
    planning::check_pack_folder(&plan, &args.run, args.trust.out.as_deref())?;
    let before = plan.clone();
    programs.refresh_versions(&mut plan)?;
    if let Some(warning) = rebuilt_warning(&before, &plan) {
        display.warn(&warning);
    }
    planning::add_upload(&mut plan, &args.repo, &args.upload)?;
    planning::reset_upload(&plan, &run)?;
    let run = RunDir::create(&args.run, &plan)?;
    let session = Session { run, plan, _lock };
    work_and_summarize(&session, &programs, limits, args.json, display, signals)
}

/// What an upload would send.
#[derive(Debug, Serialize)]
struct UploadList {
    repository: String,
    branch: String,
    /// Whether the repository would be private if it has to be created.
    private: bool,
    /// Whether the pack is complete. Otherwise the run is finished before the rest is sent.
    is_complete: bool,
    files: Vec<UploadFile>,
    /// Bytes of the files whose size is known.
    bytes: u64,
}

/// A file that an upload would send, unless the repository already holds it.
#[derive(Debug, Serialize)]
struct UploadFile {
    name: String,
    /// None if the file has not been made yet.
    bytes: Option<u64>,
    /// Whether the file is on disk. A layer may have been deleted after an earlier upload.
    is_on_disk: bool,
}

/// Lists what would be uploaded, and to where. Nothing is written, and the Hub is not asked.
fn dry_run(args: &UploadArgs) -> anyhow::Result<()> {
    let (run, mut plan) = RunDir::open(&args.run)?;
    planning::add_upload(&mut plan, &args.repo, &args.upload)?;
    let target = &plan.settings.upload.repository;
    let (repository, branch) = target.split_once('@').unwrap_or((target, "main"));
    let pack = run.root().join(&plan.pack_dir);
    let manifest = match pack.join(uc_pack::MANIFEST_FILE).exists() {
        true => Some(Manifest::read(&pack)?.0),
        false => None,
    };
    let mut files = match &manifest {
        Some(manifest) => files_of(manifest, &pack),
        None => {
            let names = (0..plan.model.layers).map(uc_pack::layer_file_name);
            names
                .map(|name| UploadFile::on_disk(&pack, &name))
                .collect()
        }
    };
    files.push(UploadFile::on_disk(&run.root().join("hub"), CARD));
    let list = UploadList {
        repository: repository.to_owned(),
        branch: branch.to_owned(),
        private: plan.settings.upload.private,
        is_complete: manifest.is_some(),
        bytes: files.iter().filter_map(|file| file.bytes).sum(),
        files,
    };
    match args.json {
        true => print_json(&list),
        false => {
            output::print(list.text());
            Ok(())
        }
    }
}

/// The file name of the model card.
const CARD: &str = "README.md";

/// The files of a complete pack.
fn files_of(manifest: &Manifest, pack: &Utf8Path) -> Vec<UploadFile> {
    let layers = manifest
        .layers
        .iter()
        .map(|layer| (&layer.file, layer.size));
    let non_layer = (&manifest.non_layer.file, manifest.non_layer.size);
    let others = manifest.files.iter().map(|file| (&file.name, file.size));
    let listed = layers.chain([non_layer]).chain(others);
    let mut files: Vec<_> = listed
        .map(|(name, size)| UploadFile {
            bytes: Some(size),
            ..UploadFile::on_disk(pack, name)
        })
        .collect();
    let names = [uc_pack::MANIFEST_FILE, uc_pack::DIGEST_FILE];
    files.extend(names.map(|name| UploadFile::on_disk(pack, name)));
    files
}

impl UploadFile {
    fn on_disk(folder: &Utf8Path, name: &str) -> Self {
        let metadata = std::fs::metadata(folder.join(name)).ok();
        Self {
            name: uc_input::printable(name).into_owned(),
            bytes: metadata.as_ref().map(std::fs::Metadata::len),
            is_on_disk: metadata.is_some(),
        }
    }
}

impl UploadList {
    /// The list for people: layers as one line, every other file as its own.
    fn text(&self) -> String {
        let visibility = if self.private {
            ", private if it is created"
        } else {
            ""
        };
        let mut text = format!(
            "would upload to {} (branch {}{visibility}):\n",
            uc_input::printable(&self.repository),
            uc_input::printable(&self.branch)
        );
        let (layers, others): (Vec<_>, Vec<_>) = self
            .files
            .iter()
            .partition(|file| file.name.starts_with("layer_"));
        let bytes: u64 = layers.iter().filter_map(|file| file.bytes).sum();
        let absent = layers.iter().filter(|file| !file.is_on_disk).count();
        let absent = match (absent, self.is_complete) {
            (0, _) => String::new(),
            (count, true) => {
                format!(", {count} not on disk: sent only if the repository lacks them")
            }
            (count, false) => format!(", {count} not made yet"),
        };
        let row = |name: &str, size: &str| format!("  {name:<28} {size:>12}\n");
        let size = BinaryBytes(bytes).to_string();
        text += &row(&format!("{} layers{absent}", layers.len()), &size);
        for file in others {
            let size = file.bytes.map(|bytes| BinaryBytes(bytes).to_string());
            text += &row(&file.name, size.as_deref().unwrap_or("not made yet"));
        }
        text += &row("together", &BinaryBytes(self.bytes).to_string());
        if !self.is_complete {
            text += "The pack is not complete: the run is finished first, and the other files follow.\n";
        }
        text + "A README.md of the repository is kept, and the model card joined to it. What the repository already holds is \
                not sent again.\nNothing was sent.\n"
    }
}
