//! The tape: records the operators of a forward pass and runs their backward passes in reverse order.
//!
//! It replaces candle's backpropagation for two reasons:
//!
//! - For each gradient of an activation, candle allocates zeros, then allocates the sum of the zeros and the gradient,
//!   and adds them in a pool of spinning threads under a global lock. That takes a fifth of a step's time and makes
//!   threads wait for each other. Here a gradient is moved, or added in place.
//! - candle's custom operators have at most three arguments and one result.
//!
//! A tape belongs to the thread that records it. While recording, that thread must not wait for rayon, which could run
//! a part of another recording on it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Result, Tensor, TensorId};

use super::parameter::{Parameter, Parameters};

thread_local! {
    static RECORDING: RefCell<Option<Recording>> = const { RefCell::new(None) };
}

/// A forward pass that is being recorded.
struct Recording {
    parameters: Arc<Parameters>,
    records: Vec<Record>,
}

/// Maps the gradients of an operator's results to the gradients of its arguments, both in order.
type Backward = Box<dyn FnOnce(Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>>>;

/// A recorded operator.
struct Record {
    name: &'static str,
    arguments: Vec<TensorId>,
    results: Vec<TensorId>,
    backward: Backward,
}

/// The recorded operators of a forward pass, in order.
pub struct Tape(Vec<Record>);

impl Tape {
    /// Runs `forward` and records its operators. They look up their weights in `parameters`.
    ///
    /// # Errors
    /// An error of `forward`.
    pub fn record<T>(parameters: Arc<Parameters>, forward: impl FnOnce() -> Result<T>) -> Result<(T, Self)> {
        RECORDING.set(Some(Recording { parameters, records: Vec::new() }));
        let result = forward();
        let records = RECORDING.take().map(|recording| recording.records).unwrap_or_default();
        Ok((result?, Self(records)))
    }

    /// Runs the backward pass, from the gradients of result tensors. Adds the gradients of the parameters to their
    /// [`Parameter::gradient`].
    ///
    /// Returns the gradients of the input tensors, which no recorded operator computed.
    ///
    /// # Errors
    /// A recorded operator that no gradient reaches, because an operator in between was not recorded.
    pub fn backward(
        self,
        outputs: impl IntoIterator<Item = (TensorId, Vec<f32>)>,
    ) -> Result<HashMap<TensorId, Vec<f32>>> {
        let mut gradients: HashMap<TensorId, Vec<f32>> = outputs.into_iter().collect();
        for Record { name, arguments, results, backward } in self.0.into_iter().rev() {
            let result_gradients: Option<Vec<Vec<f32>>> = results.iter().map(|id| gradients.remove(id)).collect();
            let Some(result_gradients) = result_gradients else {
                candle_core::bail!("the gradient does not reach `{name}`")
            };
            for (id, gradient) in arguments.into_iter().zip(backward(result_gradients)?) {
                match gradients.get_mut(&id) {
                    Some(sum) => sum.iter_mut().zip(&gradient).for_each(|(sum, x)| *sum += *x),
                    None => drop(gradients.insert(id, gradient)),
                }
            }
        }
        Ok(gradients)
    }
}

/// Records an operator, if this thread is recording.
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

/// Looks up the parameter of a weight in this thread's recording.
pub(super) fn parameter(weight: &Tensor) -> Result<Parameter> {
    let found =
        RECORDING.with_borrow(|recording| recording.as_ref().and_then(|it| it.parameters.get(&weight.id()).cloned()));
    found.ok_or_else(|| {
        candle_core::Error::Msg(format!("no recording has a parameter for the weight {:?}", weight.dims()))
    })
}

/// Returns the gradient of an operator with one result.
pub(super) fn single(mut gradients: Vec<Vec<f32>>) -> Result<Vec<f32>> {
    match (gradients.pop(), gradients.pop()) {
        (Some(gradient), None) => Ok(gradient),
        _ => candle_core::bail!("an operator with one result has one gradient"),
    }
}
