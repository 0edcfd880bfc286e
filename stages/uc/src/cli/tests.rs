//! The documentation and the command line name the same verbs and options.

use std::collections::BTreeSet;

use clap::CommandFactory;

use super::*;

/// Every long option of a command.
fn long_options(command: &clap::Command) -> BTreeSet<String> {
    command
        .get_arguments()
        .filter_map(|argument| argument.get_long())
        .map(|long| format!("--{long}"))
        .collect()
}

/// The words of a text that look like long options.
fn mentioned_options(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .filter(|word| word.starts_with("--") && !word.starts_with("---"))
        .filter(|word| word.len() > 2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_documentation_describes_exactly_the_existing_verbs_and_options() {
    let document = include_str!("../../../../docs/cli.md");
    let command = Cli::command();
    let global = long_options(&command);
    let mut sections: Vec<(String, &str)> = Vec::new();
    for part in document.split("\n## `uc ").skip(1) {
        let name = part.split([' ', '`']).next().expect("verb");
        let body = part.split("\n## ").next().expect("body");
        sections.push((name.to_owned(), body));
    }
    let verbs: Vec<&str> = command
        .get_subcommands()
        .map(clap::Command::get_name)
        .collect();
    let described: Vec<&str> = sections.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(described, verbs);
    for verb in command.get_subcommands() {
        let (_, body) = sections
            .iter()
            .find(|(name, _)| name == verb.get_name())
            .expect("section");
        let existing = long_options(verb);
        let mut documented = mentioned_options(body);
        assert_eq!(
            existing.difference(&documented).count(),
            0,
            "{}: {existing:?}",
            verb.get_name()
        );
        documented.retain(|option| !existing.contains(option) && !global.contains(option));
        assert!(
            documented.is_empty(),
            "{} has no {documented:?}",
            verb.get_name()
        );
    }
    let general = document.split("\n## `uc ").next().expect("head");
    assert_eq!(
        global.difference(&mentioned_options(general)).count(),
        0,
        "{global:?}"
    );
}

#[test]
fn the_overview_lists_every_verb_once() {
    let mut listed: Vec<&str> = help::GROUPS
        .iter()
        .flat_map(|(_, names)| *names)
        .copied()
        .collect();
    listed.sort_unstable();
    let command = command();
    let mut verbs: Vec<&str> = command
        .get_subcommands()
        .map(clap::Command::get_name)
        .collect();
    verbs.sort_unstable();
    assert_eq!(listed, verbs);
    let overview = command.clone().render_help().to_string();
    for verb in command.get_subcommands() {
        let about = verb.get_about().expect("a description").to_string();
        assert!(overview.contains(&about), "{overview}");
    }
}

#[test]
fn the_documentation_lists_every_exit_code() {
    let document = include_str!("../../../../docs/cli.md");
    for code in uc_store::ExitCode::ALL {
        let row = format!("| {} | {} |", code.code(), code.class());
        assert!(document.contains(&row), "{row}");
    }
}
