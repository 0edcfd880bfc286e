//! The server: accepts connections, limits them, and ends in order.

use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rayon::ThreadPool;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use uc_infer::InferError;

use crate::apart::set_up;
use crate::engine::Engine;
use crate::metrics::Metrics;
use crate::phase::{Phase, Watch};
use crate::router::router;
use crate::served::{Prepared, Served};
use crate::stalling::Stalling;
use crate::state::{Ids, Settings, State, now};

/// Threads for connections. Tokens are computed by the pool.
const WORKERS: usize = 2;
/// Most bytes of the head of a request.
const HEAD_BYTES: usize = 64 << 10;
/// Time after an error of the system, such as too many open files, until connections are accepted again.
const PAUSE: Duration = Duration::from_millis(100);
/// Time for the last errors to be sent after the running answers were cut.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A server that is ready to accept connections.
pub struct Server {
    state: Arc<State>,
    phase: watch::Sender<Phase>,
    thread: JoinHandle<()>,
}

/// Ends a server.
#[derive(Debug, Clone)]
pub struct Control(watch::Sender<Phase>);

impl Control {
    /// No request is accepted any more; running answers are completed within the limit of the settings.
    pub fn end(&self) {
        self.set(Phase::Ending);
    }

    /// Running answers are cut.
    pub fn cut(&self) {
        self.set(Phase::Cut);
    }

    fn set(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let is_later = phase > *now;
            *now = phase.max(*now);
            is_later
        });
    }
}

/// How a server has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Connections whose answers were cut.
    pub cut: usize,
}

impl Server {
    /// Prepares a server whose tokens are computed in this pool.
    ///
    /// # Errors
    /// Those of [`uc_infer::Batch::new`].
    pub fn new(
        served: Served,
        settings: Settings,
        pool: Arc<ThreadPool>,
    ) -> Result<Self, InferError> {
        let prepared = Arc::new(Prepared::new(served));
        let metrics = Arc::new(Metrics::default());
        let (batch, queue) = (settings.batch, settings.queue);
        let (engine, thread) = Engine::start(&prepared, batch, queue, pool, metrics.clone())?;
        let (phase, watch) = Watch::new();
        let state = State {
            prepared,
            settings,
            engine,
            metrics,
            phase: watch,
            started: now(),
            ids: Ids::new(),
        };
        Ok(Server {
            state: Arc::new(state),
            phase,
            thread,
        })
    }

    /// What ends the server.
    pub fn control(&self) -> Control {
        Control(self.phase.clone())
    }

    /// Serves until [`Control::end`] or [`Control::cut`].
    ///
    /// # Errors
    /// Those of the system in starting.
    pub fn run(self, listener: StdListener) -> io::Result<Ended> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(WORKERS).enable_all();
        set_up(&mut builder);
        let runtime = builder.build()?;
        let Server {
            state,
            phase,
            thread,
        } = self;
        let control = Control(phase);
        let ended = runtime.block_on(async move {
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            Ok::<_, io::Error>(serve(state, listener, &control).await)
        });
        runtime.shutdown_timeout(LAST_WORDS);
        let ended = ended?;
        // It ends when nobody can ask it any more.
        if thread.join().is_err() {
            return Err(io::Error::other("the thread that computes has panicked"));
        }
        Ok(ended)
    }
}

async fn serve(state: Arc<State>, listener: TcpListener, control: &Control) -> Ended {
    let mut connections = JoinSet::new();
    accept(&state, listener, &mut connections).await;
    let drain = state.settings.drain;
    let mut phase = state.phase.clone();
    tokio::select! {
        () = all_ended(&mut connections) => return Ended { cut: 0 },
        () = tokio::time::sleep(drain) => {}
        () = phase.reached(Phase::Cut) => {}
    }
    let cut = connections.len();
    control.cut();
    // What has not ended then is aborted with the set.
    let _ = timeout(LAST_WORDS, all_ended(&mut connections)).await;
    Ended { cut }
}

async fn all_ended(connections: &mut JoinSet<()>) {
    while connections.join_next().await.is_some() {}
}

/// Accepts connections until the server ends.
async fn accept(state: &Arc<State>, listener: TcpListener, connections: &mut JoinSet<()>) {
    let router = router(state.clone());
    let permits = Arc::new(Semaphore::new(state.settings.connections));
    let mut phase = state.phase.clone();
    loop {
        // Those that have ended.
        while connections.try_join_next().is_some() {}
        let next = async {
            let permit = permits.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            () = phase.reached(Phase::Ending) => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let (state, router) = (state.clone(), router.clone());
                connections.spawn(async move {
                    state.metrics.connection(true);
                    connection(&state, stream, router).await;
                    state.metrics.connection(false);
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Serves one connection. When the server ends, it ends after the answer that is being sent.
async fn connection(state: &State, stream: TcpStream, router: Router) {
    // Only speed depends on it.
    let _ = stream.set_nodelay(true);
    let stream = Stalling::new(stream, state.settings.write_time);
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(state.settings.head_time)
        .max_buf_size(HEAD_BYTES);
    let service = TowerToHyperService::new(router);
    let served = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    let mut phase = state.phase.clone();
    let result = tokio::select! {
        result = served.as_mut() => result,
        () = phase.reached(Phase::Ending) => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection has ended");
    }
}
