//! The runtime of a stage program: command line, job loop, verified inputs, published outputs.
//!
//! A stage program is one `main` that calls [`run`] with its [`Program`] and its [`Task`]s. A task started with `--jobs`
//! reads jobs from standard input until it ends, so that a device context is set up only once; with `--layer N` it runs
//! one job and exits. Either way a job verifies the hashes of its inputs, does its work, publishes its outputs and then
//! its receipt. The runtime computes nothing and does not depend on a model or a codec.

mod job;
mod serve;

use camino::Utf8PathBuf;
use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand};

pub use job::Job;

use crate::exit::ExitCode;
use crate::logging::{self, LogFormat};
use crate::output;
use crate::signals;

/// Arguments of every task of a stage program.
#[derive(Debug, Clone, Args)]
pub struct StageArgs {
    /// The run directory
    #[arg(long, required_unless_present = "describe")]
    pub run: Option<Utf8PathBuf>,
    /// The stage of the plan; by default the one whose command is this program and task
    #[arg(long)]
    pub stage: Option<String>,
    /// Run the job of one layer and exit
    #[arg(long, conflicts_with = "jobs")]
    pub layer: Option<u32>,
    /// Read jobs as JSON lines from standard input until it ends; write events to standard output
    #[arg(long)]
    pub jobs: bool,
    /// Print program and output version as JSON and exit
    #[arg(long)]
    pub describe: bool,
    /// Log more; repeat for even more
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Format of the log lines
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// A stage program.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// The name of the binary.
    pub name: &'static str,
    /// One line of help.
    pub about: &'static str,
    /// Version of the output; raised whenever a change makes the same input give different output.
    pub version: u32,
    /// The exit code of an error of the program itself; `None` if the program cannot classify it either.
    pub classify: fn(&anyhow::Error) -> Option<ExitCode>,
}

/// What a task does with one job: it reads the job's inputs and publishes all of its outputs.
type Work = dyn FnMut(&mut Job<'_>) -> anyhow::Result<()>;

/// A task of a stage program: its name is the second word of a stage's `argv`.
pub struct Task {
    name: &'static str,
    about: &'static str,
    work: Box<Work>,
}

impl Task {
    /// A task. An empty name stands for the only task of a program that takes no task on its command line.
    pub fn new(
        name: &'static str,
        about: &'static str,
        work: impl FnMut(&mut Job<'_>) -> anyhow::Result<()> + 'static,
    ) -> Self {
        Self {
            name,
            about,
            work: Box::new(work),
        }
    }
}

/// Runs a stage program to its end.
pub fn run(program: Program, tasks: impl IntoIterator<Item = Task>) -> std::process::ExitCode {
    if asks_for_description() {
        return describe(program).into();
    }
    let tasks: Vec<Task> = tasks.into_iter().collect();
    let matches = command(program, &tasks, Command::new(program.name)).get_matches();
    run_matched(program, tasks, &matches)
        .expect("clap accepts the tasks only")
        .into()
}

/// Runs a stage program that has subcommands besides its tasks.
pub fn run_with_verbs<V: Subcommand>(
    program: Program,
    tasks: impl IntoIterator<Item = Task>,
    run_verb: impl FnOnce(V) -> ExitCode,
) -> std::process::ExitCode {
    if asks_for_description() {
        return describe(program).into();
    }
    let tasks: Vec<Task> = tasks.into_iter().collect();
    let base = V::augment_subcommands(Command::new(program.name));
    let matches = command(program, &tasks, base).get_matches();
    let code = run_matched(program, tasks, &matches).unwrap_or_else(|| {
        let verb = V::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        run_verb(verb)
    });
    code.into()
}

/// Runs one task whose arguments the caller has parsed.
pub fn run_task(program: Program, mut task: Task, args: &StageArgs) -> ExitCode {
    if args.describe {
        return describe(program);
    }
    // Without a handler, a limit on the size of files kills the process; with it, the write fails like one on a full disk.
    if let Err(error) = signals::catch_file_size_limit() {
        output::print_message(format_args!("error: cannot handle SIGXFSZ: {error}"));
        return ExitCode::Internal;
    }
    logging::init(args.verbose, false, args.log_format);
    let outcome = if args.jobs {
        serve::run_jobs(program, args, &mut task)
    } else {
        serve::run_one_job(program, args, &mut task)
    };
    end(program, outcome)
}

/// Reports the outcome of a program of [`Program`]'s kind: prints the error, if there is one, and returns its exit code.
pub fn end(program: Program, outcome: anyhow::Result<()>) -> ExitCode {
    match outcome.and_then(|()| Ok(output::finish()?)) {
        Ok(()) => ExitCode::Ok,
        Err(error) => {
            output::print_error(&error);
            classify(program, &error)
        }
    }
}

/// Whether the command line is `PROGRAM --describe`, without a task: how `uc` asks for the version of a program.
fn asks_for_description() -> bool {
    let mut arguments = std::env::args_os().skip(1);
    arguments.next().is_some_and(|first| first == "--describe") && arguments.next().is_none()
}

/// Prints program and output version as JSON.
fn describe(program: Program) -> ExitCode {
    output::print_line(serde_json::json!({"program": program.name, "version": program.version}));
    end(program, Ok(()))
}

/// Adds the tasks to a command line.
fn command(program: Program, tasks: &[Task], base: Command) -> Command {
    // `augment_args` replaces the description of the command by that of `StageArgs`.
    let with_args = |command, about: &'static str| StageArgs::augment_args(command).about(about);
    let base = base.version(env!("CARGO_PKG_VERSION"));
    if let [task] = tasks
        && task.name.is_empty()
    {
        return with_args(base, program.about);
    }
    let subcommands = tasks
        .iter()
        .map(|task| with_args(Command::new(task.name), task.about));
    base.subcommands(subcommands)
        .about(program.about)
        .subcommand_required(true)
        .arg_required_else_help(true)
}

/// Runs the task that the command line names; `None` if it names none of them.
fn run_matched(program: Program, tasks: Vec<Task>, matches: &ArgMatches) -> Option<ExitCode> {
    let (name, matches) = matches.subcommand().unwrap_or(("", matches));
    let task = tasks.into_iter().find(|task| task.name == name)?;
    let args = StageArgs::from_arg_matches(matches).unwrap_or_else(|error| error.exit());
    Some(run_task(program, task, &args))
}

/// The exit code of an error, or `None` if neither the store nor the program can classify it. A specific class of the
/// store takes precedence, such as a full disk or denied access, whichever library reported it. Then come the program's
/// own classes, and last the vague classes of the store.
pub fn exit_code(program: Program, error: &anyhow::Error) -> Option<ExitCode> {
    let by_store = ExitCode::of_error(error);
    by_store
        .filter(|code| !code.is_vague())
        .or_else(|| (program.classify)(error))
        .or(by_store)
}

/// The exit code of an error of a task; an error that nothing can classify is a defect.
fn classify(program: Program, error: &anyhow::Error) -> ExitCode {
    exit_code(program, error).unwrap_or(ExitCode::Internal)
}

pub use serve::end_with_parent;

#[cfg(test)]
mod tests;
