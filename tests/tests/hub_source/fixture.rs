//! A fake Hub with a model, the commands that read it, and what a run leaves on disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use uc_fake_hub::{FakeHub, Options};
use uc_tests::{compress, contents, files_below, program, repository, succeed, uc};

pub const REPO: &str = "tester/tiny-stories";
/// Exit code when the network fails too often.
pub const NETWORK: i32 = 11;

/// A private Hub whose repository holds the files of a folder, and other files that are not part of the model.
pub fn fake_hub(model: &Path) -> FakeHub {
    let fake_hub = FakeHub::start(Options {
        private: true,
        lfs_threshold: 20_000,
        ..Options::default()
    });
    for (name, bytes) in contents(model) {
        fake_hub.commit_file(REPO, &name, &bytes);
    }
    for name in [
        "README.md",
        "pytorch_model.bin",
        "onnx/model.safetensors",
        "original/params.json",
    ] {
        fake_hub.commit_file(REPO, name, b"not part of the model");
    }
    fake_hub
}

/// Number of requests to storage so far.
pub fn storage_requests(fake_hub: &FakeHub) -> usize {
    let requests = fake_hub.requests();
    requests.iter().filter(|request| request.storage).count()
}

/// Whether a download was resumed: a request to storage had a Range header.
pub fn has_resumed(fake_hub: &FakeHub) -> bool {
    let requests = fake_hub.requests();
    requests
        .iter()
        .any(|request| request.storage && request.range.is_some())
}

/// `uc compress` of a model on the fake Hub. Models are downloaded to a folder beside the run.
pub fn compress_from_hub(fake_hub: &FakeHub, model: &str, run: &Path) -> Command {
    let mut command = compress(Path::new(model), run);
    set_hub(&mut command, fake_hub, run);
    command
}

/// `uc resume` of a run whose model is on the fake Hub.
pub fn resume(fake_hub: &FakeHub, run: &Path) -> Command {
    let mut command = uc();
    command.arg("resume").arg(run);
    set_hub(&mut command, fake_hub, run);
    command
}

/// Sets the environment variables that give a command the locations of the fake Hub and of the models.
pub fn set_hub(command: &mut Command, fake_hub: &FakeHub, run: &Path) {
    command.env("HF_ENDPOINT", fake_hub.endpoint());
    command.env("HF_TOKEN", Options::default().token);
    command.env("UC_MODELS", run.parent().expect("folder").join("models"));
}

/// `uc compress` with a budget in bytes for the shards on disk.
pub fn compress_with_budget(fake_hub: &FakeHub, run: &Path, budget: u64) -> Command {
    let mut command = compress_from_hub(fake_hub, REPO, run);
    command.arg("--pipeline").arg(pipeline_without_waits(run));
    command.args(["--set", "retention.source=evict", "--set"]);
    command.arg(format!("retention.budget={budget} B"));
    command
}

/// The default pipeline, with a fetch stage that does not wait between its attempts.
fn pipeline_without_waits(run: &Path) -> PathBuf {
    let text = std::fs::read_to_string(repository().join("pipeline.toml")).expect("pipeline");
    let fetch = r#"["shard-loader", "shard""#;
    assert!(text.contains(fetch));
    let without_waits = format!(r#"{fetch}, "--longest-wait", "0""#);
    let path = run.with_extension("toml");
    std::fs::write(&path, text.replace(fetch, &without_waits)).expect("written");
    path
}

/// A model of nine layers in six shards. Each shard holds consecutive layers; some layers are split between two shards.
pub fn many_layers(folder: &Path) -> PathBuf {
    let config = repository().join("examples/small-configs/llama.json");
    let mut config = read_json(&config);
    config["num_hidden_layers"] = 9.into();
    let path = folder.join("config.json");
    std::fs::write(&path, config.to_string()).expect("written");
    let model = folder.join("tiny-stories");
    succeed(
        program("random-model")
            .args(["--shards", "6", "--in-order", "--config"])
            .arg(&path)
            .arg("--out")
            .arg(&model),
    );
    model
}

pub fn read_json(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("JSON")
}

pub fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension()
        .is_some_and(|extension| extension == wanted)
}

/// Whether a partial download with at least one byte is below a folder.
pub fn has_partial_download(folder: &Path) -> bool {
    files_below(folder).iter().any(|path| {
        has_extension(path, "growing")
            && std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0)
    })
}

/// Bytes of the shards of a run, complete and partial ones.
pub fn shard_bytes(run: &Path) -> u64 {
    let entries = std::fs::read_dir(run.join("source"))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.ends_with(".safetensors") || name.ends_with(".growing")
        })
        .filter_map(|entry| Some(entry.metadata().ok()?.len()))
        .sum()
}

/// The pack without its manifest, and the manifest without the fields that only a model from the Hub has.
pub fn comparable_pack(run: &Path) -> (BTreeMap<String, Vec<u8>>, Value) {
    let mut pack = contents(&run.join("pack"));
    pack.remove("manifest.sha256");
    let manifest = pack.remove("manifest.json").expect("manifest");
    let mut manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    manifest["source"]
        .as_object_mut()
        .expect("object")
        .remove("hub");
    (pack, manifest)
}

pub fn assert_no_token(folder: &Path) {
    let token = Options::default().token;
    for path in files_below(folder) {
        let bytes = std::fs::read(&path).unwrap_or_default();
        let found = bytes
            .windows(token.len())
            .any(|part| part == token.as_bytes());
        assert!(!found, "the token is in {}", path.display());
    }
}

/// How a monitored run ended, and its peak disk usage.
pub struct MonitoredRun {
    pub code: Option<i32>,
    /// Peak bytes of the shards.
    pub peak_shards: u64,
    /// Peak bytes of the whole run directory.
    pub peak_run: u64,
    /// Standard error.
    pub log: String,
}

/// Runs a command to its end and samples the disk usage of its run meanwhile.
pub fn monitor(mut command: Command, run: &Path) -> MonitoredRun {
    let log = run.with_extension("log");
    let file = std::fs::File::create(&log).expect("log");
    let mut child = spawn(command.stdout(Stdio::null()).stderr(file));
    let (mut peak_shards, mut peak_run) = (0, 0);
    let status = loop {
        peak_shards = peak_shards.max(shard_bytes(run));
        let sizes = files_below(run)
            .into_iter()
            .filter_map(|path| Some(std::fs::metadata(path).ok()?.len()));
        peak_run = peak_run.max(sizes.sum());
        if let Some(status) = child.try_wait().expect("state") {
            break status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    MonitoredRun {
        code: status.code(),
        peak_shards,
        peak_run,
        log: std::fs::read_to_string(log).expect("log"),
    }
}

pub fn spawn(command: &mut Command) -> std::process::Child {
    command.spawn().expect("uc")
}

/// Waits for a condition, for at most a minute.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed().as_secs() < 60, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
