//! Converts predictions to Arrow columns.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, BooleanBuilder, Float32Builder, ListBuilder, StringBuilder, StructArray};
use arrow::datatypes::{DataType, Field, FieldRef, Fields};
use couplet_encoder::model::ModelConfig;
use couplet_encoder::scorer::{Prediction, Rejection};

static FIELDS: LazyLock<Fields> = LazyLock::new(|| {
    Fields::from(vec![
        Field::new("label", DataType::Utf8, true),
        Field::new("score", DataType::Float32, true),
        Field::new("probabilities", DataType::List(probability_field()), true),
        Field::new("truncated", DataType::Boolean, true),
        Field::new("error", DataType::Utf8, true),
        Field::new("raw_probabilities", DataType::List(probability_field()), true),
    ])
});

fn probability_field() -> FieldRef {
    Arc::new(Field::new_list_field(DataType::Float32, false))
}

/// Returns the fields of a prediction: `label, score, probabilities, truncated, error, raw_probabilities`.
///
/// Either `error` is NULL or all other fields are. `raw_probabilities` is NULL without a calibration, because it would
/// repeat `probabilities`. If the score comes from a single logit, `raw_probabilities` holds that logit.
#[must_use]
pub fn prediction_fields() -> Fields {
    FIELDS.clone()
}

/// Converts the outcomes of a window to a struct array of [`prediction_fields`], one row per outcome.
#[must_use]
pub fn predictions_to_array(outcomes: &[Result<Prediction, Rejection>], config: &ModelConfig) -> StructArray {
    let mut label = StringBuilder::new();
    let mut score = Float32Builder::with_capacity(outcomes.len());
    let mut probabilities = ListBuilder::new(Float32Builder::new()).with_field(probability_field());
    let mut raw = ListBuilder::new(Float32Builder::new()).with_field(probability_field());
    let mut truncated = BooleanBuilder::with_capacity(outcomes.len());
    let mut error = StringBuilder::new();
    for outcome in outcomes {
        let prediction = outcome.as_ref().ok();
        label.append_option(prediction.and_then(|p| p.label).map(|label| config.labels[label].as_str()));
        score.append_option(prediction.map(|p| p.score));
        append(&mut probabilities, prediction.map(|p| &*p.probabilities));
        append(&mut raw, prediction.map(|p| &*p.raw));
        truncated.append_option(prediction.map(|p| p.truncated));
        error.append_option(outcome.as_ref().err().map(ToString::to_string));
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(label.finish()),
        Arc::new(score.finish()),
        Arc::new(probabilities.finish()),
        Arc::new(truncated.finish()),
        Arc::new(error.finish()),
        Arc::new(raw.finish()),
    ];
    StructArray::new(prediction_fields(), columns, None)
}

/// Appends a row's probabilities, or NULL if it has none.
fn append(list: &mut ListBuilder<Float32Builder>, values: Option<&[f32]>) {
    let values = values.filter(|values| !values.is_empty());
    if let Some(values) = values {
        list.values().append_slice(values);
    }
    list.append(values.is_some());
}
