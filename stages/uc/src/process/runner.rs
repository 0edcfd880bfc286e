//! The one module that starts processes.
//!
//! A worker is one stage program that takes jobs on its standard input and tells events on its standard output. Its
//! standard error goes to the stage's log and, by the last lines, into the message when it fails. Workers are started
//! from the main thread: they ask the kernel to be killed when the thread that started them dies.
#![allow(clippy::disallowed_methods)] // the named exception: no other module starts a process

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use crossbeam_channel::Sender;
use rustix::process::{Pid, Signal, kill_process};
use uc_store::ExitCode;
use uc_store::events::{Event, JobRequest};

use crate::report::failure::failure;

/// Lines of a log that are kept for the message of a failure.
const TAIL_LINES: usize = 12;
/// Longest line that is taken from a stage; the rest of a longer one counts as another line.
const MAX_LINE: u64 = 1 << 20;

/// What workers and signals tell the driver.
#[derive(Debug)]
pub enum Message {
    /// An event of a job.
    Event {
        /// Which worker.
        worker: WorkerId,
        /// The event.
        event: Event,
    },
    /// A line of standard output that is no event.
    Noise {
        /// Which worker.
        worker: WorkerId,
        /// The line.
        line: String,
    },
    /// A line of a stage's log.
    Log {
        /// Stage name.
        stage: String,
        /// The line.
        line: String,
    },
    /// Standard output ended: the process is leaving or gone.
    Closed(WorkerId),
    /// SIGINT, SIGTERM or SIGHUP reached the driver.
    Signal,
}

/// One process of a stage; a restarted stage has another number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerId {
    /// Stage name.
    pub stage: String,
    /// Counts the processes of the run.
    pub number: u64,
}

/// How to start a worker.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Executable.
    pub program: Utf8PathBuf,
    /// Its first arguments.
    pub arguments: &'a [String],
    /// The run directory.
    pub run: &'a Utf8Path,
    /// Threads for its computations.
    pub threads: u32,
    /// Times `-v`.
    pub verbosity: u8,
    /// Where its standard error goes.
    pub log: Utf8PathBuf,
    /// Whether log lines are sent to the driver too.
    pub echo: bool,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With an exit status.
    Exit(u8),
    /// By a signal.
    Signal(i32),
}

impl Ending {
    fn of(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exit(code as u8),
            (None, signal) => Self::Signal(signal.unwrap_or(0)),
        }
    }

    /// The class that the process meant; death by a signal is a failed stage.
    pub fn class(self) -> ExitCode {
        match self {
            Self::Exit(code) => ExitCode::from_code(code)
                .filter(|class| !matches!(class, ExitCode::Ok | ExitCode::Interrupted))
                .unwrap_or(ExitCode::StageFailed),
            Self::Signal(_) => ExitCode::StageFailed,
        }
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "it left with exit status {code}"),
            Self::Signal(9) => {
                f.write_str("it was killed by signal 9 (the system does that when memory runs out)")
            }
            Self::Signal(signal) => write!(f, "it was killed by signal {signal}"),
        }
    }
}

