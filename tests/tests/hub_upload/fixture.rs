//! A fake Hub, the commands that upload to it, and what a run and a repository hold.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use uc_fake_hub::{FakeHub, Options};
use uc_tests::{compress, contents, files_below, output_text, program, repository, succeed, uc};

pub const REPO: &str = "tester/pack";

// Exit codes.
pub const DAMAGED: i32 = 5;
pub const PERMISSION: i32 = 8;
pub const MISSING_INPUT: i32 = 10;
pub const NETWORK: i32 = 11;
pub const IO: i32 = 12;
pub const INTERRUPTED: i32 = 130;

/// Longer than any single step takes on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(120);

pub fn fake_hub() -> FakeHub {
    FakeHub::start(Options {
        lfs_threshold: 20_000,
        part_size: 30_000,
        page_size: 3,
        ..Options::default()
    })
}

pub fn with_hub(mut command: Command, fake_hub: &FakeHub) -> Command {
    command.env("HF_ENDPOINT", fake_hub.endpoint());
    command.env("HF_TOKEN", Options::default().token);
    command
}

/// `uc compress MODEL --upload REPO`, without waits between attempts.
pub fn compress_and_upload(fake_hub: &FakeHub, model: &Path, run: &Path) -> Command {
    let mut command = with_hub(compress(model, run), fake_hub);
    command.args(["--upload", REPO, "--set", "upload.longest_wait=0"]);
    command
}

/// `uc resume RUN`.
pub fn resume(fake_hub: &FakeHub, run: &Path) -> Command {
    let mut command = with_hub(uc(), fake_hub);
    command.arg("resume").arg(run);
    command
}

/// `uc upload RUN --repo REPO`.
pub fn upload(fake_hub: &FakeHub, run: &Path) -> Command {
    let mut command = with_hub(uc(), fake_hub);
    command.arg("upload").arg(run).args(["--repo", REPO]);
    command
}

/// The files that the repository should hold for a run whose pack is complete on disk.
pub fn expected_files(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut expected = contents(&run.join("pack"));
    expected.remove("remote.json");
    let card = std::fs::read(run.join("hub/README.md")).expect("the card");
    expected.insert("README.md".into(), card);
    expected
}

/// The files of the repository, without the one that the Hub adds.
pub fn remote_files(fake_hub: &FakeHub) -> BTreeMap<String, Vec<u8>> {
    let mut files = fake_hub.files(REPO, "main");
    files.remove(".gitattributes");
    files
}

/// The files of the repository that belong to the pack: all but the model card.
pub fn remote_pack(fake_hub: &FakeHub) -> BTreeMap<String, Vec<u8>> {
    let mut files = remote_files(fake_hub);
    files.remove("README.md");
    files
}

/// Number of requests so far whose request line contains `part`.
pub fn count_requests(fake_hub: &FakeHub, part: &str) -> usize {
    let requests = fake_hub.requests();
    requests
        .iter()
        .filter(|request| request.line.contains(part))
        .count()
}

pub fn read_json(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("JSON")
}

/// Lines of the event log with these fields, each with its line number.
pub fn events(run: &Path, fields: &[(&str, &str)]) -> Vec<(usize, Value)> {
    let text = std::fs::read(run.join("events.jsonl")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines = text.lines().map(serde_json::from_str::<Value>).enumerate();
    let parsed = lines.filter_map(|(number, value)| Some((number, value.ok()?)));
    parsed
        .filter(|(_, value)| fields.iter().all(|(key, text)| value[*key] == *text))
        .collect()
}

/// Waits for a condition.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < TIMEOUT, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn assert_no_token(run: &Path) {
    let token = Options::default().token;
    let files = files_below(run);
    assert!(files.len() > 20);
    for path in files {
        let bytes = std::fs::read(&path).expect("file");
        let found = bytes
            .windows(token.len())
            .any(|part| part == token.as_bytes());
        assert!(!found, "the token is in {}", path.display());
    }
}

/// Runs commands until one succeeds. Those that fail must fail because of the network.
pub fn run_until_success(mut commands: impl Iterator<Item = Command>) -> Output {
    for attempt in 0.. {
        let output = commands.next().expect("endless").output().expect("uc");
        let message = output_text(&output);
        assert!(!message.contains(&Options::default().token), "{message}");
        if output.status.success() {
            return output;
        }
        let code = output.status.code();
        assert!(code == Some(NETWORK) && attempt < 8, "{message}");
    }
    unreachable!("an endless range")
}

/// A model of small layers.
pub fn many_layers(folder: &Path, layers: u64) -> PathBuf {
    let config = repository().join("examples/small-configs/llama.json");
    let mut config = read_json(&config);
    config["num_hidden_layers"] = layers.into();
    let path = folder.join("config.json");
    std::fs::write(&path, config.to_string()).expect("written");
    let model = folder.join("model");
    let mut command = program("random-model");
    command.arg("--config").arg(&path).arg("--out").arg(&model);
    succeed(&mut command);
    for text in ["calibration.txt", "evaluation.txt"] {
        let from = repository().join("examples/tiny-stories").join(text);
        std::fs::copy(from, model.join(text)).expect("copied");
    }
    model
}

/// Bytes of the files in a folder.
pub fn folder_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    // A file may be deleted between the listing and the query of its size.
    let sizes = entries.filter_map(|entry| Some(entry.metadata().ok()?.len()));
    sizes.sum()
}

/// Number of layer files in the pack of a run.
pub fn layer_count(run: &Path) -> usize {
    let entries = std::fs::read_dir(run.join("pack")).into_iter().flatten();
    let names = entries.flatten().map(|entry| entry.file_name());
    names
        .filter(|name| name.to_string_lossy().contains("layer_"))
        .count()
}
