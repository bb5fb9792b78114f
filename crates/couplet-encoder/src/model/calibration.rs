//! `calibration.json`: what turns logits into probabilities that mean what they say, beside the weights.
//!
//! couplet's fine-tuning writes it ([`couplet_train::statistics::calibration`]); `transformers` takes no notice of it. The
//! temperature divides the logits; it changes no label. A threshold then replaces "the more probable of two labels" by
//! "the second label, if its calibrated probability is at least this".

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use super::config::{Keys, ModelConfig, Problem, read_json};
use super::error::LoadError;
use super::files::ModelFiles;

pub use couplet_storage::hub::CALIBRATION_FILE;

/// The version of the file that is written and read.
pub const CALIBRATION_VERSION: u64 = 1;

/// A temperature, and perhaps a threshold.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Calibration {
    /// What the logits are divided by; above 0.
    pub temperature: f64,
    /// From which calibrated probability on a row has the second of two labels; none to take the most probable label.
    pub threshold: Option<f64>,
    /// What the threshold does best, for people.
    pub objective: Option<String>,
    /// Validation rows that both were fitted on, where the file says.
    pub fitted_on: Option<u64>,
    /// Which bound the temperature is at, if it is not the best of all.
    #[serde(rename = "temperature_bound")]
    pub bound: Option<String>,
}

impl Calibration {
    /// Reads the calibration of a model with such logits; none if the model has none.
    pub(super) fn load(files: &ModelFiles, config: &ModelConfig) -> Result<Option<Self>, LoadError> {
        if files.get(CALIBRATION_FILE).is_none() {
            return Ok(None);
        }
        let (path, mut json) = (&files.path(CALIBRATION_FILE), read_json(files, CALIBRATION_FILE)?);
        // A key of an inner object is told by its path.
        for (outer, inner) in [("threshold", "value"), ("threshold", "objective")] {
            if json[outer].is_object() {
                json[format!("{outer}.{inner}")] = json[outer][inner].clone();
            }
        }
        let keys = Keys { path, json: &json };
        if json["version"].as_u64() != Some(CALIBRATION_VERSION) {
            return Err(keys.error("version", "1"));
        }
        let of_problem = problem_type(config.problem);
        if config.problem == Problem::Regression || json["problem_type"].as_str() != Some(of_problem) {
            return Err(keys.error("problem_type", &format!("\"{of_problem}\", as config.json has it")));
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

    /// The calibrated probabilities of one row's logits, computed in double precision.
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

    /// The place of the label that the threshold decides for, from calibrated probabilities; none without a threshold.
    #[must_use]
    pub fn decide(&self, probabilities: &[f32]) -> Option<usize> {
        let threshold = self.threshold.filter(|_| probabilities.len() == 2)?;
        Some(usize::from(f64::from(probabilities[1]) >= threshold))
    }
}

/// For people: `temperature 1.2345, threshold 0.4212 for f1, fitted on 408 rows`.
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

/// The problem's name in `config.json` and in `calibration.json`.
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

    fn whole() -> Value {
        json!({
            "version": 1,
            "problem_type": "single_label_classification",
            "fitted_on": 7,
            "temperature": 1.25,
            "threshold": { "value": 0.4, "objective": "f1" },
        })
    }

    #[test]
    fn a_broken_file_is_told_by_its_key() {
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
            let mut json = whole();
            json[key] = value;
            assert_eq!(read(&json, &ModelConfig::smallest(Problem::SingleLabel, 2)).unwrap_err(), message);
        }
        assert!(read(&json!([]), &ModelConfig::smallest(Problem::SingleLabel, 2)).is_err());
    }

    #[test]
    fn a_calibration_suits_its_model() {
        let error = read(&whole(), &ModelConfig::smallest(Problem::SingleLabel, 3)).unwrap_err();
        assert!(error.contains("a threshold is for two labels"), "{error}");
        assert!(read(&whole(), &ModelConfig::smallest(Problem::Regression, 0)).is_err());
        let mut sets = whole();
        sets["problem_type"] = "multi_label_classification".into();
        sets["threshold"] = Value::Null;
        let read = read(&sets, &ModelConfig::smallest(Problem::MultiLabel, 3)).unwrap();
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
