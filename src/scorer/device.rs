//! Where an encoder runs.

use candle_core::Device;
use thiserror::Error;

/// A device as a pipeline names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DeviceSetting {
    /// A GPU if this build has support for one and there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of that number.
    Cuda(usize),
    /// Apple's GPU.
    Metal,
}

/// A device that is not there.
#[derive(Debug, Error)]
#[error("device {device} cannot be used: {problem}")]
pub struct DeviceError {
    device: &'static str,
    problem: String,
}

impl DeviceSetting {
    /// Opens the device.
    ///
    /// # Errors
    /// A GPU that this build or this machine does not have.
    pub fn open(self) -> Result<Device, DeviceError> {
        let error = |device, feature: &str, problem: candle_core::Error| DeviceError {
            device,
            problem: if cfg!(any(feature = "cuda", feature = "metal")) {
                problem.to_string()
            } else {
                format!(
                    "this couplet was built without GPU support; build it with --features {feature}, or set device = \"cpu\""
                )
            },
        };
        match self {
            Self::Cuda(ordinal) => Device::new_cuda(ordinal).map_err(|e| error("cuda", "cuda", e)),
            Self::Metal => Device::new_metal(0).map_err(|e| error("metal", "metal", e)),
            Self::Auto if cfg!(feature = "cuda") => Device::cuda_if_available(0).map_err(|e| error("cuda", "cuda", e)),
            Self::Auto if cfg!(feature = "metal") => {
                Device::metal_if_available(0).map_err(|e| error("metal", "metal", e))
            }
            Self::Auto | Self::Cpu => Ok(Device::Cpu),
        }
    }
}
