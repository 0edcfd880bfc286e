//! hub-upload: uploads a pack to a Hub repository, layer by layer while later layers are still being produced.
//!
//! `repository` creates the repository. `layer` checks and uploads one layer. `card` writes the model card. `pack` uploads
//! everything else, the manifest last, and succeeds only when the remote tree equals the manifest. The content of the
//! remote decides what is sent, not what earlier jobs did. Every file is checked against its record before it is sent. This
//! program deletes nothing.

mod card;
mod layer;
mod pack;
mod readme;
mod remote;

use camino::Utf8Path;
use serde::de::DeserializeOwned;
use uc_hub::HubError;
use uc_store::stage::{self, Job, Program, Task};
use uc_store::{ExitCode, StoreError};

const PROGRAM: Program = Program {
    name: "hub-upload",
    about: "Uploads a pack to a Hub repository",
    version: 2,
    classify,
};

fn main() -> std::process::ExitCode {
    stage::run(
        PROGRAM,
        [
            Task::new(
                "repository",
                "Create the repository, and check that the token may write to it",
                remote::create_repository,
            ),
            Task::new(
                "layer",
                "Check a layer against its record and upload it",
                layer::run,
            ),
            Task::new("card", "Write the model card", card::run),
            Task::new(
                "pack",
                "Upload the remaining files, the manifest last, and compare the remote tree with the manifest",
                pack::run,
            ),
        ],
    )
}

/// The exit code of an error of the Hub, of the upload or of the pack.
fn classify(error: &anyhow::Error) -> Option<ExitCode> {
    error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<HubError>() {
            return error.exit_code();
        }
        if let Some(error) = cause.downcast_ref::<UploadError>() {
            return Some(error.exit_code());
        }
        cause
            .is::<uc_pack::PackError>()
            .then_some(ExitCode::Damaged)
    })
}

/// An upload that is refused, or that did not arrive as it was sent.
#[derive(Debug, thiserror::Error)]
enum UploadError {
    #[error("an upload needs a token: set HF_TOKEN, or HF_TOKEN_PATH to a file that holds one")]
    NoToken,
    #[error("{file} differs from its record and is not sent: found {found}, expected {expected}")]
    NotAsRecorded {
        file: String,
        found: String,
        expected: String,
    },
    #[error("{repository} at commit {commit} differs from what was sent: {}", paths.join(", "))]
    RemoteDiffers {
        repository: String,
        commit: String,
        paths: Vec<String>,
    },
    #[error(
        "neither {repository} nor this run holds {}: `uc compress` with the same --run produces it again",
        paths.join(", ")
    )]
    LayersMissing {
        repository: String,
        paths: Vec<String>,
    },
}

impl UploadError {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::NoToken => ExitCode::Permission,
            Self::NotAsRecorded { .. } => ExitCode::Damaged,
            Self::RemoteDiffers { .. } => ExitCode::Network,
            Self::LayersMissing { .. } => ExitCode::MissingInput,
        }
    }
}

/// Reads a JSON artifact. One that does not parse is damaged.
fn read_json<T: DeserializeOwned>(path: &Utf8Path) -> Result<T, StoreError> {
    let text = uc_input::read(path, uc_input::LARGE_JSON).map_err(StoreError::io("read", path))?;
    serde_json::from_slice(&text).map_err(|error| {
        StoreError::malformed(
            path,
            "document",
            error.to_string(),
            "as its stage writes it",
        )
    })
}

/// Writes a JSON artifact.
fn write_json(
    job: &mut Job<'_>,
    output: &str,
    value: &impl serde::Serialize,
) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    let mut file = job.output(output)?;
    file.append(&text)?;
    job.commit(output, file)?;
    Ok(())
}
