//! The overview of the verbs in `uc --help`, in groups. Owns no option: everything it prints comes from the declarations.

use std::fmt::Write;

use clap::{Command, CommandFactory, FromArgMatches};

use super::Cli;

/// The verbs in the groups of the overview.
pub(super) const GROUPS: [(&str, &[&str]); 3] = [
    ("Runs", &["compress", "resume", "status", "plan", "stage"]),
    (
        "Packs",
        &[
            "verify", "inspect", "diff", "eval", "export", "generate", "bench", "serve", "upload",
        ],
    ),
    ("Shell", &["completions", "man"]),
];

/// The command line with its overview.
pub fn command() -> Command {
    let command = Cli::command();
    let template = template(&command);
    command.help_template(template)
}

/// Parses the arguments of this process; exits for help, for the version and for arguments that are wrong.
pub fn parse() -> Cli {
    let matches = command().get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// The template of the overview. Escape codes of colours are removed by clap where there are none.
fn template(command: &Command) -> String {
    let styles = command.get_styles();
    let (header, literal) = (styles.get_header(), styles.get_literal());
    let names = GROUPS.iter().flat_map(|(_, names)| names.iter());
    let width = names.map(|name| name.len()).max().unwrap_or(0);
    let mut text = "{about-with-newline}\n{usage-heading} {usage}\n".to_owned();
    for (title, names) in GROUPS {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n{header}{title}:{header:#}\n");
        for name in names {
            let about = command.find_subcommand(name).and_then(Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(text, "  {literal}{name:width$}{literal:#}  {about}");
        }
    }
    let _ = write!(text, "\n{header}Options:{header:#}\n{{options}}\n\n");
    text + "`uc VERB --help` describes a verb, `uc resume RUN` continues whatever was interrupted.\n"
}
