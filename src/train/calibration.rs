//! What makes a model's probabilities mean what they say: a temperature, and for two labels a threshold.
//!
//! Both are fitted on the validation rows, stored in the checkpoint's folder as `calibration.json`, and applied when
//! scoring, beside the raw probabilities. The temperature divides the logits; it changes no label. The threshold then
//! replaces "the more probable label" by "the second label, if its calibrated probability is at least this".

use serde_json::{Value, json};
use thiserror::Error;

use super::metrics::MetricError;
use super::temperature::{Bound, Temperature};
use super::threshold::{Objective, Threshold, ThresholdError};
use crate::model::Problem;

/// The file's name in a checkpoint's folder.
pub const CALIBRATION_FILE: &str = "calibration.json";

/// The version of the file that is written and read.
const VERSION: u64 = 1;

/// A temperature, perhaps a threshold, and what they were fitted on.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// What the logits mean; a regression has no calibration.
    pub problem: Problem,
    /// What the logits are divided by.
    pub temperature: Temperature,
    /// From which calibrated probability on a row has the second of two labels; none for other numbers of labels, or
    /// where no objective was asked for: then the most probable label is taken.
    pub threshold: Option<Threshold>,
    /// Validation rows that both were fitted on.
    pub fitted_on: usize,
}

/// Why nothing can be fitted.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum CalibrationError {
    /// A regression has no probabilities.
    #[error("a regression has no probabilities to calibrate")]
    Regression,
    /// A threshold is for two labels.
    #[error("a decision threshold needs a model with two labels; this one has {0}: leave the objective out")]
    NotBinary(usize),
    /// Rows that cannot be used.
    #[error(transparent)]
    Rows(#[from] MetricError),
    /// There is no threshold.
    #[error(transparent)]
    Threshold(#[from] ThresholdError),
}

/// A `calibration.json` that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("key `{key}`: expected {expected}, found {found}")]
pub struct CalibrationFileError {
    /// The key, with dots where it is inside another one.
    pub key: &'static str,
    /// What would do.
    pub expected: &'static str,
    /// What is there.
    pub found: String,
}

/// A row's calibrated prediction.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibrated {
    /// Probability of each label after the temperature.
    pub probabilities: Box<[f32]>,
    /// Probability of each label as the model gave it.
    pub raw: Box<[f32]>,
    /// Place of the label: by the threshold where there is one, else the most probable one.
    pub label: usize,
}

impl Calibration {
    /// Fits a temperature on logits, `labels` a row, with the gold labels (the place of each row's label), and a
    /// threshold where an objective is given.
    ///
    /// # Errors
    /// No rows, columns of different lengths, labels beyond `labels`, logits that are not finite; an objective for
    /// other than two labels, or one that no threshold reaches; an objective for rows that all have one label.
    pub fn fit(
        labels: usize,
        logits: &[f32],
        gold: &[u32],
        objective: Option<Objective>,
    ) -> Result<Self, CalibrationError> {
        let temperature = Temperature::fit_softmax(labels, logits, gold)?;
        if objective.is_some() && labels != 2 {
            return Err(CalibrationError::NotBinary(labels));
        }
        let mut calibration =
            Self { problem: Problem::SingleLabel, temperature, threshold: None, fitted_on: gold.len() };
        if let Some(objective) = objective {
            let positive: Vec<bool> = gold.iter().map(|&label| label == 1).collect();
            let scores: Vec<f32> = logits.chunks_exact(2).map(|row| calibration.probabilities(row)[1]).collect();
            calibration.threshold = Some(Threshold::fit(objective, &scores, &positive)?);
        }
        Ok(calibration)
    }

    /// Fits a temperature on the logits of a model that gives any number of labels, `labels` a row, with whether each
    /// row has each label.
    ///
    /// # Errors
    /// No rows, columns of different lengths, logits that are not finite.
    pub fn fit_sets(labels: usize, logits: &[f32], gold: &[bool]) -> Result<Self, CalibrationError> {
        let temperature = Temperature::fit_sigmoid(labels, logits, gold)?;
        let fitted_on = gold.len() / labels;
        Ok(Self { problem: Problem::MultiLabel, temperature, threshold: None, fitted_on })
    }

