//! The functions `verify` and `diff` of the extension module.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use serde::Serialize;
use uc_pack::Digest;
use uc_pack::diff::{DiffOptions, Progress as DiffProgress};
use uc_pack::verify::{Progress, Request};

use crate::errors::exception;
use crate::handle::Pack;
use crate::progress::Meter;

/// Verifies the pack in a folder and returns the report as JSON. `progress(done, total)` is called on the calling thread with
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
    let meter = Meter::default();
    let record = |progress: Progress| meter.record(progress.done, progress.total);
    let request = Request {
        threads,
        expected_fingerprint,
        plan: Some(&uc_export::planned::plan),
        cancelled: Some(&cancelled),
    };
    let caller = thread::current();
    let report = thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let report = uc_pack::verify::verify(&path, request, &record);
            caller.unpark();
            report
        });
        let watched = meter.watch(py, || worker.is_finished(), progress.as_ref());
        cancelled.store(watched.is_err(), Ordering::Relaxed);
        let report = py.detach(|| worker.join());
        watched.and_then(|()| report.map_err(|_| unexpected_end()))
    })?;
    to_json(&report)
}

/// Compares two packs and returns the result as JSON. `progress(done, total)` is called on the calling thread with bytes. After a
/// signal, or an exception of `progress`, the comparison ends in the background.
#[pyfunction]
#[pyo3(signature = (a, b, layer, decode, threads, progress))]
pub(crate) fn diff(
    py: Python<'_>,
    a: &Pack,
    b: &Pack,
    layer: Option<u32>,
    decode: bool,
    threads: usize,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let (a, b) = (a.tensors()?, b.tensors()?);
    let options = DiffOptions {
        layer,
        decode,
        threads,
    };
    let meter = Arc::new(Meter::default());
    let (caller, recorder) = (thread::current(), Arc::clone(&meter));
    let worker = thread::spawn(move || {
        let record = |progress: DiffProgress| recorder.record(progress.done, progress.total);
        let compared = uc_pack::diff::diff(a.pack(), b.pack(), &options, &record);
        caller.unpark();
        compared
    });
    meter.watch(py, || worker.is_finished(), progress.as_ref())?;
    let compared = worker.join().map_err(|_| unexpected_end())?;
    to_json(&compared.map_err(|error| exception(&error))?)
}

fn unexpected_end() -> PyErr {
    PyRuntimeError::new_err("the work ended unexpectedly")
}

/// A result of the pack library as JSON.
pub(crate) fn to_json(result: &impl Serialize) -> PyResult<String> {
    serde_json::to_string(result).map_err(|error| PyRuntimeError::new_err(error.to_string()))
}
