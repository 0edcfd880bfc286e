//! Progress for the user, always on standard error: bars on a terminal, plain or JSON lines elsewhere.
//!
//! Only this module draws. It never prints results, which go to standard output.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{
    BinaryBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
};
use uc_store::logging::LogFormat;
use uc_store::plan::{JobId, Unit};

use crate::cli::OutputArgs;

/// Interval of progress lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(30);

/// Output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Quiet,
    Lines,
    Json,
    Bars,
}

/// The display of a session.
#[derive(Debug)]
pub struct Display {
    format: Format,
    verbosity: u8,
    bars: MultiProgress,
    stages: BTreeMap<String, StageProgress>,
}

/// The progress of one stage.
#[derive(Debug)]
struct StageProgress {
    done: u64,
    total: u64,
    bar: Option<ProgressBar>,
    last_line: Instant,
    /// Names of what its jobs work on, by shard; empty for other jobs.
    job_names: BTreeMap<u32, String>,
}

impl StageProgress {
    /// The name of a job in messages.
    fn title(&self, id: &JobId) -> String {
        match self.job_name(id) {
            Some(name) => format!("{} of {name}", id.stage),
            None => id.to_string(),
        }
    }

    fn job_name(&self, id: &JobId) -> Option<&String> {
        self.job_names.get(&id.unit.shard()?)
    }

    /// The label of a job beside the bar of its stage.
    fn label(&self, id: &JobId) -> String {
        let unit = || match id.unit {
            Unit::Run => String::new(),
            unit => unit.to_string(),
        };
        self.job_name(id).cloned().unwrap_or_else(unit)
    }
}

/// A single task with its own bar: hashing, verifying.
#[derive(Debug)]
pub struct Task<'d> {
    display: &'d Display,
    bar: Option<ProgressBar>,
    label: String,
    start: Instant,
}

impl Display {
    /// Chooses the format by the options and by whether standard error is a terminal.
    pub fn new(options: OutputArgs) -> Self {
        let format = match (options.quiet, options.log_format) {
            (true, _) => Format::Quiet,
            (false, LogFormat::Json) => Format::Json,
            (false, LogFormat::Text) if std::io::stderr().is_terminal() => Format::Bars,
            (false, LogFormat::Text) => Format::Lines,
        };
        let target = match format {
            Format::Bars => ProgressDrawTarget::stderr(),
            _ => ProgressDrawTarget::hidden(),
        };
        Self {
            format,
            verbosity: options.verbose,
            bars: MultiProgress::with_draw_target(target),
            stages: BTreeMap::new(),
        }
    }

    /// Number of `-v` options.
    pub fn verbosity(&self) -> u8 {
        self.verbosity
    }

    /// Shows a message.
    pub fn info(&self, text: &str) {
        match self.format {
            Format::Quiet => {}
            Format::Json => self.json("info", serde_json::json!({"message": text})),
            Format::Lines => print_line(text),
            Format::Bars => self.bars.suspend(|| print_line(text)),
        }
    }

    /// Shows a warning.
    pub fn warn(&self, text: &str) {
        match self.format {
            Format::Quiet => {}
            Format::Json => self.json("warning", serde_json::json!({"message": text})),
            Format::Lines | Format::Bars => self.info(&format!("warning: {text}")),
        }
    }

    /// Shows a message if `-v` was given.
    pub fn detail(&self, text: &str) {
        if self.verbosity > 0 {
            self.info(text);
        }
    }

    fn json(&self, level: &str, mut fields: serde_json::Value) {
        let now = std::time::SystemTime::now();
        fields["time"] = humantime::format_rfc3339_millis(now).to_string().into();
        fields["level"] = level.into();
        print_line(&fields.to_string());
    }