/// A running stage program.
#[derive(Debug)]
pub struct Worker {
    id: WorkerId,
    child: Child,
    stdin: Option<ChildStdin>,
    tail: Arc<Mutex<VecDeque<String>>>,
    log_reader: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a stage program that waits for jobs.
    pub fn start(launch: &Launch<'_>, id: WorkerId, to: &Sender<Message>) -> anyhow::Result<Self> {
        let log = uc_store::atomic::open_log(&launch.log)?;
        let mut child = Command::new(&launch.program)
            .args(launch.arguments)
            .args(["--run", launch.run.as_str(), "--stage", &id.stage, "--jobs"])
            .args(std::iter::repeat_n("-v", launch.verbosity.into()))
            .env("RAYON_NUM_THREADS", launch.threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C reaches the driver alone, which then ends its stages in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", launch.program))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("no standard output")?;
        let stderr = child.stderr.take().context("no standard error")?;
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let (sender, worker) = (to.clone(), id.clone());
        std::thread::spawn(move || read_events(stdout, &worker, &sender));
        let (kept, sender) = (Arc::clone(&tail), launch.echo.then(|| to.clone()));
        let stage = id.stage.clone();
        let reader = std::thread::spawn(move || read_log(stderr, log, &kept, &stage, sender));
        Ok(Self {
            id,
            child,
            stdin,
            tail,
            log_reader: Some(reader),
        })
    }

    /// Which process this is.
    pub fn id(&self) -> &WorkerId {
        &self.id
    }

    /// Hands it a job.
    pub fn send(&mut self, request: &JobRequest) -> std::io::Result<()> {
        let line = serde_json::to_string(request)?;
        let closed = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let stdin = self.stdin.as_mut().ok_or_else(closed)?;
        stdin.write_all(line.as_bytes())?;
        stdin.write_all(b"\n")?;
        stdin.flush()
    }

    /// Tells it that no job follows; it leaves by itself.
    pub fn close(&mut self) {
        self.stdin = None;
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends it.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // A process that has just ended cannot be signalled, and need not be.
            let _ = kill_process(pid, signal);
        }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<Ending> {
        self.child.try_wait().ok().flatten().map(Ending::of)
    }

    /// Waits for its end; kills it when patience runs out.
    pub fn wait(&mut self, patience: Duration) -> Ending {
        let deadline = Instant::now() + patience;
        let ending = loop {
            if let Some(ending) = self.ended() {
                break ending;
            }
            if Instant::now() >= deadline {
                self.kill();
                break self.child.wait().map_or(Ending::Signal(9), Ending::of);
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        if let Some(reader) = self.log_reader.take() {
            // A panic of the reader would have been printed; the ending is known all the same.
            let _ = reader.join();
        }
        ending
    }

    /// The last lines of its log.
    pub fn last_lines(&self) -> Vec<String> {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.iter().cloned().collect()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // An error on the way out of the driver must not leave a process behind.
        if self.ended().is_none() {
            self.kill();
            let _ = self.child.wait();
        }
    }
}

/// Lines of at most [`MAX_LINE`] bytes, as text.
fn each_line(stream: impl std::io::Read, mut take: impl FnMut(String)) {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        match std::io::Read::take(&mut stream, MAX_LINE).read_until(b'\n', &mut line) {
            Ok(1..) => {
                let text = String::from_utf8_lossy(&line);
                take(text.trim_end_matches(['\n', '\r']).to_owned());
            }
            // A broken pipe is an ended one.
            Ok(0) | Err(_) => return,
        }
    }
}

fn read_events(stdout: impl std::io::Read, worker: &WorkerId, to: &Sender<Message>) {
    // The receiver is gone only when the driver is leaving.
    each_line(stdout, |line| {
        let worker = worker.clone();
        let _ = to.send(match serde_json::from_str(&line) {
            Ok(event) => Message::Event { worker, event },
            Err(_) => Message::Noise { worker, line },
        });
    });
    let _ = to.send(Message::Closed(worker.clone()));
}

fn read_log(
    stderr: impl std::io::Read,
    mut log: std::fs::File,
    tail: &Mutex<VecDeque<String>>,
    stage: &str,
    echo: Option<Sender<Message>>,
) {
    each_line(stderr, |line| {
        // A log that cannot be written (a full disk) must not stop the stage: its own writes will tell.
        let _ = log.write_all(format!("{line}\n").as_bytes());
        {
            let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(line.clone());
        }
        if let Some(to) = &echo {
            let stage = stage.to_owned();
            let _ = to.send(Message::Log { stage, line });
        }
    });
}

/// The output version that a stage program reports of itself.
pub fn describe(program: &Utf8Path, arguments: &[String]) -> anyhow::Result<u32> {
    #[derive(serde::Deserialize)]
    struct Description {
        version: u32,
    }
    let output = capture(program, arguments, &["--describe"])?;
    let description: Description = serde_json::from_slice(&output).map_err(|error| {
        let found = String::from_utf8_lossy(&output);
        let message = format!(
            "{program} --describe: found `{}`, expected a version as JSON: {error}",
            found.trim()
        );
        failure(ExitCode::StageFailed, message)
    })?;
    Ok(description.version)
}

/// Standard output of a short program; its failure is passed on with its own class and words. One that was killed is
/// asked once more.
pub fn capture(program: &Utf8Path, arguments: &[String], more: &[&str]) -> anyhow::Result<Vec<u8>> {
    let ask = || {
        let mut command = Command::new(program);
        command.args(arguments).args(more).stdin(Stdio::null());
        let output = command.output();
        output.with_context(|| format!("cannot start {program}"))
    };
    let mut output = ask()?;
    if matches!(Ending::of(output.status), Ending::Signal(_)) {
        output = ask()?;
    }
    if output.status.success() {
        return Ok(output.stdout);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words = words.trim();
    let words = words.strip_prefix("error: ").unwrap_or(words);
    let ending = Ending::of(output.status);
    let message = match words {
        "" => format!("{program} failed: {ending}"),
        words => words.to_owned(),
    };
    Err(failure(ending.class(), message))
}

/// Runs a long program to its end: lines `{"done":N,"total":M}` of its standard output are progress, the last line is
/// its answer; what it says on standard error is passed on. It ends with this process, whatever ends that.
pub fn follow(
    program: &Utf8Path,
    arguments: &[String],
    progress: &mut dyn FnMut(u64, u64),
    said: &mut dyn FnMut(&str),
) -> anyhow::Result<Vec<u8>> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Progress {
        done: u64,
        total: u64,
    }
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let stdout = child.stdout.take().context("no standard output")?;
    let stderr = child.stderr.take().context("no standard error")?;
    let (sender, lines) = crossbeam_channel::unbounded();
    let words = sender.clone();
    std::thread::spawn(move || each_line(stdout, |line| drop(sender.send((true, line)))));
    std::thread::spawn(move || each_line(stderr, |line| drop(words.send((false, line)))));
    let (mut answer, mut error) = (String::new(), None);
    for (is_output, line) in lines {
        match (is_output, serde_json::from_str::<Progress>(&line)) {
            (true, Ok(now)) => progress(now.done, now.total),
            (true, Err(_)) => answer = line,
            (false, _) => match line.strip_prefix("error: ") {
                Some(words) => error = Some(words.to_owned()),
                None => said(&line),
            },
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for {program}"))?;
    if status.success() {
        return Ok(answer.into_bytes());
    }
    let ending = Ending::of(status);
    let message = error.unwrap_or_else(|| format!("{program} failed: {ending}"));
    Err(failure(ending.class(), message))
}

/// Runs a program on this terminal until it ends; `stop` is asked now and then whether to end it.
pub fn foreground(
    program: &Utf8Path,
    arguments: &[String],
    threads: u32,
    stop: impl Fn() -> bool,
) -> anyhow::Result<Ending> {
    let mut child = Command::new(program)
        .args(arguments)
        .env("RAYON_NUM_THREADS", threads.to_string())
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for the stage")? {
            return Ok(Ending::of(status));
        }
        if stop() {
            child.kill().context("cannot end the stage")?;
            child.wait().context("cannot wait for the stage")?;
            return Err(failure(ExitCode::Interrupted, "interrupted"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
