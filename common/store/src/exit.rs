//! Exit codes: one for each class of failure, the same for the driver and all stages.

use serde::{Deserialize, Serialize};
use uc_settings::SettingError;

use crate::error::StoreError;

/// The class of an outcome, which determines the exit status of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitCode {
    /// Success.
    Ok,
    /// A bug.
    Internal,
    /// A mistake on the command line.
    Usage,
    /// A mistake in pipeline.toml or in a setting.
    BadPipeline,
    /// The model, its configuration, its tokenizer or a text cannot be used.
    BadInput,
    /// A checkpoint or a pack differs from its record.
    Damaged,
    /// Another process holds the lock of the run directory.
    Locked,
    /// No space is left on the device.
    DiskFull,
    /// The system denies access to a file.
    Permission,
    /// A stage crashed or hung more often than its retries allow.
    StageFailed,
    /// An input of the job has not been made yet.
    MissingInput,
    /// The Hub could not be reached, failed too often, or rejected an upload.
    Network,
    /// Reading or writing a file failed, for a reason that has no class of its own.
    Io,
    /// Two packs differ, and the caller asked for a status that says so.
    Different,
    /// SIGINT or SIGTERM stopped the run; it can be resumed.
    Interrupted,
}

impl ExitCode {
    /// All codes, in numerical order.
    pub const ALL: [ExitCode; 15] = [
        Self::Ok,
        Self::Internal,
        Self::Usage,
        Self::BadPipeline,
        Self::BadInput,
        Self::Damaged,
        Self::Locked,
        Self::DiskFull,
        Self::Permission,
        Self::StageFailed,
        Self::MissingInput,
        Self::Network,
        Self::Io,
        Self::Different,
        Self::Interrupted,
    ];

    /// The exit status of the process.
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Internal => 1,
            Self::Usage => 2,
            Self::BadPipeline => 3,
            Self::BadInput => 4,
            Self::Damaged => 5,
            Self::Locked => 6,
            Self::DiskFull => 7,
            Self::Permission => 8,
            Self::StageFailed => 9,
            Self::MissingInput => 10,
            Self::Network => 11,
            Self::Io => 12,
            Self::Different => 13,
            Self::Interrupted => 130,
        }
    }

    /// The name of the class in events and logs.
    pub fn class(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Internal => "internal",
            Self::Usage => "usage",
            Self::BadPipeline => "bad-pipeline",
            Self::BadInput => "bad-input",
            Self::Damaged => "damaged",
            Self::Locked => "locked",
            Self::DiskFull => "disk-full",
            Self::Permission => "permission",
            Self::StageFailed => "stage-failed",
            Self::MissingInput => "missing-input",
            Self::Network => "network",
            Self::Io => "io",
            Self::Different => "different",
            Self::Interrupted => "interrupted",
        }
    }

    /// The class of an exit status, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.code() == code)
    }

    /// Whether restarting the job at once may help. A job that failed on the network has already retried for a long time.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Internal | Self::StageFailed | Self::Io)
    }

    /// The class of an I/O error whose kind determines it.
    pub fn of_io(error: &std::io::Error) -> Option<Self> {
        use std::io::ErrorKind;
        // `uc_input` refuses a file that is too large or not a regular one with an error that is not the system's.
        let is_refusal = error.raw_os_error().is_none();
        match error.kind() {
            ErrorKind::FileTooLarge | ErrorKind::InvalidInput if is_refusal => Some(Self::BadInput),
            // The last one is that of a limit on the size of files (`ulimit -f`).
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                Some(Self::DiskFull)
            }
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Some(Self::Permission),
            _ => None,
        }
    }

    /// Whether the class says nothing about the cause, so that a more specific class takes precedence.
    pub fn is_vague(self) -> bool {
        matches!(self, Self::Internal | Self::Io)
    }

    /// The class of an error chain: that of an I/O error whose kind determines it, or else that of a store or settings
    /// error. `None` if there is neither.
    pub fn of_error(error: &anyhow::Error) -> Option<Self> {
        let by_system = error
            .chain()
            .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
            .find_map(Self::of_io);
        by_system.or_else(|| error.chain().find_map(Self::of_cause))
    }

    fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Self> {
        if cause.is::<SettingError>() {
            return Some(Self::BadPipeline);
        }
        cause.downcast_ref::<StoreError>().map(Self::of_store)
    }

    fn of_store(error: &StoreError) -> Self {
        match error {
            StoreError::Io { .. } => Self::Io,
            StoreError::OutputNotCommitted { .. } => Self::Internal,
            StoreError::Malformed { .. } | StoreError::Hash { .. } | StoreError::Size { .. } => {
                Self::Damaged
            }
            StoreError::Newer { .. } | StoreError::Changed { .. } => Self::BadInput,
            StoreError::MissingInput { .. } => Self::MissingInput,
            StoreError::Locked { .. } => Self::Locked,
            StoreError::Setting(_) | StoreError::Plan(_) => Self::BadPipeline,
            StoreError::Unknown { .. } | StoreError::Layer { .. } => Self::Usage,
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_parse_back() {
        for code in ExitCode::ALL {
            assert_eq!(ExitCode::from_code(code.code()), Some(code));
        }
        assert_eq!(ExitCode::from_code(99), None);
    }

    #[test]
    fn the_kind_of_an_io_error_precedes_the_store_error_around_it() {
        let path = camino::Utf8Path::new("/x");
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = anyhow::Error::from(StoreError::io("write", path)(full)).context("outer");
        assert_eq!(ExitCode::of_error(&error), Some(ExitCode::DiskFull));
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let error = anyhow::Error::from(StoreError::io("open", path)(denied));
        assert_eq!(ExitCode::of_error(&error), Some(ExitCode::Permission));
        let limit = std::io::Error::from_raw_os_error(27); // EFBIG
        let error = anyhow::Error::from(StoreError::io("write", path)(limit));
        assert_eq!(ExitCode::of_error(&error), Some(ExitCode::DiskFull));
        let fifo = uc_input::open("/dev/null").expect_err("a device");
        let error = anyhow::Error::from(StoreError::io("open", path)(fifo));
        assert_eq!(ExitCode::of_error(&error), Some(ExitCode::BadInput));
        let large = uc_input::read("/proc/self/maps", 1).expect_err("too large");
        let error = anyhow::Error::from(StoreError::io("read", path)(large));
        assert_eq!(ExitCode::of_error(&error), Some(ExitCode::BadInput));
        let bad = anyhow::Error::from(StoreError::malformed(path, "receipt", "a", "b"));
        assert_eq!(ExitCode::of_error(&bad), Some(ExitCode::Damaged));
        let broken = std::io::Error::from_raw_os_error(5); // EIO
        let error = anyhow::Error::from(StoreError::io("read", path)(broken));
        assert_eq!(ExitCode::of_error(&error), Some(ExitCode::Io));
        assert!(ExitCode::Io.is_transient() && ExitCode::Io.is_vague());
        assert_eq!(ExitCode::of_error(&anyhow::anyhow!("other")), None);
    }

    #[test]
    fn a_bad_setting_is_a_bad_pipeline_alone_and_inside_a_store_error() {
        let set = || uc_settings::Settings::default().set("quantize.bpw", "9");
        let error = set().expect_err("out of range");
        let text = error.to_string();
        let in_store = StoreError::from(error.clone());
        assert_eq!(in_store.to_string(), text);
        for error in [anyhow::Error::from(error), anyhow::Error::from(in_store)] {
            assert_eq!(ExitCode::of_error(&error), Some(ExitCode::BadPipeline));
        }
    }
}
