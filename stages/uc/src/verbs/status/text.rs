//! The state of a run as text.

use indicatif::BinaryBytes;
use uc_store::plan::Unit;

use super::view::{RunState, Running, StageStatus, Status};
use crate::report::event_log_replay::{FailureRecord, JobState};
use crate::report::progress::format_amount;

/// Width of the layer strip of a stage, in characters; if there are more layers, several share a character.
const CELLS: usize = 48;
/// Maximum length of a displayed error message, in characters; the log has the full text.
const MAX_MESSAGE: usize = 160;

/// The status as text.
pub fn render(status: &Status) -> String {
    let mut lines = vec![
        format!("run    {}", status.run),
        format!("model  {} ({} layers)", status.model, status.layers),
        format!("pack   {}", status.pack),
        format!("state  {}", state(status)),
        format!("disk   {}", disk(status)),
    ];
    if let Some(hub) = &status.hub {
        lines.push(format!("source {} at {}", hub.repository, hub.commit));
    }
    if let Some(shards) = &status.shards {
        let budget = shards.budget.map_or_else(
            || "no limit".into(),
            |budget| format!("budget {}", BinaryBytes(budget)),
        );
        lines.push(format!(
            "shards {} of {} present, {} of {} ({budget}); {} received",
            shards.present,
            shards.total,
            BinaryBytes(shards.present_bytes),
            BinaryBytes(shards.total_bytes),
            BinaryBytes(shards.received_bytes),
        ));
    }
    lines.push(String::new());
    lines.extend(table(status));
    if !status.running.is_empty() {
        lines.push(String::new());
        lines.extend(status.running.iter().map(|job| running(status, job)));
    }
    if !status.failures.is_empty() {
        lines.push(String::new());
        let failures = status.failures.iter();
        lines.extend(failures.map(|record| failure(status, record)));
    }
    if matches!(status.state, RunState::Stopped | RunState::Died) {
        lines.push(String::new());
        lines.push(format!("continue with: uc resume {}", status.run));
    }
    lines.join("\n") + "\n"
}

fn state(status: &Status) -> String {
    let state = match status.state {
        RunState::Complete => "complete".to_owned(),
        RunState::Running => match status.process {
            Some(process) => format!("running (process {process})"),
            None => "running".to_owned(),
        },
        RunState::Stopped => "stopped".to_owned(),
        RunState::Died => {
            "died: no driver is working on it and the last one did not record its end".to_owned()
        }
    };
    let mut parts = vec![
        state,
        format!("{} of {} jobs done", status.done, status.total),
        format!("{} of work", duration(status.wall_seconds)),
    ];
    if status.active && status.done < status.total {
        parts.push(match (status.seconds_left, status.seconds_left_partial) {
            (None, _) => "no estimate yet".to_owned(),
            (Some(left), true) => format!("more than {} left", duration(left)),
            (Some(left), false) => format!("about {} left", duration(left)),
        });
    }
    if let Some(silent) = status.silent_seconds.filter(|silent| *silent >= 10.0) {
        parts.push(format!("last event {} ago", duration(silent)));
    }
    parts.join(", ")
}

fn disk(status: &Status) -> String {
    let disk = &status.disk;
    let mut artifacts: Vec<_> = disk.artifacts.iter().collect();
    artifacts.sort_by_key(|(name, bytes)| (std::cmp::Reverse(**bytes), name.as_str()));
    let mut parts: Vec<String> = artifacts
        .into_iter()
        .map(|(name, bytes)| format!("{name} {}", BinaryBytes(*bytes)))
        .collect();
    parts.push(format!("other {}", BinaryBytes(disk.other)));
    let free = disk
        .free
        .map_or_else(String::new, |free| format!(", {} free", BinaryBytes(free)));
    format!("{}{free}: {}", BinaryBytes(disk.total()), parts.join(", "))
}

fn table(status: &Status) -> Vec<String> {
    let width = status.stages.iter().map(|stage| stage.name.len()).max();
    let width = width.unwrap_or(0);
    let cells = (status.layers as usize).clamp(1, CELLS);
    let head = format!(
        "{:width$}  {:>9}  {:cells$}  {:>9}  {:>8}  {:>8}  {:>10}",
        "stage", "done", "layers", "rate", "left", "took", "peak"
    );
    let mut lines = vec![head.trim_end().to_owned()];
    lines.extend(status.stages.iter().map(|stage| row(stage, width, cells)));
    lines.push("# done  > running  . waiting  ~ stale  ! failed".to_owned());
    lines
}

