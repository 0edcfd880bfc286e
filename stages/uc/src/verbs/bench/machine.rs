//! The class of a machine: what speeds depend on. Its name, its users and its addresses are none of that.

use serde::Serialize;
use uc_store::resources;

/// Longest file of the system that is read.
const MAX_TEXT: u64 = 16 << 20;

/// What a speed was measured on.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// Name of the processor.
    pub cpu: String,
    /// Architecture of the program.
    pub architecture: &'static str,
    /// Processors that this process may use.
    pub cores: u32,
    /// Instruction sets that kernels may use, as far as the processor has them.
    pub instruction_sets: Vec<&'static str>,
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// The largest cache of the first processor; 0 if unknown.
    pub cache_bytes: u64,
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        let text = uc_input::read_text("/proc/cpuinfo", MAX_TEXT).unwrap_or_default();
        Machine {
            cpu: cpu_name(&text).unwrap_or("unknown").to_owned(),
            architecture: std::env::consts::ARCH,
            cores: resources::available_cpus(),
            instruction_sets: instruction_sets(),
            memory_bytes: resources::total_memory_bytes(),
            cache_bytes: largest_cache(),
        }
    }
}

/// The name of the first processor in `/proc/cpuinfo`.
fn cpu_name(text: &str) -> Option<&str> {
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim())
}

#[cfg(target_arch = "x86_64")]
fn instruction_sets() -> Vec<&'static str> {
    let known = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avxvnni", is_x86_feature_detected!("avxvnni")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512dq", is_x86_feature_detected!("avx512dq")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512vbmi", is_x86_feature_detected!("avx512vbmi")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    let found = known.into_iter().filter(|(_, found)| *found);
    found.map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn instruction_sets() -> Vec<&'static str> {
    Vec::new()
}

/// Bytes of the largest cache of the first processor; 0 if unknown.
pub fn largest_cache() -> u64 {
    let size = |index: u32| {
        let file = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        let text = uc_input::read_text(file, MAX_TEXT).ok()?;
        cache_size(text.trim())
    };
    (0..8).filter_map(size).max().unwrap_or(0)
}

/// A size as the system writes it: `32768K`.
fn cache_size(text: &str) -> Option<u64> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit);
    let factor = match unit {
        "K" => 1 << 10,
        "M" => 1 << 20,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_names_processor_and_caches() {
        let text = "processor\t: 0\nmodel name\t: A CPU @ 3 GHz\nmodel name\t: B\n";
        assert_eq!(cpu_name(text), Some("A CPU @ 3 GHz"));
        assert_eq!(cpu_name(""), None);
        assert_eq!(cache_size("32768K"), Some(32 << 20));
        assert_eq!(cache_size("96M"), Some(96 << 20));
        for unknown in ["", "32", "K", "1G1", "99999999999999999999K"] {
            assert_eq!(cache_size(unknown), None, "{unknown}");
        }
    }
}
