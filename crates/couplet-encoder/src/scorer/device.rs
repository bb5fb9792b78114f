//! Where an encoder runs.

use std::str::FromStr;

use candle_core::Device;
use couplet_storage::backtrace::message;
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

impl FromStr for DeviceSetting {
    type Err = String;

    /// Reads `auto`, `cpu`, `metal` or `cuda:N`; an error says what is allowed.
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
    fn devices_are_named_as_in_pipelines() {
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
