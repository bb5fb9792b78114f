//! Our own tape: what was computed, to be gone through backwards.
//!
//! It replaces candle's, which for every gradient of an activation allocates zeros, allocates the sum of the zeros and
//! the gradient, and has a pool of spinning threads add them up under one lock for all callers: a fifth of the time of
//! a step, and threads that wait for each other. Here a gradient is moved, or added in place. And candle's custom
//! operators have at most three arguments and one result.
//!
//! A tape belongs to the thread that records it. While it records, that thread must not give work to rayon, which
//! could run a piece of another recording on it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Result, Tensor, TensorId};

use super::parameter::{Parameter, Parameters};

thread_local! {
    static RECORDING: RefCell<Option<Recording>> = const { RefCell::new(None) };
}

/// A forward pass so far.
struct Recording {
    parameters: Arc<Parameters>,
    records: Vec<Record>,
}

/// From the gradients of an operator's results to those of its arguments, both in order.
type Backward = Box<dyn FnOnce(Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>>>;

/// An operator that was computed.
struct Record {
    name: &'static str,
    arguments: Vec<TensorId>,
    results: Vec<TensorId>,
    backward: Backward,
}

/// The operators of a forward pass, in their order.
pub struct Tape(Vec<Record>);

impl Tape {
    /// Computes something and records it; the operators find what they learn of a weight in `parameters`.
    ///
    /// # Errors
    /// Those of `forward`.
    pub fn record<T>(parameters: Arc<Parameters>, forward: impl FnOnce() -> Result<T>) -> Result<(T, Self)> {
        RECORDING.set(Some(Recording { parameters, records: Vec::new() }));
        let result = forward();
        let records = RECORDING.take().map(|recording| recording.records).unwrap_or_default();
        Ok((result?, Self(records)))
    }

    /// Goes back from the gradients of tensors that were computed; parameters' gradients are added where they belong.
    ///
    /// Returns the gradients of tensors that no recorded operator computed.
    ///
    /// # Errors
    /// An operator that the gradient does not reach: one was computed that does not record itself.
    pub fn backward(self, of: impl IntoIterator<Item = (TensorId, Vec<f32>)>) -> Result<HashMap<TensorId, Vec<f32>>> {
        let mut gradients: HashMap<TensorId, Vec<f32>> = of.into_iter().collect();
        for Record { name, arguments, results, backward } in self.0.into_iter().rev() {
            let of_results: Option<Vec<Vec<f32>>> = results.iter().map(|id| gradients.remove(id)).collect();
            let Some(of_results) = of_results else { candle_core::bail!("the gradient does not reach `{name}`") };
            for (id, gradient) in arguments.into_iter().zip(backward(of_results)?) {
                match gradients.get_mut(&id) {
                    Some(sum) => sum.iter_mut().zip(&gradient).for_each(|(sum, x)| *sum += *x),
                    None => drop(gradients.insert(id, gradient)),
                }
            }
        }
        Ok(gradients)
    }
}

/// Records an operator, if this thread records.
pub(super) fn push(
    name: &'static str,
    arguments: &[&Tensor],
    results: &[Tensor],
    backward: impl FnOnce(Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>> + 'static,
) {
    RECORDING.with_borrow_mut(|recording| {
        if let Some(Recording { records, .. }) = recording {
            records.push(Record {
                name,
                arguments: arguments.iter().map(|x| x.id()).collect(),
                results: results.iter().map(Tensor::id).collect(),
                backward: Box::new(backward),
            });
        }
    });
}

/// Looks up what the recording of this thread learns of a weight.
pub(super) fn parameter(weight: &Tensor) -> Result<Parameter> {
    let found =
        RECORDING.with_borrow(|recording| recording.as_ref().and_then(|it| it.parameters.get(&weight.id()).cloned()));
    found.ok_or_else(|| candle_core::Error::Msg(format!("a weight {:?} that no recording learns", weight.dims())))
}

/// The one gradient of an operator with one result.
pub(super) fn only(mut gradients: Vec<Vec<f32>>) -> Result<Vec<f32>> {
    match (gradients.pop(), gradients.pop()) {
        (Some(gradient), None) => Ok(gradient),
        _ => candle_core::bail!("an operator with one result has one gradient"),
    }
}
