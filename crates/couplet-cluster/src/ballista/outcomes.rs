//! Predictions and rejections as an Arrow column. It is lossless: the client gets what it would have computed itself.

use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanBuilder, Float32Builder, Int32Builder, ListArray, ListBuilder, StringArray,
    StringBuilder, StructArray, UInt8Builder, UInt64Builder,
};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Float32Type, Int32Type, UInt8Type, UInt64Type};
use couplet_encoder::scorer::{Prediction, Rejection};
use datafusion::common::{Result, internal_err};

static FIELDS: LazyLock<Fields> = LazyLock::new(|| {
    let field = |name, data_type| Field::new(name, data_type, true);
    Fields::from(vec![
        field("label", DataType::Int32),
        field("score", DataType::Float32),
        field("probabilities", DataType::List(item())),
        field("raw", DataType::List(item())),
        field("tokens", DataType::UInt64),
        field("truncated", DataType::Boolean),
        field("rejection", DataType::UInt8),
        field("detail", DataType::Utf8),
        field("bytes", DataType::UInt64),
        field("executor", DataType::Utf8),
    ])
});

fn item() -> FieldRef {
    Arc::new(Field::new_list_field(DataType::Float32, true))
}

pub(super) fn fields() -> Fields {
    FIELDS.clone()
}

/// Converts the outcomes of a window to a column, with the name of the executor.
pub(super) fn to_array(outcomes: &[Result<Prediction, Rejection>], executor: &str) -> StructArray {
    let mut label = Int32Builder::new();
    let mut score = Float32Builder::new();
    let mut probabilities = ListBuilder::new(Float32Builder::new()).with_field(item());
    let mut raw = ListBuilder::new(Float32Builder::new()).with_field(item());
    let mut tokens = UInt64Builder::new();
    let mut truncated = BooleanBuilder::new();
    let mut rejection = UInt8Builder::new();
    let mut detail = StringBuilder::new();
    let mut bytes = UInt64Builder::new();
    for outcome in outcomes {
        let (prediction, rejected) = (outcome.as_ref().ok(), outcome.as_ref().err());
        label.append_option(prediction.and_then(|p| p.label).and_then(|label| i32::try_from(label).ok()));
        score.append_option(prediction.map(|p| p.score));
        for (list, values) in
            [(&mut probabilities, prediction.map(|p| &p.probabilities)), (&mut raw, prediction.map(|p| &p.raw))]
        {
            list.values().append_slice(values.map_or(&[], |values| values));
            list.append(values.is_some());
        }
        tokens.append_option(prediction.map(|p| p.tokens as u64));
        truncated.append_option(prediction.map(|p| p.truncated));
        rejection.append_option(rejected.map(|r| r.kind() as u8));
        detail.append_option(rejected.map(|rejected| match rejected {
            Rejection::Null { column } | Rejection::Empty { column } | Rejection::TooLarge { column, .. } => column,
            Rejection::Untokenizable { problem } => problem,
        }));
        bytes.append_option(rejected.and_then(|rejected| match rejected {
            Rejection::TooLarge { bytes, .. } => Some(*bytes as u64),
            _ => None,
        }));
    }
    let executor = StringArray::from(vec![executor; outcomes.len()]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(label.finish()),
        Arc::new(score.finish()),
        Arc::new(probabilities.finish()),
        Arc::new(raw.finish()),
        Arc::new(tokens.finish()),
        Arc::new(truncated.finish()),
        Arc::new(rejection.finish()),
        Arc::new(detail.finish()),
        Arc::new(bytes.finish()),
        Arc::new(executor),
    ];
    StructArray::new(fields(), columns, None)
}

/// Reads the outcomes and the name of the executor from a column.
pub(super) fn of_array(array: &ArrayRef) -> Result<(Vec<Result<Prediction, Rejection>>, String)> {
    let (Some(array), true) =
        (array.as_struct_opt(), matches!(array.data_type(), DataType::Struct(f) if *f == fields()))
    else {
        return internal_err!("the cluster returned {} instead of scores", array.data_type());
    };
    let labels = array.column(0).as_primitive::<Int32Type>();
    let scores = array.column(1).as_primitive::<Float32Type>();
    let (probabilities, raw) = (array.column(2).as_list::<i32>(), array.column(3).as_list::<i32>());
    let tokens = array.column(4).as_primitive::<UInt64Type>();
    let truncated = array.column(5).as_boolean();
    let rejections = array.column(6).as_primitive::<UInt8Type>();
    let details = array.column(7).as_string::<i32>();
    let bytes = array.column(8).as_primitive::<UInt64Type>();
    let executors = array.column(9).as_string::<i32>();
    let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let values =
        |list: &ListArray, row| -> Box<[f32]> { list.value(row).as_primitive::<Float32Type>().values()[..].into() };
    let outcomes = (0..array.len()).map(|row| {
        if rejections.is_null(row) {
            return Ok(Ok(Prediction {
                label: labels.is_valid(row).then(|| usize::try_from(labels.value(row)).unwrap_or_default()),
                score: scores.value(row),
                probabilities: values(probabilities, row),
                raw: values(raw, row),
                tokens: size(tokens.value(row)),
                truncated: truncated.value(row),
            }));
        }
        let detail = details.value(row).to_owned();
        Ok(Err(match rejections.value(row) {
            0 => Rejection::Null { column: detail },
            1 => Rejection::Empty { column: detail },
            2 => Rejection::TooLarge { column: detail, bytes: size(bytes.value(row)) },
            3 => Rejection::Untokenizable { problem: detail },
            kind => return internal_err!("the cluster returned a rejection of unknown kind {kind}"),
        }))
    });
    let executor = if array.is_empty() { String::new() } else { executors.value(0).to_owned() };
    Ok((outcomes.collect::<Result<_>>()?, executor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_survives_its_way() {
        let prediction = |label, probabilities: &[f32], raw: &[f32]| {
            Ok(Prediction {
                label,
                score: 0.1 + 0.2,
                probabilities: probabilities.into(),
                raw: raw.into(),
                tokens: 17,
                truncated: true,
            })
        };
        let outcomes = vec![
            prediction(Some(1), &[0.25, 0.75], &[0.3, 0.7]),
            prediction(None, &[], &[]),
            Err(Rejection::Null { column: "a".into() }),
            Err(Rejection::Empty { column: "b".into() }),
            Err(Rejection::TooLarge { column: "a".into(), bytes: 1 << 21 }),
            Err(Rejection::Untokenizable { problem: "no".into() }),
        ];
        let array: ArrayRef = Arc::new(to_array(&outcomes, "one"));
        assert_eq!(of_array(&array).unwrap(), (outcomes, "one".to_owned()));
        let none: ArrayRef = Arc::new(to_array(&[], "one"));
        assert_eq!(of_array(&none).unwrap().0, []);
        let other: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
        assert!(of_array(&other).unwrap_err().to_string().contains("instead of scores"));
    }

    #[test]
    fn kinds_are_numbered_as_they_are_counted() {
        assert_eq!(Rejection::KINDS.len(), 4);
        assert_eq!(Rejection::Untokenizable { problem: String::new() }.kind(), 3);
    }
}
