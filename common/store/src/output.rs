//! The one way to print: results on standard output, messages on standard error.
//!
//! A pipe or a terminal that has been closed is no error: its reader has seen what it wanted, the rest is dropped, and the
//! exit status stays that of the work (`uc verify PACK | head -1` still fails for a damaged pack). Any other failure to write a result is
//! remembered, and [`finish`] returns it at the end of the program. A message that cannot be written is dropped, because
//! there is nowhere left to report it. `print!` and `eprintln!` panic in all of these cases and are not used.

use std::fmt::Display;
use std::io::{Error, ErrorKind, Write};
use std::sync::{Mutex, PoisonError};

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::error::StoreError;

/// What is known about standard output.
#[derive(Debug)]
enum State {
    /// Everything so far was written.
    Open,
    /// Its reader has gone.
    Closed,
    /// Writing failed.
    Failed(Error),
}

static STATE: Mutex<State> = Mutex::new(State::Open);

/// Prints text on standard output as it is, and flushes it.
pub fn print(text: impl Display) {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(*state, State::Open) {
        *state = write(&mut std::io::stdout().lock(), &text);
    }
}

/// Prints a line on standard output.
pub fn print_line(text: impl Display) {
    print(format_args!("{text}\n"));
}

/// Prints a line on standard error.
pub fn print_message(text: impl Display) {
    // Nothing is left to report a failure to.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints the message of an error on standard error, after the word `error:`.
pub fn print_error(error: &anyhow::Error) {
    print_message(format_args!("error: {}", error_text(error)));
}

/// Whether the reader of standard output has gone, so that nothing more needs to be computed for it.
pub fn is_closed() -> bool {
    matches!(
        *STATE.lock().unwrap_or_else(PoisonError::into_inner),
        State::Closed
    )
}

/// Ends the output of a program.
///
/// # Errors
/// If a result could not be written, unless its reader had gone.
pub fn finish() -> Result<(), StoreError> {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    match std::mem::replace(&mut *state, State::Open) {
        State::Open | State::Closed => Ok(()),
        State::Failed(error) => Err(StoreError::io("write to", "standard output".into())(error)),
    }
}

fn write(out: &mut impl Write, text: &impl Display) -> State {
    // One write for the whole text, so that lines of concurrent programs do not mix.
    let text = text.to_string();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => State::Open,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => State::Closed,
        Err(error) if is_hangup(&error) => State::Closed,
        Err(error) => State::Failed(error),
    }
}

/// Whether standard output was a terminal that has been closed. On a disk, the same error is a failure.
fn is_hangup(error: &Error) -> bool {
    let is_device = || {
        let status = rustix::fs::fstat(std::io::stdout());
        let kind = status.map(|status| FileType::from_raw_mode(status.st_mode));
        kind.is_ok_and(|kind| kind == FileType::CharacterDevice)
    };
    error.raw_os_error() == Some(Errno::IO.raw_os_error()) && is_device()
}

/// The message of an error with its causes, in one line where they are; what a cause repeats is said once.
pub fn error_text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if let Some(rest) = cause.strip_prefix(text.as_str()) {
            // The cause says the same and more.
            text.push_str(rest);
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_told_apart_from_a_failure() {
        let write_to = |kind| write(&mut Broken(kind), &"text");
        assert!(matches!(write_to(ErrorKind::BrokenPipe), State::Closed));
        assert!(matches!(write_to(ErrorKind::StorageFull), State::Failed(_)));
        let mut bytes = Vec::new();
        assert!(matches!(write(&mut bytes, &"text"), State::Open));
        assert_eq!(bytes, b"text");
    }

    #[test]
    fn an_error_says_nothing_twice() {
        let missing = || anyhow!("No such file or directory (os error 2)");
        let context = |error: anyhow::Error, text: &'static str| {
            Err::<(), _>(error).context(text).expect_err("error")
        };
        let cases = [
            (missing(), "No such file or directory (os error 2)"),
            (
                context(missing(), "cannot open a"),
                "cannot open a: No such file or directory (os error 2)",
            ),
            (
                context(
                    context(missing(), "cannot open a"),
                    "cannot open a: No such file or directory (os error 2)",
                ),
                "cannot open a: No such file or directory (os error 2)",
            ),
            (
                context(anyhow!("cannot open a: it is a folder"), "cannot open a"),
                "cannot open a: it is a folder",
            ),
        ];
        for (error, expected) in cases {
            assert_eq!(error_text(&error), expected);
        }
    }
}
