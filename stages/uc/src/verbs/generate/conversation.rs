//! A conversation: a message a line, answers as they are made.

use std::io::{BufRead, IsTerminal};
use std::ops::ControlFlow;

use anyhow::Context;
use crossbeam_channel::{Sender, unbounded};
use uc_infer::{Finish, Message};
use uc_store::output;

use super::Loaded;
use crate::process::runner::Message as Signal;
use crate::process::signals::Listener;

/// Longest line, bytes.
const MAX_LINE: u64 = 1 << 20;

/// What a signal at the prompt of a terminal is answered with.
const HINT: &str = "Ctrl-D, or Ctrl-C once more, ends the conversation";
/// The prompt of a terminal.
const PROMPT: &str = "> ";

/// Answers the messages on standard input until it ends. While an answer is made, a signal ends the answer. At the prompt of a
/// terminal, only a second signal ends the program: the first may have been meant for an answer that has just ended.
pub fn run(loaded: &Loaded<'_>, signals: &Listener) -> anyhow::Result<()> {
    let mut messages = loaded.system_message();
    let mut batch = loaded.batch(0)?;
    let stdin = std::io::stdin();
    let is_terminal = stdin.is_terminal();
    if is_terminal {
        loaded
            .display
            .info("one message a line; Ctrl-C ends an answer, Ctrl-D the conversation");
    }
    let hint = hint_sender(signals);
    loop {
        if is_terminal {
            signals.attach(hint.clone());
            output::print(PROMPT);
        }
        let Some(line) = read_line(&mut stdin.lock())? else {
            if is_terminal {
                output::print_line("");
            }
            return Ok(());
        };
        if line.trim().is_empty() {
            continue;
        }
        messages.push(Message::new("user", line.trim_end_matches(['\r', '\n'])));
        let tokens = loaded.conversation_tokens(&messages)?;
        let (found, most) = (tokens.len(), loaded.conversation_context());
        if found > most {
            loaded.display.warn(&format!(
                "the message is not answered: found a conversation of {found} tokens, expected at most {most}, the context"
            ));
            messages.pop();
            continue;
        }
        // What is already computed is used as far as the text is the same.
        let request = loaded.request(tokens);
        let (to_us, received) = unbounded();
        signals.attach(to_us);
        let mut on_text = |text: &str| {
            output::print(text);
            match output::is_closed() || !received.is_empty() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let generated = loaded.generate(&mut batch, &request, &mut on_text);
        signals.detach();
        signals.handled();
        let generated = generated?;
        output::print_line("");
        if output::is_closed() {
            return Ok(());
        }
        if generated.finish == Finish::Context {
            loaded
                .display
                .warn("the context is full: the conversation ends here");
            return Ok(());
        }
        messages.push(Message::new("assistant", &generated.text));
    }
}

/// Takes the signals at the prompt: prints a hint and a new prompt; the next signal ends the program.
fn hint_sender(signals: &Listener) -> Sender<Signal> {
    let (hint, received) = unbounded();
    let signals = signals.clone();
    std::thread::spawn(move || {
        for _ in received {
            signals.detach();
            signals.handled();
            output::print_line("");
            output::print_message(HINT);
            output::print(PROMPT);
        }
    });
    hint
}

/// The next line; none at the end.
fn read_line(input: &mut impl BufRead) -> anyhow::Result<Option<String>> {
    let mut bytes = Vec::new();
    let mut limited = std::io::Read::take(&mut *input, MAX_LINE + 1);
    let count = limited
        .read_until(b'\n', &mut bytes)
        .context("cannot read standard input")?;
    let refuse = |what: &str| {
        let message = format!("standard input: found a line {what}");
        crate::report::failure::failure(uc_store::ExitCode::BadInput, message)
    };
    if count as u64 > MAX_LINE {
        return Err(refuse("of more than 1 MiB, expected shorter messages"));
    }
    if count == 0 {
        return Ok(None);
    }
    let line = String::from_utf8(bytes);
    line.map(Some)
        .map_err(|_| refuse("that is not UTF-8, expected UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_one_by_one_and_what_is_no_text_is_refused() {
        let mut input = "a b\n\nlast".as_bytes();
        let mut next = || read_line(&mut input).expect("text");
        assert_eq!(next().as_deref(), Some("a b\n"));
        assert_eq!(next().as_deref(), Some("\n"));
        assert_eq!(next().as_deref(), Some("last"));
        assert_eq!(next(), None);
        assert!(read_line(&mut &b"\xff\n"[..]).is_err());
        let long = vec![b'a'; MAX_LINE as usize + 2];
        assert!(read_line(&mut long.as_slice()).is_err());
    }
}
