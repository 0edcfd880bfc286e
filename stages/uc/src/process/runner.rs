//! The only module that starts processes.
//!
//! A worker is a stage program that reads jobs from its standard input and writes events to its standard output. Its
//! standard error goes to the stage's log; the last lines are quoted if it fails. Workers must be started from the main
//! thread: they ask the kernel to kill them when the thread that started them dies.
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

/// Lines of the log that are quoted when a worker fails.
const TAIL_LINES: usize = 12;
/// Longest line that is read from a stage, bytes; a longer one is split.
const MAX_LINE: u64 = 1 << 20;

/// Most characters of a program's output that an error shows.
const MAX_SHOWN: usize = 200;
/// Variables that hold the Hub's token or the path of a file that does. `HF_HOME` stays: it holds no secret.
const TOKEN_VARIABLES: [&str; 4] = [
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "HUGGING_FACE_HUB_TOKEN",
    "HUGGINGFACEHUB_API_TOKEN",
];

/// What the driver receives from workers and signals.
#[derive(Debug)]
pub enum Message {
    /// An event of a job.
    Event {
        /// Which worker.
        worker: WorkerId,
        /// The event.
        event: Event,
    },
    /// A line of standard output that is not an event.
    StrayOutput {
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
    /// Standard output was closed: the process is exiting or has exited.
    Closed(WorkerId),
    /// SIGINT, SIGTERM or SIGHUP reached the driver.
    Signal,
}

/// Identifies a process of a stage; a restarted stage has another number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerId {
    /// Stage name.
    pub stage: String,
    /// Ordinal of the process within the session.
    pub number: u64,
}

/// How to start a worker.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Executable.
    pub program: Utf8PathBuf,
    /// Its leading arguments.
    pub arguments: &'a [String],
    /// The run directory.
    pub run: &'a Utf8Path,
    /// Threads for its computations.
    pub threads: u32,
    /// Number of `-v` options.
    pub verbosity: u8,
    /// Where its standard error goes.
    pub log: Utf8PathBuf,
    /// Whether log lines are also sent to the driver.
    pub echo: bool,
}

/// How a process exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// With an exit status.
    Exit(u8),
    /// By a signal.
    Signal(i32),
}

impl ExitKind {
    fn from_status(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exit(code as u8),
            (None, signal) => Self::Signal(signal.unwrap_or(0)),
        }
    }

    /// Success, or a failure of the stage with its class.
    pub fn into_result(self) -> anyhow::Result<()> {
        match self {
            Self::Exit(0) => Ok(()),
            other => Err(failure(other.class(), format!("the stage failed: {other}"))),
        }
    }

    /// The failure class of the exit status; death by a signal is a failed stage.
    pub fn class(self) -> ExitCode {
        match self {
            Self::Exit(code) => ExitCode::from_code(code)
                .filter(|class| !matches!(class, ExitCode::Ok | ExitCode::Interrupted))
                .unwrap_or(ExitCode::StageFailed),
            Self::Signal(_) => ExitCode::StageFailed,
        }
    }
}

