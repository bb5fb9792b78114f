//! The weights that are learned: where they come from, how layers get hold of them, and how they are named in a file.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Tensor, Var};
use rayon::prelude::*;

use crate::model::{Checkpoint, LoadError, Source, WORD_EMBEDDINGS, is_head};
use crate::ops::{Gradient, Isa, PackedWeight, Parameter, mix64};

/// All weights of a network, in the order in which the model asks for them.
#[derive(Debug, Default)]
pub(super) struct Weights {
    pub(super) all: Vec<Weight>,
    by_name: BTreeMap<String, usize>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Weight {
    /// The canonical name.
    pub(super) name: String,
    pub(super) variable: Var,
    /// Whether the optimizer may decay it.
    pub(super) decay: bool,
    /// Packed for the CPU kernels, if it multiplies.
    panels: Option<Arc<PackedWeight>>,
}

impl Weights {
    fn get(&self, name: &str, shape: &[usize]) -> Result<&Weight, LoadError> {
        let weight = self.by_name.get(name).map(|index| &self.all[*index]);
        weight.filter(|weight| weight.variable.dims() == shape).ok_or_else(|| {
            // A network asks for the same weights every time.
            LoadError::Device(candle_core::Error::Msg(format!("no weight {name} of shape {shape:?} is learned")))
        })
    }

    pub(super) fn sizes(&self) -> Vec<usize> {
        self.all.iter().map(|weight| weight.variable.elem_count()).collect()
    }

    /// Packs the layers' weights as they are now.
    pub(super) fn pack(&mut self, isa: Isa) -> candle_core::Result<()> {
        self.all.par_iter_mut().try_for_each(|weight| {
            let outputs = weight.variable.dims()[0];
            match weight.panels.as_mut().map(Arc::get_mut) {
                None => Ok(()),
                Some(Some(panels)) => {
                    crate::ops::read([weight.variable.as_tensor()], |[values]| panels.pack(isa, values, outputs))
                }
                Some(None) => candle_core::bail!("weights are packed while a step uses them"),
            }
        })
    }
}

/// Makes the weights while a network is loaded for the first time.
pub(super) struct Initial<'a> {
    /// Where there are weights already; none to begin at random.
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) device: &'a Device,
    pub(super) seed: u64,
    /// Standard deviation of weights that begin at random.
    pub(super) deviation: f64,
    /// Whether the word embeddings are a layer's weight too.
    pub(super) tied: bool,
    pub(super) weights: Mutex<Weights>,
}

impl Initial<'_> {
    fn value(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        match &self.checkpoint {
            // A head is new, or of another task; an encoder is complete.
            Some(checkpoint) if !is_head(name) || checkpoint.has(name, shape) => {
                checkpoint.tensor(name, shape, self.device)
            }
            _ => Ok(self.random(name, shape)?),
        }
    }

    /// Biases 0, the scales of normalisations 1, everything else from a normal distribution.
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

impl Source for Initial<'_> {
    /// The order of the weights is that of the questions.
    const IN_ANY_ORDER: bool = false;

    fn parameter(&self, name: &str, shape: &[usize]) -> Result<Parameter, LoadError> {
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
        Ok(Parameter::plain(weights.get(name, shape)?.variable.as_tensor().clone()))
    }
}

/// The weights for the work of one lane, which adds its gradients to its own sums.
pub(super) struct Lane<'a> {
    pub(super) weights: &'a Weights,
    pub(super) gradients: &'a [Arc<Gradient>],
}

impl Source for Lane<'_> {
    /// A lane is one thread's.
    const IN_ANY_ORDER: bool = false;

    fn parameter(&self, name: &str, shape: &[usize]) -> Result<Parameter, LoadError> {
        let weight = self.weights.get(name, shape)?;
        let gradient = &self.gradients[self.weights.by_name[name]];
        let tensor = weight.variable.as_tensor().clone();
        Ok(Parameter { tensor, gradient: Some(gradient.clone()), panels: weight.panels.clone() })
    }
}

/// The weights for inference.
impl Source for Weights {
    fn parameter(&self, name: &str, shape: &[usize]) -> Result<Parameter, LoadError> {
        Ok(Parameter::plain(self.get(name, shape)?.variable.as_detached_tensor()))
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

/// A normal variate from 2 x 64 random bits. Source: Box & Muller 1958.
fn normal(a: u64, b: u64) -> f64 {
    let uniform = |bits: u64| ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    (-2.0 * uniform(a).ln()).sqrt() * (std::f64::consts::TAU * uniform(b)).cos()
}

/// Changes a variable where it lies, on the CPU; elsewhere through a copy.
pub(super) fn update(variable: &Var, change: impl FnOnce(&mut [f32])) -> candle_core::Result<()> {
    if variable.device().is_cpu() {
        return variable.inplace_op1(&Change(Mutex::new(Some(change))));
    }
    let mut values = variable.flatten_all()?.to_vec1::<f32>()?;
    change(&mut values);
    variable.set(&Tensor::from_vec(values, variable.shape(), variable.device())?)
}

/// A function that is called once, as an operator of candle.
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