    /// Turns the logits of one row into calibrated probabilities and a label.
    #[must_use]
    pub fn apply(&self, logits: &[f32]) -> Calibrated {
        let probabilities = self.probabilities(logits);
        let label = match &self.threshold {
            Some(threshold) if probabilities.len() == 2 => usize::from(threshold.is_positive(probabilities[1])),
            // The first of equals, as argmax does.
            _ => (0..logits.len()).reduce(|best, i| if logits[i] > logits[best] { i } else { best }).unwrap_or(0),
        };
        Calibrated { raw: probabilities_at(self.problem, logits, 1.0), probabilities, label }
    }

    fn probabilities(&self, logits: &[f32]) -> Box<[f32]> {
        probabilities_at(self.problem, logits, self.temperature.value)
    }

    /// What `calibration.json` holds.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let Temperature { value, bound, before, after } = self.temperature;
        json!({
            "version": VERSION,
            "problem_type": match self.problem {
                Problem::MultiLabel => "multi_label_classification",
                _ => "single_label_classification",
            },
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

    /// Reads what [`Calibration::to_json`] gave.
    ///
    /// # Errors
    /// A key that is missing or has a value that does not suit; a version that is not known.
    pub fn from_json(json: &Value) -> Result<Self, CalibrationFileError> {
        let wrong = |key, expected, found: Option<&Value>| CalibrationFileError {
            key,
            expected,
            found: found.map_or_else(|| "nothing".to_owned(), ToString::to_string),
        };
        if json["version"].as_u64() != Some(VERSION) {
            return Err(wrong("version", "1", json.get("version")));
        }
        let problem = match json["problem_type"].as_str() {
            Some("single_label_classification") => Problem::SingleLabel,
            Some("multi_label_classification") => Problem::MultiLabel,
            _ => {
                let expected = "\"single_label_classification\" or \"multi_label_classification\"";
                return Err(wrong("problem_type", expected, json.get("problem_type")));
            }
        };
        let number = |parent: &Value, key: &'static str, name: &str| {
            parent[name].as_f64().ok_or_else(|| wrong(key, "a number", parent.get(name)))
        };
        let rows = json["fitted_on"].as_u64().and_then(|rows| usize::try_from(rows).ok());
        let fitted_on = rows.ok_or_else(|| wrong("fitted_on", "a number of rows", json.get("fitted_on")))?;
        let value = number(json, "temperature", "temperature")?;
        if value <= 0.0 {
            return Err(wrong("temperature", "a number above 0", json.get("temperature")));
        }
        let bound =
            match &json["temperature_bound"] {
                Value::Null => None,
                name => Some(name.as_str().and_then(Bound::of_name).ok_or_else(|| {
                    wrong("temperature_bound", "null, \"lowest\", \"highest\" or \"flat\"", Some(name))
                })?),
            };
        let loss = &json["log_loss"];
        let (before, after) =
            (number(loss, "log_loss.raw", "raw")?, number(loss, "log_loss.calibrated", "calibrated")?);
        let threshold = match &json["threshold"] {
            Value::Null => None,
            threshold => {
                let objective = threshold["objective"].as_str().and_then(|text| Objective::parse(text).ok());
                let expected = "an objective such as \"f1\" or \"precision >= 0.9\"";
                Some(Threshold {
                    value: number(threshold, "threshold.value", "value")?,
                    objective: objective
                        .ok_or_else(|| wrong("threshold.objective", expected, threshold.get("objective")))?,
                    reached: number(threshold, "threshold.reached", "reached")?,
                    from: number(threshold, "threshold.from", "from")?,
                    to: number(threshold, "threshold.to", "to")?,
                })
            }
        };
        Ok(Self { problem, temperature: Temperature { value, bound, before, after }, threshold, fitted_on })
    }
}

/// The probabilities of logits divided by a temperature, computed in double precision.
fn probabilities_at(problem: Problem, logits: &[f32], temperature: f64) -> Box<[f32]> {
    let scaled = logits.iter().map(|&logit| f64::from(logit) / temperature);
    if problem == Problem::MultiLabel {
        return scaled.map(|x| (1.0 / (1.0 + (-x).exp())) as f32).collect();
    }
    let max = scaled.clone().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = scaled.map(|x| (x - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|x| (x / sum) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits() -> (Vec<f32>, Vec<u32>) {
        let logits = [[2.0, -1.0], [0.5, 0.4], [-1.0, 3.0], [0.2, 0.1], [-4.0, 4.0], [1.0, -2.0], [3.0, -3.0]];
        (logits.concat(), vec![0, 1, 1, 1, 1, 0, 1])
    }

    #[test]
    fn the_file_says_all_that_was_fitted() {
        let (logits, gold) = logits();
        for objective in [None, Some("f1"), Some("precision >= 0.9")] {
            let objective = objective.map(|text| Objective::parse(text).unwrap());
            let calibration = Calibration::fit(2, &logits, &gold, objective).unwrap();
            let text = calibration.to_json().to_string();
            assert_eq!(Calibration::from_json(&serde_json::from_str(&text).unwrap()), Ok(calibration), "{text}");
        }
        let sets = Calibration::fit_sets(2, &logits, &[true, false].repeat(7)).unwrap();
        assert_eq!(Calibration::from_json(&sets.to_json()), Ok(sets));
    }

    #[test]
    fn a_broken_file_is_told_by_its_key() {
        let (logits, gold) = logits();
        let whole = Calibration::fit(2, &logits, &gold, Some(Objective::F1)).unwrap().to_json();
        for (key, value, message) in [
            ("version", json!(2), "key `version`: expected 1, found 2"),
            ("temperature", json!("1"), "key `temperature`: expected a number, found \"1\""),
            ("temperature", json!(0), "key `temperature`: expected a number above 0, found 0"),
            ("fitted_on", json!(-1), "key `fitted_on`: expected a number of rows, found -1"),
            (
                "threshold",
                json!({ "value": 0.5, "objective": "best" }),
                "key `threshold.objective`: expected an objective such as \"f1\" or \"precision >= 0.9\", found \"best\"",
            ),
        ] {
            let mut json = whole.clone();
            json[key] = value;
            assert_eq!(Calibration::from_json(&json).unwrap_err().to_string(), message);
        }
        assert!(Calibration::from_json(&json!([])).is_err());
    }

    #[test]
    fn the_threshold_decides_and_the_raw_probability_stays() {
        let (logits, gold) = logits();
        let mut calibration = Calibration::fit(2, &logits, &gold, Some(Objective::F1)).unwrap();
        let row = [1.0_f32, 0.0];
        let temperature = calibration.temperature.value;
        assert!(temperature > 1.0);
        let expected = 1.0 / (1.0 + (1.0 / temperature).exp());
        let threshold = calibration.threshold.as_mut().unwrap();
        for (value, label) in [(expected - 1e-6, 1), (expected + 1e-6, 0)] {
            threshold.value = value;
            let applied = Calibration { threshold: Some(threshold.clone()), ..calibration_of(temperature) }.apply(&row);
            assert_eq!(applied.label, label);
            assert!((f64::from(applied.probabilities[1]) - expected).abs() < 1e-6);
            assert!((f64::from(applied.raw[1]) - 0.268_941_4).abs() < 1e-6);
        }
    }

    fn calibration_of(value: f64) -> Calibration {
        let temperature = Temperature { value, bound: None, before: 0.0, after: 0.0 };
        Calibration { problem: Problem::SingleLabel, temperature, threshold: None, fitted_on: 1 }
    }

    #[test]
    fn a_threshold_is_for_two_labels() {
        let error = Calibration::fit(3, &[0.0, 1.0, 2.0], &[0], Some(Objective::F1)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a decision threshold needs a model with two labels; this one has 3: leave the objective out"
        );
    }
}
