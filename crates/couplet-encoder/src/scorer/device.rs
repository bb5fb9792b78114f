//! The device that an encoder runs on.

use std::str::FromStr;

use candle_core::Device;
use couplet_storage::backtrace::message;
use thiserror::Error;

/// The `device` setting of a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DeviceSetting {
    /// The first GPU if this build supports one and the machine has one; otherwise the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device with this ordinal, counted from 0.
    Cuda(usize),
    /// The GPU of an Apple machine.
    Metal,
}

impl FromStr for DeviceSetting {
    type Err = String;

    /// Parses `auto`, `cpu`, `metal` or `cuda:N`. The error lists the allowed values.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "metal" => Ok(Self::Metal),
            _ => {
                let number = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
                number
                    .map(Self::Cuda)
                    .ok_or_else(|| "auto, cpu, metal, or cuda: and the number of the card, as in cuda:0".to_owned())
            }
        }
    }
}

/// The error for a device that is not available.
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
    /// Returns an error if this build does not support the GPU or the machine does not have it.
    pub fn open(self) -> Result<Device, DeviceError> {
        let error = |device, feature: &str, problem: candle_core::Error| DeviceError {
            device,
            problem: if cfg!(any(feature = "cuda", feature = "metal")) {
                message(&problem)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_the_device_names_of_pipelines() {
        for (text, device) in
            [("auto", DeviceSetting::Auto), ("cpu", DeviceSetting::Cpu), ("cuda:3", DeviceSetting::Cuda(3))]
        {
            assert_eq!(text.parse(), Ok(device));
        }
        for text in ["gpu", "cuda", "cuda:x"] {
            assert!(text.parse::<DeviceSetting>().unwrap_err().contains("as in cuda:0"), "{text}");
        }
    }
}