impl std::fmt::Display for ExitKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "it exited with status {code}"),
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
        let log = uc_store::atomic::open_log_below(launch.run, &launch.log)?;
        let mut child = command(&launch.program, launch.arguments)
            .args(["--run", launch.run.as_str(), "--stage", &id.stage, "--jobs"])
            .args(std::iter::repeat_n("-v", launch.verbosity.into()))
            .env("RAYON_NUM_THREADS", launch.threads.to_string())
            .envs(allocator_variables())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C reaches only the driver, which then stops its stages in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", launch.program))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("no standard output")?;
        let stderr = child.stderr.take().context("no standard error")?;
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let (sender, worker) = (to.clone(), id.clone());
        std::thread::spawn(move || read_events(stdout, &worker, &sender));
        let (log_tail, sender) = (Arc::clone(&tail), launch.echo.then(|| to.clone()));
        let stage = id.stage.clone();
        let reader = std::thread::spawn(move || read_log(stderr, log, &log_tail, &stage, sender));
        Ok(Self {
            id,
            child,
            stdin,
            tail,
            log_reader: Some(reader),
        })
    }

    /// The identity of the process.
    pub fn id(&self) -> &WorkerId {
        &self.id
    }

    /// Sends it a job.
    pub fn send(&mut self, request: &JobRequest) -> std::io::Result<()> {
        let line = serde_json::to_string(request)?;
        let closed = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let stdin = self.stdin.as_mut().ok_or_else(closed)?;
        stdin.write_all(line.as_bytes())?;
        stdin.write_all(b"\n")?;
        stdin.flush()
    }

    /// Signals that no further job follows; the process then exits by itself.
    pub fn close(&mut self) {
        self.stdin = None;
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends SIGKILL.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // A process that has just exited cannot be signalled and need not be.
            let _ = kill_process(pid, signal);
        }
    }

    /// How it exited, if it has.
    pub fn try_exit(&mut self) -> Option<ExitKind> {
        self.child
            .try_wait()
            .ok()
            .flatten()
            .map(ExitKind::from_status)
    }

    /// Waits for it to exit; kills it after the timeout.
    pub fn wait(&mut self, timeout: Duration) -> ExitKind {
        let deadline = Instant::now() + timeout;
        let exit = loop {
            if let Some(exit) = self.try_exit() {
                break exit;
            }
            if Instant::now() >= deadline {
                self.kill();
                break self
                    .child
                    .wait()
                    .map_or(ExitKind::Signal(9), ExitKind::from_status);
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        if let Some(reader) = self.log_reader.take() {
            // A panic of the reader has been printed; the exit kind is known regardless.
            let _ = reader.join();
        }
        exit
    }

    /// The last lines of its log.
    pub fn last_lines(&self) -> Vec<String> {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.iter().cloned().collect()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // An error in the driver must not leave a process behind.
        if self.try_exit().is_none() {
            self.kill();
            let _ = self.child.wait();
        }
    }
}

/// A command for a program with its first arguments. Only a task that talks to the Hub gets the Hub's token.
fn command(program: &Utf8Path, arguments: &[String]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    if !uses_hub(program, arguments) {
        for variable in TOKEN_VARIABLES {
            command.env_remove(variable);
        }
    }
    command
}

/// Environment variable with the settings of the allocator of glibc.
const ALLOCATOR: &str = "GLIBC_TUNABLES";
/// Keeps freed memory of up to 1 GiB in the process and takes it in pages of 2 MiB. By default glibc maps and unmaps every tensor, and
/// the faults of its pages of 4 KiB take a fifth of a pass. Tensors above 256 MiB are still mapped, so that their memory goes back at
/// once. One arena, because a stage allocates on few threads and each arena would keep memory of its own.
const KEEP_MEMORY: &str = "glibc.malloc.mmap_threshold=268435456:glibc.malloc.trim_threshold=1073741824:glibc.malloc.hugetlb=1:\
    glibc.malloc.arena_max=1";

/// The settings of a stage program's allocator, unless the user has chosen some. Other C libraries ignore them.
fn allocator_variables() -> Option<(&'static str, &'static str)> {
    std::env::var_os(ALLOCATOR)
        .is_none()
        .then_some((ALLOCATOR, KEEP_MEMORY))
}

/// Whether a task of a stage program talks to the Hub.
fn uses_hub(program: &Utf8Path, arguments: &[String]) -> bool {
    let task = arguments.first().map_or("", String::as_str);
    match program.file_name() {
        Some("shard-loader") => matches!(task, "fetch" | "shard"),
        Some("hub-upload") => matches!(task, "repository" | "layer" | "pack"),
        _ => false,
    }
}

/// Passes on every line of a stream, at most [`MAX_LINE`] bytes at a time.
fn for_each_line(stream: impl std::io::Read, mut consume: impl FnMut(String)) {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        match std::io::Read::take(&mut stream, MAX_LINE).read_until(b'\n', &mut line) {
            Ok(1..) => {
                let text = String::from_utf8_lossy(&line);
                consume(text.trim_end_matches(['\n', '\r']).to_owned());
            }
            // A broken pipe counts as the end of the stream.
            Ok(0) | Err(_) => return,
        }
    }
}

