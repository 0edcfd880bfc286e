//! `uc`: the user's command and the driver of the pipeline.
//!
//! Plans runs, starts stage programs, shows progress and prints results. Never computes on tensors and knows no model
//! family and no codec: stage programs, the pack library and the runtime do.

mod artifacts;
mod cli;
mod forecast;
mod plan;
mod process;
mod report;
mod schedule;
mod session;
mod verbs;

use uc_store::{ExitCode, logging, output};

use crate::cli::{Cli, Verb};
use crate::process::signals::Listener;
use crate::report::colour;
use crate::report::failure::exit_code;
use crate::report::progress::Display;

fn main() -> std::process::ExitCode {
    let cli = cli::parse();
    logging::init(cli.output.verbose, cli.output.quiet, cli.output.log_format);
    match run(&cli).and_then(|code| output::finish().map(|()| code).map_err(Into::into)) {
        Ok(code) => code.into(),
        Err(error) => {
            // The only place that prints errors.
            let text = format!("error: {}", output::error_text(&error));
            output::print_message(colour::message(&text));
            exit_code(&error).into()
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    let signals = Listener::start()?;
    let mut display = Display::new(cli.output);
    signals.before_exit(display.cleaner());
    match &cli.verb {
        Verb::Compress(args) => verbs::compress::run(args, &mut display, &signals),
        Verb::Resume(args) => verbs::resume::run(args, &mut display, &signals),
        Verb::Status(args) => verbs::status::run(args),
        Verb::Plan(args) => verbs::plan::run(args, &display),
        Verb::Stage(args) => verbs::stage::run(args, &mut display, &signals),
        Verb::Upload(args) => verbs::upload::run(args, &mut display, &signals),
        Verb::Verify(args) => verbs::verify::run(args, &display),
        Verb::Inspect(args) => verbs::inspect::run(args),
        Verb::Diff(args) => return verbs::diff::run(args, &display),
        Verb::Eval(args) => verbs::eval::run(args, &mut display, &signals),
        Verb::Export(args) => verbs::export::run(args, &display),
        Verb::Generate(args) => verbs::generate::run(args, &display, &signals),
        Verb::Bench(args) => verbs::bench::run(args, &display),
        Verb::Serve(args) => verbs::serve::run(args, &display, &signals),
        Verb::Completions(args) => verbs::completions::run(*args),
        Verb::Man(args) => verbs::man::run(args, &display),
    }?;
    Ok(ExitCode::Ok)
}
