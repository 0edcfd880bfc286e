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

/// What bounds the memory of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryBound {
    /// The memory that is available on the machine.
    Available,
    /// The limit of a control group, as containers and batch systems set it.
    ControlGroup,
}

/// Memory that this process and its children can still get without swapping, in bytes, and what bounds it; 0 if unknown. Caches of
/// files count as free.
pub fn usable_memory() -> (u64, MemoryBound) {
    let available = available_memory_bytes();
    let membership = uc_input::read_text("/proc/self/cgroup", 1 << 20).unwrap_or_default();
    match control_group_memory(Utf8Path::new("/sys/fs/cgroup"), &membership) {
        Some(left) if left < available || available == 0 => (left, MemoryBound::ControlGroup),
        _ => (available, MemoryBound::Available),
    }
}

/// Memory that the control groups of a process leave it, in bytes; none without a limit. `membership` is its `/proc/PID/cgroup`,
/// `root` is where the groups are mounted.
fn control_group_memory(root: &Utf8Path, membership: &str) -> Option<u64> {
    let groups = membership.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let path = path.trim_start_matches('/');
        // Version 2 has one tree, version 1 one for each controller.
        match controllers.split(',').any(|name| name == "memory") {
            true => Some((root.join("memory"), path, VERSION_1)),
            false if controllers.is_empty() => Some((root.to_owned(), path, VERSION_2)),
            false => None,
        }
    });
    let left = groups.flat_map(|(tree, path, files)| {
        // A group is also bound by those that contain it. In a container, its path may be that of the host.
        let folders = tree.join(path);
        let folders: Vec<_> = folders.ancestors().map(Utf8Path::to_owned).collect();
        let in_tree = folders
            .into_iter()
            .filter(move |dir| dir.starts_with(&tree));
        in_tree.filter_map(move |dir| group_memory(&dir, files))
    });
    left.min()
}

/// Names of a group's files: its limit, its usage, and the field of `memory.stat` with what can be reclaimed.
type GroupFiles = [&'static str; 3];
const VERSION_1: GroupFiles = [
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
];
const VERSION_2: GroupFiles = ["memory.max", "memory.current", "inactive_file"];

/// The limit of one group less its usage; none without a limit.
fn group_memory(dir: &Utf8Path, [limit, usage, reclaimable]: GroupFiles) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        let text = uc_input::read_text(dir.join(name), 1 << 20).ok()?;
        text.trim().parse().ok()
    };
    let limit = number(limit).filter(|limit| *limit < UNLIMITED)?;
    let stat = uc_input::read_text(dir.join("memory.stat"), 1 << 20).unwrap_or_default();
    let field = |line: &str| line.strip_prefix(reclaimable)?.trim().parse::<u64>().ok();
    let reclaimable = stat.lines().find_map(field).unwrap_or(0);
    let used = number(usage).unwrap_or(0).saturating_sub(reclaimable);
    Some(limit.saturating_sub(used))
}

/// Version 1 states a limit near the largest number in place of none.
const UNLIMITED: u64 = 1 << 60;

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
    fn the_smallest_limit_of_the_control_groups_counts_less_what_is_in_use() {
        let folder = tempfile::tempdir().expect("folder");
        let root = Utf8Path::from_path(folder.path()).expect("UTF-8");
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().expect("folder")).expect("created");
            crate::atomic::write_bytes(&path, text.as_bytes()).expect("written");
        };
        write("a/memory.max", "1000\n");
        write("a/memory.current", "400\n");
        write("a/memory.stat", "anon 100\ninactive_file 300\n");
        write("a/b/memory.max", "max\n");
        let left = |membership| control_group_memory(root, membership);
        assert_eq!(left("0::/a/b\n"), Some(900));
        assert_eq!(left("0::/\n"), None);
        assert_eq!(left(""), None);
        write("memory/c/memory.limit_in_bytes", "500");
        write("memory/c/memory.usage_in_bytes", "200");
        write("memory/memory.limit_in_bytes", "9223372036854771712");
        assert_eq!(left("4:cpu,memory:/c\n0::/a\n"), Some(300));
        assert_eq!(left("4:memory:/elsewhere\n"), None);
    }

    #[test]
    fn this_process_uses_memory_of_this_machine() {
        assert!(rss_bytes() > 0);
        assert!(peak_rss_bytes() > 0);
        assert!(total_memory_bytes() > peak_rss_bytes());
        assert!(available_cpus() > 0);
        assert!((1..=total_memory_bytes()).contains(&usable_memory().0));
    }
}
