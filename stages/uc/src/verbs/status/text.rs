//! The state of a run as text.

use indicatif::BinaryBytes;
use uc_store::plan::Unit;

use super::view::{RunState, Running, StageStatus, Status};
use crate::report::event_log_replay::{FailureRecord, JobState};
use crate::report::outlook::coarse_duration;
use crate::report::progress::format_amount;
use crate::report::terminal::{Size, truncate, wrap};

/// Most characters of the layer strip of a stage; if there are more layers, several share a character.
const CELLS: usize = 48;
/// Least characters of the strip, if there are as many layers; columns give way before it gets shorter.
const MIN_CELLS: usize = 12;
/// Maximum length of a displayed error message, in characters; the log has the full text.
const MAX_MESSAGE: usize = 160;
/// Width of the labels of the first lines.
const LABEL: usize = 7;

/// The status as text. On a terminal, no line is longer than its `columns`.
pub fn render(status: &Status, columns: Option<usize>) -> String {
    let limit = columns.unwrap_or(usize::MAX);
    let mut lines = Vec::new();
    for line in head(status) {
        lines.extend(wrap(&line, limit, LABEL));
    }
    lines.push(String::new());
    lines.extend(table(status, limit));
    lines.push(truncate(LEGEND, limit));
    let paragraphs = [
        running_lines(status),
        failure_lines(status),
        next_lines(status),
    ];
    for paragraph in paragraphs.iter().filter(|lines| !lines.is_empty()) {
        lines.push(String::new());
        lines.extend(paragraph.iter().flat_map(|line| wrap(line, limit, LABEL)));
    }
    lines.join("\n") + "\n"
}

/// The status as text that fits a terminal, for repeated drawing: what matters least is left out.
pub fn render_fitting(status: &Status, size: Size) -> String {
    // The cursor stays in the line after the last one.
    let rows = size.rows.saturating_sub(1).max(1);
    let whole = render(status, Some(size.columns));
    if whole.lines().count() <= rows {
        return whole;
    }
    let short = |line: &String| truncate(line, size.columns);
    let head = head(status);
    let mut lines: Vec<String> = [&head[STATE_LINE], &head[RUN_LINE]].map(short).into();
    lines.extend(running_lines(status).iter().map(short));
    lines.extend(failure_lines(status).iter().rev().take(1).map(short));
    let table = table(status, size.columns);
    let is_busy = |stage: &StageStatus| {
        let is_urgent = |state| matches!(state, &JobState::Running | &JobState::Failed);
        stage.jobs.iter().any(is_urgent)
    };
    let room = rows.saturating_sub(lines.len() + 1);
    let mut shown: Vec<usize> = (0..status.stages.len()).collect();
    shown.sort_by_key(|index| {
        let stage = &status.stages[*index];
        (!is_busy(stage), stage.done == stage.total, stage.optional)
    });
    let left_out = shown.len().saturating_sub(room.saturating_sub(1));
    shown.truncate(shown.len() - left_out);
    shown.sort_unstable();
    if room > 1 {
        lines.push(table[0].clone());
        lines.extend(shown.into_iter().map(|index| table[index + 1].clone()));
        lines.push(short(&format!(
            "… {left_out} more stages; uc status without --watch shows all"
        )));
    }
    lines.truncate(rows);
    lines.join("\n") + "\n"
}

/// Position of the state and of the run directory in [`head`].
const STATE_LINE: usize = 3;
const RUN_LINE: usize = 0;
const LEGEND: &str = "# done  > running  . waiting  ~ stale  ! failed";

fn head(status: &Status) -> Vec<String> {
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
    lines
}

fn running_lines(status: &Status) -> Vec<String> {
    let jobs = status.running.iter();
    jobs.map(|job| running(status, job)).collect()
}

fn failure_lines(status: &Status) -> Vec<String> {
    let failures = status.failures.iter();
    failures.map(|record| failure(status, record)).collect()
}

