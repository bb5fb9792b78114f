//! The step of training, and evaluation with the weights that it has reached.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::TrainError;
use super::example::{Example, micro_batches, validate};
use super::gradients::Gradients;
use super::loss::Objective;
use super::optimizer::{AdamW, Moments, Update};
use super::schedule::Schedule;
use super::weights::{Initial, Lane, Weights, update};
use crate::model::{Architecture, Checkpoint, Encoder, Head, LoadError, MaskedWordsHead, ModelConfig, PackedBatch};
use crate::model::{Source, full_name};
use crate::ops::{Kernels, Noise, Rates, Tape};

/// How to train. The result depends on all of them, and on nothing else.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Of new weights and of dropout.
    pub seed: u64,
    /// What is dropped; none for the rates of the architecture's paper.
    pub dropout: Option<Rates>,
    /// The optimizer.
    pub adamw: AdamW,
    /// The learning rate.
    pub schedule: Schedule,
    /// The norm to which a longer gradient of all weights together is shortened, as by PyTorch's `clip_grad_norm_`.
    pub max_grad_norm: Option<f64>,
    /// About the most tokens in a micro-batch: memory grows with it, and speed a little.
    pub micro_batch_tokens: usize,
    /// How many micro-batches can be computed at a time: the most threads that a step can use, each with a copy of
    /// the gradients.
    pub lanes: usize,
}

impl Default for Options {
    /// As transformers' `Trainer`, with its peak learning rate and no schedule.
    fn default() -> Self {
        Self {
            seed: 42,
            dropout: None,
            adamw: AdamW::default(),
            schedule: Schedule::constant(5e-5),
            max_grad_norm: Some(1.0),
            micro_batch_tokens: 512,
            lanes: 4,
        }
    }
}

/// What happened in a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Its number, from 0.
    pub step: u64,
    /// The mean loss of the batch, before the update and with dropout.
    pub loss: f64,
    /// The norm of the gradient before it was clipped.
    pub grad_norm: f64,
    /// The learning rate of the update.
    pub learning_rate: f64,
    /// Tokens in the batch.
    pub tokens: usize,
}

/// How well hidden words are predicted.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct MaskedWords {
    /// Mean cross-entropy, in nats; its exponential is the perplexity.
    pub loss: f64,
    /// Words that got the highest logit.
    pub correct: usize,
    /// Hidden words.
    pub words: usize,
}

/// A network that learns, with its optimizer.
#[derive(Debug)]
pub struct Trainer {
    config: ModelConfig,
    objective: Objective,
    options: Options,
    kernels: Kernels,
    weights: Weights,
    gradients: Gradients,
    moments: Vec<Moments>,
    steps: u64,
}

impl Trainer {
    /// Starts from a Hugging Face folder: its encoder, and its head if it has the right shape.
    ///
    /// # Errors
    /// A folder without a usable encoder; options that make no sense.
    pub fn from_checkpoint(
        folder: &Path,
        objective: Objective,
        options: Options,
        device: &Device,
    ) -> Result<Self, TrainError> {
        Self::from_checkpoint_with(folder, objective, options, device, Kernels::for_training(device))
    }

