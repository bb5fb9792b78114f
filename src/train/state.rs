//! What is saved of a training, and how it goes on from there.

use std::collections::HashMap;

use candle_core::{Device, Tensor};

use super::TrainError;
use super::optimizer::Moments;
use super::trainer::Trainer;
use super::weights::update;
use crate::model::full_name;

pub(super) const MEAN: &str = "optimizer.mean.";
pub(super) const SQUARE: &str = "optimizer.square.";
pub(super) const STEPS: &str = "optimizer.steps";

impl Trainer {
    /// The weights under the names that transformers gives them.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn tensors(&self) -> Result<Vec<(String, Tensor)>, TrainError> {
        let named = self.weights.all.iter().map(|weight| {
            // A copy, as the next step changes the variable where it lies.
            Ok((self.full_name(&weight.name), weight.variable.as_detached_tensor().copy()?.to_device(&Device::Cpu)?))
        });
        Ok(named.collect::<candle_core::Result<_>>()?)
    }

    /// Everything that the next steps depend on: weights, the optimizer's moments, the number of steps.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>, TrainError> {
        let mut tensors = self.tensors()?;
        for (weight, moments) in self.weights.all.iter().zip(&self.moments) {
            for (kind, values) in [(MEAN, &moments.mean), (SQUARE, &moments.square)] {
                let tensor = Tensor::from_slice(values, weight.variable.shape(), &Device::Cpu)?;
                tensors.push((format!("{kind}{}", self.full_name(&weight.name)), tensor));
            }
        }
        tensors.push((STEPS.to_owned(), Tensor::new(&[self.steps.cast_signed()], &Device::Cpu)?));
        Ok(tensors)
    }

    /// Goes on from a [`Trainer::state`]: the next step is to the last bit what it would have been.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape; nothing is changed then.
    pub fn restore(&mut self, state: &HashMap<String, Tensor>) -> Result<(), TrainError> {
        let read = |name: String, shape: &[usize]| -> Result<Vec<f32>, TrainError> {
            let tensor = find(state, &name, shape)?;
            Ok(tensor.flatten_all()?.to_vec1::<f32>()?)
        };
        let steps = find(state, STEPS, &[1])?.to_vec1::<i64>()?[0];
        let mut restored = Vec::new();
        for weight in &self.weights.all {
            let (name, shape) = (self.full_name(&weight.name), weight.variable.dims());
            let moments = Moments {
                mean: read(format!("{MEAN}{name}"), shape)?,
                square: read(format!("{SQUARE}{name}"), shape)?,
            };
            restored.push((read(name, shape)?, moments));
        }
        for ((weight, moments), (values, restored)) in self.weights.all.iter().zip(&mut self.moments).zip(restored) {
            update(&weight.variable, |old| old.copy_from_slice(&values))?;
            *moments = restored;
        }
        self.steps = steps.cast_unsigned();
        Ok(())
    }

    pub(super) fn full_name(&self, name: &str) -> String {
        full_name(name, self.config.architecture.prefix())
    }
}

fn find<'a>(state: &'a HashMap<String, Tensor>, name: &str, shape: &[usize]) -> Result<&'a Tensor, TrainError> {
    match state.get(name) {
        Some(tensor) if tensor.dims() == shape => Ok(tensor),
        found => Err(TrainError::State {
            tensor: name.to_owned(),
            expected: format!("shape {shape:?}"),
            found: found.map_or_else(|| "nothing".to_owned(), |tensor| format!("{:?}", tensor.dims())),
        }),
    }
}
