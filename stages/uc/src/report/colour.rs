//! Colour in reports and messages, and the printing of reports. Text is made without colour; only this module adds it.
//!
//! Whatever else moves the cursor or clears the screen in a text came from outside (a name in a pack, the log of a stage) and
//! is shown as an escape.
//!
//! Colour is used on a terminal. `NO_COLOR` turns it off and `CLICOLOR_FORCE` on, also where there is no terminal.

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use uc_store::output;

const PASS: Style = AnsiColor::Green.on_default().bold();
const FAIL: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();

/// Words that state an outcome, where a value begins with them.
const OUTCOMES: [(&str, Style); 5] = [
    ("PASS", PASS),
    ("FAIL", FAIL),
    ("DIFFERS", FAIL),
    ("DIFFERENT", FAIL),
    ("MISSING", FAIL),
];
/// Labels at the beginning of a line.
const LABELS: [(&str, Style); 2] = [("error:", FAIL), ("warning:", WARNING)];

/// Prints the report of a verb on standard output.
pub fn print_report(text: &str) {
    output::print(report(text));
}

/// The report of a verb as it is shown on standard output.
pub fn report(text: &str) -> String {
    shown(text, has_colour(&std::io::stdout()))
}

/// A message as it is shown on standard error.
pub fn message(text: &str) -> String {
    shown(text, has_colour(&std::io::stderr()))
}

fn shown(text: &str, has_colour: bool) -> String {
    let lines: Vec<_> = text.split('\n').map(uc_input::printable).collect();
    let text = lines.join("\n");
    match has_colour {
        true => painted(&text),
        false => text,
    }
}

/// Whether a stream shows colours, by the stream itself and the environment.
fn has_colour(stream: &impl anstream::stream::RawStream) -> bool {
    AutoStream::choice(stream) != ColorChoice::Never
}

/// The text with its labels and outcomes in colour.
fn painted(text: &str) -> String {
    text.split_inclusive('\n').map(painted_line).collect()
}

fn painted_line(line: &str) -> String {
    let paint = |from: usize, word: &str, style: Style| {
        let to = from + word.len();
        format!("{}{style}{word}{style:#}{}", &line[..from], &line[to..])
    };
    if let Some((label, style)) = LABELS.iter().find(|(label, _)| line.starts_with(label)) {
        return paint(0, label, *style);
    }
    // A value is set apart from its name by at least two spaces.
    let outcome = OUTCOMES.iter().find_map(|(word, style)| {
        let at = line.find(&format!("  {word}"))? + 2;
        let next = line[at + word.len()..].chars().next();
        let ends = next.is_none_or(|c| !c.is_alphanumeric());
        ends.then_some((at, *word, *style))
    });
    outcome.map_or_else(
        || line.to_owned(),
        |(at, word, style)| paint(at, word, style),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_codes_from_outside_are_shown_and_not_obeyed() {
        let text = "source  \x1b[2J\x1b[32mPASS\nnext\n";
        assert_eq!(
            shown(text, false),
            "source  \\u{1b}[2J\\u{1b}[32mPASS\nnext\n"
        );
        assert!(!shown(text, true).contains("\x1b[2J"));
    }

    #[test]
    fn outcomes_and_labels_are_painted_and_nothing_else_changes() {
        let green = |word: &str| format!("{PASS}{word}{PASS:#}");
        let red = |word: &str| format!("{FAIL}{word}{FAIL:#}");
        let yellow = |word: &str| format!("{WARNING}{word}{WARNING:#}");
        let text = "verdict               PASS\nverify    FAIL (2 errors)\nwarning: a PASS\nerror: b\nname  PASSAGE\n";
        let expected = format!(
            "verdict               {}\nverify    {} (2 errors)\n{} a PASS\n{} b\nname  PASSAGE\n",
            green("PASS"),
            red("FAIL"),
            yellow("warning:"),
            red("error:")
        );
        assert_eq!(painted(text), expected);
        assert_eq!(anstream::adapter::strip_str(&expected).to_string(), text);
    }
}
