//! The weights and the state of a training as the tensors of a file, without a copy of all of them in memory.

use std::collections::HashMap;

use candle_core::Tensor;

use super::TrainError;
use super::state::{MEAN, SQUARE, STEPS};
use super::trainer::Trainer;
use super::weights::update;
use crate::model::{Data, Entry};

impl Trainer {
    /// The weights, as [`Trainer::tensors`] names them.
    pub(super) fn weight_entries(&self) -> Vec<Entry<'_>> {
        let entry = |(name, variable)| Entry::of_tensor(name, variable);
        self.named_weights().map(entry).collect()
    }

    /// What [`Trainer::restore`] needs.
    pub(super) fn state_entries(&self) -> Vec<Entry<'_>> {
        let mut entries = self.weight_entries();
        for ((name, variable), moments) in self.named_weights().zip(&self.moments) {
            for (kind, values) in [(MEAN, &moments.mean), (SQUARE, &moments.square)] {
                let shape = variable.dims().to_vec();
                entries.push(Entry { name: format!("{kind}{name}"), shape, data: Data::F32(values) });
            }
        }
        entries.push(Entry::row(STEPS, Data::I64(vec![self.steps.cast_signed()])));
        entries
    }

    /// Takes other weights, and keeps the optimizer as it is.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape; nothing is changed then.
    pub(super) fn load_weights(&mut self, tensors: &HashMap<String, Tensor>) -> Result<(), TrainError> {
        let find = |(name, variable): (String, &Tensor)| match tensors.get(&name) {
            Some(tensor) if tensor.dims() == variable.dims() => Ok(tensor.flatten_all()?.to_vec1::<f32>()?),
            found => Err(TrainError::State {
                tensor: name,
                expected: format!("shape {:?}", variable.dims()),
                found: found.map_or_else(|| "nothing".to_owned(), |tensor| format!("{:?}", tensor.dims())),
            }),
        };
        let found = self.named_weights().map(find).collect::<Result<Vec<_>, _>>()?;
        for (weight, values) in self.weights.all.iter().zip(found) {
            update(&weight.variable, |old| old.copy_from_slice(&values))?;
        }
        Ok(())
    }

    fn named_weights(&self) -> impl Iterator<Item = (String, &Tensor)> {
        self.weights.all.iter().map(|weight| (self.full_name(&weight.name), weight.variable.as_tensor()))
    }
}
