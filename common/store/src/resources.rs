//! Memory and CPUs of this process and of the machine, read from `/proc`.

/// Peak resident memory of this process, in bytes; 0 if unknown.
pub fn peak_rss_bytes() -> u64 {
    status_field("/proc/self/status", "VmHWM:")
}

/// Memory of the machine, in bytes; 0 if unknown.
pub fn total_memory_bytes() -> u64 {
    status_field("/proc/meminfo", "MemTotal:")
}

/// Number of CPUs that this process may use.
pub fn available_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u32)
}

fn status_field(file: &str, field: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
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
    fn this_process_uses_memory_of_this_machine() {
        assert!(peak_rss_bytes() > 0);
        assert!(total_memory_bytes() > peak_rss_bytes());
        assert!(available_cpus() > 0);
    }
}
