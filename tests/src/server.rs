//! `uc serve` on a pack of the tiny model, for tests of several kinds of clients.
#![allow(clippy::disallowed_methods)]

use std::io::{BufRead, BufReader, Read};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::http::Client;
use crate::{compress, copy_model, succeed, uc};

/// A pack of the tiny model in a temporary folder.
#[derive(Debug)]
pub struct Packed {
    folder: tempfile::TempDir,
}

impl Packed {
    /// Compresses the tiny model with this chat template.
    ///
    /// # Panics
    /// If that fails.
    pub fn new(template: &str) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let packed = Packed { folder };
        let model = packed.model();
        copy_model(&model);
        let config = json!({
            "chat_template": template, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 256,
        });
        std::fs::write(model.join("tokenizer_config.json"), config.to_string()).expect("written");
        succeed(&mut compress(&model, &packed.folder.path().join("run")));
        packed
    }

    /// The folder of the model.
    pub fn model(&self) -> PathBuf {
        self.folder.path().join("model")
    }

    /// The folder of the pack.
    pub fn pack(&self) -> PathBuf {
        self.folder.path().join("run/pack")
    }
}

/// A running `uc serve`.
#[derive(Debug)]
pub struct Server {
    child: Child,
    stderr: BufReader<ChildStderr>,
    client: Client,
}

impl Server {
    /// Starts it on a free port and waits until it listens.
    ///
    /// # Panics
    /// If it does not.
    pub fn start(pack: &Path, words: &[&str]) -> Self {
        let mut command = uc();
        command
            .arg("serve")
            .arg(pack)
            .args(["--port", "0"])
            .args(words);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut said = String::new();
        let address = loop {
            let mut line = String::new();
            assert_ne!(stderr.read_line(&mut line).expect("text"), 0, "{said}");
            said += &line;
            if let Some((_, rest)) = line.split_once("http://") {
                break rest.split(',').next().expect("an address").to_owned();
            }
        };
        Server {
            child,
            stderr,
            client: Client { address },
        }
    }

    /// Ends it by a signal; the exit status and what it has said since it listens.
    ///
    /// # Panics
    /// If it does not end.
    pub fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        let id = Pid::from_child(&self.child);
        kill_process(id, signal).expect("a signal");
        let status = self.child.wait().expect("ends");
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).expect("text");
        (status.code(), said)
    }
}

impl Deref for Server {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
