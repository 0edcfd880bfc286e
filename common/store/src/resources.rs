//! Memory, CPUs and disk space of this process and of the machine.

use std::io;

use camino::Utf8Path;

use crate::error::StoreError;

/// Peak resident memory of this process, in bytes; 0 if unknown.
pub fn peak_rss_bytes() -> u64 {
    status_field("/proc/self/status", "VmHWM:")
}

/// Resident memory of this process, in bytes; 0 if unknown.
pub fn rss_bytes() -> u64 {
    status_field("/proc/self/status", "VmRSS:")
}

/// Memory of the machine, in bytes; 0 if unknown.
pub fn total_memory_bytes() -> u64 {
    status_field("/proc/meminfo", "MemTotal:")
}

/// Memory that programs can still get without swapping, in bytes; 0 if unknown.
pub fn available_memory_bytes() -> u64 {
    status_field("/proc/meminfo", "MemAvailable:")
}

/// Number of CPUs that this process may use.
pub fn available_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u32)
}

/// Checks that the disk has room for `bytes` more bytes of a file, before any of them is fetched or computed.
///
/// # Errors
/// [`StoreError::Io`] of the kind [`io::ErrorKind::StorageFull`] with both numbers.
pub fn ensure_free(file: &Utf8Path, bytes: u64) -> Result<(), StoreError> {
    let is_folder = |path: &&Utf8Path| path.as_str().is_empty() || path.is_dir();
    let folder = file.ancestors().skip(1).find(is_folder);
    let folder = match folder.map_or("", Utf8Path::as_str) {
        "" => ".",
        folder => folder,
    };
    // A file system that does not state its free space is not questioned further.
    let Ok(disk) = rustix::fs::statvfs(folder) else {
        return Ok(());
    };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if bytes <= free {
        return Ok(());
    }
    let message = format!("{bytes} bytes are needed, {free} are free in {folder}");
    let full = io::Error::new(io::ErrorKind::StorageFull, message);
    Err(StoreError::io("make room for", file)(full))
}

fn status_field(file: &str, field: &str) -> u64 {
    let text = uc_input::read_text(file, 1 << 20).unwrap_or_default();
    let kibibytes = text
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_bytes_than_the_disk_has_are_refused_with_both_numbers() {
        let folder = std::env::temp_dir();
        let file = Utf8Path::from_path(&folder)
            .expect("utf-8")
            .join("absent/file");
        ensure_free(&file, 1).expect("room for a byte");
        ensure_free(Utf8Path::new("file"), 1).expect("room for a byte");
        let error = ensure_free(&file, u64::MAX).expect_err("full");
        let error = anyhow::Error::from(error);
        assert!(
            format!("{error:#}").contains(&u64::MAX.to_string()),
            "{error:#}"
        );
        let class = crate::ExitCode::of_error(&error);
        assert_eq!(class, Some(crate::ExitCode::DiskFull));
    }

    #[test]
    fn this_process_uses_memory_of_this_machine() {
        assert!(rss_bytes() > 0);
        assert!(peak_rss_bytes() > 0);
        assert!(total_memory_bytes() > peak_rss_bytes());
        assert!(available_cpus() > 0);
    }
}
