//! The class `Pack` of the extension module: a handle to an opened pack.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyTuple};

use crate::checks::to_json;
use crate::errors::exception;
use crate::tensors::{Tensor, Tensors};

/// An opened pack. Threads may share it.
#[pyclass(frozen, module = "ucpack._native")]
pub(crate) struct Pack {
    /// `None` once closed.
    tensors: RwLock<Option<Arc<Tensors>>>,
}

impl Pack {
    /// The tensors, or ValueError if the pack is closed.
    pub(crate) fn tensors(&self) -> PyResult<Arc<Tensors>> {
        let tensors = self.tensors.read().unwrap_or_else(PoisonError::into_inner);
        let closed = || PyValueError::new_err("the pack is closed; open it again with Pack(path)");
        tensors.clone().ok_or_else(closed)
    }
}

/// Name, dtype and shape of each tensor.
fn describe(py: Python<'_>, tensors: &[Tensor]) -> PyResult<Vec<(String, String, Py<PyTuple>)>> {
    let describe = |tensor: &Tensor| {
        let shape = PyTuple::new(py, &tensor.shape)?.unbind();
        Ok((tensor.name.clone(), format!("{:?}", tensor.dtype), shape))
    };
    tensors.iter().map(describe).collect()
}

#[pymethods]
impl Pack {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let tensors = py.detach(|| Tensors::open(&path));
        let tensors = tensors.map_err(|error| exception(&error))?;
        Ok(Self {
            tensors: RwLock::new(Some(Arc::new(tensors))),
        })
    }

    /// Drops the files. Reads that are in progress end normally.
    fn close(&self) {
        *self.tensors.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    #[getter]
    fn closed(&self) -> bool {
        self.tensors().is_err()
    }

    /// SHA-256 of manifest.json.
    #[getter]
    fn fingerprint(&self) -> PyResult<String> {
        Ok(self.tensors()?.pack().fingerprint().to_string())
    }

    /// The text of manifest.json.
    fn manifest_json(&self) -> PyResult<String> {
        let bytes = self.tensors()?.pack().manifest().to_bytes();
        String::from_utf8(bytes).map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// Name, dtype and shape of every tensor, as the pack or as the source checkpoint arranges them.
    fn describe(
        &self,
        py: Python<'_>,
        source_layout: bool,
    ) -> PyResult<Vec<(String, String, Py<PyTuple>)>> {
        let tensors = self.tensors()?;
        match source_layout {
            false => describe(py, tensors.stored()),
            true => describe(py, tensors.source().map_err(|error| exception(&error))?),
        }
    }

    /// The values of the tensor at this position of `describe`, which must have this name.
    fn read<'py>(
        &self,
        py: Python<'py>,
        source_layout: bool,
        position: usize,
        name: &str,
    ) -> PyResult<Bound<'py, PyByteArray>> {
        let tensors = self.tensors()?;
        let list = match source_layout {
            false => tensors.stored(),
            true => tensors.source().map_err(|error| exception(&error))?,
        };
        let tensor = list.get(position).filter(|tensor| tensor.name == name);
        let tensor = tensor.ok_or_else(|| PyKeyError::new_err(name.to_owned()))?;
        PyByteArray::new_with(py, tensor.byte_len(), |out| {
            let read = py.detach(|| tensors.read(tensor, out));
            read.map_err(|error| exception(&error))
        })
    }

    /// What a tensor looks like, as JSON: steps, levels, entropy, distribution of its values.
    fn statistics(&self, py: Python<'_>, name: &str) -> PyResult<String> {
        let tensors = self.tensors()?;
        let measured = py.detach(|| uc_pack::statistics::tensor_statistics(tensors.pack(), name));
        to_json(&measured.map_err(|error| exception(&error))?)
    }
}
