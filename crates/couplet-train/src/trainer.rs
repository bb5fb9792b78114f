//! The trainer: forward pass, backward pass and optimizer step.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Device, Tensor};
use couplet_encoder::model::{Checkpoint, Loader, ModelConfig, ModelFiles};
use couplet_encoder::ops::{Gradient, Kernels, Noise, Parameters, Rates, Tape};
use rayon::prelude::*;

use super::TrainError;
use super::example::{Example, micro_batches, validate};
use super::gradients::Gradients;
use super::loss::Objective;
use super::network::Network;
use super::optimizer::{Moments, Update};
use super::options::{Options, check};
use super::weights::{Initial, Weights, update};

/// The result of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The step's number, from 0.
    pub step: u64,
    /// The mean loss of the batch, before the update and with dropout.
    pub loss: f64,
    /// The norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The learning rate of the update.
    pub learning_rate: f64,
    /// The number of tokens in the batch.
    pub tokens: usize,
}

/// A network in training, with its optimizer.
#[derive(Debug)]
pub struct Trainer {
    pub(super) config: ModelConfig,
    pub(super) objective: Objective,
    pub(super) options: Options,
    pub(super) kernels: Kernels,
    /// Reads the variables of `weights`, which are updated in place.
    network: Network,
    pub(super) weights: Weights,
    pub(super) gradients: Gradients,
    pub(super) moments: Vec<Moments>,
    pub(super) steps: u64,
}

impl Trainer {
    /// Loads the encoder from a Hugging Face folder, and the head if it has the right shape.
    ///
    /// # Errors
    /// A folder without a usable encoder; invalid options.
    pub fn from_checkpoint(
        folder: &Path,
        objective: Objective,
        options: Options,
        device: &Device,
    ) -> Result<Self, TrainError> {
        Self::from_checkpoint_with(folder, objective, options, device, Kernels::for_training(device))
    }

    /// Loads the model as [`Trainer::from_checkpoint`] does, with the given kernels.
    ///
    /// # Errors
    /// As [`Trainer::from_checkpoint`].
    pub fn from_checkpoint_with(
        folder: &Path,
        objective: Objective,
        options: Options,
        device: &Device,
        kernels: Kernels,
    ) -> Result<Self, TrainError> {
        let files = ModelFiles::read(folder)?;
        let config = ModelConfig::load(&files)?;
        let checkpoint = Checkpoint::open(&files, config.family)?;
        Self::new(config, Some(checkpoint), objective, options, device, kernels)
    }

    /// Loads the model from its files.
    pub(crate) fn of_files(
        files: &ModelFiles,
        objective: Objective,
        options: Options,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let config = ModelConfig::load(files)?;
        let checkpoint = Checkpoint::open(files, config.family)?;
        Self::new(config, Some(checkpoint), objective, options, device, Kernels::for_training(device))
    }

    /// Creates a model with random weights.
    ///
    /// # Errors
    /// Invalid options.
    pub fn from_config(
        config: ModelConfig,
        objective: Objective,
        options: Options,
        device: &Device,
    ) -> Result<Self, TrainError> {
        Self::new(config, None, objective, options, device, Kernels::for_training(device))
    }

    fn new(
        config: ModelConfig,
        checkpoint: Option<Checkpoint>,
        objective: Objective,
        mut options: Options,
        device: &Device,
        kernels: Kernels,
    ) -> Result<Self, TrainError> {
        check(&options, &objective)?;
        options.dropout.get_or_insert(config.dropout);
        // The network of all steps reads the variables themselves: a copy in another type would keep their first
        // values.
        let kernels = kernels.with_f32();
        let tied = objective == Objective::MaskedWords;
        let (seed, deviation) = (options.seed, config.initializer_range);
        let initial = Initial { checkpoint, device, seed, deviation, tied, weights: Mutex::default() };
        let network = Network::load(&Loader { source: &initial, config: &config, kernels }, &objective)?;
        let weights = initial.weights.into_inner().unwrap_or_else(PoisonError::into_inner);
        let sizes = weights.sizes();
        let moments = sizes.iter().map(|size| Moments { mean: vec![0.0; *size], square: vec![0.0; *size] }).collect();
        let gradients = Gradients::new(options.lanes, &sizes);
        Ok(Self { config, objective, options, kernels, network, weights, gradients, moments, steps: 0 })
    }

    /// Returns the network's configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Returns the dropout rates of a step.
    #[must_use]
    pub fn dropout(&self) -> Rates {
        self.options.dropout.unwrap_or(self.config.dropout)
    }

    /// Returns the number of steps so far, which is the number of the next step.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Takes one optimizer step on a batch of any size. A larger batch takes more time, not more memory.
    ///
    /// Runs on the rayon pool that it is called in.
    ///
    /// # Errors
    /// An example that does not fit, a batch without targets, a loss or gradient that is not finite, a device failure.
    /// The weights are unchanged then.
    pub fn step(&mut self, batch: &[Example]) -> Result<Step, TrainError> {
        self.step_at(self.steps, batch)
    }

