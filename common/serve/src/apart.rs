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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::http::StatusCode;

    use super::*;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        let mut builder = Builder::new_current_thread();
        set_up(&mut builder);
        let runtime = builder.enable_time().build().expect("a runtime");
        runtime.block_on(work)
    }

    #[test]
    fn a_few_threads_do_all_the_work_and_a_panic_is_an_error_of_one_request() {
        block_on(async {
            let work = || {
                std::thread::sleep(Duration::from_millis(1));
                Ok(std::thread::current().id())
            };
            let mut set = JoinSet::new();
            (0..40).for_each(|_| drop(set.spawn(apart(work))));
            let ids = set.join_all().await.into_iter().map(Result::unwrap);
            assert!(ids.collect::<HashSet<_>>().len() <= THREADS);
            let failed = apart(|| -> Result<(), ApiError> { panic!("on purpose") }).await;
            let error = failed.expect_err("a panic");
            assert_eq!(error.status, StatusCode::INTERNAL_SERVER_ERROR);
            assert_eq!(apart(|| Ok(1)).await.expect("a number"), 1);
        });
    }

    #[test]
    fn work_for_a_client_that_has_left_is_not_begun() {
        let begun = Arc::new(AtomicUsize::new(0));
        let work = |begun: &Arc<AtomicUsize>| {
            let begun = begun.clone();
            apart(move || {
                begun.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(50));
                Ok(())
            })
        };
        block_on(async {
            let mut stays = JoinSet::new();
            (0..THREADS).for_each(|_| drop(stays.spawn(work(&begun))));
            tokio::time::sleep(Duration::from_millis(10)).await;
            let leaves = tokio::time::timeout(Duration::from_millis(10), work(&begun));
            assert!(leaves.await.is_err());
            stays.join_all().await;
            apart(|| Ok(())).await.expect("done");
        });
        assert_eq!(begun.load(Ordering::Relaxed), THREADS);
    }
}