    /// The same with the given kernels.
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
        let config = ModelConfig::load(&folder.join("config.json"))?;
        let checkpoint = Checkpoint::open(folder, config.architecture)?;
        Self::new(config, Some(checkpoint), objective, options, device, kernels)
    }

    /// Starts from random weights.
    ///
    /// # Errors
    /// Options that make no sense.
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
        options.dropout.get_or_insert(match config.architecture {
            Architecture::DistilBert => Rates::DISTILBERT,
            Architecture::Bert => Rates::BERT,
        });
        let tied = objective == Objective::MaskedWords;
        let initial = Initial { checkpoint, device, seed: options.seed, tied, weights: RefCell::default() };
        Network::load(&initial, &config, &objective, Kernels::Reference)?;
        let weights = initial.weights.into_inner();
        let sizes = weights.sizes();
        let moments = sizes.iter().map(|size| Moments { mean: vec![0.0; *size], square: vec![0.0; *size] }).collect();
        let gradients = Gradients::new(options.lanes, &sizes);
        Ok(Self { config, objective, options, kernels, weights, gradients, moments, steps: 0 })
    }

    /// The network's sizes.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Steps taken so far, which is the number of the next.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Learns from a batch, as one update whatever its size: more of it takes more time, not more memory.
    ///
    /// Runs on the rayon pool it is called in.
    ///
    /// # Errors
    /// An example that does not fit, a batch without targets, a loss or gradient that is no number, a failure of the
    /// device. The weights are then as before.
    pub fn step(&mut self, batch: &[Example]) -> Result<Step, TrainError> {
        let loss = match self.compute_gradients(batch) {
            Ok(loss) => loss,
            Err(e) => {
                self.gradients.clear();
                return Err(e);
            }
        };
        let grad_norm = self.gradients.reduce();
        if !(loss.is_finite() && grad_norm.is_finite()) {
            return Err(TrainError::Diverged { step: self.steps, loss, grad_norm });
        }
        let learning_rate = self.options.schedule.rate(self.steps);
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

    /// Computes the loss of a batch and each weight's gradient, and updates nothing: `(loss, [(name, gradient)])`.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn gradients(&mut self, batch: &[Example]) -> Result<(f64, Vec<(String, Tensor)>), TrainError> {
        let loss = self.compute_gradients(batch)?;
        self.gradients.reduce();
        let named = self.weights.all.iter().enumerate().map(|(index, weight)| {
            let gradient = Tensor::from_slice(self.gradients.sum(index), weight.variable.shape(), &Device::Cpu)?;
            Ok((self.full_name(&weight.name), gradient))
        });
        Ok((loss, named.collect::<candle_core::Result<_>>()?))
    }

    /// Leaves the gradients in the lanes and returns the loss.
    fn compute_gradients(&mut self, batch: &[Example]) -> Result<f64, TrainError> {
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
            let source = Lane { weights: &self.weights, gradients };
            let network = Network::load(&source, &self.config, &self.objective, self.kernels)?;
            let mine = micro_batches.iter().skip(lane).step_by(self.options.lanes);
            mine.map(|indices| self.learn(&network, &source, batch, indices, denominator)).collect()
        });
        let losses: Vec<Vec<f64>> = work.collect::<Result<_, TrainError>>()?;
        Ok(losses.iter().flatten().sum())
    }

    /// Takes a micro-batch forwards and backwards; returns its part of the loss.
    fn learn(
        &self,
        network: &Network,
        lane: &Lane,
        batch: &[Example],
        indices: &[usize],
        denominator: f64,
    ) -> Result<f64, TrainError> {
        let examples: Vec<&Example> = indices.iter().map(|i| &batch[*i]).collect();
        if examples.iter().all(|example| self.objective.weight(example) <= 0.0) {
            return Ok(0.0);
        }
        let rates = self.options.dropout.unwrap_or(Rates::NONE);
        let noise = Noise::new(self.options.seed, self.steps, rates, indices.iter().map(|i| *i as u64).collect());
        let (logits, tape) = Tape::record(|| network.forward(&examples, Some(&noise)))?;
        let columns = logits.dim(1)?;
        let mut gradient = logits.flatten_all()?.to_vec1::<f32>()?;
        let loss = self.objective.loss(&mut gradient, columns, &examples, denominator, self.kernels);
        match self.kernels {
            Kernels::Training(_) => drop(tape.backward([(logits.id(), gradient)])?),
            Kernels::Fast(_) | Kernels::Reference => self.backward_on_candle(lane, &logits, gradient)?,
        }
        Ok(loss)
    }

    /// Goes back on candle's tape, from a scalar whose gradient by the logits is the given one.
    fn backward_on_candle(&self, lane: &Lane, logits: &Tensor, gradient: Vec<f32>) -> candle_core::Result<()> {
        let gradient = Tensor::from_vec(gradient, logits.shape(), logits.device())?;
        let gradients = (logits * gradient)?.sum_all()?.backward()?;
        for (weight, sum) in self.weights.all.iter().zip(lane.gradients) {
            if let Some(gradient) = gradients.get(&weight.variable) {
                sum.add(&gradient.flatten_all()?.to_vec1::<f32>()?);
            }
        }
        Ok(())
    }

    /// Computes the logits of examples without dropout, `[L]` each, in their order; their targets are not read.
    ///
    /// # Errors
    /// An example that does not fit; a failure of the device.
    pub fn logits(&self, examples: &[Example]) -> Result<Vec<Vec<f32>>, TrainError> {
        let parts = self.evaluate(examples, |_, logits| Ok(logits.to_vec2::<f32>()?))?;
        let mut all = vec![Vec::new(); examples.len()];
        for (indices, rows) in parts {
            for (i, row) in indices.into_iter().zip(rows) {
                all[i] = row;
            }
        }
        Ok(all)
    }

    /// Computes the mean loss of examples without dropout.
    ///
    /// # Errors
    /// As [`Trainer::step`], a loss that is no number excepted.
    pub fn loss(&self, examples: &[Example]) -> Result<f64, TrainError> {
        validate(examples, &self.objective, &self.config)?;
        let denominator: f64 = examples.iter().map(|example| self.objective.weight(example)).sum();
        if denominator <= 0.0 {
            return Err(TrainError::NothingToLearn { examples: examples.len() });
        }
        let parts = self.evaluate(examples, |examples, logits| {
            let columns = logits.dim(1)?;
            let mut values = logits.flatten_all()?.to_vec1::<f32>()?;
            Ok(self.objective.loss(&mut values, columns, examples, denominator, self.kernels))
        })?;
        Ok(parts.into_iter().map(|(_, loss)| loss).sum())
    }

    /// Counts how many hidden words are predicted, without dropout.
    ///
    /// # Errors
    /// As [`Trainer::loss`]; examples of another objective.
    pub fn masked_words(&self, examples: &[Example]) -> Result<MaskedWords, TrainError> {
        validate(examples, &self.objective, &self.config)?;
        let parts = self.evaluate(examples, |examples, logits| {
            let columns = logits.dim(1)?;
            let mut values = logits.flatten_all()?.to_vec1::<f32>()?;
            let words = examples.iter().flat_map(|example| example.words());
            let hit = |row: &[f32], id: u32| row.iter().all(|x| *x <= row[id as usize]);
            let correct = values.chunks_exact(columns).zip(words).filter(|(row, (_, id))| hit(row, *id)).count();
            let words = values.len() / columns;
            let loss = self.objective.loss(&mut values, columns, examples, 1.0, self.kernels);
            Ok(MaskedWords { loss, correct, words })
        })?;
        let mut total = MaskedWords::default();
        for (_, part) in parts {
            total.loss += part.loss;
            total.correct += part.correct;
            total.words += part.words;
        }
        total.loss /= total.words.max(1) as f64;
        Ok(total)
    }

    /// Gives `f` the logits of micro-batches of the examples, and returns what it makes of them.
    fn evaluate<T: Send>(
        &self,
        examples: &[Example],
        f: impl Fn(&[&Example], &Tensor) -> Result<T, TrainError> + Sync,
    ) -> Result<Vec<(Vec<usize>, T)>, TrainError> {
        let kernels = match self.kernels {
            Kernels::Training(kernels) => Kernels::Fast(kernels),
            other => other,
        };
        let network = Network::load(&self.weights, &self.config, &self.objective, kernels)?;
        let lengths: Vec<usize> = examples.iter().map(|example| example.input_ids.len()).collect();
        let parts = micro_batches(&lengths, self.options.micro_batch_tokens, 1).into_par_iter().map(|indices| {
            let examples: Vec<&Example> = indices.iter().map(|i| &examples[*i]).collect();
            let value = f(&examples, &network.forward(&examples, None)?)?;
            Ok((indices, value))
        });
        parts.collect()
    }

    /// The weights under the names that transformers gives them.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn tensors(&self) -> Result<Vec<(String, Tensor)>, TrainError> {
        let named = self.weights.all.iter().map(|weight| {
            Ok((self.full_name(&weight.name), weight.variable.as_detached_tensor().to_device(&Device::Cpu)?))
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
        tensors.push((STEPS.to_owned(), Tensor::new(&[self.steps as i64], &Device::Cpu)?));
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
        let steps = find(state, STEPS, &[1])?.to_vec1::<i64>()?;
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
        self.steps = steps[0] as u64;
        Ok(())
    }

    fn full_name(&self, name: &str) -> String {
        full_name(name, self.config.architecture.prefix())
    }
}

