//! Sudden ends: random moments, the processes of a run, and what a kill cost by the log of events.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// SplitMix64: the same kills on every machine, as far as a clock can be the same.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// A number below `end`.
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
/// Where there is no `/proc`.
pub fn children(parent: u32) -> Vec<(u32, String)> {
    let mut found = Vec::new();
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
            found.push((id, stat[open + 1..close].to_owned()));
        }
    }
    found
}

/// Processes that have a run directory among their arguments.
///
/// # Panics
/// Where there is no `/proc`.
pub fn workers_of(run: &Path) -> Vec<u32> {
    let wanted = run.as_os_str().as_encoded_bytes();
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|id| {
            let arguments = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            arguments.split(|b| *b == 0).any(|word| word == wanted)
        })
        .collect()
}

/// Sends a signal, `-9` or another.
pub fn signal(id: u32, signal: &str) {
    // The process may have ended by itself in the meantime.
    let _ = Command::new("kill")
        .args([signal, &id.to_string()])
        .stderr(Stdio::null())
        .status();
}

/// What the log of a run says of the work that was lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Jobs that were begun and not finished.
    pub cut_off: u64,
    /// The most jobs of one stage that one death of a process cut off.
    pub most_at_once: u64,
    /// Jobs that were finished more than once.
    pub done_again: u64,
}

/// Counts the losses of a run.
pub fn losses(run: &Path) -> Losses {
    let text = std::fs::read(run.join("events.jsonl")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut open: BTreeMap<String, u64> = BTreeMap::new();
    let mut finished: BTreeMap<(String, Option<u64>), u64> = BTreeMap::new();
    let mut losses = Losses::default();
    let mut strike = |count: u64| {
        losses.cut_off += count;
        losses.most_at_once = losses.most_at_once.max(count);
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
                // A job that finished is no loss, even if its beginning was not written down.
                let count = open.entry(stage).or_default();
                *count = count.saturating_sub(1);
            }
            Some("job-failure") => strike(open.remove(&stage).unwrap_or(0)),
            Some("session") => std::mem::take(&mut open)
                .into_values()
                .for_each(&mut strike),
            _ => {}
        }
    }
    losses.done_again = finished.into_values().map(|count| count - 1).sum();
    losses
}
