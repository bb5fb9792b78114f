//! The position and the history of a training run.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::Step;
use crate::statistics::metrics::Better;

/// The approximate number of points on a curve, whatever the number of steps.
const CURVE_POINTS: u64 = 500;

/// A metric on held-out rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Score {
    /// The metric's name.
    pub name: String,
    /// The direction in which the metric improves.
    pub better: Better,
}

/// The evaluation after an epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// The epoch, from 1; 0 for the evaluation before the first epoch.
    pub epoch: u64,
    /// The number of steps so far.
    pub step: u64,
    /// The mean loss of the epoch's steps; none before the first epoch.
    pub training_loss: Option<f64>,
    /// The seconds of training so far.
    pub seconds: f64,
    /// The scores on held-out rows, in the order of the metrics; none where a metric is undefined.
    pub scores: Vec<Option<f64>>,
}

/// A point on the curve, which covers one or more steps.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Point {
    /// The last step it covers, from 1.
    step: f64,
    /// The means over its steps.
    loss: f64,
    grad_norm: f64,
    /// The learning rate of its last step.
    learning_rate: f64,
}

/// The position and the history of a training run. Saved with the weights, as JSON, which keeps every bit of a finite
/// number if `serde_json` has the feature `float_roundtrip`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// The number of completed epochs.
    pub(super) epochs_done: u64,
    /// The number of completed batches in the current epoch.
    pub(super) batches_done: u64,
    /// The number of batches without anything to learn.
    pub(crate) skipped: u64,
    /// The numbers of examples and tokens trained on, counted again in every epoch.
    pub(super) examples: u64,
    pub(super) tokens: u64,
    /// The number of times that training was resumed.
    pub(super) resumed: u64,
    /// The seconds of training, evaluation included.
    pub(super) seconds: f64,
    /// The seconds spent in steps.
    pub(super) step_seconds: f64,
    /// The loss sum and the step count of the current epoch.
    loss_sum: f64,
    steps: u64,
    /// The sums and the step count of the current point.
    point: Point,
    in_point: u64,
    curve: Vec<Point>,
    epochs: Vec<Epoch>,
    /// The index of the best entry of `epochs`.
    best: Option<usize>,
}

impl Progress {
    /// Records a step with the given number of examples.
    pub(super) fn record(&mut self, step: &Step, examples: usize, total_steps: u64) {
        self.examples += examples as u64;
        self.tokens += step.tokens as u64;
        self.loss_sum += step.loss;
        self.steps += 1;
        self.point.step = (step.step + 1) as f64;
        self.point.loss += step.loss;
        self.point.grad_norm += step.grad_norm;
        self.point.learning_rate = step.learning_rate;
        self.in_point += 1;
        if self.in_point >= total_steps.div_ceil(CURVE_POINTS) {
            self.close_point();
        }
    }

    fn close_point(&mut self) {
        if self.in_point > 0 {
            let steps = self.in_point as f64;
            let Point { step, loss, grad_norm, learning_rate } = self.point;
            self.curve.push(Point { step, loss: loss / steps, grad_norm: grad_norm / steps, learning_rate });
        }
        (self.point, self.in_point) = (Point::default(), 0);
    }

    /// Returns the mean loss of the current epoch's steps; none before its first step.
    pub(super) fn mean_loss(&self) -> Option<f64> {
        (self.steps > 0).then(|| self.loss_sum / self.steps as f64)
    }

    /// Records the scores after an epoch, or before the first one. Returns true if they are better than all earlier
    /// ones. As long as the primary score is undefined, the latest epoch counts as the best.
    pub(super) fn record_scores(
        &mut self,
        step: u64,
        scores: Vec<Option<f64>>,
        primary_score: Option<(usize, Better)>,
    ) -> bool {
        let value = |epoch: &Epoch| primary_score.and_then(|(place, _)| epoch.scores.get(place).copied().flatten());
        let epoch =
            Epoch { epoch: self.epochs_done, step, training_loss: self.mean_loss(), seconds: self.seconds, scores };
        let before = self.best.and_then(|best| value(&self.epochs[best]));
        let improves = match (value(&epoch), before, primary_score) {
            // Nothing is measured, so nothing can improve.
            (_, _, None) | (None, Some(_), _) => false,
            (None | Some(_), None, _) => true,
            (Some(now), Some(before), Some((_, Better::Higher))) => now > before,
            (Some(now), Some(before), Some((_, Better::Lower))) => now < before,
        };
        self.epochs.push(epoch);
        if improves {
            self.best = Some(self.epochs.len() - 1);
        }
        (self.loss_sum, self.steps) = (0.0, 0);
        improves
    }

