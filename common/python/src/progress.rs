//! Long work on another thread, while the calling thread reports its progress to Python and listens to signals.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;

/// How long a signal or a change of the progress waits.
const POLL: Duration = Duration::from_millis(20);

/// Progress of work on other threads.
#[derive(Default)]
pub(crate) struct Meter {
    done: AtomicU64,
    total: AtomicU64,
}

impl Meter {
    /// Records progress; called by any thread.
    pub(crate) fn record(&self, done: u64, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.done.fetch_max(done, Ordering::Relaxed);
    }

    /// Waits until `is_finished`, which the caller's worker announces by unparking this thread. Calls `callback(done, total)`
    /// on this thread whenever there was progress.
    ///
    /// # Errors
    /// The exception of a signal handler, for example KeyboardInterrupt, or of the callback; then the work is not finished.
    pub(crate) fn watch(
        &self,
        py: Python<'_>,
        is_finished: impl Fn() -> bool,
        callback: Option<&Py<PyAny>>,
    ) -> PyResult<()> {
        let mut shown = 0;
        loop {
            // Asked first, so that the progress of the last step is reported too.
            let finished = is_finished();
            let done = self.done.load(Ordering::Relaxed);
            if let Some(callback) = callback
                && done > shown
            {
                shown = done;
                callback.call1(py, (done, self.total.load(Ordering::Relaxed)))?;
            }
            py.check_signals()?;
            if finished {
                return Ok(());
            }
            py.detach(|| thread::park_timeout(POLL));
        }
    }
}
