//! What is drawn on a terminal of 60, 80 and 120 columns: nothing is wider, nothing is left behind.
#![allow(clippy::disallowed_methods)]

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use uc_tests::kills::signal;
use uc_tests::terminal::{Streams, Terminal, open_pair, session};
use uc_tests::{QUICK, succeed, tiny_model, uc};

/// A run in `folder` that takes some seconds.
fn slow_run(folder: &Path) -> Command {
    let mut command = uc();
    command.current_dir(folder).stdout(Stdio::null());
    command
        .arg("compress")
        .arg(tiny_model())
        .args(["--run", "run"]);
    command.args([
        "--set",
        "calibration.windows=60",
        "--set",
        "calibration.length=256",
    ]);
    command.args([
        "--set",
        "evaluation.windows=3",
        "--set",
        "evaluation.length=128",
    ]);
    command
}

/// Rows of the display on a screen.
fn rows(screen: &str) -> Vec<&str> {
    let is_row = |line: &&str| line.starts_with("total ") || line.contains(" jobs, ");
    screen.lines().filter(is_row).collect()
}

#[test]
fn a_run_draws_rows_that_fit_and_removes_them() {
    for columns in [60, 80, 120] {
        let folder = tempfile::tempdir().expect("folder");
        let mut terminal = Terminal::new(columns, 24);
        let mut command = uc();
        command.current_dir(folder.path()).stdout(Stdio::null());
        command
            .arg("compress")
            .arg(tiny_model())
            .args(["--run", "run"])
            .args(QUICK);
        let mut child = terminal.start(&mut command, Streams::Error);
        terminal.finish();
        assert!(
            child.wait().expect("ended").success(),
            "{}",
            terminal.screen()
        );
        assert_eq!(terminal.wrapped, Vec::<String>::new(), "{columns} columns");
        let seen = |text: &str| terminal.screens.iter().any(|screen| screen.contains(text));
        assert!(
            seen("total ") && seen(" %") && seen(" left"),
            "{:?}",
            terminal.screens.last()
        );
        assert!(rows(&terminal.screen()).is_empty(), "{}", terminal.screen());
    }
}

#[test]
fn an_interrupted_run_leaves_only_its_messages_and_can_be_resumed() {
    let folder = tempfile::tempdir().expect("folder");
    for _ in 0..2 {
        let mut terminal = Terminal::new(80, 24);
        let command = match folder.path().join("run/run.json").exists() {
            false => slow_run(folder.path()),
            true => {
                let mut command = uc();
                command.current_dir(folder.path()).stdout(Stdio::null());
                command.args(["resume", "run"]);
                command
            }
        };
        let mut child = terminal.start_session(&command);
        terminal.wait_for("total ");
        // Ctrl-C, which a terminal would also show.
        terminal.press(b"\x03");
        terminal.finish();
        assert_eq!(child.wait().expect("ended").code(), Some(130));
        let screen = terminal.screen();
        assert!(
            screen.contains("Stopping… press Ctrl-C again to force"),
            "{screen}"
        );
        assert!(screen.contains("continue with: uc resume run"), "{screen}");
        assert!(rows(&screen).is_empty(), "{screen}");
        let stages = [
            "shard-loader ",
            "sensitivity-",
            "rates ",
            "calibration ",
            "^C",
        ];
        let is_left = |line: &str| stages.iter().any(|stage| line.starts_with(stage));
        assert!(!screen.lines().any(is_left), "{screen}");
        assert_eq!(terminal.wrapped, Vec::<String>::new());
    }
    succeed(uc().current_dir(folder.path()).args(["resume", "run"]));
}

#[test]
fn a_closed_terminal_interrupts_a_run_like_ctrl_c() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut controller, user_end) = open_pair(80, 24);
    let mut command = session(&slow_run(folder.path()), &user_end);
    command.stderr(user_end);
    let mut child = command.env("TERM", "xterm").spawn().expect("starts");
    drop(command); // and with it the end of the terminal
    let mut drawn = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&drawn).contains("total ") {
        let count = controller.read(&mut buffer).expect("the run draws");
        drawn.extend_from_slice(&buffer[..count]);
    }
    drop(controller);
    assert_eq!(child.wait().expect("ended").code(), Some(130));
    succeed(uc().current_dir(folder.path()).args(["resume", "run"]));
}

#[test]
fn status_fits_the_terminal_once_and_repeatedly() {
    let folder = tempfile::tempdir().expect("folder");
    let mut background = slow_run(folder.path());
    let mut driver = background.stderr(Stdio::null()).spawn().expect("starts");
    while !folder.path().join("run/events.jsonl").exists() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    for (columns, rows) in [(60, 10), (80, 24), (120, 40)] {
        let status = |more: &[&str]| {
            let mut command = uc();
            command
                .current_dir(folder.path())
                .args(["status", "run"])
                .args(more);
            command
        };
        let mut terminal = Terminal::new(columns, 200);
        let mut child = terminal.start(&mut status(&[]), Streams::Output);
        terminal.finish();
        assert!(child.wait().expect("ended").success());
        assert_eq!(terminal.wrapped, Vec::<String>::new(), "{columns}");
        assert!(
            terminal.screen().contains("quantize"),
            "{}",
            terminal.screen()
        );

        let mut terminal = Terminal::new(columns, rows);
        let mut child = terminal.start(
            &mut status(&["--watch", "--interval", "1"]),
            Streams::Output,
        );
        terminal.wait_for("state ");
        std::thread::sleep(std::time::Duration::from_millis(1200));
        signal(child.id(), "-INT");
        child.wait().expect("ended");
        terminal.finish();
        assert_eq!(terminal.wrapped, Vec::<String>::new(), "{columns}");
        assert_eq!(
            terminal.scrolled_lines(),
            0,
            "{columns}x{rows}:\n{}",
            terminal.screen()
        );
    }
    signal(driver.id(), "-INT");
    driver.wait().expect("ended");
}
