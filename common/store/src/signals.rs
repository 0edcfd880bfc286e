//! The signals whose default action must not end a program: the limit on the size of files.
//!
//! The driver's handling of SIGINT and its kin is its own.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Catches SIGXFSZ, so that a write beyond a limit on the size of files (`ulimit -f`) fails with EFBIG, which has the class of
/// a full disk. The default action ends the process with a core dump.
///
/// # Errors
/// If the system refuses the handler.
pub fn catch_file_size_limit() -> io::Result<()> {
    let ignored = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, ignored)?;
    Ok(())
}
