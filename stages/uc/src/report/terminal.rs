//! The size of a terminal, text that fits it, and what the terminal writes by itself.

use std::os::fd::AsFd;

use rustix::termios::{LocalModes, OptionalActions, Termios};

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Characters in a line.
    pub columns: usize,
    /// Lines.
    pub rows: usize,
}

/// The size that is assumed if the terminal does not tell.
const DEFAULT: Size = Size {
    columns: 80,
    rows: 24,
};

/// The size of the terminal behind a stream; none if it is no terminal.
pub fn size(stream: impl AsFd) -> Option<Size> {
    let window = rustix::termios::tcgetwinsize(stream).ok()?;
    let or = |value: u16, default| match value {
        0 => default,
        value => usize::from(value),
    };
    Some(Size {
        columns: or(window.ws_col, DEFAULT.columns),
        rows: or(window.ws_row, DEFAULT.rows),
    })
}

/// The size of the terminal on standard error, or the usual one.
pub fn stderr_size() -> Size {
    size(std::io::stderr()).unwrap_or(DEFAULT)
}

/// Columns of the terminal on standard output; the usual number where there is no terminal.
pub fn stdout_columns() -> usize {
    size(std::io::stdout()).unwrap_or(DEFAULT).columns
}

/// While it exists, the terminal on standard error does not write `^C` for Ctrl-C. It would write it into the rows that are
/// drawn, and one of them would be left behind.
#[derive(Debug)]
pub struct HiddenControls {
    before: Termios,
}

impl HiddenControls {
    /// Changes the terminal, if there is one and this process is in its foreground: another process may not change it.
    pub fn new() -> Option<Self> {
        if !is_foreground() {
            return None;
        }
        let before = rustix::termios::tcgetattr(std::io::stderr()).ok()?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHOCTL);
        set(&hidden);
        Some(Self { before })
    }

    /// Restores the terminal as it was.
    pub fn restore(&self) {
        if is_foreground() {
            set(&self.before);
        }
    }
}

impl Drop for HiddenControls {
    fn drop(&mut self) {
        self.restore();
    }
}

fn is_foreground() -> bool {
    let group = rustix::termios::tcgetpgrp(std::io::stderr());
    group.is_ok_and(|group| group == rustix::process::getpgrp())
}

fn set(modes: &Termios) {
    // A terminal that cannot be changed stays as it is; only its looks depend on it.
    let _ = rustix::termios::tcsetattr(std::io::stderr(), OptionalActions::Now, modes);
}

/// Columns that a character takes, at most.
fn columns(c: char) -> usize {
    // Full blocks, shades and the ellipsis, which the display itself uses, take one; other characters may take two.
    match c.is_ascii() || ('█'..='▓').contains(&c) || c == '…' {
        true => 1,
        false => 2,
    }
}

/// Columns that a text takes, at most.
pub fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

/// The text, cut to `limit` columns; what is cut ends with an ellipsis.
pub fn truncate(text: &str, limit: usize) -> String {
    if width(text) <= limit {
        return text.to_owned();
    }
    let mut cut = String::new();
    let mut used = 1; // the ellipsis
    for c in text.chars() {
        used += columns(c);
        if used > limit {
            break;
        }
        cut.push(c);
    }
    if limit > 0 {
        cut.push('…');
    }
    cut
}

/// The text in lines of at most `limit` columns, broken at spaces where there are any; all lines but the first are indented.
pub fn wrap(text: &str, limit: usize, indent: usize) -> Vec<String> {
    let limit = limit.max(indent + 8);
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut is_empty = true;
    for word in text.split_inclusive(' ') {
        let mut word = word;
        if !is_empty && width(&line) + width(word.trim_end()) > limit {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
        }
        // A word that is longer than a line, for example a path.
        while width(&line) + width(word.trim_end()) > limit {
            let mut room = limit - width(&line);
            let fits = |c: &char| {
                let fits = columns(*c) <= room;
                room = room.saturating_sub(columns(*c));
                fits
            };
            let head: String = word.chars().take_while(fits).collect();
            line.push_str(&head);
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
            word = &word[head.len()..];
        }
        line.push_str(word);
        is_empty = false;
    }
    lines.push(line);
    lines
        .iter()
        .map(|line| line.trim_end().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_with_an_ellipsis() {
        assert_eq!(truncate("layer 12", 8), "layer 12");
        assert_eq!(truncate("layer 12", 7), "layer …");
        assert_eq!(truncate("██░░", 3), "██…");
        assert_eq!(truncate("漢字", 3), "漢…");
        assert_eq!(truncate("漢字", 2), "…");
        assert_eq!(truncate("a", 0), "");
    }

    #[test]
    fn lines_are_broken_at_spaces_and_long_words_anywhere() {
        let text = "disk   1 GiB: weights 2 MiB, codes 3 MiB";
        for limit in [20, 25, 40, 60] {
            let lines = wrap(text, limit, 7);
            assert!(lines.iter().all(|line| width(line) <= limit), "{lines:?}");
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert_eq!(words(&lines.join(" ")), words(text));
        }
        let path = wrap("run    /a/very/long/path/without/any/space/in/it", 20, 7);
        assert!(path.iter().all(|line| width(line) <= 20), "{path:?}");
        let joined: String = path.iter().map(|line| line.trim_start()).collect();
        assert_eq!(
            joined.replace(' ', ""),
            "run/a/very/long/path/without/any/space/in/it"
        );
    }
}
