//! Support for tests that kill processes: seeded random numbers, the processes of a run, and how much work a kill cost
//! according to the event log.
//!
//! Owns nothing of a run; it only reads `/proc` and `events.jsonl`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// SplitMix64 (Steele et al. 2014). The sequence of kills is the same on every machine; only their timing differs.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// A random number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// Process ids and names of the direct children of a process.
///
/// # Panics
/// If `/proc` cannot be read.
pub fn children(parent: u32) -> Vec<(u32, String)> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let name = entry.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let (Some(open), Some(close)) = (stat.find('('), stat.rfind(')')) else {
            continue;
        };
        let ppid = stat[close + 1..].split_whitespace().nth(1);
        if ppid.and_then(|p| p.parse().ok()) == Some(parent) {
            children.push((id, stat[open + 1..close].to_owned()));
        }
    }
    children
}

/// Ids of the processes that have this run directory among their arguments.
///
/// # Panics
/// If `/proc` cannot be read.
pub fn processes_of_run(run: &Path) -> Vec<u32> {
    let run = run.as_os_str().as_encoded_bytes();
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|id| {
            let arguments = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            arguments.split(|b| *b == 0).any(|argument| argument == run)
        })
        .collect()
}

/// Sends a signal, such as `-9` or `-INT`, to a process.
pub fn signal(id: u32, signal: &str) {
    // An error is ignored: the process may already have ended by itself.
    let _ = Command::new("kill")
        .args([signal, &id.to_string()])
        .stderr(Stdio::null())
        .status();
}

/// The work that was lost in a run, according to its event log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LostWork {
    /// Jobs that were started and not finished.
    pub interrupted: u64,
    /// Most jobs of one stage that the death of one process interrupted.
    pub max_interrupted_at_once: u64,
    /// Jobs that were finished more than once.
    pub repeated: u64,
}

/// Counts the work that was lost in a run.
pub fn lost_work(run: &Path) -> LostWork {
    let text = std::fs::read(run.join("events.jsonl")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut open: BTreeMap<String, u64> = BTreeMap::new();
    let mut finished: BTreeMap<(String, Option<u64>), u64> = BTreeMap::new();
    let mut lost = LostWork::default();
    let mut interrupt = |count: u64| {
        lost.interrupted += count;
        lost.max_interrupted_at_once = lost.max_interrupted_at_once.max(count);
    };
    let events = text.lines().map(serde_json::from_str::<serde_json::Value>);
    for event in events.flatten() {
        let stage = event["stage"].as_str().unwrap_or_default().to_owned();
        match event["event"].as_str() {
            Some("started") => *open.entry(stage).or_default() += 1,
            Some("finished") => {
                *finished
                    .entry((stage.clone(), event["layer"].as_u64()))
                    .or_default() += 1;
                // A finished job is not lost, even if the log lacks its `started` event.
                let count = open.entry(stage).or_default();
                *count = count.saturating_sub(1);
            }
            Some("job-failure") => interrupt(open.remove(&stage).unwrap_or(0)),
            Some("session") => std::mem::take(&mut open)
                .into_values()
                .for_each(&mut interrupt),
            _ => {}
        }
    }
    lost.repeated = finished.into_values().map(|count| count - 1).sum();
    lost
}
