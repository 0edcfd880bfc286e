//! Errors of model folders and of downloads from the Hub, and their exit codes.

use std::path::PathBuf;

use camino::Utf8PathBuf;
use uc_hub::{CommitId, HubError, RepoName};
use uc_store::ExitCode;

/// A model of the Hub that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The repository does not hold a model in a form that can be read.
    #[error("{repository} at {commit}: found {found}, expected {expected}")]
    UnusableRepository {
        /// The repository.
        repository: RepoName,
        /// Its commit.
        commit: CommitId,
        /// What is there.
        found: String,
        /// What should be there.
        expected: &'static str,
    },
    /// Without a network, only models that were downloaded before can be used.
    #[error(
        "HF_HUB_OFFLINE is set, and {folder} holds no complete download of {repository}@{revision}; \
         download it first without that variable, or give the path of a local folder"
    )]
    NotDownloaded {
        /// The repository.
        repository: RepoName,
        /// The branch, tag or commit.
        revision: String,
        /// The folder of its downloads.
        folder: Utf8PathBuf,
    },
    /// A shard does not begin with the header that the run was planned with.
    #[error(
        "{shard}: its header differs from {header}, expected the same bytes; plan the run again with uc compress"
    )]
    HeaderMismatch {
        /// The shard.
        shard: Utf8PathBuf,
        /// File of the header that was downloaded for the plan.
        header: Utf8PathBuf,
    },
}

/// A local model folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// An adapter lies beside the weights.
    #[error(
        "{}: found an adapter beside the weights, {found}, expected a model alone; merge the adapter into the weights (peft: \
         merge_and_unload) and save the result, or take the adapter's files away to compress the model without it",
        path.display()
    )]
    Adapter {
        /// The folder.
        path: PathBuf,
        /// The adapter.
        found: String,
    },
    /// Only the header of a shard is there.
    #[error("{}: found only its header {}, expected the whole file", shard.display(), header.display())]
    HeaderOnly {
        /// The shard.
        shard: PathBuf,
        /// The file of its header.
        header: PathBuf,
    },
    /// The folder has no tokenizer in the expected form.
    #[error("{}: found {found}", path.display())]
    NoTokenizer {
        /// The folder.
        path: PathBuf,
        /// What is there instead, what was expected and what to do.
        found: String,
    },
}

/// The exit code of an error of this module, of the Hub or of the model crate. Errors of this module and of the model
/// crate are errors in the user's input.
pub fn exit_code(error: &anyhow::Error) -> Option<ExitCode> {
    let cause_code = |cause: &(dyn std::error::Error + 'static)| {
        if let Some(error) = cause.downcast_ref::<HubError>() {
            return error.exit_code();
        }
        let is_input = cause.is::<FetchError>() || cause.is::<InputError>();
        is_input.then_some(ExitCode::BadInput)
    };
    let model_code =
        || uc_model::error::is_model_error(error.chain()).then_some(ExitCode::BadInput);
    error.chain().find_map(cause_code).or_else(model_code)
}
