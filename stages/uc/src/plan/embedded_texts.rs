//! The texts that a model without texts of its own is calibrated and evaluated on: the generated stories of the embedded
//! tiny model. They are part of this program and are written into the run directory, so that they are found wherever the
//! program is installed and however long the run lives.

use std::collections::BTreeMap;

use camino::Utf8Path;
use uc_store::atomic;
use uc_store::plan::{External, ExternalFile, Plan};
use uc_store::run::RunDir;
use uc_store::sha::hash_bytes;
use uc_store::source;

use super::model::TextUse;

/// The folder of the texts in the run directory.
const FOLDER: &str = "texts";
/// Name and content of each text.
const TEXTS: [(&str, &str); 2] = [
    (
        "calibration.txt",
        include_str!("../../../../examples/tiny-stories/calibration.txt"),
    ),
    (
        "evaluation.txt",
        include_str!("../../../../examples/tiny-stories/evaluation.txt"),
    ),
];

/// A text as an external input; its path is relative until [`place`] is called.
pub fn external(text_use: TextUse) -> External {
    let (name, text) = match text_use {
        TextUse::Calibration => TEXTS[0],
        TextUse::Evaluation => TEXTS[1],
    };
    source::external(vec![ExternalFile {
        path: Utf8Path::new(FOLDER).join(name),
        size: text.len() as u64,
        sha256: hash_bytes(text.as_bytes()),
        mtime_ns: 0, // the file that is written has its own time
        shard: None,
    }])
}

/// Gives the embedded texts among the inputs their place in the run directory. Writes nothing.
///
/// # Errors
/// If the current folder cannot be determined.
pub fn place(root: &Utf8Path, inputs: &mut BTreeMap<String, External>) -> anyhow::Result<()> {
    for file in inputs.values_mut().flat_map(|input| &mut input.files) {
        if file.path.is_relative() && file.path.starts_with(FOLDER) {
            file.path = camino::absolute_utf8(root.join(&file.path))?;
        }
    }
    Ok(())
}

/// Writes the embedded texts that a plan reads and that are not there.
///
/// # Errors
/// If a file cannot be written.
pub fn write_missing(run: &RunDir, plan: &Plan) -> anyhow::Result<()> {
    let folder = camino::absolute_utf8(run.root().join(FOLDER))?;
    for file in plan.externals.values().flat_map(|input| &input.files) {
        let text = TEXTS
            .iter()
            .find(|(name, _)| file.path == folder.join(name))
            .filter(|(_, text)| hash_bytes(text.as_bytes()) == file.sha256);
        if let Some((_, text)) = text
            && !file.path.exists()
        {
            atomic::write_bytes(&file.path, text.as_bytes())?;
        }
    }
    Ok(())
}
