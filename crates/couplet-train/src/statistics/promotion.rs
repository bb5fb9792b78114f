//! The condition for replacing the old model with a new one: `promote_if = "f1 >= 0.85 and ece < 0.1"`.

use std::fmt;

use serde_json::{Value, json};
use thiserror::Error;

use super::metrics::{Metric, Metrics};
use super::names::UnknownName;

/// Comparisons that must all hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    clauses: Vec<Clause>,
}

/// A comparison of a metric with a number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clause {
    /// The metric.
    pub metric: Metric,
    /// The comparison operator.
    pub comparison: Comparison,
    /// The number to compare with.
    pub bound: f64,
}

/// The comparison operator between a metric and a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `>=`
    AtLeast,
    /// `>`
    Above,
    /// `<=`
    AtMost,
    /// `<`
    Below,
}

/// Errors of parsing a condition.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConditionError {
    /// A part is not a comparison.
    #[error(
        "{part:?} is not a comparison; expected a metric, one of >=, >, <= and <, and a number, such as `f1 >= 0.85`; join several with `and`"
    )]
    NoComparison {
        /// The part as written.
        part: String,
    },
    /// The metric is unknown, or not measured for the task.
    #[error(transparent)]
    Metric(#[from] UnknownName),
    /// The bound is not a number.
    #[error("{part:?}: {written:?} is not a number; expected one such as 0.85")]
    Number {
        /// The part as written.
        part: String,
        /// The text in place of the number.
        written: String,
    },
    /// A metric that never exceeds 1 is compared with a larger number.
    #[error("{part:?}: {metric} is at most 1{}", if *.percent { "; write percentages as shares, such as 0.85 for 85" } else { "" })]
    AboveOne {
        /// The part as written.
        part: String,
        /// The metric.
        metric: Metric,
        /// True if the number looks like a percentage.
        percent: bool,
    },
}

/// The result of a condition, and of each of its comparisons with the measured value.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// True if all comparisons hold.
    pub holds: bool,
    /// The comparisons, each with the measured value (none if not measured or undefined) and true if it holds.
    pub clauses: Vec<(Clause, Option<f64>, bool)>,
}

impl Condition {
    /// Parses a condition on metrics that will be measured; `and` joins several comparisons.
    ///
    /// # Errors
    /// A part that is not a comparison; a metric that is not in `measured`, with the closest one; a bound that is not a
    /// number, or that the metric never reaches.
    pub fn parse(text: &str, measured: &[Metric]) -> Result<Self, ConditionError> {
        let mut clauses = Vec::new();
        let mut part = Vec::new();
        let words: Vec<&str> = text.split_whitespace().collect();
        for word in words.into_iter().chain(["and"]) {
            if word.eq_ignore_ascii_case("and") {
                clauses.push(Clause::parse(&part.join(" "), measured)?);
                part.clear();
            } else {
                part.push(word);
            }
        }
        Ok(Self { clauses })
    }

    /// Returns the comparisons, in order; at least one.
    #[must_use]
    pub fn clauses(&self) -> &[Clause] {
        &self.clauses
    }

    /// Evaluates the condition. A comparison does not hold if its metric was not measured or is undefined.
    #[must_use]
    pub fn evaluate(&self, metrics: &Metrics) -> Verdict {
        let evaluate = |clause: &Clause| {
            let value = metrics.get(clause.metric);
            (*clause, value, value.is_some_and(|value| clause.comparison.holds(value, clause.bound)))
        };
        let clauses: Vec<_> = self.clauses.iter().map(evaluate).collect();
        Verdict { holds: clauses.iter().all(|(.., holds)| *holds), clauses }
    }
}

impl Clause {
    fn parse(part: &str, measured: &[Metric]) -> Result<Self, ConditionError> {
        let no_comparison = || ConditionError::NoComparison { part: part.to_owned() };
        let start = part.find(['<', '>', '=', '!']).ok_or_else(no_comparison)?;
        let (name, rest) = part.split_at(start);
        let end = rest.find(|c| !matches!(c, '<' | '>' | '=' | '!')).unwrap_or(rest.len());
        let (operator, number) = rest.split_at(end);
        let comparison = Comparison::of_symbol(operator).ok_or_else(no_comparison)?;
        let (name, number) = (name.trim(), number.trim());
        if name.is_empty() || number.is_empty() {
            return Err(no_comparison());
        }
        let metric = Metric::parse_among(name, measured.iter().copied())?;
        let bound = number.parse().ok().filter(|bound: &f64| bound.is_finite());
        let bound =
            bound.ok_or_else(|| ConditionError::Number { part: part.to_owned(), written: number.to_owned() })?;
        if metric.at_most_one() && bound > 1.0 {
            return Err(ConditionError::AboveOne { part: part.to_owned(), metric, percent: bound <= 100.0 });
        }
        Ok(Self { metric, comparison, bound })
    }
}

impl Comparison {
    const ALL: [(Self, &str); 4] =
        [(Self::AtLeast, ">="), (Self::Above, ">"), (Self::AtMost, "<="), (Self::Below, "<")];

