//! A fake Hugging Face Hub on the loopback interface, with fault injection, for tests.
//!
//! It listens on two ports, as the real one does: the Hub itself and the storage that it redirects to. It shares no code with
//! the client under test, and the official Python client works with it unchanged (`tests/hub/with_huggingface_hub.py`). It
//! handles sockets itself, because faults such as resets, truncated bodies and stalls need that. Its data is in a temporary
//! folder that is removed with it. It checks the token but provides no security: use it only in tests.
//!
//! | module | what it owns |
//! |---|---|
//! | `http` | requests and responses on a socket, intact or damaged by a fault |
//! | [`faults`] | which request meets which fault |
//! | `repo` | repositories, commits, blobs, objects |
//! | `hub`, `storage` | the routes of the two ports |
#![allow(clippy::disallowed_methods)] // a test tool that creates its own files

pub mod faults;
mod http;
mod hub;
mod repo;
mod storage;

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use faults::{Fault, Route, Schedule};
use repo::State;

/// Configurable behaviour of the fake Hub.
#[derive(Debug, Clone)]
pub struct Options {
    /// The only valid token. Writing requires it.
    pub token: String,
    /// Whether reading requires the token too.
    pub private: bool,
    /// Size in bytes from which a file goes to large file storage.
    pub lfs_threshold: u64,
    /// Part size in bytes. Larger files are uploaded in parts.
    pub part_size: u64,
    /// Entries on one page of a listing.
    pub page_size: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            token: "hf_faketoken".into(),
            private: false,
            lfs_threshold: 10_000_000,
            part_size: 5_000_000,
            page_size: 50,
        }
    }
}

/// A request that the fake Hub received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedRequest {
    /// Whether it was sent to storage rather than to the Hub.
    pub storage: bool,
    /// Method, path and query.
    pub line: String,
    /// The Authorization header.
    pub authorization: Option<String>,
    /// The Range header.
    pub range: Option<String>,
    /// The If-Range header.
    pub if_range: Option<String>,
    /// The injected fault.
    pub fault: Option<Fault>,
}

/// State shared by both ports.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) hub: String,
    pub(crate) storage: String,
    state: Mutex<State>,
    schedule: Mutex<Schedule>,
    requests: Mutex<Vec<RecordedRequest>>,
    stopped: AtomicBool,
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

/// A running fake Hub. Dropping it stops the server.
pub struct FakeHub {
    shared: Arc<Shared>,
    ports: [u16; 2],
    _folder: tempfile::TempDir,
}

impl FakeHub {
    /// Starts the server on two free ports.
    ///
    /// # Panics
    /// If the loopback interface or the temporary folder cannot be used.
    pub fn start(options: Options) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (hub, storage) = (listen(), listen());
        let port = |listener: &TcpListener| listener.local_addr().expect("bound").port();
        let ports = [port(&hub), port(&storage)];
        let shared = Arc::new(Shared {
            options,
            hub: format!("http://127.0.0.1:{}", ports[0]),
            storage: format!("http://127.0.0.1:{}", ports[1]),
            state: Mutex::new(State::new(folder.path())),
            schedule: Mutex::new(Schedule::None),
            requests: Mutex::new(Vec::new()),
            stopped: AtomicBool::new(false),
        });
        for (listener, is_storage) in [(hub, false), (storage, true)] {
            let shared = shared.clone();
            std::thread::spawn(move || accept(&listener, is_storage, &shared));
        }
        Self {
            shared,
            ports,
            _folder: folder,
        }
    }

    /// The URL of the Hub.
    pub fn endpoint(&self) -> &str {
        &self.shared.hub
    }

    /// Sets the faults of all following requests.
    pub fn set_faults(&self, schedule: Schedule) {
        *self.shared.schedule.lock().expect("not poisoned") = schedule;
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.shared.requests.lock().expect("not poisoned").clone()
    }

    /// Creates a repository with a first commit that holds only `.gitattributes`, unless it exists.
    pub fn create_repo(&self, repo: &str) {
        self.shared.state().create_repo(repo);
    }

    /// Commits a file to `main`, as another client would.
    pub fn commit_file(&self, repo: &str, path: &str, data: &[u8]) {
        let threshold = self.shared.options.lfs_threshold;
        self.shared.state().commit_file(repo, path, data, threshold);
    }

    /// The files of a branch: content by path.
    pub fn files(&self, repo: &str, branch: &str) -> BTreeMap<String, Vec<u8>> {
        self.shared.state().files(repo, branch)
    }

    /// The number of commits of a branch.
    pub fn commit_count(&self, repo: &str, branch: &str) -> usize {
        self.shared.state().commit_count(repo, branch)
    }

    /// Replaces the stored bytes of the object with content `data`. The object keeps the digest of `data` as its id.
    pub fn corrupt_object(&self, data: &[u8], with: &[u8]) {
        self.shared.state().corrupt_object(data, with);
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        for port in self.ports {
            // Wakes the listener, which then sees that the server has stopped.
            let _ = TcpStream::connect(("127.0.0.1", port));
        }
    }
}

