//! Shared by the end-to-end tests: the programs under test, the embedded model, and comparison of folders byte by byte.
#![allow(clippy::disallowed_methods)] // tests start the programs under test and write their own files

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub mod http;
pub mod kills;
pub mod schema;
pub mod server;
pub mod terminal;

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests has a parent")
        .to_owned()
}

/// The folder of the embedded tiny model.
pub fn tiny_model() -> PathBuf {
    repository().join("examples/tiny-stories")
}

/// The `uc` program that was built beside this test.
pub fn uc() -> Command {
    let mut command = program("uc");
    // Speeds that this machine's user measured must not change what is tested.
    command.env("XDG_CACHE_HOME", "/nonexistent");
    command
}

/// A program that was built beside this test.
///
/// # Panics
/// If it was not built: `make test` builds every program first.
pub fn program(name: &str) -> Command {
    let test = std::env::current_exe().expect("path of this test");
    let folder = test.ancestors().nth(2).expect("target folder");
    let program = folder.join(name);
    assert!(
        program.exists(),
        "{} is missing; run `make test`",
        program.display()
    );
    Command::new(program)
}

/// Settings that make a run of the embedded model take about a second.
pub const QUICK: [&str; 8] = [
    "--set",
    "calibration.windows=6",
    "--set",
    "calibration.length=128",
    "--set",
    "evaluation.windows=3",
    "--set",
    "evaluation.length=128",
];

/// `uc compress MODEL --run RUN` with [`QUICK`] settings.
pub fn compress(model: &Path, run: &Path) -> Command {
    let mut command = uc();
    command
        .arg("compress")
        .arg(model)
        .arg("--run")
        .arg(run)
        .args(QUICK);
    command
}

/// The JSON document on standard output.
///
/// # Panics
/// If standard output is not JSON.
pub fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).expect("JSON on standard output")
}

/// Standard output followed by standard error.
pub fn output_text(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// Runs a program to its end.
///
/// # Panics
/// If its exit status is not 0.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{}", output_text(&output));
    output
}

/// Runs a program to its end, expects the exit status `code` and returns its output.
///
/// # Panics
/// If the exit status is another one.
pub fn fail_with(command: &mut Command, code: i32) -> String {
    let output = command.output().expect("the program starts");
    let text = output_text(&output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

/// The content of every file of a flat folder, by name.
///
/// # Panics
/// If the folder cannot be read.
pub fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| {
            let entry = entry.expect("entry");
            let name = entry.file_name().into_string().expect("UTF-8");
            (name, std::fs::read(entry.path()).expect("file"))
        })
        .collect()
}

/// Copies the embedded model to a folder, so that a test can change its files.
///
/// # Panics
/// If a file cannot be copied.
pub fn copy_model(to: &Path) {
    std::fs::create_dir_all(to).expect("folder");
    for (name, bytes) in contents(&tiny_model()) {
        std::fs::write(to.join(name), bytes).expect("copied");
    }
}

/// All files below a folder.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => files.extend(files_below(&path)),
            path => files.push(path),
        }
    }
    files
}
