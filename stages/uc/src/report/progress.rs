//! Progress for the user, always on standard error: rows on a terminal, plain or JSON lines elsewhere.
//!
//! Only this module draws; `rows` makes the text. It never prints results, which go to standard output.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{
    BinaryBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
};
use uc_store::logging::LogFormat;
use uc_store::output::print_message;
use uc_store::plan::{JobId, Unit};

use crate::cli::OutputArgs;
use crate::report::colour;
use crate::report::event_log_replay::StageCost;
use crate::report::outlook::{self, Expectation, Outlook, StageWork};
use crate::report::terminal::{self, HiddenControls};

mod rows;

use rows::{StageRow, TotalRow};

/// Interval of progress lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(30);
/// Interval at which the rows are drawn again at most.
const DRAW_INTERVAL: Duration = Duration::from_millis(100);

/// Output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Quiet,
    Lines,
    Json,
    Rows,
}

/// The display of a session.
#[derive(Debug)]
pub struct Display {
    format: Format,
    verbosity: u8,
    bars: MultiProgress,
    /// The rows of the stages, as one bar of several lines.
    block: Option<ProgressBar>,
    /// The change of the terminal while something is drawn.
    controls: Arc<Option<HiddenControls>>,
    stages: Vec<StageProgress>,
    expectation: Option<Expectation>,
    start: Instant,
    /// Sum of the times of the jobs that this session has finished, seconds.
    job_seconds: f64,
    last_drawn: Instant,
    last_line: Instant,
}

/// The progress of one stage.
#[derive(Debug)]
struct StageProgress {
    name: String,
    done: u64,
    total: u64,
    /// Jobs and seconds of all sessions, as far as they were measured.
    measured: (u64, f64),
    has_started: bool,
    running: Option<RunningJob>,
    last_line: Instant,
    /// Names of what its jobs work on, by shard; empty for other jobs.
    job_names: BTreeMap<u32, String>,
}

/// The job that a stage is running.
#[derive(Debug)]
struct RunningJob {
    label: String,
    /// The progress in words.
    amount: String,
    /// The share that is done, 0 to 1.
    share: f64,
    start: Instant,
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

    /// The label of a job beside its stage.
    fn label(&self, id: &JobId) -> String {
        let unit = || match id.unit {
            Unit::Run => String::new(),
            unit => unit.to_string(),
        };
        self.job_name(id).cloned().unwrap_or_else(unit)
    }

    fn work(&self) -> StageWork {
        let share = self.running.as_ref().map_or(0.0, |job| job.share);
        StageWork {
            name: self.name.clone(),
            done: self.done as f64 + share,
            total: self.total as f64,
            measured_jobs: self.measured.0,
            measured_seconds: self.measured.1,
        }
    }

    /// Its row; `expected` is the forecast of the seconds of a job.
    fn row(&self, expected: Option<f64>) -> StageRow<'_> {
        let open = self.work().total - self.work().done;
        let mean = match self.measured {
            (0, _) => expected,
            (jobs, seconds) => Some(seconds / jobs as f64),
        };
        StageRow {
            name: &self.name,
            done: self.done,
            total: self.total,
            running: self
                .running
                .as_ref()
                // The names of shards come from outside.
                .map(|job| {
                    uc_input::printable(&format!("{} {}", job.label, job.amount)).into_owned()
                }),
            seconds_left: mean
                .filter(|_| self.running.is_some())
                .map(|seconds| open * seconds),
        }
    }
}

