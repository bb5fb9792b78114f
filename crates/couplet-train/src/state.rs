//! Saves and restores the state of a trainer.
//!
//! Files are written directly from the tensors: a copy of everything would be three times as large as the model.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use couplet_encoder::model::{Data, Entry};

use super::TrainError;
use super::optimizer::Moments;
use super::trainer::Trainer;
use super::weights::{Weight, update};

const MEAN: &str = "optimizer.mean.";
const SQUARE: &str = "optimizer.square.";
pub(super) const STEPS: &str = "optimizer.steps";

impl Trainer {
    /// Returns copies of the weights under their transformers names.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn tensors(&self) -> Result<Vec<(String, Tensor)>, TrainError> {
        copies(self.weight_entries())
    }

    /// Returns copies of everything that the next steps depend on: weights, the optimizer's moments, the number of
    /// steps.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>, TrainError> {
        copies(self.state_entries())
    }

    /// Returns the weights without copying them.
    pub(super) fn weight_entries(&self) -> Vec<Entry<'_>> {
        let weights = self.weights.all.iter();
        weights.map(|weight| Entry::of_tensor(self.full_name(weight), weight.variable.as_tensor())).collect()
    }

    /// Returns the state without copying it.
    pub(super) fn state_entries(&self) -> Vec<Entry<'_>> {
        let mut entries = self.weight_entries();
        for (weight, moments) in self.weights.all.iter().zip(&self.moments) {
            for (kind, values) in [(MEAN, &moments.mean), (SQUARE, &moments.square)] {
                let (name, shape) = (format!("{kind}{}", self.full_name(weight)), weight.variable.dims().to_vec());
                entries.push(Entry { name, shape, data: Data::F32(values) });
            }
        }
        entries.push(Entry::row(STEPS, Data::I64(vec![self.steps.cast_signed()])));
        entries
    }

    /// Restores a [`Trainer::state`]: the next step is bit-identical to the one that the saved trainer would have
    /// taken.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape; nothing is changed then.
    pub fn restore(&mut self, state: &HashMap<String, Tensor>) -> Result<(), TrainError> {
        let steps = find(state, STEPS, &[1])?.to_vec1::<i64>()?[0];
        let moments = self.read(state, MEAN)?.into_iter().zip(self.read(state, SQUARE)?);
        let moments = moments.map(|(mean, square)| Moments { mean, square }).collect();
        self.load_weights(state)?;
        (self.moments, self.steps) = (moments, steps.cast_unsigned());
        Ok(())
    }

    /// Replaces the weights, and keeps the optimizer's state.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape; nothing is changed then.
    pub(super) fn load_weights(&mut self, tensors: &HashMap<String, Tensor>) -> Result<(), TrainError> {
        let found = self.read(tensors, "")?;
        for (weight, values) in self.weights.all.iter().zip(found) {
            update(&weight.variable, |old| old.copy_from_slice(&values))?;
        }
        Ok(())
    }

    /// Reads one kind of tensor (weights or a moment) for every weight.
    fn read(&self, tensors: &HashMap<String, Tensor>, kind: &str) -> Result<Vec<Vec<f32>>, TrainError> {
        let read = |weight: &Weight| {
            let tensor = find(tensors, &format!("{kind}{}", self.full_name(weight)), weight.variable.dims())?;
            Ok(tensor.flatten_all()?.to_vec1::<f32>()?)
        };
        self.weights.all.iter().map(read).collect()
    }

    pub(super) fn full_name(&self, weight: &Weight) -> String {
        self.config.family.full_name(&weight.name)
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

/// Copies the tensors, as the next step changes the weights in place.
fn copies(entries: Vec<Entry>) -> Result<Vec<(String, Tensor)>, TrainError> {
    let copy = |Entry { name, shape, data }| {
        let tensor = match data {
            Data::Tensor(tensor) => tensor.detach().copy()?.to_device(&Device::Cpu)?,
            Data::F32(values) => Tensor::from_slice(values, shape, &Device::Cpu)?,
            Data::I64(values) => Tensor::from_vec(values, shape, &Device::Cpu)?,
            Data::U8(values) => Tensor::from_vec(values, shape, &Device::Cpu)?,
        };
        Ok((name, tensor))
    };
    entries.into_iter().map(copy).collect()
}
