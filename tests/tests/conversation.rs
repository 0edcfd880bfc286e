//! `uc generate --chat` on a terminal: turns that depend on each other, and the keys that end an answer or the conversation.
#![allow(clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use serde_json::{Value, json};
use uc_tests::terminal::Terminal;
use uc_tests::{compress, copy_model, succeed, uc};

/// The messages one after the other, as in a story. It ends where the answer begins.
const TEMPLATE: &str = "{% for message in messages %}{{ message['content'] }} {% endfor %}";
/// Context of the model, tokens: its answers take long enough to be interrupted.
const CONTEXT: usize = 4096;

/// The pack of a tiny model with a chat template.
fn packed() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("folder");
    let model = folder.path().join("model");
    copy_model(&model);
    let change = |name: &str, key: &str, value: Value| {
        let path = model.join(name);
        let text = std::fs::read(&path).expect("file");
        let mut document: Value = serde_json::from_slice(&text).expect("JSON");
        document[key] = value;
        std::fs::write(path, document.to_string()).expect("file");
    };
    change("tokenizer_config.json", "chat_template", json!(TEMPLATE));
    change("config.json", "max_position_embeddings", json!(CONTEXT));
    let run = folder.path().join("run");
    succeed(compress(&model, &run).arg("--no-eval"));
    (folder, run.join("pack"))
}

fn generate(pack: &Path, words: &[&str]) -> Command {
    let mut command = uc();
    command.arg("generate").arg(pack).args(words);
    command
}

/// A conversation on a terminal that is high enough for all of it.
fn converse(pack: &Path, words: &[&str]) -> (Terminal, Child) {
    let mut terminal = Terminal::new(200, 100);
    let child = terminal.start_dialogue(&generate(pack, &[&["--chat"], words].concat()));
    terminal.wait_for("> ");
    (terminal, child)
}

/// Waits for the prompt after `count` others.
fn wait_for_prompt(terminal: &mut Terminal, count: usize) {
    terminal.wait_until("further prompt", |screen| {
        screen.lines().filter(|line| line.starts_with('>')).count() > count
    });
}

/// The lines between the prompts with these numbers.
fn answer(screen: &str, turn: usize) -> String {
    let mut parts = screen.split("\n>").skip(turn);
    let part = parts.next().expect("a turn");
    let (_, answer) = part.split_once('\n').expect("an answer");
    answer.to_owned()
}

#[test]
fn a_turn_goes_on_from_the_turns_before_it() {
    let (_folder, pack) = packed();
    let (mut terminal, mut child) = converse(&pack, &["-n", "12"]);
    let [first, second] = ["Once upon a time", "Then the cat"];
    terminal.press(format!("{first}\n").as_bytes());
    wait_for_prompt(&mut terminal, 1);
    terminal.press(format!("{second}\n").as_bytes());
    wait_for_prompt(&mut terminal, 2);
    terminal.press(b"\x04");
    terminal.finish();
    assert_eq!(child.wait().expect("ended").code(), Some(0));
    let screen = terminal.screen();
    // The whole story as one text goes on in the same way; the second message alone does not.
    let text = |prompt: &str| {
        let output = succeed(&mut generate(&pack, &["-p", prompt, "-n", "12"]));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let begun = text(&format!("{first} "));
    assert_eq!(answer(&screen, 1).trim(), begun.trim(), "{screen}");
    let whole = format!("{first} {} {second} ", begun.trim_end_matches('\n'));
    let expected = text(&whole);
    assert_eq!(answer(&screen, 2).trim(), expected.trim(), "{screen}");
    assert_ne!(text(&format!("{second} ")), expected);
}

#[test]
fn ctrl_c_ends_an_answer_but_only_twice_a_conversation() {
    let (_folder, pack) = packed();
    let (mut terminal, mut child) = converse(&pack, &["-n", "4000", "--ignore-eos"]);
    terminal.press(b"Once\n");
    // The answer has begun.
    terminal.wait_for("a");
    terminal.wait_for(".");
    terminal.press(b"\x03");
    wait_for_prompt(&mut terminal, 1);
    let screen = terminal.screen();
    // All of it would take thousands of words.
    assert!(answer(&screen, 1).len() < 8000, "{screen}");
    // A second one, too late for the answer, ends nothing.
    terminal.press(b"\x03");
    terminal.wait_for("ends the conversation\n>");
    terminal.press(b"\x04");
    terminal.finish();
    assert_eq!(child.wait().expect("ended").code(), Some(0), "{screen}");

    let (mut terminal, mut child) = converse(&pack, &[]);
    terminal.press(b"\x03");
    terminal.wait_for("ends the conversation");
    terminal.press(b"\x03");
    terminal.finish();
    assert_eq!(child.wait().expect("ended").code(), Some(130));
}

#[test]
fn a_message_that_does_not_fit_is_not_answered_and_the_conversation_goes_on() {
    let (_folder, pack) = packed();
    let (mut terminal, mut child) = converse(&pack, &["--context", "64", "-n", "8"]);
    terminal.press(format!("{}\n", "word ".repeat(100)).as_bytes());
    terminal.wait_for("the message is not answered");
    wait_for_prompt(&mut terminal, 1);
    terminal.press(b"Once upon a time\n");
    wait_for_prompt(&mut terminal, 2);
    terminal.press(b"\x04");
    terminal.finish();
    let screen = terminal.screen();
    assert_eq!(child.wait().expect("ended").code(), Some(0), "{screen}");
    assert!(!answer(&screen, 2).trim().is_empty(), "{screen}");
}
