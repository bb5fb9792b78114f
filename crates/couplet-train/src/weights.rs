//! Trainable weights: their initial values, and access by layers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Tensor, Var};
use couplet_encoder::model::{Checkpoint, LoadError, WORD_EMBEDDINGS, WeightSource};
use couplet_encoder::ops::{Gradient, Isa, PackedWeight, Parameter, Parameters, mix64};
use rayon::prelude::*;

/// All weights of a network, in the order in which the model loads them.
#[derive(Debug, Default)]
pub(super) struct Weights {
    pub(super) all: Vec<Weight>,
    by_name: BTreeMap<String, usize>,
}

/// A trainable weight.
#[derive(Debug)]
pub(super) struct Weight {
    /// The canonical name.
    pub(super) name: String,
    pub(super) variable: Var,
    /// True if weight decay applies.
    pub(super) decay: bool,
    /// The weight packed for the CPU kernels, if it is the matrix of a linear layer.
    panels: Option<Arc<PackedWeight>>,
}

impl Weights {
    fn get(&self, name: &str, shape: &[usize]) -> Result<&Weight, LoadError> {
        let weight = self.by_name.get(name).map(|index| &self.all[*index]);
        weight.filter(|weight| weight.variable.dims() == shape).ok_or_else(|| {
            // A network always loads the same weights, so a missing one is a bug.
            LoadError::Device(candle_core::Error::Msg(format!("no trainable weight {name} of shape {shape:?}")))
        })
    }

    pub(super) fn sizes(&self) -> Vec<usize> {
        self.all.iter().map(|weight| weight.variable.elem_count()).collect()
    }

    /// Returns the parameters of a lane: the weights with the lane's gradients.
    pub(super) fn parameters(&self, gradients: &[Arc<Gradient>]) -> Arc<Parameters> {
        let learned = self.all.iter().zip(gradients).map(|(weight, gradient)| {
            let parameter = Parameter { gradient: gradient.clone(), panels: weight.panels.clone() };
            (weight.variable.id(), parameter)
        });
        Arc::new(learned.collect())
    }

    /// Packs the current weights of the linear layers.
    pub(super) fn pack(&mut self, isa: Isa) -> candle_core::Result<()> {
        self.all.par_iter_mut().try_for_each(|weight| {
            let outputs = weight.variable.dims()[0];
            match weight.panels.as_mut().map(Arc::get_mut) {
                None => Ok(()),
                Some(Some(panels)) => couplet_encoder::ops::read([weight.variable.as_tensor()], |[values]| {
                    panels.pack(isa, values, outputs);
                }),
                Some(None) => candle_core::bail!("weights are packed while a step uses them"),
            }
        })
    }
}

/// Creates the weights when a network is loaded for the first time.
pub(super) struct Initial<'a> {
    /// The checkpoint to start from; none for random weights.
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) device: &'a Device,
    pub(super) seed: u64,
    /// The standard deviation of random weights.
    pub(super) deviation: f64,
    /// True if the word embeddings are also the weight of the output layer.
    pub(super) tied: bool,
    pub(super) weights: Mutex<Weights>,
}

impl Initial<'_> {
    fn value(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        match &self.checkpoint {
            Some(checkpoint) if checkpoint.provides(name, shape) => checkpoint.tensor(name, shape, self.device),
            _ => Ok(self.random(name, shape)?),
        }
    }

    /// Returns 0 for biases, 1 for the scales of normalizations, and normally distributed values for the rest.
    fn random(&self, name: &str, shape: &[usize]) -> candle_core::Result<Tensor> {
        if is_bias(name) {
            return Tensor::zeros(shape, DType::F32, self.device);
        }
        if is_norm(name) {
            return Tensor::ones(shape, DType::F32, self.device);
        }
        let key = name.bytes().fold(mix64(self.seed), |key, byte| mix64(key ^ u64::from(byte)));
        let values: Vec<f32> = (0..shape.iter().product::<usize>() as u64)
            .map(|i| (self.deviation * normal(mix64(key ^ (2 * i)), mix64(key ^ (2 * i + 1)))) as f32)
            .collect();
        Tensor::from_vec(values, shape, self.device)
    }
}

impl WeightSource for Initial<'_> {
    /// Weights are stored in the order in which they are loaded.
    fn in_any_order(&self) -> bool {
        false
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let mut weights = self.weights.lock().unwrap_or_else(PoisonError::into_inner);
        if !weights.by_name.contains_key(name) {
            let multiplies = shape.len() == 2 && (!is_table(name) || (self.tied && name == WORD_EMBEDDINGS));
            let weight = Weight {
                name: name.to_owned(),
                variable: Var::from_tensor(&self.value(name, shape)?)?,
                decay: !(is_bias(name) || is_norm(name)),
                panels: multiplies.then(Arc::default),
            };
            let index = weights.all.len();
            weights.by_name.insert(name.to_owned(), index);
            weights.all.push(weight);
        }
        Ok(weights.get(name, shape)?.variable.as_tensor().clone())
    }
}

/// The weights for inference.
impl WeightSource for Weights {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        Ok(self.get(name, shape)?.variable.as_detached_tensor())
    }
}

fn is_bias(name: &str) -> bool {
    name.rsplit('.').next() == Some("bias")
}

fn is_table(name: &str) -> bool {
    name.starts_with("embeddings.") && !is_norm(name)
}

fn is_norm(name: &str) -> bool {
    name.contains("LayerNorm") || name.contains("layer_norm")
}

/// Returns a normal variate from 2 x 64 random bits. Source: Box & Muller 1958.
fn normal(a: u64, b: u64) -> f64 {
    let uniform = |bits: u64| ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    (-2.0 * uniform(a).ln()).sqrt() * (std::f64::consts::TAU * uniform(b)).cos()
}

/// Changes a variable in place on the CPU, and through a copy on other devices.
pub(super) fn update(variable: &Var, change: impl FnOnce(&mut [f32])) -> candle_core::Result<()> {
    if variable.device().is_cpu() {
        return variable.inplace_op1(&Change(Mutex::new(Some(change))));
    }
    let mut values = variable.flatten_all()?.to_vec1::<f32>()?;
    change(&mut values);
    variable.set(&Tensor::from_vec(values, variable.shape(), variable.device())?)
}

/// A function that is called once, as a candle operator.
struct Change<F>(Mutex<Option<F>>);

impl<F: FnOnce(&mut [f32])> InplaceOp1 for Change<F> {
    fn name(&self) -> &'static str {
        "update"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let change = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (storage, layout.contiguous_offsets(), change) {
            (CpuStorage::F32(values), Some((start, end)), Some(change)) => {
                change(&mut values[start..end]);
                Ok(())
            }
            _ => candle_core::bail!("a variable is contiguous and f32"),
        }
    }
}
