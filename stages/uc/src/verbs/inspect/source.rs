//! The source of a tensor: the weights from which a linear was compressed, read row by row from the folder of its model.
//!
//! The plan of the model says how the files store a linear. The bytes are hashed on the way and compared with the digest that
//! the pack records.

use std::ops::Range;

use anyhow::Context;
use camino::Utf8Path;
use serde::Serialize;
use uc_input::printable;
use uc_model::source::SourceError;
use uc_model::{LayerPlan, ModelConfig, SourceFolder};
use uc_pack::digest::Hasher;
use uc_pack::lookup::{Entry, TensorRef};
use uc_pack::statistics::{ErrorStatistics, error_against};
use uc_pack::{Digest, Pack, PackError};
use uc_store::ExitCode;

use crate::report::failure::failure;
use crate::report::packs;

/// A tensor beside that of a model.
#[derive(Debug, Serialize)]
pub(super) struct SourceComparison {
    /// The folder of the model.
    pub(super) model: String,
    /// Whether the model's tensor is the one that the pack was made from, by its digest.
    pub(super) is_source: bool,
    /// The error of the pack's values against the model's; none of a tensor that is stored exactly.
    #[serde(flatten)]
    pub(super) error: Option<ErrorStatistics>,
}

/// Bytes of an exact tensor that are read at once, about.
const READ_BYTES: u64 = 4 << 20;

/// Why a comparison ends early.
enum Failure {
    Pack(PackError),
    Source(anyhow::Error),
}

impl From<PackError> for Failure {
    fn from(error: PackError) -> Self {
        Self::Pack(error)
    }
}

/// Measures the error of a tensor against the model in `dir`. Another model than the source of the pack is refused unless
/// `accepts_other`.
pub(super) fn compare(
    pack: &Pack,
    name: &str,
    dir: &Utf8Path,
    accepts_other: bool,
) -> anyhow::Result<SourceComparison> {
    let tensor = pack.tensor(name).map_err(packs::classify)?;
    let name = tensor.name();
    let (found, expected, error) = match (tensor.entry, tensor.layer) {
        (Entry::Linear(entry), Some(layer)) => {
            let model = Model::open(dir, &tensor, layer.index as usize)?;
            let mut hasher = Hasher::default();
            let error = error_against(pack, &name, |rows, out| {
                let read = model.rows(&entry.name, rows, &mut hasher, out);
                read.map_err(Failure::Source)
            });
            let error = error.map_err(|failure| match failure {
                Failure::Pack(error) => packs::classify(error),
                Failure::Source(error) => error,
            })?;
            (hasher.finish(), entry.source_sha256, Some(error))
        }
        _ => (exact_digest(dir, &name)?, tensor.sha256(), None),
    };
    let is_source = found == expected;
    if !is_source && !accepts_other {
        return Err(other_model(dir, &name, found, expected));
    }
    Ok(SourceComparison {
        model: dir.to_string(),
        is_source,
        error,
    })
}

/// Digest of a tensor in the model folder `dir` that packs store exactly.
fn exact_digest(dir: &Utf8Path, name: &str) -> anyhow::Result<Digest> {
    let shown = printable(dir.as_str());
    let bad = |error: SourceError| {
        let error = anyhow::Error::from(error).context(format!("cannot use the model {shown}"));
        failure(ExitCode::BadInput, format!("{error:#}"))
    };
    let folder = SourceFolder::open(dir.as_std_path()).map_err(bad)?;
    let info = folder.tensor(name).ok_or_else(|| {
        let message = format!(
            "{shown} has no {}: it is not the model that the pack was made from",
            printable(name)
        );
        failure(ExitCode::BadInput, message)
    })?;
    let Some(&rows) = info.shape.first().filter(|rows| **rows > 0) else {
        return Ok(Digest::hash_bytes(&folder.read(name).map_err(bad)?.bytes));
    };
    let at_once = (READ_BYTES * rows as u64 / info.bytes.max(1)).max(1) as usize;
    let mut hasher = Hasher::default();
    for first in (0..rows).step_by(at_once) {
        let read = folder.read_rows(name, first, at_once.min(rows - first));
        hasher.bytes(&read.map_err(bad)?.bytes);
    }
    Ok(hasher.finish())
}

fn other_model(dir: &Utf8Path, name: &str, found: Digest, expected: Digest) -> anyhow::Error {
    let (dir, name) = (printable(dir.as_str()), printable(name));
    let message = format!(
        "{dir} is not the model that the pack was made from: SHA-256 of {name}: found {found}, expected {expected}; \
         --other-model compares with it nevertheless"
    );
    failure(ExitCode::BadInput, message)
}

/// The model of a linear.
struct Model {
    folder: SourceFolder,
    plan: LayerPlan,
}

impl Model {
    /// Opens a model folder and checks that it has the linear in this shape.
    fn open(dir: &Utf8Path, tensor: &TensorRef<'_>, layer: usize) -> anyhow::Result<Self> {
        let shown = printable(dir.as_str());
        let unusable = || format!("cannot use the model {shown}");
        let bad = |error: anyhow::Error| failure(ExitCode::BadInput, format!("{error:#}"));
        let config = ModelConfig::load(dir.as_std_path()).with_context(unusable);
        let config = config.map_err(bad)?;
        let missing = |found: String| {
            let shape = tensor.shape();
            let message = format!(
                "{shown} has {found}, expected {} of the shape {shape:?}: it is not the model that the pack was made from",
                printable(&tensor.name())
            );
            failure(ExitCode::BadInput, message)
        };
        if layer >= config.layers.len() {
            return Err(missing(format!("{} layers", config.layers.len())));
        }
        let plan = config.layer_plan(layer);
        let name = tensor.name();
        let linear = name
            .strip_prefix(&plan.prefix)
            .and_then(|name| plan.linear(name));
        let linear = linear.ok_or_else(|| missing("no such linear".to_owned()))?;
        if [linear.rows as u64, linear.cols as u64] != *tensor.shape() {
            return Err(missing(format!("it as {}x{}", linear.rows, linear.cols)));
        }
        let folder = SourceFolder::open(dir.as_std_path()).with_context(unusable);
        let folder = folder.map_err(bad)?;
        Ok(Self { folder, plan })
    }

    /// Reads rows of a linear, by its name within the layer, and adds their bytes to the digest.
    fn rows(
        &self,
        name: &str,
        rows: Range<usize>,
        hasher: &mut Hasher,
        out: &mut [f32],
    ) -> anyhow::Result<()> {
        let read = self
            .folder
            .read_planned_rows(&self.plan, name, rows.start, rows.len());
        let values = read.and_then(|read| {
            hasher.bytes(&read.bytes);
            read.to_f32()
        });
        let values = values.map_err(|error| {
            let error = anyhow::Error::from(error);
            failure(ExitCode::BadInput, format!("{error:#}"))
        })?;
        out.copy_from_slice(&values);
        Ok(())
    }
}