    /// Returns the evaluation of each epoch.
    #[must_use]
    pub fn epochs(&self) -> &[Epoch] {
        &self.epochs
    }

    /// Returns the evaluation of the best epoch.
    #[must_use]
    pub fn best(&self) -> Option<&Epoch> {
        self.best.map(|best| &self.epochs[best])
    }

    pub(super) fn best_epoch(&self) -> Option<u64> {
        self.best().map(|best| best.epoch)
    }

    /// Returns the number of epochs since the best one.
    pub(super) fn epochs_since_best(&self) -> u64 {
        self.best_epoch().map_or(0, |best| self.epochs_done - best)
    }

    /// Returns the number of examples per second, counting only the time spent in steps.
    #[must_use]
    pub fn examples_per_second(&self) -> f64 {
        if self.step_seconds > 0.0 { self.examples as f64 / self.step_seconds } else { 0.0 }
    }

    /// Reads the JSON of a saved state; none if it is invalid.
    pub(super) fn from_json(json: &[u8]) -> Option<Self> {
        let progress: Self = serde_json::from_slice(json).ok()?;
        progress.best.is_none_or(|best| best < progress.epochs.len()).then_some(progress)
    }

    /// Returns the curve and the epochs as JSON.
    pub(crate) fn to_json(&self, scores: &[Score]) -> Value {
        let mut all = self.clone();
        all.close_point();
        let column = |value: fn(&Point) -> f64| all.curve.iter().map(value).collect::<Vec<_>>();
        let curve = json!({
            "step": all.curve.iter().map(|point| point.step as u64).collect::<Vec<_>>(),
            "loss": column(|point| point.loss),
            "grad_norm": column(|point| point.grad_norm),
            "learning_rate": column(|point| point.learning_rate),
        });
        let epoch = |epoch: &Epoch| {
            let named = scores.iter().zip(&epoch.scores).map(|(score, value)| (score.name.clone(), json!(value)));
            json!({
                "epoch": epoch.epoch,
                "step": epoch.step,
                "training_loss": epoch.training_loss,
                "seconds": epoch.seconds,
                "scores": named.collect::<Map<_, _>>(),
            })
        };
        json!({
            "epochs_done": self.epochs_done,
            "best_epoch": self.best_epoch(),
            "examples": self.examples,
            "tokens": self.tokens,
            "skipped_batches": self.skipped,
            "resumed": self.resumed,
            "seconds": self.seconds,
            "step_seconds": self.step_seconds,
            "examples_per_second": self.examples_per_second(),
            "curve": curve,
            "epochs": self.epochs.iter().map(epoch).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_progress_keeps_every_bit() {
        let numbers = [0.1 + 0.2, 1.0 / 3.0, 5e-324, f64::MIN_POSITIVE, f64::MAX];
        let point = |loss: f64| Point { loss, learning_rate: loss * 1e-5, ..Point::default() };
        let scores = numbers.iter().copied().map(Some).chain([None]).collect();
        let epoch = Epoch { epoch: 0, step: u64::MAX, training_loss: None, seconds: numbers[0], scores };
        let curve = (1..10_000).map(|i| point(f64::from(i).sqrt().recip())).collect();
        let progress = Progress { curve, epochs: vec![epoch], best: Some(0), ..Progress::default() };
        let json = serde_json::to_vec(&progress).unwrap();
        assert_eq!(Progress::from_json(&json), Some(progress.clone()));
        let json = serde_json::to_vec(&Progress { best: Some(1), ..progress }).unwrap();
        assert_eq!(Progress::from_json(&json), None);
        assert_eq!(Progress::from_json(b"{}"), None);
    }
}
