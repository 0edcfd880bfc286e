//! Exports of packs to the formats of other programs, and the reading of such files.
//!
//! Owns the formats, one mechanism that writes all of them, and the reverse way from a file of an export to the tensors of the
//! model. It starts no process, uses no network, computes no forward pass and never changes a pack. Whether a pack verifies is
//! checked by the caller; each tensor is compared with its digest in the manifest while it is written.
//!
//! Code map:
//! - [`catalog`]: the tensors of a pack; [`layout`]: where each of them goes; [`encoding`]: element types;
//! - [`safetensors`], [`gguf`]: the formats, each a function from a catalog to a layout;
//! - [`writer`]: the folder beside the destination, its journal, and the writing of tensors by several threads;
//! - [`report`], [`card`]: the documents in an export;
//! - [`planned`]: the tensors that the model of a pack must have.

pub mod card;
pub mod catalog;
pub mod encoding;
pub mod error;
pub mod gguf;
pub mod layout;
pub mod planned;
pub mod report;
pub mod safetensors;
pub mod writer;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use uc_pack::licence::LEGAL_TEXTS;
use uc_pack::{Digest, FORMAT_VERSION, Pack};
use uc_store::{StoreError, atomic, resources, sha};

pub use error::ExportError;
pub use gguf::GgufType;
pub use report::Report;
pub use writer::Progress;

use catalog::Catalog;
use layout::Layout;
use report::{EVALUATION_FILE, ExportedFile, REPORT_FILE, REPORT_VERSION};
use writer::Writer;

/// Name of the model card.
const CARD_FILE: &str = "README.md";
/// Suffix of the folder in which an export grows.
const PARTIAL_SUFFIX: &str = ".partial";
/// Largest description file that is copied, bytes.
const MAX_COPIED: u64 = uc_input::LARGE_JSON;

/// A format of exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A model folder of transformers: safetensors in bfloat16, config and tokenizer.
    Safetensors,
    /// A GGUF file with matrices of this type.
    Gguf(GgufType),
}

/// What to export, and where to.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The pack, which has been verified.
    pub pack: &'a Pack,
    /// The format.
    pub format: Format,
    /// The folder of the export.
    pub out: &'a Utf8Path,
    /// Whether an earlier export of that name is replaced.
    pub force: bool,
    /// Threads that decode and write.
    pub threads: usize,
}

/// An export whose files are known and not yet written.
pub struct Plan<'a> {
    request: Request<'a>,
    catalog: Catalog,
    layout: Layout,
    /// Files that are written as a whole, after the tensors.
    documents: Vec<(String, Vec<u8>)>,
    notes: Vec<String>,
}

impl Format {
    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Gguf(_) => "gguf",
        }
    }

    /// The format that a report records; none for one of another release.
    fn recorded(report: &Report) -> Option<Self> {
        let gguf = [GgufType::F32, GgufType::Bf16, GgufType::F16, GgufType::Q8_0].map(Self::Gguf);
        let mut all = gguf.into_iter().chain([Self::Safetensors]);
        all.find(|format| {
            format.name() == report.format && format.element_type() == report.element_type
        })
    }

    /// Element type of the matrices.
    pub fn element_type(self) -> &'static str {
        match self {
            Self::Safetensors => "bf16",
            Self::Gguf(element) => element.name(),
        }
    }

    /// The options of `uc export` that select it.
    fn options(self) -> String {
        match self {
            Self::Safetensors => "--to safetensors".into(),
            Self::Gguf(element) => format!("--to gguf --type {}", element.name()),
        }
    }

    fn title(self) -> String {
        match self {
            Self::Safetensors => "safetensors in bfloat16".into(),
            Self::Gguf(element) => format!("GGUF in {}", element.name()),
        }
    }

    /// What the format keeps of the weights.
    fn accuracy(self) -> &'static str {
        match self {
            Self::Safetensors => "Every tensor is bit for bit the one that the pack reconstructs.",
            Self::Gguf(GgufType::F32) => {
                "Every tensor has the values that the pack reconstructs, in twice the space that they need."
            }
            Self::Gguf(GgufType::Bf16) => {
                "The compressed matrices are bit for bit those that the pack reconstructs."
            }
            Self::Gguf(GgufType::F16) => {
                "Weights are rounded to float16: exact but for those below 2⁻¹⁴, which lose bits."
            }
            Self::Gguf(GgufType::Q8_0) => {
                "Weights are rounded to 8 bits in blocks of 32 with a common scale (Q8_0), in addition to the pack's own error."
            }
        }
    }

    /// `library_name` on the Hub.
    fn library(self) -> &'static str {
        match self {
            Self::Safetensors => "transformers",
            Self::Gguf(_) => "gguf",
        }
    }

    /// How to load it.
    fn usage(self) -> &'static str {
        match self {
            Self::Safetensors => {
                "AutoModelForCausalLM.from_pretrained(DIR)   # transformers\nvllm serve DIR                              # vLLM"
            }
            Self::Gguf(_) => "llama-cli -m DIR/FILE.gguf -p \"Once upon a time\"",
        }
    }
}