fn next_lines(status: &Status) -> Vec<String> {
    match status.state {
        RunState::Stopped | RunState::Died => {
            vec![format!("continue with: uc resume {}", status.run)]
        }
        RunState::Running | RunState::Complete => Vec::new(),
    }
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
        format!(
            "{:.0} % ({} of {} jobs) done",
            (status.share * 100.0).floor(),
            status.done,
            status.total
        ),
        format!("{} of work", duration(status.wall_seconds)),
    ];
    if status.active && status.done < status.total {
        parts.push(match (status.seconds_left, status.seconds_left_partial) {
            (None, _) => "no estimate yet".to_owned(),
            (Some(left), true) => format!("more than {} left", coarse_duration(left)),
            (Some(left), false) => format!("about {} left", coarse_duration(left)),
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

/// A column after the strip of layers.
struct Column {
    name: &'static str,
    width: usize,
    value: fn(&StageStatus) -> String,
}

/// The columns in the order in which they give way when the terminal is narrow, last first.
const COLUMNS: [Column; 4] = [
    Column {
        name: "left",
        width: 8,
        value: left,
    },
    Column {
        name: "rate",
        width: 9,
        value: |stage| stage.rate.map_or_else(String::new, rate),
    },
    Column {
        name: "took",
        width: 8,
        value: took,
    },
    Column {
        name: "peak",
        width: 10,
        value: peak,
    },
];

/// The table of the stages: its head, then a line for each.
fn table(status: &Status, limit: usize) -> Vec<String> {
    let names = status.stages.iter().map(|stage| stage.name.len());
    let width = names.max().unwrap_or(0).max("stage".len());
    let layers = (status.layers as usize).clamp("layers".len(), CELLS);
    let fixed = width + 2 + 9 + 2;
    let used = |columns: usize| -> usize {
        let columns = &COLUMNS[..columns];
        fixed + columns.iter().map(|column| column.width + 2).sum::<usize>()
    };
    let fits = |columns: &usize| used(*columns) + layers.min(MIN_CELLS) <= limit;
    let columns = (0..=COLUMNS.len()).rev().find(fits).unwrap_or(0);
    let room = limit.saturating_sub(used(columns)).max(1);
    let cells = layers.min(room);
    let line = |name: &str, done: &str, strip: &str, column: &dyn Fn(usize) -> String| {
        let mut line = format!("{name:width$}  {done:>9}  {strip:cells$}");
        for (index, Column { width, .. }) in COLUMNS.iter().enumerate().take(columns) {
            line += &format!("  {:>width$}", column(index));
        }
        truncate(line.trim_end(), limit)
    };
    let mut lines = vec![line("stage", "done", "layers", &|index| {
        COLUMNS[index].name.to_owned()
    })];
    for stage in &status.stages {
        let done = format!("{}/{}", stage.done, stage.total);
        let strip = strip(&stage.jobs, cells);
        let mut line = line(&stage.name, &done, &strip, &|index| {
            (COLUMNS[index].value)(stage)
        });
        let note = "  (only on request)";
        if stage.optional && stage.done == 0 && line.len() + note.len() <= limit {
            line += note;
        }
        lines.push(line);
    }
    lines
}

/// The time left, of a stage that works.
fn left(stage: &StageStatus) -> String {
    stage.seconds_left.map_or_else(String::new, coarse_duration)
}

fn took(stage: &StageStatus) -> String {
    match stage.cost.jobs {
        0 => String::new(),
        _ => duration(stage.cost.seconds),
    }
}

fn peak(stage: &StageStatus) -> String {
    match stage.cost.peak_rss_bytes {
        0 => String::new(),
        bytes => BinaryBytes(bytes).to_string(),
    }
}

/// One character per layer; where several layers share a character, the most urgent state is shown.
fn strip(jobs: &[JobState], cells: usize) -> String {
    let per_cell = jobs.len().div_ceil(cells.max(1)).max(1);
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