/// A single task with its own row: hashing, verifying.
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
            (false, LogFormat::Text) if std::io::stderr().is_terminal() => Format::Rows,
            (false, LogFormat::Text) => Format::Lines,
        };
        let target = match format {
            Format::Rows => ProgressDrawTarget::stderr(),
            _ => ProgressDrawTarget::hidden(),
        };
        let controls = match format {
            Format::Rows => HiddenControls::new(),
            _ => None,
        };
        let now = Instant::now();
        Self {
            format,
            verbosity: options.verbose,
            bars: MultiProgress::with_draw_target(target),
            block: None,
            controls: Arc::new(controls),
            stages: Vec::new(),
            expectation: None,
            start: now,
            job_seconds: 0.0,
            last_drawn: now,
            last_line: now,
        }
    }

    /// An action that removes everything that is drawn and restores the terminal, for the moment before the process ends.
    pub fn cleaner(&self) -> impl Fn() + Send + use<> {
        let bars = self.bars.clone();
        let controls = Arc::downgrade(&self.controls);
        move || {
            if let Some(controls) = controls.upgrade().as_deref().and_then(Option::as_ref) {
                controls.restore();
            }
            // A terminal that cannot be cleared is left as it is.
            let _ = bars.clear();
            bars.set_draw_target(ProgressDrawTarget::hidden());
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
            Format::Lines => print_message(colour::message(text)),
            Format::Rows => {
                // The next tick draws the rows again, below the message. `suspend` would panic on a terminal that is gone.
                if self.bars.clear().is_err() {
                    self.bars.set_draw_target(ProgressDrawTarget::hidden());
                }
                print_message(colour::message(text));
            }
        }
    }

    /// Shows a warning.
    pub fn warn(&self, text: &str) {
        match self.format {
            Format::Quiet => {}
            Format::Json => self.json("warning", serde_json::json!({"message": text})),
            Format::Lines | Format::Rows => self.info(&format!("warning: {text}")),
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
        print_message(fields);
    }

    /// What the run is expected to take, shown until jobs are measured.
    pub fn expect(&mut self, expectation: Option<Expectation>) {
        self.expectation = expectation;
    }

    /// What the run is expected to take.
    pub fn expectation(&self) -> Option<&Expectation> {
        self.expectation.as_ref()
    }

    /// Begins to show the stages, given as (name, jobs done, jobs in total), with what earlier sessions measured.
    pub fn start_stages(
        &mut self,
        stages: &[(String, u64, u64)],
        costs: &BTreeMap<String, StageCost>,
    ) {
        let now = Instant::now();
        (self.start, self.last_drawn, self.last_line) = (now, now, now);
        self.job_seconds = 0.0;
        let stages = stages.iter().map(|(name, done, total)| StageProgress {
            name: name.clone(),
            done: *done,
            total: *total,
            measured: costs
                .get(name)
                .map_or((0, 0.0), |cost| (cost.jobs, cost.seconds)),
            has_started: false,
            running: None,
            last_line: now,
            job_names: BTreeMap::new(),
        });
        self.stages = stages.collect();
        if self.format == Format::Rows {
            let style = ProgressStyle::with_template("{msg}");
            let bar = ProgressBar::no_length()
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            self.block = Some(self.bars.add(bar));
            self.draw();
        }
    }

    fn stage(&mut self, name: &str) -> Option<&mut StageProgress> {
        self.stages.iter_mut().find(|stage| stage.name == name)
    }

    /// Names the jobs of a stage that works per shard.
    pub fn name_jobs(&mut self, stage: &str, names: BTreeMap<u32, String>) {
        if let Some(view) = self.stage(stage) {
            view.job_names = names;
        }
    }

    /// The name of a job in messages.
    pub fn title(&self, id: &JobId) -> String {
        let view = self.stages.iter().find(|stage| stage.name == id.stage);
        view.map_or_else(|| id.to_string(), |view| view.title(id))
    }

    /// Share done and time left of the run.
    fn outlook(&self) -> Outlook {
        let works: Vec<StageWork> = self.stages.iter().map(StageProgress::work).collect();
        let running = self
            .stages
            .iter()
            .filter_map(|stage| stage.running.as_ref());
        let running: f64 = running.map(|job| job.start.elapsed().as_secs_f64()).sum();
        let session = outlook::Session {
            seconds: self.start.elapsed().as_secs_f64(),
            job_seconds: self.job_seconds + running,
        };
        outlook::outlook(&works, self.expectation.as_ref(), session)
    }

    /// Draws the rows again if they are old enough; to be called often.
    pub fn tick(&mut self) {
        if self.block.is_some() && self.last_drawn.elapsed() >= DRAW_INTERVAL {
            self.draw();
        }
    }

    fn draw(&mut self) {
        let Some(block) = &self.block else { return };
        // What a terminal that is gone does not take would be kept in memory.
        if !std::io::stderr().is_terminal() {
            self.bars.set_draw_target(ProgressDrawTarget::hidden());
        }
        let jobs = |count: fn(&StageProgress) -> u64| self.stages.iter().map(count).sum();
        let total = TotalRow {
            outlook: self.outlook(),
            done: jobs(|stage| stage.done),
            total: jobs(|stage| stage.total),
            seconds: self.start.elapsed().as_secs_f64(),
        };
        let expected = |stage: &str| {
            let expectation = self.expectation.as_ref()?;
            expectation.seconds_per_job.get(stage).copied()
        };
        let is_shown = |stage: &&StageProgress| stage.has_started && stage.done < stage.total;
        let stages: Vec<StageRow<'_>> = self
            .stages
            .iter()
            .filter(is_shown)
            .map(|stage| stage.row(expected(&stage.name)))
            .collect();
        let names = self.stages.iter().map(|stage| stage.name.len());
        let width = names.max().unwrap_or(0).max("total".len());
        let rows = rows::block(&stages, total, width, terminal::stderr_size());
        block.set_message(rows.join("\n"));
        self.last_drawn = Instant::now();
    }

    /// A job started.
    pub fn job_started(&mut self, id: &JobId) {
        let Some(view) = self.stage(&id.stage) else {
            return;
        };
        view.last_line = Instant::now();
        view.has_started = true;
        view.running = Some(RunningJob {
            label: view.label(id),
            amount: String::new(),
            share: 0.0,
            start: Instant::now(),
        });
        let title = view.title(id);
        if self.format == Format::Lines {
            self.detail(&format!("{title}: started"));
        }
        self.tick();
    }

    /// A job reported progress.
    pub fn job_progress(&mut self, id: &JobId, done: u64, total: u64, unit: &str) {
        let Some(view) = self.stage(&id.stage) else {
            return;
        };
        let text = format_amount(done, total, unit);
        if let Some(job) = &mut view.running {
            job.amount.clone_from(&text);
            job.share = (done as f64 / total.max(1) as f64).min(1.0);
        }
        let is_due = view.last_line.elapsed() >= LINE_INTERVAL;
        if is_due {
            view.last_line = Instant::now();
        }
        let title = view.title(id);
        match self.format {
            Format::Lines if is_due => self.info(&format!("{title}: {text}")),
            Format::Json if is_due => self.json(
                "info",
                serde_json::json!({"event": "progress", "stage": id.stage, "layer": id.unit.layer(), "shard": id.unit.shard(),
                                   "done": done, "total": total, "unit": unit}),
            ),
            _ => {}
        }
        self.tick();
    }

    /// A job failed or was interrupted.
    pub fn job_ended(&mut self, id: &JobId) {
        if let Some(view) = self.stage(&id.stage) {
            view.running = None;
        }
        self.tick();
    }

    /// A job is done; `seconds` is absent if an earlier result turned out to be up to date.
    pub fn job_done(&mut self, id: &JobId, seconds: Option<f64>) {
        let Some(view) = self.stage(&id.stage) else {
            return;
        };
        view.running = None;
        view.done += 1;
        // The number of fetches is an estimate, unlike the number of layers.
        view.total = match view.job_names.is_empty() {
            true => view.total,
            false => view.total.max(view.done),
        };
        view.done = view.done.min(view.total);
        if let Some(seconds) = seconds {
            view.measured = (view.measured.0 + 1, view.measured.1 + seconds);
        }
        let (done, total, title) = (view.done, view.total, view.title(id));
        self.job_seconds += seconds.unwrap_or(0.0);
        let outcome = match seconds {
            Some(seconds) => format!("done in {seconds:.1} s"),
            None => "already up to date".into(),
        };
        match self.format {
            Format::Lines => {
                self.info(&format!("{title}: {outcome} ({done}/{total})"));
                self.print_total();
            }
            Format::Json => self.json(
                "info",
                serde_json::json!({"event": "finished", "stage": id.stage, "layer": id.unit.layer(), "shard": id.unit.shard(),
                                   "seconds": seconds, "done": done, "total": total}),
            ),
            Format::Quiet | Format::Rows => {}
        }
        self.tick();
    }

    /// Prints the total as a line, if the last such line is old enough.
    fn print_total(&mut self) {
        if self.last_line.elapsed() < LINE_INTERVAL {
            return;
        }
        self.last_line = Instant::now();
        let outlook = self.outlook();
        let left = match rows::time_left(&outlook) {
            left if left.is_empty() => left,
            left => format!(", {left}"),
        };
        print_message(format_args!(
            "total: {:.0} %{left}",
            (outlook.share * 100.0).floor()
        ));
    }

    /// Removes the rows.
    pub fn end_stages(&mut self) {
        if let Some(block) = self.block.take() {
            block.finish_and_clear();
            self.bars.remove(&block);
        }
        self.stages.clear();
    }

    /// Starts a task that counts bytes.
    pub fn task(&self, label: &str, bytes: u64) -> Task<'_> {
        let bar = (self.format == Format::Rows).then(|| {
            let name = label.to_owned();
            let write = move |state: &ProgressState, to: &mut dyn std::fmt::Write| {
                let columns = terminal::stderr_size().columns;
                // Writing to the buffer of a bar cannot fail.
                let _ = to.write_str(&task_row(&name, state, columns));
            };
            let style = ProgressStyle::with_template("{row}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(bytes).with_style(style.with_key("row", write));
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

/// The row of a task: label, bar, bytes, time left.
fn task_row(label: &str, state: &ProgressState, columns: usize) -> String {
    let (done, total) = (state.pos(), state.len().unwrap_or(0));
    let amount = match total {
        0 => BinaryBytes(done).to_string(),
        total => format_amount(done, total, "bytes"),
    };
    let left = match state.eta().as_secs() {
        0 => String::new(),
        seconds => format!("  {} left", outlook::coarse_duration(seconds as f64)),
    };
    let bar_width = if columns < 70 || total == 0 { 0 } else { 10 };
    let bar = rows::bar(done as f64 / total.max(1) as f64, bar_width);
    terminal::truncate(
        &format!("{label} {bar}{amount}{left}"),
        columns.saturating_sub(1),
    )
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
