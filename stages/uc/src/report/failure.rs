//! Errors of the driver, and the exit status that an error stands for.

use std::fmt;

use uc_store::ExitCode;

/// An error message with its class.
#[derive(Debug)]
pub struct Failure {
    /// The class.
    pub code: ExitCode,
    /// What went wrong, for the user.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// A [`Failure`] as `anyhow::Error`.
pub fn failure(code: ExitCode, message: impl Into<String>) -> anyhow::Error {
    Failure {
        code,
        message: message.into(),
    }
    .into()
}

/// A mistake in a pipeline file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {key}: {message}")]
pub struct PipelineError {
    /// The file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// The key, with its table.
    pub key: String,
    /// What was found and what was expected.
    pub message: String,
}

/// The exit status of an error: the driver's own class takes precedence over those of the store and of the system.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    let by_driver = error.chain().find_map(|cause| {
        cause
            .downcast_ref::<Failure>()
            .map(|failure| failure.code)
            .or_else(|| cause.is::<PipelineError>().then_some(ExitCode::BadPipeline))
    });
    let not_found = || {
        let mut causes = error.chain();
        causes
            .any(|cause| {
                cause
                    .downcast_ref::<std::io::Error>()
                    .is_some_and(|io| io.kind() == std::io::ErrorKind::NotFound)
            })
            .then_some(ExitCode::BadInput)
    };
    let by_store = ExitCode::of_error(error);
    by_driver
        .or(by_store.filter(|code| !code.is_vague()))
        .or_else(not_found)
        .or(by_store)
        .unwrap_or(ExitCode::Internal)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_class_survives_context_and_system_errors_have_one() {
        let locked = Err::<(), _>(failure(ExitCode::Locked, "held")).context("outer");
        assert_eq!(exit_code(&locked.expect_err("error")), ExitCode::Locked);
        let line = PipelineError {
            file: "p".into(),
            line: 1,
            key: "k".into(),
            message: "m".into(),
        };
        assert_eq!(exit_code(&line.into()), ExitCode::BadPipeline);
        for (kind, code) in [
            (std::io::ErrorKind::PermissionDenied, ExitCode::Permission),
            (std::io::ErrorKind::StorageFull, ExitCode::DiskFull),
            (std::io::ErrorKind::NotFound, ExitCode::BadInput),
            (std::io::ErrorKind::BrokenPipe, ExitCode::Internal),
        ] {
            assert_eq!(exit_code(&std::io::Error::from(kind).into()), code);
        }
    }
}