    /// Takes a step at the given position of the schedule, which is ahead of the step count if batches were skipped.
    pub(super) fn step_at(&mut self, place: u64, batch: &[Example]) -> Result<Step, TrainError> {
        let loss = self.compute_gradients(batch)?;
        let grad_norm = self.gradients.reduce();
        if !(loss.is_finite() && grad_norm.is_finite()) {
            return Err(TrainError::Diverged { step: self.steps, loss, grad_norm });
        }
        let learning_rate = self.options.schedule.rate(place);
        // torch.nn.utils.clip_grad_norm_ adds the same 1e-6.
        let clip = self.options.max_grad_norm.map_or(1.0, |max| (max / (grad_norm + 1e-6)).min(1.0));
        let change = Update::new(self.options.adamw, self.steps + 1, learning_rate, clip);
        for (index, (weight, moments)) in self.weights.all.iter().zip(&mut self.moments).enumerate() {
            let gradient = self.gradients.sum(index);
            update(&weight.variable, |values| change.apply(values, gradient, moments, weight.decay))?;
        }
        let step = self.steps;
        self.steps += 1;
        let tokens = batch.iter().map(|example| example.input_ids.len()).sum();
        Ok(Step { step, loss, grad_norm, learning_rate, tokens })
    }

    /// Computes the loss of a batch and the gradient of each weight without an update: `(loss, [(name, gradient)])`.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn gradients(&mut self, batch: &[Example]) -> Result<(f64, Vec<(String, Tensor)>), TrainError> {
        let loss = self.compute_gradients(batch)?;
        self.gradients.reduce();
        let named = self.weights.all.iter().enumerate().map(|(index, weight)| {
            let gradient = Tensor::from_slice(self.gradients.sum(index), weight.variable.shape(), &Device::Cpu)?;
            Ok((self.full_name(weight), gradient))
        });
        Ok((loss, named.collect::<candle_core::Result<_>>()?))
    }

    /// Computes the gradients into the lanes, or clears them on failure. Returns the loss.
    fn compute_gradients(&mut self, batch: &[Example]) -> Result<f64, TrainError> {
        self.fill_lanes(batch).inspect_err(|_| self.gradients.clear())
    }

    fn fill_lanes(&mut self, batch: &[Example]) -> Result<f64, TrainError> {
        validate(batch, &self.objective, &self.config)?;
        let denominator: f64 = batch.iter().map(|example| self.objective.weight(example)).sum();
        if denominator <= 0.0 {
            return Err(TrainError::NothingToLearn { examples: batch.len() });
        }
        if let Kernels::Training(kernels) = self.kernels {
            self.weights.pack(kernels.isa())?;
        }
        let lengths: Vec<usize> = batch.iter().map(|example| example.input_ids.len()).collect();
        let micro_batches = micro_batches(&lengths, self.options.micro_batch_tokens, self.options.lanes);
        let work = self.gradients.lanes.par_iter().enumerate().map(|(lane, gradients)| {
            let parameters = self.weights.parameters(gradients);
            let lane_batches = micro_batches.iter().skip(lane).step_by(self.options.lanes);
            lane_batches.map(|indices| self.learn(&parameters, gradients, batch, indices, denominator)).collect()
        });
        let losses: Vec<Vec<f64>> = work.collect::<Result<_, TrainError>>()?;
        Ok(losses.iter().flatten().sum())
    }

    /// Runs a micro-batch forward and backward; returns its part of the loss.
    fn learn(
        &self,
        parameters: &Arc<Parameters>,
        gradients: &[Arc<Gradient>],
        batch: &[Example],
        indices: &[usize],
        denominator: f64,
    ) -> Result<f64, TrainError> {
        let examples: Vec<&Example> = indices.iter().map(|i| &batch[*i]).collect();
        if examples.iter().all(|example| self.objective.weight(example) <= 0.0) {
            return Ok(0.0);
        }
        let rates = self.dropout();
        let noise = Noise::new(self.options.seed, self.steps, rates, indices.iter().map(|i| *i as u64).collect());
        let (logits, tape) = Tape::record(parameters.clone(), || self.network.forward(&examples, Some(&noise)))?;
        let columns = logits.dim(1)?;
        let mut gradient = logits.flatten_all()?.to_vec1::<f32>()?;
        let loss = self.objective.loss(&mut gradient, columns, &examples, denominator, self.kernels);
        match self.kernels {
            Kernels::Training(_) => drop(tape.backward([(logits.id(), gradient)])?),
            Kernels::Fast(_) | Kernels::Reference(_) => self.backward_on_candle(gradients, &logits, gradient)?,
        }
        Ok(loss)
    }

    /// Runs candle's backward pass, from a scalar whose gradient with respect to the logits is the given one.
    fn backward_on_candle(
        &self,
        sums: &[Arc<Gradient>],
        logits: &Tensor,
        gradient: Vec<f32>,
    ) -> candle_core::Result<()> {
        let gradient = Tensor::from_vec(gradient, logits.shape(), logits.device())?;
        let gradients = (logits * gradient)?.sum_all()?.backward()?;
        for (weight, sum) in self.weights.all.iter().zip(sums) {
            if let Some(gradient) = gradients.get(&weight.variable) {
                sum.add(&gradient.flatten_all()?.to_vec1::<f32>()?);
            }
        }
        Ok(())
    }
}
