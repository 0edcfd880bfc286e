//! `ucpack._native`: what the Python package `ucpack` cannot do in Python itself, which is to decode and to verify packs.
//!
//! Owns the translation between Python and the pack library: handles, byte arrays, exceptions, signals. Names, types and
//! conveniences of the public interface are in `python/ucpack`. Values are decoded into memory that Python allocated, without
//! the interpreter's lock, so that callers decode several tensors on several threads and copy none. Never writes a file.

mod checks;
mod errors;
mod handle;
mod layout;
mod progress;
mod tensors;

/// The extension module.
#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use crate::checks::{diff, verify};
    #[pymodule_export]
    use crate::errors::{DamagedPackError, PackError};
    #[pymodule_export]
    use crate::handle::Pack;
}