fn accept(listener: &TcpListener, storage: bool, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stopped() {
            return;
        }
        if let Ok(stream) = stream {
            let shared = shared.clone();
            std::thread::spawn(move || serve(&stream, storage, &shared));
        }
    }
}

/// Serves one connection until it ends or a fault ends it.
fn serve(stream: &TcpStream, storage: bool, shared: &Shared) {
    let _ = stream.set_nodelay(true);
    let mut connection = http::Connection::new(stream);
    while let Some(head) = connection.read_head() {
        let route = if storage {
            storage::route(&head)
        } else {
            hub::route(&head)
        };
        let fault = {
            let mut schedule = shared.schedule.lock().expect("not poisoned");
            schedule.next(route)
        };
        shared
            .requests
            .lock()
            .expect("not poisoned")
            .push(RecordedRequest {
                storage,
                line: format!("{} {}", head.method, head.target),
                authorization: head.header("authorization").map(ToOwned::to_owned),
                range: head.header("range").map(ToOwned::to_owned),
                if_range: head.header("if-range").map(ToOwned::to_owned),
                fault: fault.clone(),
            });
        if !exchange(&mut connection, head, storage, route, fault, shared) {
            return;
        }
    }
}

/// Handles one request. Returns whether the connection can be used again.
fn exchange(
    connection: &mut http::Connection<'_>,
    head: http::RequestHead,
    storage: bool,
    route: Route,
    fault: Option<Fault>,
    shared: &Shared,
) -> bool {
    match &fault {
        Some(Fault::Reset) => return connection.reset(),
        Some(Fault::ResetInRequest) => {
            connection.read_half_body(&head);
            return connection.reset();
        }
        _ => {}
    }
    let Some(mut request) = connection.read_body(head) else {
        return false;
    };
    let fault_response = match &fault {
        Some(Fault::Status(status)) => Some(http::Response::error(*status, None, "try again")),
        Some(Fault::TooManyRequests(seconds)) => {
            let response = http::Response::error(429, None, "too many requests");
            Some(response.with("retry-after", &seconds.to_string()))
        }
        Some(Fault::ExpiredUrl) => Some(storage::expired_url()),
        Some(Fault::EchoToken) => {
            let credentials = request.head.header("authorization").unwrap_or("nothing");
            let message = format!("Invalid credentials: {credentials}");
            Some(http::Response::error(401, None, &message))
        }
        _ => None,
    };
    match &fault {
        Some(Fault::ConcurrentCommit) if route == Route::Commit => {
            hub::concurrent_commit(&request, shared)
        }
        Some(Fault::IgnoreRange) => request.head.remove_header("range"),
        Some(Fault::WrongRange) => request.head.shift_range(),
        Some(Fault::CorruptPart) => {
            if let Some(byte) = request.body.last_mut() {
                *byte ^= 1;
            }
        }
        _ => {}
    }
    let mut response = fault_response.unwrap_or_else(|| {
        if storage {
            storage::respond(&request, shared)
        } else {
            hub::respond(&request, shared)
        }
    });
    let damage = match fault {
        Some(Fault::LostResponse) => return connection.reset(),
        Some(Fault::CorruptByte) => {
            if let Some(byte) = response.body.last_mut() {
                *byte ^= 0x20;
            }
            None
        }
        other => other,
    };
    connection.send(&request.head, &response, damage.as_ref(), &|| {
        shared.stopped()
    })
}
