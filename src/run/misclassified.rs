//! Misclassified rows of an evaluation, the most confident mistakes first.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Float32Array, Float64Array, ListBuilder, RecordBatch, StringArray, StringBuilder, UInt32Array,
};
use arrow::compute::take_record_batch;
use arrow::datatypes::{Field, Schema};
use arrow::error::ArrowError;
use couplet_encoder::model::{Model, ModelConfig, Problem};
use couplet_encoder::scorer::{Prediction, Rejection};
use couplet_tables::predict::predictions_to_array;
use couplet_tables::sink::{ParquetSink, SinkError};
use couplet_train::statistics::labels::{Labels, Targets};

/// The file name in the folder of an evaluation.
pub(super) const FILE: &str = "mistakes.parquet";

/// Columns that the table adds to those of the query.
pub(super) const ADDED: [&str; 9] = [
    "gold_label",
    "predicted_label",
    "gold_labels",
    "predicted_labels",
    "score",
    "gold_score",
    "difference",
    "probabilities",
    "raw_probabilities",
];

/// Labelled rows with their predictions.
pub(super) struct EvaluatedRows {
    /// All columns of the query.
    pub(super) table: RecordBatch,
    pub(super) labels: Labels,
    pub(super) gold: Targets,
    pub(super) predictions: Vec<Prediction>,
}

/// Returns the rows with a wrong label, the most confident first; for regression all rows, the largest difference
/// first.
pub(super) fn table(evaluated: &EvaluatedRows, config: &ModelConfig) -> Result<RecordBatch, ArrowError> {
    let EvaluatedRows { predictions, gold, .. } = evaluated;
    let mut rows: Vec<(f32, usize)> =
        (0..predictions.len()).filter_map(|row| evaluated.wrong(row).map(|size| (size, row))).collect();
    rows.sort_by(|(a, i), (b, j)| b.total_cmp(a).then(i.cmp(j)));
    let rows: Vec<usize> = rows.into_iter().map(|(_, row)| row).collect();
    let places = UInt32Array::from_iter_values(rows.iter().map(|row| *row as u32));
    let source = take_record_batch(&evaluated.table, &places)?;

    let chosen: Vec<Result<Prediction, Rejection>> = rows.iter().map(|row| Ok(predictions[*row].clone())).collect();
    let predicted = predictions_to_array(&chosen, config);
    let column = |name: &str| predicted.column_by_name(name).cloned();
    let (score, probabilities) = (column("score"), column("probabilities"));
    let mut added: Vec<(&str, Option<ArrayRef>)> = match gold {
        Targets::Classes(gold) => {
            let names = rows.iter().map(|row| evaluated.labels.names()[gold[*row] as usize].as_str());
            let gold_score = rows.iter().map(|row| predictions[*row].probabilities[gold[*row] as usize]);
            vec![
                ("gold_label", Some(Arc::new(StringArray::from_iter_values(names)))),
                ("predicted_label", column("label")),
                ("score", score),
                ("gold_score", Some(Arc::new(Float32Array::from_iter_values(gold_score)))),
                ("probabilities", probabilities),
            ]
        }
        Targets::Sets(gold) => {
            let width = evaluated.labels.names().len();
            let has = |row: usize| gold[row * width..][..width].to_vec();
            let says = |row: usize| predictions[row].probabilities.iter().map(|p| *p >= Problem::HAS_LABEL).collect();
            vec![
                ("gold_labels", Some(evaluated.sets(&rows, has))),
                ("predicted_labels", Some(evaluated.sets(&rows, says))),
                ("probabilities", probabilities),
            ]
        }
        Targets::Values(gold) => {
            let difference = |row: &usize| f64::from(predictions[*row].score) - f64::from(gold[*row]);
            let differences = Float64Array::from_iter_values(rows.iter().map(difference));
            vec![("score", score), ("difference", Some(Arc::new(differences)))]
        }
    };
    if predictions.iter().any(|prediction| !prediction.raw.is_empty()) {
        added.push(("raw_probabilities", column("raw_probabilities")));
    }
    let mut fields: Vec<Field> = source.schema().fields().iter().map(|field| Field::clone(field)).collect();
    let mut columns = source.columns().to_vec();
    for (name, column) in added.into_iter().filter_map(|(name, column)| Some((name, column?))) {
        fields.push(Field::new(name, column.data_type().clone(), true));
        columns.push(column);
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

impl EvaluatedRows {
    /// The confidence of a wrong prediction, or the absolute error of a value; `None` for a correct prediction.
    fn wrong(&self, row: usize) -> Option<f32> {
        let prediction = &self.predictions[row];
        match &self.gold {
            Targets::Classes(gold) => (prediction.label != Some(gold[row] as usize)).then_some(prediction.score),
            Targets::Values(gold) => Some((prediction.score - gold[row]).abs()),
            Targets::Sets(gold) => {
                let width = self.labels.names().len();
                let labels = gold[row * width..][..width].iter().zip(&prediction.probabilities);
                let misses = labels.filter(|(has, p)| (**p >= Problem::HAS_LABEL) != **has);
                misses.map(|(has, p)| if *has { 1.0 - p } else { *p }).reduce(f32::max)
            }
        }
    }

    /// Returns the label names of each row.
    fn sets(&self, rows: &[usize], has: impl Fn(usize) -> Vec<bool>) -> ArrayRef {
        let mut lists = ListBuilder::new(StringBuilder::new());
        for row in rows {
            let names = self.labels.names().iter().zip(has(*row)).filter(|(_, has)| *has);
            names.for_each(|(name, _)| lists.values().append_value(name));
            lists.append(true);
        }
        Arc::new(lists.finish())
    }
}

/// Writes the table.
pub(super) fn write(path: &Path, mistakes: &RecordBatch, model: &Model) -> Result<(), SinkError> {
    let metadata = [
        ("couplet.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("couplet.model", model.fingerprint.as_str().to_owned()),
    ];
    let mut sink = ParquetSink::create(path, &mistakes.schema(), &metadata)?;
    sink.write(mistakes)?;
    sink.publish().map(|_| ())
}
