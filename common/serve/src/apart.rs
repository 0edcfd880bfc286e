//! Work that takes long for long texts and large grammars: it is done by threads of its own, so that it holds up no connection.
//!
//! They are few and live as long as the server. Regular expressions of tokenizers and the system's allocator keep memory for
//! every thread that has ever used them at the same time; with a thread for every request that comes, a server would grow with the
//! number of its clients.

use std::time::Duration;

use tokio::runtime::Builder;
use tokio::task::JoinSet;

use crate::error::ApiError;

/// Threads for this work. More than processors, so that a large grammar does not hold up short texts.
const THREADS: usize = 4;
/// Time that a thread waits for more work: as good as forever.
const KEEP: Duration = Duration::from_secs(1 << 32);

/// Sets up the threads of a runtime.
pub(crate) fn set_up(builder: &mut Builder) {
    builder
        .max_blocking_threads(THREADS)
        .thread_keep_alive(KEEP);
}

/// Does the work when a thread is free. It is not begun if the client goes away before.
///
/// # Errors
/// Those of the work, 500 if it panics.
pub(crate) async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    // A set ends what is in it when it is dropped.
    let mut set = JoinSet::new();
    set.spawn_blocking(work);
    match set.join_next().await {
        Some(Ok(result)) => result,
        _ => {
            let message = "the request could not be prepared, expected no such error; the server's log says more";
            Err(ApiError::internal(message))
        }
    }
}