const MEAN: &str = "optimizer.mean.";
const SQUARE: &str = "optimizer.square.";
const STEPS: &str = "optimizer.steps";

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

fn check(options: &Options, objective: &Objective) -> Result<(), TrainError> {
    let error = |option, expected: &str, found: String| {
        Err(TrainError::Option { option, expected: expected.to_owned(), found })
    };
    if options.lanes == 0 {
        return error("lanes", "1 or more", "0".into());
    }
    if options.micro_batch_tokens == 0 {
        return error("micro_batch_tokens", "1 or more", "0".into());
    }
    if let Some(Rates { embeddings, attention, attention_output, feed_forward, head }) = options.dropout {
        for rate in [embeddings, attention, attention_output, feed_forward, head] {
            if !(0.0..1.0).contains(&rate) {
                return error("dropout", "rates from 0 to below 1", rate.to_string());
            }
        }
    }
    match objective {
        Objective::Classification { labels, class_weights, label_smoothing } => {
            if *labels < 2 {
                return error("labels", "2 or more", labels.to_string());
            }
            if !(0.0..1.0).contains(label_smoothing) {
                return error("label_smoothing", "0 to below 1", label_smoothing.to_string());
            }
            match class_weights {
                Some(weights) if weights.len() != *labels || weights.iter().any(|w| !w.is_finite() || *w < 0.0) => {
                    error("class_weights", &format!("{labels} numbers from 0"), format!("{weights:?}"))
                }
                _ => Ok(()),
            }
        }
        Objective::MultiLabel { labels: 0 } => error("labels", "1 or more", "0".into()),
        _ => Ok(()),
    }
}