fn read_events(stdout: impl std::io::Read, worker: &WorkerId, to: &Sender<Message>) {
    // The receiver is dropped only when the driver exits.
    for_each_line(stdout, |line| {
        let worker = worker.clone();
        let _ = to.send(match serde_json::from_str(&line) {
            Ok(event) => Message::Event { worker, event },
            Err(_) => Message::StrayOutput { worker, line },
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
    for_each_line(stderr, |line| {
        // A log that cannot be written (disk full) must not stop the stage: its own writes will report the error.
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

/// The output version that a stage program reports. It gets no argument but `--describe`.
pub fn output_version(program: &Utf8Path) -> anyhow::Result<u32> {
    #[derive(serde::Deserialize)]
    struct Description {
        version: u32,
    }
    let output = capture(program, &[], &["--describe"])?;
    let description: Description = serde_json::from_slice(&output).map_err(|error| {
        let found: String = String::from_utf8_lossy(&output)
            .chars()
            .take(MAX_SHOWN)
            .collect();
        let message = format!(
            "{program} --describe: found `{}`, expected a version as JSON: {error}",
            uc_input::printable(found.trim())
        );
        failure(ExitCode::StageFailed, message)
    })?;
    Ok(description.version)
}

/// Runs a short program and returns its standard output. A failure keeps the program's class and message. A program that
/// was killed is run a second time.
pub fn capture(program: &Utf8Path, arguments: &[String], more: &[&str]) -> anyhow::Result<Vec<u8>> {
    let run = || {
        let mut command = command(program, arguments);
        let output = command.args(more).stdin(Stdio::null()).output();
        output.with_context(|| format!("cannot start {program}"))
    };
    let mut output = run()?;
    if matches!(ExitKind::from_status(output.status), ExitKind::Signal(_)) {
        output = run()?;
    }
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let text = text.trim();
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let exit = ExitKind::from_status(output.status);
    let message = match text {
        "" => format!("{program} failed: {exit}"),
        text => text.to_owned(),
    };
    Err(failure(exit.class(), message))
}

/// Runs a long program: lines `{"done":N,"total":M}` of its standard output are progress, the last other line is the
/// result, and lines of standard error are passed on. The program exits when this process does, even if this process is
/// killed.
pub fn run_with_progress(
    program: &Utf8Path,
    arguments: &[String],
    progress: &mut dyn FnMut(u64, u64),
    on_log_line: &mut dyn FnMut(&str),
) -> anyhow::Result<Vec<u8>> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Progress {
        done: u64,
        total: u64,
    }
    let mut child = command(program, arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let stdout = child.stdout.take().context("no standard output")?;
    let stderr = child.stderr.take().context("no standard error")?;
    let (sender, lines) = crossbeam_channel::unbounded();
    let log_sender = sender.clone();
    std::thread::spawn(move || for_each_line(stdout, |line| drop(sender.send((true, line)))));
    std::thread::spawn(move || for_each_line(stderr, |line| drop(log_sender.send((false, line)))));
    let (mut result, mut error) = (String::new(), None);
    for (is_output, line) in lines {
        match (is_output, serde_json::from_str::<Progress>(&line)) {
            (true, Ok(now)) => progress(now.done, now.total),
            (true, Err(_)) => result = line,
            (false, _) => match line.strip_prefix("error: ") {
                Some(message) => error = Some(message.to_owned()),
                None => on_log_line(&line),
            },
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for {program}"))?;
    if status.success() {
        return Ok(result.into_bytes());
    }
    let exit = ExitKind::from_status(status);
    let message = error.unwrap_or_else(|| format!("{program} failed: {exit}"));
    Err(failure(exit.class(), message))
}

/// Runs a program on this terminal until it exits; `stop` is polled and ends it.
pub fn foreground(
    program: &Utf8Path,
    arguments: &[String],
    threads: u32,
    stop: impl Fn() -> bool,
) -> anyhow::Result<ExitKind> {
    let mut child = command(program, arguments)
        .env("RAYON_NUM_THREADS", threads.to_string())
        .envs(allocator_variables())
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for the stage")? {
            return Ok(ExitKind::from_status(status));
        }
        if stop() {
            child.kill().context("cannot stop the stage")?;
            child.wait().context("cannot wait for the stage")?;
            return Err(failure(ExitCode::Interrupted, "interrupted"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tasks_that_talk_to_the_hub_get_its_token() {
        let gets_token = |program: &str, task: &str| {
            let arguments = [task.to_owned()];
            let command = command(Utf8Path::new(program), &arguments);
            let mut removed = command.get_envs().filter(|(_, value)| value.is_none());
            !removed.any(|(name, _)| name == "HF_TOKEN")
        };
        for (program, task, expected) in [
            ("/bin/shard-loader", "fetch", true),
            ("/bin/shard-loader", "shard", true),
            ("/bin/shard-loader", "layer", false),
            ("/bin/shard-loader", "inspect", false),
            ("/bin/hub-upload", "repository", true),
            ("/bin/hub-upload", "layer", true),
            ("/bin/hub-upload", "pack", true),
            ("/bin/hub-upload", "card", false),
            ("/bin/hub-upload", "--describe", false),
            ("/bin/quantize", "layer", false),
            ("/bin/other", "fetch", false),
        ] {
            assert_eq!(gets_token(program, task), expected, "{program} {task}");
        }
    }
}
