//! What the user sees while work goes on, always on standard error: bars on a terminal, plain or JSON lines elsewhere.
//!
//! Only this module draws. Results go to standard output and are not its business.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{
    BinaryBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
};
use uc_store::logging::LogFormat;
use uc_store::plan::{JobId, Unit};

use crate::cli::OutputArgs;

/// How often a long job without a terminal tells how far it is.
const LINE_INTERVAL: Duration = Duration::from_secs(30);

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Quiet,
    Lines,
    Json,
    Bars,
}

/// The user's view of the work.
#[derive(Debug)]
pub struct Display {
    form: Form,
    verbosity: u8,
    bars: MultiProgress,
    stages: BTreeMap<String, StageView>,
}

/// One stage's share.
#[derive(Debug)]
struct StageView {
    done: u64,
    total: u64,
    bar: Option<ProgressBar>,
    last_line: Instant,
    /// What its jobs are about, where that is no layer.
    subjects: BTreeMap<u32, String>,
}

impl StageView {
    /// A job in words.
    fn title(&self, id: &JobId) -> String {
        match self.subject(id) {
            Some(subject) => format!("{} of {subject}", id.stage),
            None => id.to_string(),
        }
    }

    fn subject(&self, id: &JobId) -> Option<&String> {
        self.subjects.get(&id.unit.shard()?)
    }

    /// What a job is about, beside the bar of its stage.
    fn place(&self, id: &JobId) -> String {
        let unit = || match id.unit {
            Unit::Run => String::new(),
            unit => unit.to_string(),
        };
        self.subject(id).cloned().unwrap_or_else(unit)
    }
}

/// A single piece of work with a bar of its own: hashing, verifying.
#[derive(Debug)]
pub struct Task<'d> {
    display: &'d Display,
    bar: Option<ProgressBar>,
    label: String,
    start: Instant,
}

impl Display {
    /// Chooses the form by options and by where standard error goes.
    pub fn new(options: OutputArgs) -> Self {
        let form = match (options.quiet, options.log_format) {
            (true, _) => Form::Quiet,
            (false, LogFormat::Json) => Form::Json,
            (false, LogFormat::Text) if std::io::stderr().is_terminal() => Form::Bars,
            (false, LogFormat::Text) => Form::Lines,
        };
        let target = match form {
            Form::Bars => ProgressDrawTarget::stderr(),
            _ => ProgressDrawTarget::hidden(),
        };
        Self {
            form,
            verbosity: options.verbose,
            bars: MultiProgress::with_draw_target(target),
            stages: BTreeMap::new(),
        }
    }

    /// Times `-v`.
    pub fn verbosity(&self) -> u8 {
        self.verbosity
    }

    /// Says something worth knowing.
    pub fn say(&self, text: &str) {
        match self.form {
            Form::Quiet => {}
            Form::Json => self.json("info", serde_json::json!({"message": text})),
            Form::Lines => line(text),
            Form::Bars => self.bars.suspend(|| line(text)),
        }
    }

    /// Says something that may be wrong.
    pub fn warn(&self, text: &str) {
        match self.form {
            Form::Quiet => {}
            Form::Json => self.json("warning", serde_json::json!({"message": text})),
            Form::Lines | Form::Bars => self.say(&format!("warning: {text}")),
        }
    }

    /// Says something for those who asked for more.
    pub fn detail(&self, text: &str) {
        if self.verbosity > 0 {
            self.say(text);
        }
    }

    fn json(&self, level: &str, mut fields: serde_json::Value) {
        let now = std::time::SystemTime::now();
        fields["time"] = humantime::format_rfc3339_millis(now).to_string().into();
        fields["level"] = level.into();
        line(&fields.to_string());
    }