fn row(stage: &StageStatus, width: usize, cells: usize) -> String {
    let left = match stage.seconds_left {
        _ if stage.optional || stage.done == stage.total => String::new(),
        Some(left) => duration(left),
        None => "?".to_owned(),
    };
    let peak = match stage.cost.peak_rss_bytes {
        0 => String::new(),
        bytes => BinaryBytes(bytes).to_string(),
    };
    let took = match stage.cost.jobs {
        0 => String::new(),
        _ => duration(stage.cost.seconds),
    };
    let note = match stage.optional && stage.done == 0 {
        true => "  (only on request)",
        false => "",
    };
    let line = format!(
        "{:width$}  {:>9}  {:cells$}  {:>9}  {left:>8}  {took:>8}  {peak:>10}{note}",
        stage.name,
        format!("{}/{}", stage.done, stage.total),
        strip(&stage.jobs),
        stage.rate.map_or_else(String::new, rate),
    );
    line.trim_end().to_owned()
}

/// One character per layer; where several layers share a character, the most urgent state is shown.
fn strip(jobs: &[JobState]) -> String {
    let per_cell = jobs.len().div_ceil(CELLS).max(1);
    jobs.chunks(per_cell)
        .map(
            |jobs| match jobs.iter().max().unwrap_or(&JobState::Waiting) {
                JobState::Done => '#',
                JobState::Waiting => '.',
                JobState::Stale => '~',
                JobState::Running => '>',
                JobState::Failed => '!',
            },
        )
        .collect()
}

fn running(status: &Status, job: &Running) -> String {
    let progress = job.view.progress.as_ref().map_or_else(String::new, |at| {
        format!("{}, ", format_amount(at.done, at.total, &at.unit))
    });
    let now = job.view.started + job.seconds;
    let retry = job.view.retry.as_ref().map_or_else(String::new, |retry| {
        let when = match retry.at - now {
            wait if wait > 0.0 => format!("in {}", duration(wait)),
            _ => "under way".to_owned(),
        };
        let error = first_line(&retry.error);
        format!(
            "; attempt {} of {} {when}: {error}",
            retry.attempt, retry.attempts
        )
    });
    format!(
        "now    {}: {progress}for {}{retry}",
        job_title(status, &job.stage, job.unit),
        duration(job.seconds)
    )
}

/// The first line of a message, truncated to [`MAX_MESSAGE`] characters.
fn first_line(message: &str) -> String {
    let first = message.lines().next().unwrap_or_default();
    let mut text: String = first.chars().take(MAX_MESSAGE).collect();
    if text.len() < message.len() {
        text.push('…');
    }
    text
}

fn failure(status: &Status, record: &FailureRecord) -> String {
    let message = first_line(&record.message);
    format!(
        "error  {} {} ({}): {message}",
        record.time,
        job_title(status, &record.stage, record.unit),
        record.class
    )
}

/// The job in words, with the file name for a shard.
fn job_title(status: &Status, stage: &str, unit: Unit) -> String {
    let file = |shard| status.shards.as_ref()?.files.get(&shard);
    match (unit, unit.shard().and_then(file)) {
        (_, Some(file)) => format!("{stage} {file}"),
        (Unit::Run, None) => stage.to_owned(),
        (unit, None) => format!("{stage} {unit}"),
    }
}

/// Jobs per second, minute or hour, depending on the rate.
fn rate(per_second: f64) -> String {
    match per_second {
        fast if fast >= 0.5 => format!("{fast:.1}/s"),
        middle if middle * 60.0 >= 0.5 => format!("{:.1}/min", middle * 60.0),
        slow => format!("{:.1}/h", slow * 3600.0),
    }
}

/// A duration in seconds, minutes or hours, depending on its length.
fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 120.0 => format!("{seconds:.1} s"),
        seconds if seconds < 7200.0 => format!("{:.1} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}
