//! A column of gold labels by type, with the counts that SQL computed.

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use arrow::error::ArrowError;
use couplet_train::labels::GoldLabel;

/// The columns of the result with the counts.
pub(super) struct Columns<'a> {
    gold: Gold,
    pub(super) written: StringArray,
    predicted: StringArray,
    pub(super) bins: &'a Int64Array,
    pub(super) counts: &'a Int64Array,
    pub(super) totals: &'a Float64Array,
}

/// A column of gold labels, by type.
enum Gold {
    Booleans(BooleanArray),
    Integers(Int64Array),
    Floats(Float64Array),
    Texts,
}

impl<'a> Columns<'a> {
    pub(super) fn of(batch: &'a RecordBatch) -> Result<Self, ArrowError> {
        let texts = |column: &ArrayRef| Ok::<_, ArrowError>(cast(column, &DataType::Utf8)?.as_string().clone());
        let gold = batch.column(0);
        let known = match gold.data_type() {
            DataType::Boolean => Gold::Booleans(gold.as_boolean().clone()),
            other if other.is_integer() => Gold::Integers(cast(gold, &DataType::Int64)?.as_primitive().clone()),
            other if other.is_numeric() => Gold::Floats(cast(gold, &DataType::Float64)?.as_primitive().clone()),
            _ => Gold::Texts,
        };
        Ok(Self {
            gold: known,
            written: texts(gold)?,
            predicted: texts(batch.column(1))?,
            bins: batch.column(2).as_primitive::<Int64Type>(),
            counts: batch.column(3).as_primitive::<Int64Type>(),
            totals: batch.column(4).as_primitive::<Float64Type>(),
        })
    }

    pub(super) fn gold(&self, row: usize) -> GoldLabel {
        match &self.gold {
            Gold::Booleans(values) => GoldLabel::from(values.value(row)),
            Gold::Integers(values) => GoldLabel::Integer(values.value(row)),
            Gold::Floats(values) => GoldLabel::Float(values.value(row)),
            Gold::Texts => GoldLabel::Text(self.written.value(row).to_owned()),
        }
    }

    pub(super) fn predicted(&self, row: usize) -> Option<&str> {
        self.predicted.is_valid(row).then(|| self.predicted.value(row))
    }
}
