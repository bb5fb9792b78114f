//! Trainable parameters of the fused kernels: the gradient of a weight, and the weight packed for both passes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::TensorId;

use crate::ops::fast::Isa;
use crate::ops::fast::gemm::Panels;

/// The parameters of a recording, by the ids of their tensors.
pub type Parameters = HashMap<TensorId, Parameter>;

/// A trainable weight of the CPU kernels.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// The accumulated gradient of the weight.
    pub gradient: Arc<Gradient>,
    /// The packed weight `[out, in]`; none for other parameters than matrices of linear layers.
    pub panels: Option<Arc<PackedWeight>>,
}

/// The sum of the gradients that one lane of a training step has computed for one parameter.
///
/// Only one thread works on a lane at a time. The locks are never contended, and the order of additions is the order of
/// the lane's work.
#[derive(Debug, Default)]
pub struct Gradient {
    dense: Mutex<Vec<f32>>,
    rows: Mutex<Vec<RowGradients>>,
}

/// Sparse gradients of an embedding table: those of the rows that a batch uses.
#[derive(Debug, Clone)]
pub struct RowGradients {
    /// The row that each gradient belongs to; a row may occur more than once.
    pub ids: Vec<u32>,
    /// The gradients, `[ids, D]`.
    pub gradients: Arc<Vec<f32>>,
}

impl Gradient {
    /// Returns the dense part; empty if nothing was added yet.
    pub fn dense(&self) -> MutexGuard<'_, Vec<f32>> {
        self.dense.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the dense part of `len` values, initialized with zeros.
    pub(super) fn dense_mut(&self, len: usize) -> MutexGuard<'_, Vec<f32>> {
        let mut dense = self.dense();
        if dense.len() != len {
            *dense = vec![0.0; len];
        }
        dense
    }

    /// Adds a dense gradient.
    pub fn add(&self, gradient: &[f32]) {
        for (sum, x) in self.dense_mut(gradient.len()).iter_mut().zip(gradient) {
            *sum += *x;
        }
    }

    pub(super) fn push_rows(&self, rows: RowGradients) {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).push(rows);
    }

    /// Takes the sparse part, in the order in which it was computed.
    pub fn take_rows(&self) -> Vec<RowGradients> {
        std::mem::take(&mut self.rows.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A weight `[out, in]` packed for `x · weightᵀ` and for `gradient · weight`.
#[derive(Debug, Default)]
pub struct PackedWeight {
    pub(super) forward: Panels,
    pub(super) backward: Panels,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
}

impl PackedWeight {
    /// Packs a row-major weight `[outputs, _]`, reusing the allocated memory.
    pub fn pack(&mut self, isa: Isa, weight: &[f32], outputs: usize) {
        let (inputs, width) = (weight.len() / outputs, isa.panel_width());
        self.forward.pack_columns(weight.chunks_exact(inputs), inputs, width, 1.0);
        self.backward.pack_rows(weight.chunks_exact(inputs), inputs, width);
        (self.outputs, self.inputs) = (outputs, inputs);
    }
}