    /// Shows one bar per stage that has work: name, jobs done, jobs in all.
    pub fn begin_stages(&mut self, stages: &[(String, u64, u64)]) {
        let width = stages
            .iter()
            .map(|(name, ..)| name.len())
            .max()
            .unwrap_or(0);
        let template = format!(
            "{{prefix:{width}}} {{bar:24}} {{pos:>4}}/{{len:<4}} {{rate:>9}} ETA {{eta:>4}}  {{msg}}"
        );
        for (name, done, total) in stages {
            let bar = (self.form == Form::Bars).then(|| {
                let style = ProgressStyle::with_template(&template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
                    .with_key("rate", rate);
                let bar = ProgressBar::new(*total)
                    .with_style(style)
                    .with_prefix(name.clone())
                    .with_position(*done);
                let bar = self.bars.add(bar);
                // What earlier sessions did says nothing about the rate of this one.
                bar.reset_eta();
                bar
            });
            let view = StageView {
                done: *done,
                total: *total,
                bar,
                last_line: Instant::now(),
                subjects: BTreeMap::new(),
            };
            self.stages.insert(name.clone(), view);
        }
    }

    /// Says what the jobs of a stage are about, by their number, where that is no layer.
    pub fn name_jobs(&mut self, stage: &str, subjects: BTreeMap<u32, String>) {
        if let Some(view) = self.stages.get_mut(stage) {
            view.subjects = subjects;
        }
    }

    /// A job in words.
    pub fn title(&self, id: &JobId) -> String {
        let view = self.stages.get(&id.stage);
        view.map_or_else(|| id.to_string(), |view| view.title(id))
    }

    /// A job began.
    pub fn job_started(&mut self, id: &JobId) {
        let form = self.form;
        let Some(view) = self.stages.get_mut(&id.stage) else {
            return;
        };
        view.last_line = Instant::now();
        if let Some(bar) = &view.bar {
            bar.set_message(view.place(id));
            bar.tick();
        }
        if form == Form::Lines {
            let title = view.title(id);
            self.detail(&format!("{title}: started"));
        }
    }

    /// A job told how far it is.
    pub fn job_progress(&mut self, id: &JobId, done: u64, total: u64, unit: &str) {
        let form = self.form;
        let Some(view) = self.stages.get_mut(&id.stage) else {
            return;
        };
        let text = amount(done, total, unit);
        if let Some(bar) = &view.bar {
            bar.set_message(format!("{} {text}", view.place(id)));
        }
        let due = view.last_line.elapsed() >= LINE_INTERVAL;
        if due {
            view.last_line = Instant::now();
        }
        match form {
            Form::Lines if due => line(&format!("{}: {text}", view.title(id))),
            Form::Json if due => self.json(
                "info",
                serde_json::json!({"event": "progress", "stage": id.stage, "layer": id.unit.layer(), "shard": id.unit.shard(),
                                   "done": done, "total": total, "unit": unit}),
            ),
            _ => {}
        }
    }

    /// A job is done; `seconds` is absent where an earlier result turned out to be good.
    pub fn job_done(&mut self, id: &JobId, seconds: Option<f64>) {
        let form = self.form;
        let Some(view) = self.stages.get_mut(&id.stage) else {
            return;
        };
        view.done += 1;
        // How many shards come is an estimate; how many layers there are is not.
        view.total = match view.subjects.is_empty() {
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
        let how = match seconds {
            Some(seconds) => format!("done in {seconds:.1} s"),
            None => "is good as it was".into(),
        };
        match form {
            Form::Lines => line(&format!("{}: {how} ({done}/{total})", view.title(id))),
            Form::Json => self.json(
                "info",
                serde_json::json!({"event": "finished", "stage": id.stage, "layer": id.unit.layer(), "shard": id.unit.shard(),
                                   "seconds": seconds, "done": done, "total": total}),
            ),
            Form::Quiet | Form::Bars => {}
        }
    }

    /// Takes the bars away.
    pub fn end_stages(&mut self) {
        for view in self.stages.values() {
            if let Some(bar) = &view.bar {
                bar.abandon();
            }
        }
        self.stages.clear();
    }

    /// Begins a piece of work that counts bytes.
    pub fn task(&self, label: &str, bytes: u64) -> Task<'_> {
        let bar = (self.form == Form::Bars).then(|| {
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
    /// Adds work done.
    pub fn advance(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    /// Sets work done.
    pub fn set(&self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    /// Ends it; work of more than a second is mentioned.
    pub fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.start.elapsed().as_secs_f64();
        if seconds >= 1.0 {
            self.display
                .say(&format!("{}: done in {seconds:.1} s", self.label));
        }
    }
}

/// How much of what is done.
pub fn amount(done: u64, total: u64, unit: &str) -> String {
    match unit {
        "bytes" => format!("{} of {}", BinaryBytes(done), BinaryBytes(total)),
        _ => format!("{done}/{total} {unit}"),
    }
}

/// Jobs per second, or per minute where that reads better.
fn rate(state: &ProgressState, to: &mut dyn std::fmt::Write) {
    let per_second = state.per_sec();
    // The bar's buffer takes any text.
    let _ = match per_second < 0.5 {
        true => write!(to, "{:.1}/min", per_second * 60.0),
        false => write!(to, "{per_second:.1}/s"),
    };
}

/// One line on standard error; a closed one is nobody's loss.
fn line(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
