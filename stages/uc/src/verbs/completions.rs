//! `uc completions SHELL`: the completion script of a shell, made from the declarations of the options.

use clap_complete::Shell;
use uc_store::output;

use crate::cli::{self, CompletionShell, CompletionsArgs};

/// Runs the verb.
pub fn run(args: CompletionsArgs) -> anyhow::Result<()> {
    let shell = match args.shell {
        CompletionShell::Bash => Shell::Bash,
        CompletionShell::Zsh => Shell::Zsh,
        CompletionShell::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), "uc", &mut script);
    output::print(String::from_utf8(script)?);
    Ok(())
}
