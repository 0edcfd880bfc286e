//! Errors of the pack library as Python exceptions of fitting types.

use pyo3::PyErr;
use pyo3::exceptions::{
    PyException, PyFileNotFoundError, PyKeyError, PyMemoryError, PyOSError, PyValueError,
};

pyo3::create_exception!(
    ucpack,
    PackError,
    PyException,
    "A pack cannot be read: its version is not supported, or it is damaged."
);
pyo3::create_exception!(
    ucpack,
    DamagedPackError,
    PackError,
    "A file of a pack differs from what the manifest or the format says."
);

/// The number of the system's error "no such file".
const ENOENT: i32 = 2;

/// The exception for an error of the pack library. Errors of the operating system become the subclass of `OSError` that their
/// number stands for, with the file's name.
pub(crate) fn exception(error: &uc_pack::PackError) -> PyErr {
    use std::io::ErrorKind;
    let uc_pack::PackError::Io { origin, source } = error else {
        return match error {
            uc_pack::PackError::NoTensor { .. }
            | uc_pack::PackError::UnknownTensor { .. }
            | uc_pack::PackError::NoLayer { .. } => PyKeyError::new_err(error.text()),
            uc_pack::PackError::NothingInCommon { .. } => PyValueError::new_err(error.text()),
            uc_pack::PackError::Uploaded { origin, repository } => {
                let text = format!(
                    "not in this folder; according to {}, {repository} holds it: download it from there",
                    uc_pack::REMOTE_FILE
                );
                PyFileNotFoundError::new_err((ENOENT, text, origin.clone()))
            }
            uc_pack::PackError::Version { .. } => PackError::new_err(error.text()),
            _ => DamagedPackError::new_err(error.text()),
        };
    };
    match (source.raw_os_error(), source.kind()) {
        (Some(number), _) => {
            let text = source.to_string();
            let text = text.split(" (os error").next().unwrap_or_default();
            PyOSError::new_err((number, text.to_owned(), origin.clone()))
        }
        (None, ErrorKind::OutOfMemory) => PyMemoryError::new_err(error.text()),
        (None, ErrorKind::UnexpectedEof) => DamagedPackError::new_err(error.text()),
        (None, _) => PyOSError::new_err(error.text()),
    }
}