/// An encoder with the head of an objective.
struct Network {
    encoder: Encoder,
    head: AnyHead,
}

enum AnyHead {
    Classifier(Head),
    MaskedWords(MaskedWordsHead),
}

impl Network {
    fn load(
        source: &impl Source,
        config: &ModelConfig,
        objective: &Objective,
        kernels: Kernels,
    ) -> Result<Self, LoadError> {
        let head = match objective {
            Objective::Classification { labels, .. } | Objective::MultiLabel { labels } => {
                AnyHead::Classifier(Head::load(source, config, *labels, kernels)?)
            }
            Objective::Regression => AnyHead::Classifier(Head::load(source, config, 1, kernels)?),
            Objective::MaskedWords => AnyHead::MaskedWords(MaskedWordsHead::load(source, config, kernels)?),
        };
        Ok(Self { encoder: Encoder::load(source, config, kernels)?, head })
    }

    /// Computes the logits of each example, or of each hidden word.
    fn forward(&self, examples: &[&Example], noise: Option<&Noise>) -> candle_core::Result<Tensor> {
        let mut batch = PackedBatch::default();
        for example in examples {
            batch.push(&example.input_ids, &example.token_type_ids);
        }
        let mut rows = Vec::new();
        let mut cu_rows = vec![0];
        for (example, start) in examples.iter().zip(&batch.cu_seqlens) {
            match self.head {
                AnyHead::MaskedWords(_) => rows.extend(example.words().iter().map(|(at, _)| start + at)),
                AnyHead::Classifier(_) => rows.push(*start),
            }
            cu_rows.push(rows.len() as u32);
        }
        let hidden_states = self.encoder.forward_at(&batch, &rows, &cu_rows, noise)?;
        match &self.head {
            AnyHead::Classifier(head) => head.forward(&hidden_states, noise),
            AnyHead::MaskedWords(head) => head.forward(&hidden_states),
        }
    }
}
