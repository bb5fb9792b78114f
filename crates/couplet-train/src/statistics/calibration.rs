//! Calibration of a model's probabilities: a temperature, and for two labels a decision threshold.
//!
//! Both are fitted on the validation rows and stored in the checkpoint's folder as `calibration.json`. Scoring applies
//! them, and outputs calibrated probabilities alongside the raw ones: see [`couplet_encoder::model::Calibration`].

use couplet_encoder::model::{self, CALIBRATION_VERSION, Problem, problem_type};
use serde_json::{Value, json};
use thiserror::Error;

use super::metrics::MetricError;
use super::temperature::{Bound, Temperature};
use super::threshold::{Objective, Threshold, ThresholdError};

/// A temperature and an optional threshold, with the number of rows that they were fitted on.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// The meaning of the logits; a regression has no calibration.
    pub problem: Problem,
    /// The divisor of the logits.
    pub temperature: Temperature,
    /// The lowest calibrated probability for which the second of two labels is predicted. None for other numbers of
    /// labels, or without an objective; the most probable label is predicted then.
    pub threshold: Option<Threshold>,
    /// The number of validation rows that both were fitted on.
    pub fitted_on: usize,
}

/// Errors of calibration.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum CalibrationError {
    /// The model is a regression, which has no probabilities.
    #[error("a regression has no probabilities to calibrate")]
    Regression,
    /// A threshold needs two labels.
    #[error("a decision threshold needs a model with two labels; this one has {0}: leave the objective out")]
    NotBinary(usize),
    /// The rows cannot be used.
    #[error(transparent)]
    Rows(#[from] MetricError),
    /// No threshold can be fitted.
    #[error(transparent)]
    Threshold(#[from] ThresholdError),
}

impl Calibration {
    /// Fits a temperature on logits, `labels` per row, with the index of each row's gold label. With an objective and
    /// the index of the positive label, fits a threshold too.
    ///
    /// # Errors
    /// No rows, columns of different lengths, labels beyond `labels`, logits that are not finite; an objective for a
    /// number of labels other than two, or one that no threshold reaches; an objective for rows that all have the same
    /// label.
    pub fn fit(
        labels: usize,
        logits: &[f32],
        gold: &[u32],
        objective: Option<(Objective, usize)>,
    ) -> Result<Self, CalibrationError> {
        let temperature = Temperature::fit_softmax(labels, logits, gold)?;
        if objective.is_some() && labels != 2 {
            return Err(CalibrationError::NotBinary(labels));
        }
        let mut calibration =
            Self { problem: Problem::SingleLabel, temperature, threshold: None, fitted_on: gold.len() };
        if let Some((objective, positive)) = objective {
            let second: Vec<bool> = gold.iter().map(|&label| label == 1).collect();
            let applied = calibration.applied();
            let of_second = |row: &[f32]| applied.probabilities(Problem::SingleLabel, row)[1];
            let scores: Vec<f32> = logits.chunks_exact(2).map(of_second).collect();
            calibration.threshold = Some(Threshold::fit(positive, objective, &scores, &second)?);
        }
        Ok(calibration)
    }

    /// Fits a temperature on the logits of a multi-label model, `labels` per row; `gold` has a flag for each row and
    /// label.
    ///
    /// # Errors
    /// No rows, columns of different lengths, logits that are not finite.
    pub fn fit_sets(labels: usize, logits: &[f32], gold: &[bool]) -> Result<Self, CalibrationError> {
        let temperature = Temperature::fit_sigmoid(labels, logits, gold)?;
        let fitted_on = gold.len() / labels;
        Ok(Self { problem: Problem::MultiLabel, temperature, threshold: None, fitted_on })
    }

    /// Returns the calibration as the model applies it.
    #[must_use]
    pub fn applied(&self) -> model::Calibration {
        model::Calibration {
            temperature: self.temperature.value,
            threshold: self.threshold.as_ref().map(|threshold| threshold.value),
            objective: self.threshold.as_ref().map(|threshold| threshold.objective.to_string()),
            fitted_on: Some(self.fitted_on as u64),
            bound: self.temperature.bound.map(|bound| bound.name().to_owned()),
        }
    }

    /// Returns the contents of `calibration.json`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let Temperature { value, bound, before, after } = self.temperature;
        json!({
            "version": CALIBRATION_VERSION,
            "problem_type": problem_type(self.problem),
            "fitted_on": self.fitted_on,
            "temperature": value,
            "temperature_bound": bound.map(Bound::name),
            "log_loss": { "raw": before, "calibrated": after },
            "threshold": self.threshold.as_ref().map(|threshold| json!({
                "value": threshold.value,
                "objective": threshold.objective.to_string(),
                "reached": threshold.reached,
                "from": threshold.from,
                "to": threshold.to,
            })),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits() -> (Vec<f32>, Vec<u32>) {
        let logits = [[2.0, -1.0], [0.5, 0.4], [-1.0, 3.0], [0.2, 0.1], [-4.0, 4.0], [1.0, -2.0], [3.0, -3.0]];
        (logits.concat(), vec![0, 1, 1, 1, 1, 0, 1])
    }

    #[test]
    fn the_file_has_all_fitted_values() {
        let (logits, gold) = logits();
        for objective in [None, Some("f1"), Some("precision >= 0.9")] {
            let objective = objective.map(|text| Objective::parse(text).unwrap());
            let calibration = Calibration::fit(2, &logits, &gold, objective.map(|objective| (objective, 1))).unwrap();
            let json = calibration.to_json();
            let Temperature { value, before, after, .. } = calibration.temperature;
            assert!(after < before && value > 1.0);
            assert_eq!(
                (&json["version"], &json["fitted_on"], &json["temperature"]),
                (&json!(1), &json!(7), &json!(value))
            );
            assert_eq!((&json["log_loss"]["raw"], &json["log_loss"]["calibrated"]), (&json!(before), &json!(after)));
            assert_eq!(json["threshold"]["objective"], json!(objective.map(|objective| objective.to_string())));
            assert_eq!(json["threshold"]["value"], json!(calibration.applied().threshold));
        }
        let sets = Calibration::fit_sets(2, &logits, &[true, false].repeat(7)).unwrap();
        assert_eq!(sets.to_json()["problem_type"], "multi_label_classification");
    }

    /// The threshold is fitted on the same probabilities that it is later compared with.
    #[test]
    fn the_threshold_reaches_its_objective_when_it_is_applied() {
        let (logits, gold) = logits();
        let calibration = Calibration::fit(2, &logits, &gold, Some((Objective::Accuracy, 1))).unwrap();
        let applied = calibration.applied();
        let decide = |row: &[f32]| applied.decide(&applied.probabilities(Problem::SingleLabel, row)).unwrap();
        let right = logits.chunks_exact(2).zip(&gold).filter(|(row, gold)| decide(row) == **gold as usize).count();
        assert!((right as f64 / 7.0 - calibration.threshold.unwrap().reached).abs() < 1e-12);
    }

    #[test]
    fn a_threshold_is_for_two_labels() {
        let error = Calibration::fit(3, &[0.0, 1.0, 2.0], &[0], Some((Objective::F1, 0))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a decision threshold needs a model with two labels; this one has 3: leave the objective out"
        );
    }
}
