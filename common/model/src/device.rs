//! The device to compute on: always the CPU, and an NVIDIA GPU if built with the feature `cuda`.
//!
//! Owns the choice of backend and the check for the CUDA driver before its first use (burn would panic). It
//! computes nothing.

use std::any::{Any, TypeId};
use std::fmt;
use std::str::FromStr;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorData, TensorPrimitive};

/// The CPU backend.
pub type Cpu = burn_flex::Flex<f32, i32>;

/// The CUDA backend.
#[cfg(feature = "cuda")]
pub type Cuda = burn::backend::Cuda<f32, i32>;

/// A device by its name in the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// `cpu`
    Cpu,
    /// `cuda`
    Cuda,
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeviceError {
    /// The name is not that of a device.
    #[error("unknown device {found:?}, expected \"cpu\" or \"cuda\"")]
    Unknown {
        /// The name given.
        found: String,
    },
    /// This program was built without CUDA.
    #[error("device \"cuda\" was requested, but this program was built without the feature `cuda`")]
    NotBuilt,
    /// The driver's library cannot be loaded.
    #[error(
        "device \"cuda\" was requested, but the NVIDIA driver library (libcuda) cannot be loaded"
    )]
    NoDriver,
}

/// Whether `B` is the backend `C`. Lets code that is generic in `B` take a path that only `C` has.
pub(crate) fn is<B: Backend, C: Backend>() -> bool {
    TypeId::of::<B>() == TypeId::of::<C>()
}

/// Converts between two names of the same type, one of which is generic in the backend.
pub(crate) fn cast<From: Any, To: Any>(value: From) -> To {
    let value: Box<dyn Any> = Box::new(value);
    *value.downcast().expect("the same backend under two names")
}

/// Wraps a tensor primitive of a backend.
pub(crate) fn tensor<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// The values of a tensor of the plain CPU backend.
pub(crate) fn slice(data: &TensorData) -> &[f32] {
    data.as_slice().expect("the CPU backend holds f32")
}

impl FromStr for DeviceKind {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        match name {
            "cpu" => Ok(DeviceKind::Cpu),
            "cuda" => Ok(DeviceKind::Cuda),
            _ => Err(DeviceError::Unknown {
                found: name.to_owned(),
            }),
        }
    }
}

impl From<uc_settings::Device> for DeviceKind {
    fn from(device: uc_settings::Device) -> Self {
        match device {
            uc_settings::Device::Cpu => DeviceKind::Cpu,
            uc_settings::Device::Cuda => DeviceKind::Cuda,
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Cuda => "cuda",
        })
    }
}

/// Work that can be done on any backend; see [`dispatch`].
pub trait OnDevice {
    /// Result of the work.
    type Output;

    /// Does the work on `device`.
    fn run<B: Backend>(self, device: B::Device) -> Self::Output;
}

impl DeviceKind {
    /// Whether the device can be used by this program on this machine.
    ///
    /// # Errors
    /// [`DeviceError::NotBuilt`] or [`DeviceError::NoDriver`].
    pub fn check(self) -> Result<(), DeviceError> {
        match self {
            DeviceKind::Cpu => Ok(()),
            DeviceKind::Cuda => check_cuda(),
        }
    }
}

/// Runs `work` on the backend of `kind`.
///
/// # Errors
/// As [`DeviceKind::check`]; in that case `work` is not started.
pub fn dispatch<W: OnDevice>(kind: DeviceKind, work: W) -> Result<W::Output, DeviceError> {
    kind.check()?;
    match kind {
        DeviceKind::Cpu => Ok(work.run::<Cpu>(Default::default())),
        #[cfg(feature = "cuda")]
        DeviceKind::Cuda => Ok(work.run::<Cuda>(Default::default())),
        #[cfg(not(feature = "cuda"))]
        DeviceKind::Cuda => Err(DeviceError::NotBuilt),
    }
}

#[cfg(not(feature = "cuda"))]
fn check_cuda() -> Result<(), DeviceError> {
    Err(DeviceError::NotBuilt)
}

/// Tries to load the driver's library, as the backend itself does when it is first used.
#[cfg(feature = "cuda")]
fn check_cuda() -> Result<(), DeviceError> {
    #![allow(unsafe_code)]
    const NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];
    // SAFETY: loading the NVIDIA driver library runs its initializers; the backend loads the
    // same library at its first use, so this adds no code that would not run anyway.
    let loadable = NAMES
        .iter()
        .any(|name| unsafe { libloading::Library::new(*name) }.is_ok());
    if loadable {
        Ok(())
    } else {
        Err(DeviceError::NoDriver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_round_trip_and_others_are_refused() {
        for kind in [DeviceKind::Cpu, DeviceKind::Cuda] {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let refused = "tpu".parse::<DeviceKind>().unwrap_err();
        assert!(refused.to_string().contains("tpu"), "{refused}");
    }

    #[test]
    fn dispatch_runs_on_the_cpu_backend() {
        struct Name;
        impl OnDevice for Name {
            type Output = String;
            fn run<B: Backend>(self, device: B::Device) -> String {
                B::name(&device)
            }
        }
        assert_eq!(dispatch(DeviceKind::Cpu, Name), Ok("flex".to_owned()));
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn cuda_is_refused_when_it_was_not_built() {
        assert_eq!(DeviceKind::Cuda.check(), Err(DeviceError::NotBuilt));
        assert!(DeviceError::NotBuilt.to_string().contains("feature `cuda`"));
    }
}
