//! A pseudo-terminal of a given size: programs write to it as to a real one, and the screen that results is examined.
//!
//! Keys reach a program that runs in a session of its own, which has this terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// How long a test waits for a text to appear.
const PATIENCE: Duration = Duration::from_secs(60);

/// A terminal with a program that writes to it.
pub struct Terminal {
    parser: vt100::Parser,
    keyboard: File,
    chunks: Receiver<Vec<u8>>,
    /// The end of the terminal that programs write to; closed when no more follow.
    user_end: Option<File>,
    /// Rows that were longer than the terminal, as they were drawn.
    pub wrapped: Vec<String>,
    /// Every screen that was seen, as text.
    pub screens: Vec<String>,
}

/// The two ends of a new pseudo-terminal: that of the terminal itself, and that of programs.
///
/// # Panics
/// If the system has no pseudo-terminals.
pub fn open_pair(columns: u16, rows: u16) -> (File, File) {
    // Programs must not inherit this end: it would stay open.
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let controller = openpt(flags).expect("pseudo-terminal");
    grantpt(&controller).expect("access");
    unlockpt(&controller).expect("unlocked");
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&controller, size).expect("size");
    let name = ptsname(&controller, Vec::new()).expect("name");
    let path = name.to_str().expect("UTF-8").to_owned();
    let mut options = File::options();
    let user_end = options.read(true).write(true).open(path).expect("terminal");
    (File::from(controller), user_end)
}

/// A command that runs another one in a session of its own, with a terminal as its standard input and as the one that
/// controls it.
///
/// # Panics
/// If the terminal's descriptor cannot be duplicated.
pub fn session(command: &Command, user_end: &File) -> Command {
    // `setsid` of util-linux.
    let mut session = Command::new("setsid");
    let program = command.get_program();
    session.args(["--ctty", "--wait"]).arg(program);
    session.args(command.get_args());
    session.stdout(std::process::Stdio::null());
    if let Some(folder) = command.get_current_dir() {
        session.current_dir(folder);
    }
    session.stdin(user_end.try_clone().expect("duplicate"));
    session
}

/// Which streams of a program are connected to the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streams {
    /// Standard error.
    Error,
    /// Standard output.
    Output,
}

impl Terminal {
    /// A terminal of a size.
    ///
    /// # Panics
    /// If the system has no pseudo-terminals.
    pub fn new(columns: u16, rows: u16) -> Self {
        let (mut controller, user_end) = open_pair(columns, rows);
        let (sender, chunks) = channel();
        let keyboard = controller.try_clone().expect("duplicate");
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The system reports an error once no program has the other end open.
            while let Ok(count @ 1..) = controller.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            parser: vt100::Parser::new(rows, columns, 10_000),
            keyboard,
            chunks,
            user_end: Some(user_end),
            wrapped: Vec::new(),
            screens: Vec::new(),
        }
    }

    /// Starts a program with one of its streams on the terminal.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(&self, command: &mut Command, stream: Streams) -> Child {
        let end = self.user_end.as_ref().expect("open");
        let end = end.try_clone().expect("duplicate");
        match stream {
            Streams::Error => command.stderr(end),
            Streams::Output => command.stdout(end),
        };
        let child = command.env("TERM", "xterm").spawn().expect("starts");
        // The command keeps its own duplicate otherwise.
        match stream {
            Streams::Error => command.stderr(std::process::Stdio::null()),
            Streams::Output => command.stdout(std::process::Stdio::null()),
        };
        child
    }

    /// Starts a program in a session of its own, with standard input and error on the terminal. Keys become signals.
    ///
    /// # Panics
    /// If `setsid` of util-linux does not start.
    pub fn start_session(&self, command: &Command) -> Child {
        let end = self.user_end.as_ref().expect("open");
        self.start(&mut session(command, end), Streams::Error)
    }

    /// Starts a program in a session of its own, with all three streams on the terminal.
    ///
    /// # Panics
    /// If `setsid` of util-linux does not start.
    pub fn start_dialogue(&self, command: &Command) -> Child {
        let end = self.user_end.as_ref().expect("open");
        let duplicate = || end.try_clone().expect("duplicate");
        let mut session = session(command, end);
        session.stdout(duplicate()).stderr(duplicate());
        session.env("TERM", "xterm").spawn().expect("starts")
    }

    /// Presses a key, given by what it sends.
    ///
    /// # Panics
    /// If the terminal is closed.
    pub fn press(&mut self, key: &[u8]) {
        self.keyboard.write_all(key).expect("open");
    }

    fn process(&mut self, chunk: &[u8]) {
        // In small pieces, so that no screen in between is missed.
        for piece in chunk.chunks(512) {
            self.parser.process(piece);
            let screen = self.parser.screen();
            let (rows, columns) = screen.size();
            let lines: Vec<String> = screen.rows(0, columns).collect();
            for row in (0..rows).filter(|row| screen.row_wrapped(*row)) {
                let line = &lines[usize::from(row)];
                // A row that was filled up with spaces, to move on to the next one, is not too long.
                if !line.ends_with(' ') && !self.wrapped.contains(line) {
                    self.wrapped.push(line.clone());
                }
            }
            self.screens.push(lines.join("\n"));
        }
    }

    /// Waits until the screen shows a text.
    ///
    /// # Panics
    /// If it does not appear in time.
    pub fn wait_for(&mut self, text: &str) {
        self.wait_until(&format!("`{text}`"), |screen| screen.contains(text));
    }

    /// Waits until the screen is as wanted; `what` says how.
    ///
    /// # Panics
    /// If it does not become so in time.
    pub fn wait_until(&mut self, what: &str, is_so: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(&self.screen()) {
            assert!(
                Instant::now() < deadline,
                "no {what} in:\n{}",
                self.screen()
            );
            if let Ok(chunk) = self.chunks.recv_timeout(Duration::from_millis(50)) {
                self.process(&chunk);
            }
        }
    }

    /// Processes everything that is written until all programs have closed the terminal.
    pub fn finish(&mut self) {
        self.user_end = None;
        while let Ok(chunk) = self.chunks.recv_timeout(PATIENCE) {
            self.process(&chunk);
        }
    }

    /// The text on the screen.
    pub fn screen(&self) -> String {
        self.parser.screen().contents()
    }

    /// Lines that have left the screen at its top.
    pub fn scrolled_lines(&mut self) -> usize {
        self.parser.screen_mut().set_scrollback(usize::MAX);
        let lines = self.parser.screen().scrollback();
        self.parser.screen_mut().set_scrollback(0);
        lines
    }
}
