//! Evaluation of the current weights, without dropout.

use candle_core::Tensor;
use couplet_encoder::model::Loader;
use rayon::prelude::*;

use super::TrainError;
use super::example::{Example, micro_batches, validate};
use super::network::Network;
use super::trainer::Trainer;

/// The quality of masked-token predictions.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct MaskedWords {
    /// Mean cross-entropy in nats; its exponential is the perplexity.
    pub loss: f64,
    /// The number of masked tokens whose true id got the highest logit.
    pub correct: usize,
    /// The number of masked tokens.
    pub words: usize,
}

impl MaskedWords {
    /// Returns the exponential of the loss; none if no token was masked.
    #[must_use]
    pub fn perplexity(&self) -> Option<f64> {
        (self.words > 0).then(|| self.loss.exp())
    }

    /// Returns the share of masked tokens whose true id got the highest logit; none if no token was masked.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        (self.words > 0).then(|| self.correct as f64 / self.words as f64)
    }
}

impl Trainer {
    /// Computes the logits of examples without dropout, `[L]` each, in order; ignores their targets.
    ///
    /// # Errors
    /// An example that does not fit; a device failure.
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
    /// As [`Trainer::step`], except for a loss that is not finite.
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

    /// Evaluates the predictions of masked tokens, without dropout.
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

    /// Calls `f` with the logits of each micro-batch, and returns its results with the indices of the examples.
    fn evaluate<T: Send>(
        &self,
        examples: &[Example],
        f: impl Fn(&[&Example], &Tensor) -> Result<T, TrainError> + Sync,
    ) -> Result<Vec<(Vec<usize>, T)>, TrainError> {
        let kernels = self.kernels.without_gradients();
        let network = Network::load(&Loader { source: &self.weights, config: &self.config, kernels }, &self.objective)?;
        let lengths: Vec<usize> = examples.iter().map(|example| example.input_ids.len()).collect();
        let parts = micro_batches(&lengths, self.options.micro_batch_tokens, 1).into_par_iter().map(|indices| {
            let examples: Vec<&Example> = indices.iter().map(|i| &examples[*i]).collect();
            let value = f(&examples, &network.forward(&examples, None)?)?;
            Ok((indices, value))
        });
        parts.collect()
    }
}
