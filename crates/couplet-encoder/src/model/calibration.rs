//! `calibration.json`: the calibration of a model's probabilities, a file beside the weights.
//!
//! couplet's fine-tuning writes it (`couplet_train::statistics::calibration`); `transformers` ignores it. The logits
//! are divided by the temperature, which does not change the label. With a threshold, the label is the second of two
//! labels if its calibrated probability is at least the threshold, instead of the more probable label.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use super::config::{Keys, ModelConfig, Problem, read_json};
use super::error::LoadError;
use super::files::ModelFiles;

pub use couplet_storage::hub::CALIBRATION_FILE;

/// The supported version of the file format.
pub const CALIBRATION_VERSION: u64 = 1;

/// A temperature and an optional threshold.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Calibration {
    /// The divisor of the logits; greater than 0.
    pub temperature: f64,
    /// The calibrated probability of the second of two labels from which a row gets it. `None` selects the most
    /// probable label.
    pub threshold: Option<f64>,
    /// The metric that the threshold maximizes, for display.
    pub objective: Option<String>,
    /// The number of validation rows that the calibration was fitted on, if the file contains it.
    pub fitted_on: Option<u64>,
    /// The bound that the temperature reached, if the optimum is outside the search range.
    #[serde(rename = "temperature_bound")]
    pub bound: Option<String>,
}

impl Calibration {
    /// Reads and validates the calibration of a model, or returns `None` if the model has no calibration.
    pub(super) fn load(files: &ModelFiles, config: &ModelConfig) -> Result<Option<Self>, LoadError> {
        if files.get(CALIBRATION_FILE).is_none() {
            return Ok(None);
        }
        let (path, mut json) = (&files.path(CALIBRATION_FILE), read_json(files, CALIBRATION_FILE)?);
        // Error messages name a key of a nested object by its path.
        for (outer, inner) in [("threshold", "value"), ("threshold", "objective")] {
            if json[outer].is_object() {
                json[format!("{outer}.{inner}")] = json[outer][inner].clone();
            }
        }
        let keys = Keys { path, json: &json };
        if json["version"].as_u64() != Some(CALIBRATION_VERSION) {
            return Err(keys.error("version", "1"));
        }
        let expected = problem_type(config.problem);
        if config.problem == Problem::Regression || json["problem_type"].as_str() != Some(expected) {
            return Err(keys.error("problem_type", &format!("\"{expected}\", as config.json has it")));
        }
        let positive = |value: &f64| value.is_finite() && *value > 0.0;
        let temperature = json["temperature"].as_f64().filter(positive);
        let temperature = temperature.ok_or_else(|| keys.error("temperature", "a number above 0"))?;
        let threshold = match &json["threshold"] {
            Value::Null => None,
            _ if config.problem != Problem::SingleLabel || config.labels.len() != 2 => {
                return Err(keys.error("threshold", "null, as a threshold is for two labels"));
            }
            Value::Object(_) => {
                let value = json["threshold.value"].as_f64();
                Some(value.ok_or_else(|| keys.error("threshold.value", "a number"))?)
            }
            _ => return Err(keys.error("threshold", "null, or an object with `value`")),
        };
        let objective = json["threshold.objective"].as_str().map(str::to_owned);
        let bound = json["temperature_bound"].as_str().map(str::to_owned);
        Ok(Some(Self { temperature, threshold, objective, fitted_on: json["fitted_on"].as_u64(), bound }))
    }

    /// Computes the calibrated probabilities of one row: `logits: [L] → [L]`. The arithmetic is in f64.
    #[must_use]
    pub fn probabilities(&self, problem: Problem, logits: &[f32]) -> Box<[f32]> {
        let scaled = logits.iter().map(|&logit| f64::from(logit) / self.temperature);
        if problem == Problem::MultiLabel {
            return scaled.map(|x| (1.0 / (1.0 + (-x).exp())) as f32).collect();
        }
        let max = scaled.clone().fold(f64::NEG_INFINITY, f64::max);
        let exp: Vec<f64> = scaled.map(|x| (x - max).exp()).collect();
        let sum: f64 = exp.iter().sum();
        exp.into_iter().map(|x| (x / sum) as f32).collect()
    }

    /// Returns the index of the label that the threshold selects for calibrated `probabilities: [L]`, or `None` without
    /// a threshold.
    #[must_use]
    pub fn decide(&self, probabilities: &[f32]) -> Option<usize> {
        let threshold = self.threshold.filter(|_| probabilities.len() == 2)?;
        Some(usize::from(f64::from(probabilities[1]) >= threshold))
    }
}

