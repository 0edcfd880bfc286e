//! The function `verify` of the extension module: progress and signals around the pack library's verification.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use uc_pack::Digest;
use uc_pack::verify::{self, Progress, Request};

use crate::layout;

/// How long a signal or a change of the progress waits.
const POLL: Duration = Duration::from_millis(20);

/// Verifies the pack in a folder and returns the report as JSON. `progress(done, total)` is called from the calling thread with
/// bytes. A signal, or an exception of `progress`, ends the verification.
#[pyfunction]
#[pyo3(signature = (path, threads, expected_fingerprint, progress))]
pub(crate) fn verify(
    py: Python<'_>,
    path: PathBuf,
    threads: usize,
    expected_fingerprint: Option<String>,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let expected_fingerprint = expected_fingerprint
        .map(|text| Digest::try_from(text.to_lowercase()))
        .transpose()
        .map_err(PyValueError::new_err)?;
    let cancelled = AtomicBool::new(false);
    let (done, total) = (AtomicU64::new(0), AtomicU64::new(0));
    let record = |progress: Progress| {
        total.store(progress.total, Ordering::Relaxed);
        done.fetch_max(progress.done, Ordering::Relaxed);
    };
    let request = Request {
        threads,
        expected_fingerprint,
        plan: Some(&layout::plan),
        cancelled: Some(&cancelled),
    };
    let caller = thread::current();
    let report = thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let report = verify::verify(&path, request, &record);
            caller.unpark();
            report
        });
        let mut shown = 0;
        let mut call_progress = || -> PyResult<()> {
            let (done, total) = (done.load(Ordering::Relaxed), total.load(Ordering::Relaxed));
            if let Some(progress) = &progress
                && done > shown
            {
                shown = done;
                progress.call1(py, (done, total))?;
            }
            py.check_signals()
        };
        let mut outcome = Ok(());
        while outcome.is_ok() && !worker.is_finished() {
            py.detach(|| thread::park_timeout(POLL));
            outcome = call_progress();
        }
        cancelled.store(outcome.is_err(), Ordering::Relaxed);
        let report = py.detach(|| worker.join());
        outcome?;
        call_progress()?;
        report.map_err(|_| PyRuntimeError::new_err("the verification ended unexpectedly"))
    })?;
    serde_json::to_string(&report).map_err(|error| PyRuntimeError::new_err(error.to_string()))
}
