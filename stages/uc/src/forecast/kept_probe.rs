//! The speeds of this machine, kept in the user's cache folder between calls.
//!
//! The file is named after the machine, because several machines may share a home folder. It is never read for another program
//! version or processor: both change speeds.

use camino::Utf8PathBuf;
use uc_store::{ExitCode, atomic};

use super::SpeedsOf;
use super::probe::Probe;
use crate::report::failure::failure;

/// Folder below the user's cache.
const FOLDER: &str = "ultracompress";

/// The file of this machine; none without a home folder.
fn path() -> Option<Utf8PathBuf> {
    let folder = |name: &str| {
        let value = std::env::var(name).ok().map(Utf8PathBuf::from);
        value.filter(|folder| folder.is_absolute())
    };
    let cache = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")))?;
    let host = uc_input::read_text("/proc/sys/kernel/hostname", 1 << 10).unwrap_or_default();
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || "._-".contains(*c);
    let host: String = host.trim().chars().filter(is_plain).collect();
    Some(cache.join(FOLDER).join(format!("machine-{host}.json")))
}

/// The speeds that were kept; none if there are none, or if they are of another processor or program version.
pub fn load() -> Option<(Probe, SpeedsOf)> {
    let probe: Probe = uc_input::read_json(path()?, uc_input::SMALL_JSON).ok()?;
    let is_current = probe.program == env!("CARGO_PKG_VERSION") && probe.processor == processor();
    (is_current && probe.is_sound()).then_some((probe, SpeedsOf::ThisMachine))
}

/// Keeps speeds; returns the file.
///
/// # Errors
/// If there is no home folder, or the file cannot be written.
pub fn save(probe: &Probe) -> anyhow::Result<Utf8PathBuf> {
    let path = path().ok_or_else(|| {
        let message =
            "found neither XDG_CACHE_HOME nor HOME, expected a folder in which the speeds are kept";
        failure(ExitCode::Usage, message)
    })?;
    if let Some(folder) = path.parent() {
        atomic::create_dir_all(folder)?;
    }
    atomic::write_json(&path, probe)?;
    Ok(path)
}

/// The name of the processor.
pub fn processor() -> String {
    crate::verbs::bench::machine::Machine::here().cpu
}