/// Formats it for display: `temperature 1.2345, threshold 0.4212 for f1, fitted on 408 rows`.
impl fmt::Display for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "temperature {:.4}", self.temperature)?;
        if let Some(bound) = &self.bound {
            write!(f, " (not reliable: at its bound, {})", couplet_storage::escape::in_line(bound))?;
        }
        if let Some(threshold) = self.threshold {
            write!(f, ", threshold {threshold:.4}")?;
        }
        if let Some(objective) = &self.objective {
            write!(f, " for {objective}")?;
        }
        self.fitted_on.map_or(Ok(()), |rows| write!(f, ", fitted on {rows} rows"))
    }
}

/// Returns the `problem_type` in `config.json` and `calibration.json`.
#[must_use]
pub fn problem_type(problem: Problem) -> &'static str {
    match problem {
        Problem::SingleLabel => "single_label_classification",
        Problem::MultiLabel => "multi_label_classification",
        Problem::Regression => "regression",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(json: &Value, config: &ModelConfig) -> Result<Calibration, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CALIBRATION_FILE);
        std::fs::write(&path, json.to_string()).unwrap();
        let read = Calibration::load(&ModelFiles::read_config(&path).unwrap(), config);
        read.map(Option::unwrap).map_err(|e| e.to_string().replace(path.to_str().unwrap(), "FILE"))
    }

    fn complete() -> Value {
        json!({
            "version": 1,
            "problem_type": "single_label_classification",
            "fitted_on": 7,
            "temperature": 1.25,
            "threshold": { "value": 0.4, "objective": "f1" },
        })
    }

    #[test]
    fn errors_name_the_invalid_key() {
        for (key, value, message) in [
            ("version", json!(2), "FILE: key `version`: expected 1, found 2"),
            ("temperature", json!("1"), "FILE: key `temperature`: expected a number above 0, found \"1\""),
            ("temperature", json!(0), "FILE: key `temperature`: expected a number above 0, found 0"),
            (
                "problem_type",
                json!("multi_label_classification"),
                "FILE: key `problem_type`: expected \"single_label_classification\", as config.json has it, found \"multi_label_classification\"",
            ),
            ("threshold", json!({ "value": "a" }), "FILE: key `threshold.value`: expected a number, found \"a\""),
            ("threshold", json!(0.5), "FILE: key `threshold`: expected null, or an object with `value`, found 0.5"),
        ] {
            let mut json = complete();
            json[key] = value;
            assert_eq!(read(&json, &ModelConfig::minimal(Problem::SingleLabel, 2)).unwrap_err(), message);
        }
        assert!(read(&json!([]), &ModelConfig::minimal(Problem::SingleLabel, 2)).is_err());
    }

    #[test]
    fn rejects_a_calibration_of_another_problem() {
        let error = read(&complete(), &ModelConfig::minimal(Problem::SingleLabel, 3)).unwrap_err();
        assert!(error.contains("a threshold is for two labels"), "{error}");
        assert!(read(&complete(), &ModelConfig::minimal(Problem::Regression, 0)).is_err());
        let mut sets = complete();
        sets["problem_type"] = "multi_label_classification".into();
        sets["threshold"] = Value::Null;
        let read = read(&sets, &ModelConfig::minimal(Problem::MultiLabel, 3)).unwrap();
        assert_eq!(
            read,
            Calibration { temperature: 1.25, threshold: None, objective: None, fitted_on: Some(7), bound: None }
        );
    }

    #[test]
    fn the_temperature_divides_and_the_threshold_decides() {
        let calibration =
            Calibration { temperature: 2.0, threshold: None, objective: None, fitted_on: None, bound: None };
        let probabilities = calibration.probabilities(Problem::SingleLabel, &[1.0, 0.0]);
        let expected = 1.0 / (1.0 + 0.5_f64.exp());
        assert!((f64::from(probabilities[1]) - expected).abs() < 1e-6);
        assert_eq!(calibration.decide(&probabilities), None);
        for (threshold, label) in [(expected - 1e-6, 1), (expected + 1e-6, 0)] {
            let calibration = Calibration { threshold: Some(threshold), ..calibration.clone() };
            assert_eq!(calibration.decide(&probabilities), Some(label));
        }
        let sets = calibration.probabilities(Problem::MultiLabel, &[0.0, 4.0]);
        assert!((sets[0] - 0.5).abs() < 1e-6 && (sets[1] - 0.880_797).abs() < 1e-6);
    }
}
