//! A folder with a model, a pipeline of small stage programs and the orders that they follow; shared by the driver's tests.
#![allow(clippy::disallowed_methods)] // tests start the program under test and make their own files
#![allow(dead_code)] // each test program uses its own part

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const PATIENCE: Duration = Duration::from_secs(60);

pub const PIPELINE: &str = r#"version = 1
[artifact.weights]
path = "layers/{layer}/weights"
keep = false
[artifact.hidden]
path = "hidden/{layer}"
keep = false
[artifact.codes]
path = "layers/{layer}/codes"
keep = true
[artifact.report]
path = "report"
keep = true
[artifact.extra]
path = "extra"
keep = true
[stage.embed]
argv = ["worker", "job"]
per = "run"
reads = ["source", "calibration-text"]
writes = ["hidden@0"]
[stage.load]
argv = ["worker", "job"]
per = "layer"
reads = ["source"]
writes = ["weights"]
ahead = 1
[stage.teach]
argv = ["worker", "job"]
per = "layer"
reads = ["weights", "hidden"]
writes = ["hidden+1"]
stall_timeout = "2s"
[stage.code]
argv = ["worker", "job"]
per = "layer"
reads = ["weights", "hidden"]
writes = ["codes"]
settings = ["quantize"]
retries = 1
[stage.finish]
argv = ["worker", "job"]
per = "run"
reads = ["codes", "hidden@last"]
writes = ["report"]
[stage.publish]
argv = ["worker", "job"]
per = "run"
reads = ["report"]
writes = ["extra"]
optional = true
"#;

/// A folder with model, pipeline, programs and orders.
pub struct House {
    _keep: tempfile::TempDir,
    pub root: PathBuf,
}

impl House {
    pub fn new() -> Self {
        let keep = tempfile::tempdir().expect("folder");
        let root = keep.path().canonicalize().expect("absolute");
        for folder in ["model", "control", "bin"] {
            std::fs::create_dir(root.join(folder)).expect("folder");
        }
        let house = Self { _keep: keep, root };
        house.write("model/layers.txt", "4");
        house.write("model/calibration.txt", "text");
        house.write("model/evaluation.txt", "other text");
        house.write("pipeline.toml", PIPELINE);
        for name in ["worker", "shard-loader"] {
            let link = house.root.join("bin").join(name);
            std::os::unix::fs::symlink(fake_stage(), link).expect("link");
        }
        house
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.root.join(name), text).expect("written");
    }

    pub fn order(&self, order: &str) {
        self.write(&format!("control/{order}"), "");
    }

    pub fn lift(&self, order: &str) {
        std::fs::remove_file(self.root.join("control").join(order)).expect("order");
    }

    pub fn run_dir(&self) -> PathBuf {
        self.root.join("run")
    }

    pub fn uc(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_uc"));
        command
            .args(arguments)
            .current_dir(&self.root)
            .env("UC_STAGES", self.root.join("bin"))
            .env("FAKE_CONTROL", self.root.join("control"))
            .env_remove("UC_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn compress(&self) -> Command {
        self.uc(&[
            "compress",
            "model",
            "--run",
            "run",
            "--pipeline",
            "pipeline.toml",
            "--threads",
            "4",
        ])
    }

    pub fn complete(&self) {
        let output = self.compress().output().expect("uc");
        assert!(output.status.success(), "{}", words(&output));
    }

    pub fn trace(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.root.join("control/trace")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub fn forget_trace(&self) {
        let _ = std::fs::remove_file(self.root.join("control/trace"));
    }

    pub fn position(&self, line: &str) -> usize {
        let trace = self.trace();
        trace
            .iter()
            .position(|l| l == line)
            .unwrap_or_else(|| panic!("no `{line}` in {trace:?}"))
    }

    pub fn await_trace(&self, line: &str) {
        let start = Instant::now();
        while !self.trace().iter().any(|found| found == line) {
            assert!(
                start.elapsed() < PATIENCE,
                "no `{line}` in {:?}",
                self.trace()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Contents of every result file.
    pub fn results(&self) -> Vec<Vec<u8>> {
        let names = [
            "report",
            "layers/000/codes",
            "layers/001/codes",
            "layers/002/codes",
        ];
        names
            .iter()
            .map(|name| std::fs::read(self.run_dir().join(name)).expect(name))
            .collect()
    }

    pub fn events(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.run_dir().join("events.jsonl")).expect("events");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }
}

/// The example beside the test's own folder; cargo builds it with the tests.
pub fn fake_stage() -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    let folder = own.parent().and_then(Path::parent).expect("target folder");
    let path = folder.join("examples/fake-stage");
    assert!(path.is_file(), "{} is not built", path.display());
    path
}

pub fn words(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

pub fn expect_code(output: &Output, code: i32) -> String {
    let words = words(output);
    assert_eq!(output.status.code(), Some(code), "{words}");
    words
}

pub fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .args([name, &child.id().to_string()])
        .status();
    assert!(status.expect("kill").success());
}

/// Processes that have a folder as their control folder.
pub fn workers_of(house: &House) -> Vec<u32> {
    let wanted = format!("FAKE_CONTROL={}", house.root.join("control").display());
    let processes = std::fs::read_dir("/proc").expect("proc").flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment
                .split(|b| *b == 0)
                .any(|entry| entry == wanted.as_bytes())
        })
        .collect()
}

pub fn await_no_workers(house: &House) {
    let start = Instant::now();
    while !workers_of(house).is_empty() {
        assert!(start.elapsed() < PATIENCE, "stages outlive their driver");
        std::thread::sleep(Duration::from_millis(5));
    }
}
