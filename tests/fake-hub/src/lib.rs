//! A Hugging Face Hub on the loopback device: the interface that clients see, with faults by schedule.
//!
//! Two ports, as in life: the Hub itself and the storage that it redirects to. It shares no code with the client under
//! test, and the official Python client works with it unchanged (`tests/hub/with_huggingface_hub.py`). Sockets are
//! handled by hand because faults need them: resets, bodies that end early, silence. What it holds lies in a temporary
//! folder that goes with it. Made for tests alone: it checks a token, but it protects nothing.
//!
//! | module | what it owns |
//! |---|---|
//! | `wire` | a request from a socket, an answer to it, whole or damaged |
//! | [`faults`] | which request meets which fault |
//! | `repo` | repositories, commits, blobs, objects |
//! | `hub`, `storage` | the routes of the two ports |
#![allow(clippy::disallowed_methods)] // a test tool with files of its own

pub mod faults;
mod hub;
mod repo;
mod storage;
mod wire;

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use faults::{Fault, Route, Schedule};
use repo::State;

/// How the fake Hub behaves where the Hub's behaviour is a matter of configuration.
#[derive(Debug, Clone)]
pub struct Options {
    /// The one token that may write.
    pub token: String,
    /// Whether reading needs the token too.
    pub private: bool,
    /// Bytes from which a file goes to large file storage.
    pub lfs_threshold: u64,
    /// Bytes of a part; larger files go in parts.
    pub part_size: u64,
    /// Entries on a page of a listing.
    pub page: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            token: "hf_doubletoken".into(),
            private: false,
            lfs_threshold: 10_000_000,
            part_size: 5_000_000,
            page: 50,
        }
    }
}

/// A request that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Whether it came to storage and not to the Hub.
    pub storage: bool,
    /// Method, path and query.
    pub line: String,
    /// The Authorization header.
    pub authorization: Option<String>,
    /// The Range header.
    pub range: Option<String>,
    /// The If-Range header.
    pub if_range: Option<String>,
    /// The fault that it met.
    pub fault: Option<Fault>,
}

/// What both ports share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) hub: String,
    pub(crate) storage: String,
    state: Mutex<State>,
    schedule: Mutex<Schedule>,
    seen: Mutex<Vec<Seen>>,
    stopped: AtomicBool,
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

/// A running fake Hub; it ends when it is dropped.
pub struct FakeHub {
    shared: Arc<Shared>,
    ports: [u16; 2],
    _folder: tempfile::TempDir,
}

impl FakeHub {
    /// Starts on two free ports.
    ///
    /// # Panics
    /// If the loopback device or the temporary folder cannot be used.
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
            seen: Mutex::new(Vec::new()),
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

    /// The Hub's URL.
    pub fn endpoint(&self) -> &str {
        &self.shared.hub
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, schedule: Schedule) {
        *self.shared.schedule.lock().expect("no test panics with it") = schedule;
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared
            .seen
            .lock()
            .expect("no test panics with it")
            .clone()
    }

    /// Makes a repository with an empty first commit, unless it is there.
    pub fn create(&self, repo: &str) {
        self.shared.state().create(repo);
    }

    /// Commits a file, as somebody else would.
    pub fn put(&self, repo: &str, path: &str, data: &[u8]) {
        let threshold = self.shared.options.lfs_threshold;
        self.shared.state().put(repo, path, data, threshold);
    }

    /// Content of a branch.
    pub fn content(&self, repo: &str, branch: &str) -> BTreeMap<String, Vec<u8>> {
        self.shared.state().content(repo, branch)
    }

    /// Number of commits of a branch.
    pub fn commits(&self, repo: &str, branch: &str) -> usize {
        self.shared.state().depth(repo, branch)
    }

    /// Exchanges the bytes that storage holds under a digest: what must never happen.
    pub fn tamper(&self, data: &[u8], with: &[u8]) {
        self.shared.state().tamper(data, with);
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        for port in self.ports {
            // Wakes the listener, which then leaves.
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

/// Requests of one connection until it ends or a fault ends it.
fn serve(stream: &TcpStream, storage: bool, shared: &Shared) {
    let _ = stream.set_nodelay(true);
    let mut connection = wire::Connection::new(stream);
    while let Some(head) = connection.head() {
        let route = if storage {
            storage::route(&head)
        } else {
            hub::route(&head)
        };
        let fault = {
            let mut schedule = shared.schedule.lock().expect("no test panics with it");
            schedule.next(route)
        };
        shared
            .seen
            .lock()
            .expect("no test panics with it")
            .push(Seen {
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

/// One request; whether the connection goes on.
fn exchange(
    connection: &mut wire::Connection<'_>,
    head: wire::Head,
    storage: bool,
    route: Route,
    fault: Option<Fault>,
    shared: &Shared,
) -> bool {
    match &fault {
        Some(Fault::Reset) => return connection.reset(),
        Some(Fault::ResetInRequest) => {
            connection.half_body(&head);
            return connection.reset();
        }
        _ => {}
    }
    let Some(mut request) = connection.body(head) else {
        return false;
    };
    let answer = match &fault {
        Some(Fault::Status(status)) => Some(wire::Answer::error(*status, None, "try again")),
        Some(Fault::TooMany(seconds)) => {
            let answer = wire::Answer::error(429, None, "too many requests");
            Some(answer.with("retry-after", &seconds.to_string()))
        }
        Some(Fault::Expired) => Some(storage::expired()),
        Some(Fault::EchoToken) => {
            let shown = request.head.header("authorization").unwrap_or("nothing");
            let message = format!("Invalid credentials: {shown}");
            Some(wire::Answer::error(401, None, &message))
        }
        _ => None,
    };
    match &fault {
        Some(Fault::Conflict) if route == Route::Commit => hub::foreign_commit(&request, shared),
        Some(Fault::IgnoreRange) => request.head.drop_header("range"),
        Some(Fault::WrongRange) => request.head.shift_range(),
        Some(Fault::CorruptPart) => {
            if let Some(byte) = request.body.last_mut() {
                *byte ^= 1;
            }
        }
        _ => {}
    }
    let mut answer = answer.unwrap_or_else(|| {
        if storage {
            storage::answer(&request, shared)
        } else {
            hub::answer(&request, shared)
        }
    });
    let damage = match fault {
        Some(Fault::LostAnswer) => return connection.reset(),
        Some(Fault::WrongByte) => {
            if let Some(byte) = answer.body.last_mut() {
                *byte ^= 0x20;
            }
            None
        }
        other => other,
    };
    connection.send(&request.head, &answer, damage.as_ref(), &|| {
        shared.stopped()
    })
}