impl<'a> Plan<'a> {
    /// Plans an export; nothing is written.
    ///
    /// # Errors
    /// `Exists` if the destination is in the way, `FreedLayers`, `Unsupported` if the format has no place for the model, and
    /// those of reading the pack's configuration and tokenizer.
    pub fn new(request: Request<'a>) -> Result<Self, ExportError> {
        check_destination(request.out, request.force)?;
        check_layers(request.pack)?;
        let catalog = Catalog::of(request.pack)?;
        let (layout, mut documents, notes) = match request.format {
            Format::Safetensors => {
                let (layout, index) = safetensors::layout(&catalog, safetensors::SHARD_BYTES);
                let index = index.map(|index| (safetensors::INDEX.to_owned(), index));
                (layout, index.into_iter().collect(), Vec::new())
            }
            Format::Gguf(element) => {
                let (layout, notes) = gguf::layout(request.pack, &catalog, element)?;
                (layout, Vec::new(), notes)
            }
        };
        documents.extend(copied_files(request.pack, request.format)?);
        Ok(Self {
            request,
            catalog,
            layout,
            documents,
            notes,
        })
    }

    /// Names and sizes of the files, except the model card and the report.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        let tensors = self.layout.files.iter();
        let tensors = tensors.map(|file| (file.name.as_str(), file.size));
        let documents = self.documents.iter();
        tensors.chain(documents.map(|(name, text)| (name.as_str(), text.len() as u64)))
    }

    /// What differs from the pack besides the element type.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The folder in which the export grows.
    pub fn partial(&self) -> Utf8PathBuf {
        partial_of(self.request.out)
    }

    /// Writes the export, or the rest of it, beside its destination.
    ///
    /// # Errors
    /// Those of reading the pack and of writing; a later call continues.
    pub fn write(
        &self,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<(Report, u64), ExportError> {
        let Request { pack, format, .. } = self.request;
        let folder = self.partial();
        self.ensure_free(&folder)?;
        let identity = self.identity();
        let writer = Writer::open(pack, &self.catalog, &self.layout, &folder, &identity)?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.request.threads);
        let pool = pool.build().map_err(|error| {
            StoreError::io("start threads for", &folder)(std::io::Error::other(error))
        })?;
        let kept = pool.install(|| writer.write(progress))?;
        for (name, text) in &self.documents {
            atomic::write_bytes_below(&folder, &folder.join(name), text)?;
        }
        writer.finish()?;
        let mut files = Vec::new();
        for (name, _) in self.files() {
            let (sha256, size) = sha::hash_file(&folder.join(name))?;
            files.push(ExportedFile {
                name: name.to_owned(),
                size,
                sha256: Digest(sha256.0),
            });
        }
        let manifest = pack.manifest();
        let report = Report {
            export_version: REPORT_VERSION,
            tool_version: env!("CARGO_PKG_VERSION").into(),
            format: format.name().into(),
            element_type: format.element_type().into(),
            model: manifest.source.name.clone(),
            pack_fingerprint: pack.fingerprint(),
            pack_bits_per_weight_linears: manifest.totals.bits_per_weight_linears.clone(),
            tensors: self.catalog.tensors.len() as u64,
            files,
            notes: self.notes.clone(),
        };
        Ok((report, kept))
    }

    /// Adds card and report, and gives the export its name.
    ///
    /// # Errors
    /// `Store`, `Exists` if something of that name has appeared since.
    pub fn publish(&self, report: &Report) -> Result<(), ExportError> {
        let (folder, out) = (self.partial(), self.request.out);
        let card = card::render(self.request.pack, self.request.format, report, None);
        atomic::write_bytes_below(&folder, &folder.join(CARD_FILE), card.as_bytes())?;
        atomic::write_json_below(&folder, &folder.join(REPORT_FILE), report)?;
        check_destination(out, self.request.force)?;
        Ok(atomic::publish_folder(&folder, out, out.exists())?)
    }

    /// Checks that the disk has room for what is not written yet.
    fn ensure_free(&self, folder: &Utf8Path) -> Result<(), ExportError> {
        let present = |name: &str| {
            let metadata = std::fs::metadata(folder.join(name));
            metadata.map_or(0, |metadata| {
                std::os::unix::fs::MetadataExt::blocks(&metadata).saturating_mul(512)
            })
        };
        let needed: u64 = self
            .files()
            .map(|(name, size)| size.saturating_sub(present(name)))
            .sum();
        Ok(resources::ensure_free(&folder.join(REPORT_FILE), needed)?)
    }

    /// Everything that decides the bytes of the export.
    fn identity(&self) -> String {
        let mut text = format!(
            "export {REPORT_VERSION} pack {FORMAT_VERSION} {} {:?}\n",
            self.request.pack.fingerprint(),
            self.request.format
        );
        for file in &self.layout.files {
            let header = sha::hash_bytes(&file.header);
            text += &format!("{} {} {header}\n", file.name, file.size);
        }
        text
    }
}