    fn of_symbol(symbol: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, own)| *own == symbol).map(|(comparison, _)| *comparison)
    }

    fn holds(self, value: f64, bound: f64) -> bool {
        match self {
            Self::AtLeast => value >= bound,
            Self::Above => value > bound,
            Self::AtMost => value <= bound,
            Self::Below => value < bound,
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let symbol = Self::ALL.iter().find(|(comparison, _)| comparison == self).map_or("", |(_, symbol)| symbol);
        f.write_str(symbol)
    }
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.metric, self.comparison, self.bound)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clauses: Vec<String> = self.clauses.iter().map(ToString::to_string).collect();
        f.write_str(&clauses.join(" and "))
    }
}

impl Verdict {
    /// Returns the verdict as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let clauses = self
            .clauses
            .iter()
            .map(|(clause, value, holds)| json!({ "condition": clause.to_string(), "value": value, "holds": holds }));
        json!({ "holds": self.holds, "clauses": clauses.collect::<Vec<_>>() })
    }
}

/// A readable form: `f1 >= 0.85 holds (0.8721), ece < 0.1 does not hold (0.1402)`.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (clause, value, holds)) in self.clauses.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            let verb = if *holds { "holds" } else { "does not hold" };
            match value {
                // All digits, as four would show the bound itself.
                Some(value) if (value - clause.bound).abs() < 5e-4 => write!(f, "{comma}{clause} {verb} ({value})")?,
                Some(value) => write!(f, "{comma}{clause} {verb} ({value:.4})")?,
                None => write!(f, "{comma}{clause} {verb} ({} is not defined for these rows)", clause.metric)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Condition, ConditionError> {
        let measured = [Metric::Accuracy, Metric::F1, Metric::Matthews, Metric::LogLoss, Metric::CalibrationError];
        Condition::parse(text, &measured)
    }

    #[test]
    fn a_displayed_condition_parses_to_itself() {
        for (written, shown) in [
            ("f1 >= 0.85", "f1 >= 0.85"),
            ("  F1>=.85 AND  log-loss<0.4", "f1 >= 0.85 and log_loss < 0.4"),
            (
                "mcc > -1 and ece <= 1e-1 and accuracy > 0",
                "matthews > -1 and calibration_error <= 0.1 and accuracy > 0",
            ),
        ] {
            let condition = parse(written).unwrap();
            assert_eq!(condition.to_string(), shown);
            assert_eq!(parse(shown), Ok(condition));
        }
    }

    #[test]
    fn a_mistake_is_reported_with_its_fix() {
        const SHAPE: &str = " is not a comparison; expected a metric, one of >=, >, <= and <, and a number, such as `f1 >= 0.85`; join several with `and`";
        for (written, message) in [
            ("", format!("\"\"{SHAPE}")),
            ("f1", format!("\"f1\"{SHAPE}")),
            ("f1 = 0.9", format!("\"f1 = 0.9\"{SHAPE}")),
            ("f1 => 0.9", format!("\"f1 => 0.9\"{SHAPE}")),
            ("0.9 <", format!("\"0.9 <\"{SHAPE}")),
            ("f1 > 0.9 and", format!("\"\"{SHAPE}")),
            ("f1 >= high", "\"f1 >= high\": \"high\" is not a number; expected one such as 0.85".into()),
            ("f1 > 0.8 or accuracy > 0.9", "\"f1 > 0.8 or accuracy > 0.9\": \"0.8 or accuracy > 0.9\" is not a number; expected one such as 0.85".into()),
            ("f1 >= nan", "\"f1 >= nan\": \"nan\" is not a number; expected one such as 0.85".into()),
            ("f1 >= 85", "\"f1 >= 85\": f1 is at most 1; write percentages as shares, such as 0.85 for 85".into()),
            (
                "acuracy > 0.9",
                "unknown metric \"acuracy\" (did you mean `accuracy`?); known are accuracy, f1, matthews, log_loss, calibration_error".into(),
            ),
            (
                "pearson > 0.9",
                "unknown metric \"pearson\"; known are accuracy, f1, matthews, log_loss, calibration_error".into(),
            ),
        ] {
            assert_eq!(parse(written).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_verdict_shows_the_measured_values() {
        let metrics: Metrics =
            [(Metric::F1, Some(0.872_13)), (Metric::Accuracy, Some(0.849_99)), (Metric::Matthews, None)]
                .into_iter()
                .collect();
        let verdict = |text| parse(text).unwrap().evaluate(&metrics);
        assert!(verdict("f1 >= 0.85").holds);
        let mixed = verdict("f1 >= 0.85 and accuracy >= 0.85 and matthews > -1 and log_loss < 9");
        assert!(!mixed.holds);
        assert_eq!(
            mixed.to_string(),
            "f1 >= 0.85 holds (0.8721), accuracy >= 0.85 does not hold (0.84999), matthews > -1 does not hold (matthews is not defined for these rows), log_loss < 9 does not hold (log_loss is not defined for these rows)"
        );
        assert_eq!(mixed.to_json()["clauses"][1]["value"], 0.849_99);
        let boundary: Metrics = [(Metric::F1, Some(0.85))].into_iter().collect();
        for (text, holds) in [("f1 >= 0.85", true), ("f1 > 0.85", false), ("f1 <= 0.85", true), ("f1 < 0.85", false)] {
            assert_eq!(parse(text).unwrap().evaluate(&boundary).holds, holds, "{text}");
        }
    }
}
