//! The complete evaluation of predictions on labelled rows: metrics with confidence intervals, the confusion matrix,
//! the bins of the reliability diagram, and the metrics per slice.

use serde_json::{Map, Value, json};

use super::bootstrap::{Bootstrap, Interval};
use super::metrics::{Bin, Confusion, Metric, MetricError, Metrics, Sample};
use super::slices::{Slice, slices};

/// The evaluation of predictions on labelled rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// The number of rows.
    pub rows: usize,
    /// The metrics over all rows.
    pub metrics: Metrics,
    /// The confidence level of the intervals; none without intervals.
    pub level: Option<f64>,
    /// The interval of each metric, in the order of the metrics; none for a metric that is undefined on too many
    /// resamples.
    pub intervals: Vec<(Metric, Option<Interval>)>,
    /// The index of the positive label, which precision, recall, F1 and average precision refer to; none unless there
    /// are two labels.
    pub positive: Option<usize>,
    /// The confusion matrix; none for values and for sets of labels.
    pub confusion: Option<Confusion>,
    /// The bins of the reliability diagram; empty for values and for sets of labels.
    pub reliability: Vec<Bin>,
    /// The slices by each requested column: its name, and one slice per value.
    pub slices: Vec<(String, Vec<Slice>)>,
}

impl Evaluation {
    /// Evaluates a sample; `columns` are the names and values of the columns to slice by.
    ///
    /// # Errors
    /// A column that does not have one value per row.
    pub fn of(
        sample: &Sample,
        bootstrap: Option<&Bootstrap>,
        columns: &[(&str, Vec<Option<&str>>)],
    ) -> Result<Self, MetricError> {
        let (confusion, reliability) = match sample {
            Sample::Classes(classes) => (Some(classes.confusion()), classes.reliability()),
            _ => (None, Vec::new()),
        };
        let sliced = columns.iter().map(|(name, keys)| Ok(((*name).to_owned(), slices(sample, keys)?)));
        Ok(Self {
            rows: sample.rows(),
            metrics: sample.metrics(),
            level: bootstrap.map(Bootstrap::level),
            intervals: bootstrap.map_or_else(Vec::new, |bootstrap| bootstrap.intervals(sample)),
            positive: sample.positive(),
            confusion,
            reliability,
            slices: sliced.collect::<Result<_, MetricError>>()?,
        })
    }

    /// Returns the name of the positive label, if there are two labels.
    #[must_use]
    pub fn positive<'l>(&self, labels: &'l [String]) -> Option<&'l str> {
        self.positive.and_then(|label| labels.get(label)).map(String::as_str)
    }

    /// Returns the evaluation as JSON; `labels` are the names of the labels, in order.
    ///
    /// # Panics
    /// If there are fewer names than labels.
    #[must_use]
    pub fn to_json(&self, labels: &[String]) -> Value {
        let interval = |(metric, interval): &(Metric, Option<Interval>)| {
            let ends = interval.map(|interval| json!([interval.low, interval.high]));
            (metric.name().to_owned(), ends.into())
        };
        let columns = self.slices.iter().map(|(column, slices)| (column.clone(), json!(slices)));
        json!({
            "rows": self.rows,
            "positive": self.positive(labels),
            "metrics": self.metrics,
            "level": self.level,
            "intervals": self.intervals.iter().map(interval).collect::<Map<_, _>>(),
            "confusion": self.confusion.as_ref().map(|confusion| confusion_json(confusion, labels)),
            "reliability": self.reliability,
            "slices": columns.collect::<Map<_, _>>(),
        })
    }
}

/// The maximum number of labels for which the whole matrix is written.
const MAX_MATRIX_LABELS: usize = 1000;

/// The number of most frequent mistakes to write.
const MAX_MISTAKES: usize = 50;

/// Returns the counts by gold and predicted label, each label's scores, and the most frequent mistakes.
fn confusion_json(confusion: &Confusion, labels: &[String]) -> Value {
    let mistakes = confusion.mistakes(MAX_MISTAKES).into_iter();
    json!({
        "gold_by_predicted": (confusion.labels() <= MAX_MATRIX_LABELS).then(|| confusion.matrix()),
        "labels": confusion.by_label(labels),
        "mistakes": mistakes
            .map(|(gold, predicted, rows)| json!({ "gold": labels[gold], "predicted": labels[predicted], "rows": rows }))
            .collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::metrics::{Classes, Values};

    #[test]
    fn an_evaluation_of_classes_is_complete() {
        let probabilities = [0.9, 0.4, 0.3, 0.2].iter().flat_map(|p| [*p, 1.0 - p]).collect();
        let sample = Sample::Classes(Classes::new(2, vec![0, 0, 1, 1], probabilities, None, 5).unwrap());
        let topics = vec![Some("news"), None, Some("news"), Some("news")];
        let evaluation = Evaluation::of(&sample, Some(&Bootstrap::usual(1)), &[("topic", topics)]).unwrap();
        let json = evaluation.to_json(&["no".to_owned(), "yes".to_owned()]);
        assert_eq!(json["rows"], 4);
        assert_eq!(json["metrics"]["accuracy"], 0.75);
        assert_eq!(json["positive"], "yes");
        assert_eq!(json["level"], 0.95);
        assert!(json["intervals"]["accuracy"][0].as_f64() < Some(0.75), "{json}");
        assert_eq!(json["confusion"]["gold_by_predicted"], json!([[1, 1], [0, 2]]));
        assert_eq!(json["confusion"]["labels"][1]["label"], "yes");
        assert_eq!(json["confusion"]["labels"][1]["predicted"], 3);
        assert_eq!(json["reliability"].as_array().map(Vec::len), Some(5));
        assert_eq!(json["slices"]["topic"][0]["value"], "news");
        assert_eq!(json["slices"]["topic"][0]["metrics"]["accuracy"], 1.0);
        assert_eq!(json["slices"]["topic"][1]["value"], Value::Null);
        assert_eq!(json["slices"]["topic"][1]["metrics"]["roc_auc"], Value::Null);
    }

    #[test]
    fn values_have_no_confusion() {
        let sample = Sample::Values(Values::new(vec![1.0, 2.0], vec![2.0, 1.0]).unwrap());
        let evaluation = Evaluation::of(&sample, None, &[]).unwrap();
        let json = evaluation.to_json(&[]);
        assert_eq!((&json["confusion"], &json["level"]), (&Value::Null, &Value::Null));
        assert_eq!(json["positive"], Value::Null);
        assert_eq!(json["metrics"]["pearson"], -1.0);
        assert!(Evaluation::of(&sample, None, &[("topic", vec![])]).is_err());
    }
}
