//! Builds a column of a text file value by value.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanBuilder, Date32Builder, Decimal128Builder, Float64Builder, Int64Builder, NullArray,
    StringBuilder, UInt64Builder,
};
use arrow::compute::cast;
use arrow::compute::kernels::cast_utils::parse_decimal;
use arrow::datatypes::{DataType, Decimal128Type, TimeUnit};
use arrow::error::ArrowError;

use super::{Zone, boolean, date, float, integer, timestamp};

/// A column builder.
pub(in crate::tables) struct Column {
    values: Values,
    /// True if the type is inferred, so that a value must be spelled as the type prints it.
    is_inferred: bool,
}

enum Values {
    Null(usize),
    Text(StringBuilder),
    Boolean(BooleanBuilder),
    Integer(Int64Builder),
    Unsigned(UInt64Builder),
    Float(Float64Builder),
    Date(Date32Builder),
    Timestamp(Int64Builder, TimeUnit, Option<Arc<str>>),
    Decimal(Decimal128Builder, u8, i8),
}

impl Column {
    /// Creates an empty column of a type returned by [`Kinds::data_type`](super::Kinds::data_type) or
    /// [`data_type`](super::data_type).
    pub(in crate::tables) fn new(data_type: &DataType, is_inferred: bool) -> Self {
        let values = match data_type {
            DataType::Boolean => Values::Boolean(BooleanBuilder::new()),
            DataType::Int64 => Values::Integer(Int64Builder::new()),
            DataType::UInt64 => Values::Unsigned(UInt64Builder::new()),
            DataType::Float64 => Values::Float(Float64Builder::new()),
            DataType::Date32 => Values::Date(Date32Builder::new()),
            DataType::Timestamp(unit, zone) => Values::Timestamp(Int64Builder::new(), *unit, zone.clone()),
            DataType::Decimal128(precision, scale) => {
                let builder = Decimal128Builder::new().with_data_type(data_type.clone());
                Values::Decimal(builder, *precision, *scale)
            }
            DataType::Null => Values::Null(0),
            _ => Values::Text(StringBuilder::new()),
        };
        Self { values, is_inferred }
    }

    pub(in crate::tables) fn append_null(&mut self) {
        match &mut self.values {
            Values::Null(rows) => *rows += 1,
            Values::Text(values) => values.append_null(),
            Values::Boolean(values) => values.append_null(),
            Values::Integer(values) | Values::Timestamp(values, ..) => values.append_null(),
            Values::Unsigned(values) => values.append_null(),
            Values::Float(values) => values.append_null(),
            Values::Date(values) => values.append_null(),
            Values::Decimal(values, ..) => values.append_null(),
        }
    }

    /// Appends a value. Returns false if the type does not hold it.
    pub(in crate::tables) fn append(&mut self, text: &str) -> bool {
        let is_inferred = self.is_inferred;
        let appended = match &mut self.values {
            Values::Null(_) => None,
            Values::Text(values) => {
                values.append_value(text);
                Some(())
            }
            Values::Boolean(values) => boolean(text.as_bytes()).map(|value| values.append_value(value)),
            Values::Integer(values) => {
                let value = match integer(text.as_bytes()) {
                    Some((false, size)) => i64::try_from(size).ok(),
                    Some((true, size)) => 0_i64.checked_sub_unsigned(size),
                    None if is_inferred => None,
                    None => text.parse().ok(),
                };
                value.map(|value| values.append_value(value))
            }
            Values::Unsigned(values) => {
                integer(text.as_bytes()).filter(|(negative, _)| !negative).map(|(_, size)| values.append_value(size))
            }
            Values::Float(values) => {
                let value = if is_inferred {
                    float(text.as_bytes()).map(|(value, _)| value)
                } else {
                    text.parse().ok().filter(|value: &f64| value.is_finite())
                };
                value.map(|value| values.append_value(value))
            }
            Values::Date(values) => date(text).map(|value| values.append_value(value)),
            Values::Timestamp(values, unit, zone) => {
                let found = timestamp(text).filter(|(_, found, found_zone)| {
                    (*found as u8 <= *unit as u8 || !is_inferred)
                        && match (&zone, found_zone) {
                            (None, Zone::None) | (Some(_), Zone::Utc) => true,
                            (Some(_), Zone::Offset) => !is_inferred,
                            _ => false,
                        }
                });
                // Digits beyond the unit of the type are rejected, not truncated.
                let value = found.and_then(|(time, ..)| {
                    let is_whole = |nanoseconds: u32| time.timestamp_subsec_nanos().is_multiple_of(nanoseconds);
                    match unit {
                        TimeUnit::Second => is_whole(1_000_000_000).then(|| time.timestamp()),
                        TimeUnit::Millisecond => is_whole(1_000_000).then(|| time.timestamp_millis()),
                        TimeUnit::Microsecond => is_whole(1_000).then(|| time.timestamp_micros()),
                        TimeUnit::Nanosecond => time.timestamp_nanos_opt(),
                    }
                });
                value.map(|value| values.append_value(value))
            }
            Values::Decimal(values, precision, scale) => {
                // Digits beyond the scale of the type are rejected, not truncated.
                let fraction = text.split_once('.').map_or("", |(_, fraction)| fraction).trim_end_matches('0');
                let fits = fraction.len() <= usize::try_from(*scale).unwrap_or(0) && !text.contains(['e', 'E']);
                let value = if fits { parse_decimal::<Decimal128Type>(text, *precision, *scale).ok() } else { None };
                value.map(|value| values.append_value(value))
            }
        };
        appended.is_some()
    }

    /// Returns the appended values and empties the builder.
    pub(in crate::tables) fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        Ok(match &mut self.values {
            Values::Null(rows) => Arc::new(NullArray::new(std::mem::take(rows))),
            Values::Text(values) => Arc::new(values.finish()),
            Values::Boolean(values) => Arc::new(values.finish()),
            Values::Integer(values) => Arc::new(values.finish()),
            Values::Unsigned(values) => Arc::new(values.finish()),
            Values::Float(values) => Arc::new(values.finish()),
            Values::Date(values) => Arc::new(values.finish()),
            Values::Timestamp(values, unit, zone) => {
                let data_type = DataType::Timestamp(*unit, zone.clone());
                cast(&(Arc::new(values.finish()) as Arc<dyn Array>), &data_type)?
            }
            Values::Decimal(values, ..) => Arc::new(values.finish()),
        })
    }
}
