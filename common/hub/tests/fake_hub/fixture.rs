//! The test fixture: a fake Hub, a client with short time limits, files, and a clock that does not sleep.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use uc_fake_hub::{FakeHub, Options};
use uc_hub::{
    Clock, Endpoint, Hub, HubError, Limits, LocalFile, RemoteFile, RepoName, Retrier, RetryPolicy,
    Snapshot, Token,
};

pub const REPO: &str = "tester/model";
pub const TOKEN: &str = "hf_faketoken";

/// A clock that records the requested waits and does not sleep.
#[derive(Default)]
pub struct RecordingClock(pub Mutex<Vec<Duration>>);

impl Clock for RecordingClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, wait: Duration) {
        self.0.lock().expect("not poisoned").push(wait);
    }
}

/// Limits short enough for a test to reach them.
pub fn limits() -> Limits {
    Limits {
        connect: Duration::from_secs(5),
        stall: Duration::from_millis(150),
        request: Duration::from_secs(5),
        min_throughput: 1 << 20,
        progress_bytes: 1 << 20,
    }
}

pub struct Fixture {
    pub fake_hub: FakeHub,
    pub hub: Hub,
    pub repo: RepoName,
    pub folder: Utf8PathBuf,
    pub clock: Arc<RecordingClock>,
    _dir: tempfile::TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        Self::with_options(Options {
            lfs_threshold: 4096,
            part_size: 10_000,
            page_size: 2,
            ..Options::default()
        })
    }

    pub fn with_options(options: Options) -> Self {
        let fake_hub = FakeHub::start(options);
        fake_hub.create_repo(REPO);
        let dir = tempfile::tempdir().expect("folder");
        let folder = Utf8Path::from_path(dir.path()).expect("utf-8").to_owned();
        Self {
            hub: hub_client(&fake_hub, limits(), Some(TOKEN)),
            fake_hub,
            repo: REPO.parse().expect("a name"),
            folder,
            clock: Arc::default(),
            _dir: dir,
        }
    }

    pub fn retrier(&self) -> Retrier<'static> {
        self.retrier_with(8)
    }

    pub fn retrier_with(&self, max_attempts: u32) -> Retrier<'static> {
        let policy = RetryPolicy {
            max_attempts,
            ..RetryPolicy::default()
        };
        Retrier::with_clock(policy, self.clock.clone())
    }

    /// The head of `main`.
    pub fn snapshot(&self) -> Snapshot {
        self.hub.info(&self.repo, "main").expect("a listing")
    }

    /// A file of the head of `main`.
    pub fn remote_file(&self, path: &str) -> RemoteFile {
        let files = self.snapshot().files;
        files
            .into_iter()
            .find(|file| file.path == path)
            .expect("in the listing")
    }

    /// Downloads a file of the head of `main` and returns its content.
    pub fn download(&self, file: &RemoteFile, max_attempts: u32) -> Result<Vec<u8>, HubError> {
        let commit = self.snapshot().commit;
        let into = self.folder.join("down").join(&file.path);
        let mut retrier = self.retrier_with(max_attempts);
        self.hub
            .download(&self.repo, &commit, file, &into, &mut retrier, |_| {})?;
        Ok(std::fs::read(into).expect("downloaded"))
    }

    /// Writes a file to be uploaded.
    pub fn local_file(&self, path: &str, data: &[u8]) -> LocalFile {
        let source = self.folder.join("up").join(path);
        uc_store::atomic::write_bytes(&source, data).expect("written");
        LocalFile::from_path(path, &source).expect("read")
    }

    /// Method and path of every request so far.
    pub fn request_lines(&self) -> Vec<String> {
        let without_query = |line: &str| line.split('?').next().unwrap_or_default().to_owned();
        let requests = self.fake_hub.requests();
        requests
            .iter()
            .map(|request| without_query(&request.line))
            .collect()
    }

    /// Number of requests so far whose method and path start with `start`.
    pub fn count(&self, start: &str) -> usize {
        self.request_lines()
            .iter()
            .filter(|line| line.starts_with(start))
            .count()
    }
}

/// A client for the fake Hub.
pub fn hub_client(fake_hub: &FakeHub, limits: Limits, token: Option<&str>) -> Hub {
    let token = token.and_then(|token| Token::new(token).expect("valid"));
    let endpoint = Endpoint::new(fake_hub.endpoint(), token).expect("valid");
    Hub::new(endpoint, limits).expect("a client")
}

/// Reproducible pseudorandom bytes (xorshift).
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