    /// Shows one bar per stage with work, given as (name, jobs done, jobs in total).
    pub fn start_stages(&mut self, stages: &[(String, u64, u64)]) {
        let width = stages
            .iter()
            .map(|(name, ..)| name.len())
            .max()
            .unwrap_or(0);
        let template = format!(
            "{{prefix:{width}}} {{bar:24}} {{pos:>4}}/{{len:<4}} {{rate:>9}} ETA {{eta:>4}}  {{msg}}"
        );
        for (name, done, total) in stages {
            let bar = (self.format == Format::Bars).then(|| {
                let style = ProgressStyle::with_template(&template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
                    .with_key("rate", write_rate);
                let bar = ProgressBar::new(*total)
                    .with_style(style)
                    .with_prefix(name.clone())
                    .with_position(*done);
                let bar = self.bars.add(bar);
                // Jobs of earlier sessions say nothing about the rate of this one.
                bar.reset_eta();
                bar
            });
            let view = StageProgress {
                done: *done,
                total: *total,
                bar,
                last_line: Instant::now(),
                job_names: BTreeMap::new(),
            };
            self.stages.insert(name.clone(), view);
        }
    }

    /// Names the jobs of a stage that works per shard.
    pub fn name_jobs(&mut self, stage: &str, names: BTreeMap<u32, String>) {
        if let Some(view) = self.stages.get_mut(stage) {
            view.job_names = names;
        }
    }

    /// The name of a job in messages.
    pub fn title(&self, id: &JobId) -> String {
        let view = self.stages.get(&id.stage);
        view.map_or_else(|| id.to_string(), |view| view.title(id))
    }

    /// A job started.
    pub fn job_started(&mut self, id: &JobId) {
        let format = self.format;
        let Some(view) = self.stages.get_mut(&id.stage) else {
            return;
        };
        view.last_line = Instant::now();
        if let Some(bar) = &view.bar {
            bar.set_message(view.label(id));
            bar.tick();
        }
        if format == Format::Lines {
            let title = view.title(id);
            self.detail(&format!("{title}: started"));
        }
    }

    /// A job reported progress.
    pub fn job_progress(&mut self, id: &JobId, done: u64, total: u64, unit: &str) {
        let format = self.format;
        let Some(view) = self.stages.get_mut(&id.stage) else {
            return;
        };
        let text = format_amount(done, total, unit);
        if let Some(bar) = &view.bar {
            bar.set_message(format!("{} {text}", view.label(id)));
        }
        let is_due = view.last_line.elapsed() >= LINE_INTERVAL;
        if is_due {
            view.last_line = Instant::now();
        }
        match format {
            Format::Lines if is_due => print_line(&format!("{}: {text}", view.title(id))),
            Format::Json if is_due => self.json(
                "info",
                serde_json::json!({"event": "progress", "stage": id.stage, "layer": id.unit.layer(), "shard": id.unit.shard(),
                                   "done": done, "total": total, "unit": unit}),
            ),
            _ => {}
        }
    }

    /// A job is done; `seconds` is absent if an earlier result turned out to be up to date.
    pub fn job_done(&mut self, id: &JobId, seconds: Option<f64>) {
        let format = self.format;
        let Some(view) = self.stages.get_mut(&id.stage) else {
            return;
        };
        view.done += 1;
        // The number of fetches is an estimate, unlike the number of layers.
        view.total = match view.job_names.is_empty() {
            true => view.total,
            false => view.total.max(view.done),
        };
        view.done = view.done.min(view.total);
        let (done, total) = (view.done, view.total);
        if let Some(bar) = &view.bar {
            bar.set_position(done);
            if done == total {
                bar.finish_with_message("");
            }
        }
        let outcome = match seconds {
            Some(seconds) => format!("done in {seconds:.1} s"),
            None => "already up to date".into(),
        };
        match format {
            Format::Lines => print_line(&format!("{}: {outcome} ({done}/{total})", view.title(id))),
            Format::Json => self.json(
                "info",
                serde_json::json!({"event": "finished", "stage": id.stage, "layer": id.unit.layer(), "shard": id.unit.shard(),
                                   "seconds": seconds, "done": done, "total": total}),
            ),
            Format::Quiet | Format::Bars => {}
        }
    }

    /// Removes the bars.
    pub fn end_stages(&mut self) {
        for view in self.stages.values() {
            if let Some(bar) = &view.bar {
                bar.abandon();
            }
        }
        self.stages.clear();
    }

    /// Starts a task that counts bytes.
    pub fn task(&self, label: &str, bytes: u64) -> Task<'_> {
        let bar = (self.format == Format::Bars).then(|| {
            let template = "{prefix} {bar:24} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}";
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(bytes)
                .with_style(style)
                .with_prefix(label.to_owned());
            self.bars.add(bar)
        });
        Task {
            display: self,
            bar,
            label: label.into(),
            start: Instant::now(),
        }
    }
}

impl Task<'_> {
    /// Adds to the bytes done.
    pub fn advance(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    /// Sets the bytes done.
    pub fn set(&self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    /// Ends a task that failed: nothing is reported as done.
    pub fn abandon(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Ends the task; one that took a second or more is reported.
    pub fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.start.elapsed().as_secs_f64();
        if seconds >= 1.0 {
            self.display
                .info(&format!("{}: done in {seconds:.1} s", self.label));
        }
    }
}

/// The progress of a job as text.
pub fn format_amount(done: u64, total: u64, unit: &str) -> String {
    match unit {
        "bytes" => format!("{} of {}", BinaryBytes(done), BinaryBytes(total)),
        _ => format!("{done}/{total} {unit}"),
    }
}

/// Writes jobs per second, or per minute if slow.
fn write_rate(state: &ProgressState, to: &mut dyn std::fmt::Write) {
    let per_second = state.per_sec();
    // Writing to the buffer of a bar cannot fail.
    let _ = match per_second < 0.5 {
        true => write!(to, "{:.1}/min", per_second * 60.0),
        false => write!(to, "{per_second:.1}/s"),
    };
}

/// Prints a line on standard error; errors are ignored, because there is nowhere left to report them.
fn print_line(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