/// Adds what `uc eval` measured of an export against its pack to the export: `evaluation.json`, and a sentence in the model
/// card unless somebody has edited the card. Returns whether the card states it.
///
/// # Errors
/// `Store`; `Malformed` if the export is not one of this pack in a format of this release.
pub fn record_evaluation(
    pack: &Pack,
    folder: &Utf8Path,
    metrics: &Value,
) -> Result<bool, ExportError> {
    let report = Report::read(folder)?;
    let format =
        Format::recorded(&report).filter(|_| report.pack_fingerprint == pack.fingerprint());
    let format = format.ok_or_else(|| ExportError::Malformed {
        path: folder.join(REPORT_FILE),
        kind: "report of an export",
        what: "pack_fingerprint and format".into(),
        found: format!("{} and {}", report.pack_fingerprint, report.format),
        expected: format!("{} and a format of this release", pack.fingerprint()),
    })?;
    let card = |evaluation: Option<&Value>| card::render(pack, format, &report, evaluation);
    let expected = card(report::evaluation(folder)?.as_ref());
    atomic::write_json_below(folder, &folder.join(EVALUATION_FILE), metrics)?;
    let path = folder.join(CARD_FILE);
    let is_ours = uc_input::read_text(&path, MAX_COPIED).is_ok_and(|found| found == expected);
    if is_ours {
        atomic::write_bytes_below(folder, &path, card(Some(metrics)).as_bytes())?;
    }
    Ok(is_ours)
}

/// The folder beside `out` in which an export to `out` grows.
fn partial_of(out: &Utf8Path) -> Utf8PathBuf {
    let out = out.as_str().trim_end_matches('/');
    format!("{out}{PARTIAL_SUFFIX}").into()
}

/// Refuses a destination that exists, unless it is an earlier export or an empty folder and may be replaced.
fn check_destination(out: &Utf8Path, force: bool) -> Result<(), ExportError> {
    let refuse = |found, remedy| {
        Err(ExportError::Exists {
            path: out.to_owned(),
            found,
            remedy,
        })
    };
    let Ok(metadata) = std::fs::symlink_metadata(out) else {
        return Ok(());
    };
    if !metadata.is_dir() {
        return refuse(" and is not a folder", "choose another --out");
    }
    if out.join(REPORT_FILE).is_file() {
        return match force {
            true => Ok(()),
            false => refuse(
                " and holds an export",
                "--force replaces it, another --out keeps it",
            ),
        };
    }
    let mut entries = out.read_dir_utf8().map_err(StoreError::io("read", out))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => refuse(" and is no export", "choose another --out"),
    }
}

/// Refuses a pack whose layer files were deleted after their upload.
fn check_layers(pack: &Pack) -> Result<(), ExportError> {
    let layers = &pack.manifest().layers;
    let missing = layers
        .iter()
        .filter(|layer| !pack.path(&layer.file).exists())
        .count();
    if missing == 0 {
        return Ok(());
    }
    Err(ExportError::FreedLayers {
        path: pack
            .path("")
            .display()
            .to_string()
            .trim_end_matches('/')
            .into(),
        missing,
        layers: layers.len(),
        origin: pack.remote_repository().map_or_else(String::new, |name| {
            format!("; they were uploaded to {}", uc_input::printable(&name))
        }),
        remedy: "download the pack (hf download OWNER/NAME --local-dir PACK), or make its layers again (uc resume RUN)",
    })
}

/// The description files of the pack that a format carries along.
fn copied_files(pack: &Pack, format: Format) -> Result<Vec<(String, Vec<u8>)>, ExportError> {
    let mut copied = Vec::new();
    for entry in &pack.manifest().files {
        let is_left_out = matches!(format, Format::Gguf(_)) && !is_legal_text(&entry.name);
        if is_left_out || [REPORT_FILE, EVALUATION_FILE].contains(&entry.name.as_str()) {
            continue;
        }
        let path = pack.path(&entry.name);
        let shown = path.display().to_string();
        let bytes = uc_input::read(&path, MAX_COPIED);
        let bytes = bytes.map_err(StoreError::io("read", Utf8Path::new(&shown)))?;
        let found = Digest::hash_bytes(&bytes);
        if found != entry.sha256 {
            return Err(ExportError::Digest {
                tensor: shown,
                found: found.to_string(),
                expected: entry.sha256.to_string(),
            });
        }
        copied.push((entry.name.clone(), bytes));
    }
    Ok(copied)
}

/// Whether a file name is that of a legal text, which accompanies the weights in every format.
fn is_legal_text(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    LEGAL_TEXTS.iter().any(|start| name.starts_with(start))
}
