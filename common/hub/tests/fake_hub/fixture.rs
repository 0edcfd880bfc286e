//! A fake Hub, a client with short limits, files, and a clock that does not wait.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use uc_fake_hub::{FakeHub, Options};
use uc_hub::{
    Clock, Endpoint, Hub, HubError, Limits, LocalFile, Policy, RemoteFile, RepoName, Snapshot,
    Token, Watchdog,
};

pub const REPO: &str = "tester/model";
pub const TOKEN: &str = "hf_doubletoken";

/// A clock that writes down what it was asked to wait.
#[derive(Default)]
pub struct Noted(pub Mutex<Vec<Duration>>);

impl Clock for Noted {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, wait: Duration) {
        self.0.lock().expect("notes").push(wait);
    }
}

/// Limits that a test can wait for.
pub fn limits() -> Limits {
    Limits {
        connect: Duration::from_secs(5),
        stall: Duration::from_millis(150),
        request: Duration::from_secs(5),
        slowest: 1 << 20,
        progress: 1 << 20,
    }
}

pub struct Fixture {
    pub fake_hub: FakeHub,
    pub hub: Hub,
    pub repo: RepoName,
    pub folder: Utf8PathBuf,
    pub clock: Arc<Noted>,
    _keep: tempfile::TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        Self::with(Options {
            lfs_threshold: 4096,
            part_size: 10_000,
            page: 2,
            ..Options::default()
        })
    }

    pub fn with(options: Options) -> Self {
        let fake_hub = FakeHub::start(options);
        fake_hub.create(REPO);
        let keep = tempfile::tempdir().expect("folder");
        let folder = Utf8Path::from_path(keep.path()).expect("utf-8").to_owned();
        Self {
            hub: client(&fake_hub, limits(), Some(TOKEN)),
            fake_hub,
            repo: REPO.parse().expect("a name"),
            folder,
            clock: Arc::default(),
            _keep: keep,
        }
    }

    pub fn watchdog(&self) -> Watchdog<'static> {
        self.watchdog_of(8)
    }

    pub fn watchdog_of(&self, attempts: u32) -> Watchdog<'static> {
        let policy = Policy {
            attempts,
            ..Policy::default()
        };
        Watchdog::with_clock(policy, self.clock.clone())
    }

    pub fn snapshot(&self) -> Snapshot {
        self.hub.info(&self.repo, "main").expect("a listing")
    }

    pub fn remote(&self, path: &str) -> RemoteFile {
        let files = self.snapshot().files;
        files
            .into_iter()
            .find(|file| file.path == path)
            .expect("it is there")
    }

    /// Downloads a file of the head and returns its bytes.
    pub fn download(&self, file: &RemoteFile, attempts: u32) -> Result<Vec<u8>, HubError> {
        let commit = self.snapshot().commit;
        let into = self.folder.join("down").join(&file.path);
        let mut watchdog = self.watchdog_of(attempts);
        self.hub
            .download(&self.repo, &commit, file, &into, &mut watchdog, |_| {})?;
        Ok(std::fs::read(into).expect("it is there"))
    }

    /// Writes a file to be uploaded.
    pub fn local(&self, path: &str, data: &[u8]) -> LocalFile {
        let source = self.folder.join("up").join(path);
        uc_store::atomic::write_bytes(&source, data).expect("written");
        LocalFile::read(path, &source).expect("read")
    }

    /// Lines of requests that came, without query.
    pub fn lines(&self) -> Vec<String> {
        let seen = self.fake_hub.seen();
        let line = |line: &str| line.split('?').next().unwrap_or_default().to_owned();
        seen.iter().map(|seen| line(&seen.line)).collect()
    }

    pub fn count(&self, start: &str) -> usize {
        self.lines()
            .iter()
            .filter(|line| line.starts_with(start))
            .count()
    }
}

pub fn client(fake_hub: &FakeHub, limits: Limits, token: Option<&str>) -> Hub {
    let token = token.and_then(|token| Token::new(token).expect("valid"));
    let endpoint = Endpoint::new(fake_hub.endpoint(), token).expect("valid");
    Hub::new(endpoint, limits).expect("a client")
}

/// Bytes that do not repeat.
pub fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..size).map(|_| next()).collect()
}
