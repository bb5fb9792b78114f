//! Formats dates beyond the range of Arrow's formatter, such as those that databases write for `infinity`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, make_array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, TimeUnit};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// The number of days before and after 1970 that the formatter supports.
const MAX_DAYS: i64 = 95_000_000;

/// Replaces columns of dates or timestamps, at any nesting depth, by their texts if one value is out of the formatter's
/// range.
///
/// # Errors
/// A column that cannot be cast to text.
pub fn printable_dates(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = batch.schema();
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        if let Some(texts) = printable(column)? {
            fields.push(Arc::new(Field::new(field.name(), texts.data_type().clone(), true)));
            columns.push(texts);
        } else {
            fields.push(Arc::clone(field));
            columns.push(Arc::clone(column));
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// Formats the values of a column; none for NULL.
///
/// # Errors
/// A value that the formatter cannot format. By default, the formatter would print the error as the value.
pub fn value_texts(column: &ArrayRef) -> Result<Vec<Option<String>>, ArrowError> {
    let known = printable(column)?;
    let column = known.as_ref().unwrap_or(column);
    let options = FormatOptions::default().with_display_error(false);
    let formatter = ArrayFormatter::try_new(column, &options)?;
    // A null column has no null mask, and a dictionary column may have NULLs among its dictionary values.
    let nulls = column.logical_nulls();
    let has_value = |row: usize| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
    (0..column.len()).map(|row| has_value(row).then(|| formatter.value(row).try_to_string()).transpose()).collect()
}

/// Returns the column with dates and timestamps, at any nesting depth, as text if one value is out of range; none
/// otherwise.
fn printable(column: &ArrayRef) -> Result<Option<ArrayRef>, ArrowError> {
    let fields: Vec<&FieldRef> = match column.data_type() {
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => vec![item],
        DataType::Struct(fields) => fields.iter().collect(),
        _ => return out_of_range_texts(column),
    };
    let data = column.to_data();
    let mut is_changed = false;
    let (mut typed, mut children) = (Vec::new(), Vec::new());
    for (field, child) in fields.into_iter().zip(data.child_data()) {
        let texts = printable(&make_array(child.clone()))?;
        is_changed |= texts.is_some();
        let child = texts.map_or_else(|| child.clone(), |texts| texts.to_data());
        typed.push(Arc::new(Field::clone(field).with_data_type(child.data_type().clone())));
        children.push(child);
    }
    if !is_changed {
        return Ok(None);
    }
    let data_type = match (column.data_type(), typed.first()) {
        (DataType::List(_), Some(item)) => DataType::List(Arc::clone(item)),
        (DataType::LargeList(_), Some(item)) => DataType::LargeList(Arc::clone(item)),
        (DataType::ListView(_), Some(item)) => DataType::ListView(Arc::clone(item)),
        (DataType::LargeListView(_), Some(item)) => DataType::LargeListView(Arc::clone(item)),
        (DataType::FixedSizeList(_, size), Some(item)) => DataType::FixedSizeList(Arc::clone(item), *size),
        (DataType::Map(_, sorted), Some(entries)) => DataType::Map(Arc::clone(entries), *sorted),
        _ => DataType::Struct(typed.into()),
    };
    Ok(Some(make_array(data.into_builder().data_type(data_type).child_data(children).build()?)))
}

/// Returns the texts of a column of dates or timestamps if one value is out of range.
fn out_of_range_texts(column: &ArrayRef) -> Result<Option<ArrayRef>, ArrowError> {
    let per_day = match column.data_type() {
        DataType::Date32 => 1,
        DataType::Timestamp(unit, _) => 86_400 * 10_i64.pow(fraction_digits(*unit)),
        _ => return Ok(None),
    };
    let numbers = match column.data_type() {
        DataType::Date32 => cast(&cast(column, &DataType::Int32)?, &DataType::Int64)?,
        _ => cast(column, &DataType::Int64)?,
    };
    let numbers = numbers.as_primitive::<Int64Type>();
    let is_out_of_range = |number: i64| number.div_euclid(per_day).abs() > MAX_DAYS;
    if !numbers.iter().flatten().any(is_out_of_range) {
        return Ok(None);
    }
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(column, &options)?;
    let text = |(row, number): (usize, Option<i64>)| match number {
        Some(number) if is_out_of_range(number) => Ok(Some(format_out_of_range(number, per_day, column.data_type()))),
        Some(_) => formatter.value(row).try_to_string().map(Some),
        None => Ok(None),
    };
    let texts = numbers.iter().enumerate().map(text).collect::<Result<StringArray, ArrowError>>()?;
    Ok(Some(Arc::new(texts)))
}

fn fraction_digits(unit: TimeUnit) -> u32 {
    match unit {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 3,
        TimeUnit::Microsecond => 6,
        TimeUnit::Nanosecond => 9,
    }
}

/// Formats a date or timestamp in ISO 8601, with a signed year that may have more than four digits.
fn format_out_of_range(number: i64, per_day: i64, data_type: &DataType) -> String {
    let (year, month, day) = date_of(number.div_euclid(per_day));
    let date = format!("{year:+05}-{month:02}-{day:02}");
    let DataType::Timestamp(unit, zone) = data_type else { return date };
    let digits = fraction_digits(*unit);
    let of_day = number.rem_euclid(per_day);
    let (seconds, fraction) = (of_day / 10_i64.pow(digits), of_day % 10_i64.pow(digits));
    let fraction = if fraction == 0 { String::new() } else { format!(".{fraction:0width$}", width = digits as usize) };
    let zone = if zone.is_some() { "Z" } else { "" };
    format!("{date}T{:02}:{:02}:{:02}{fraction}{zone}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Converts days since 1970 to year, month and day in the Gregorian calendar, which repeats every 400 years.
fn date_of(days: i64) -> (i64, i64, i64) {
    // Years begin in March in this computation, so that a leap day is the last day of a year.
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Date32Array, Int32Array, ListArray, StructArray, TimestampMicrosecondArray};
    use arrow::buffer::OffsetBuffer;

    use super::*;

    fn shown(column: &ArrayRef) -> Vec<String> {
        let texts = printable(column).unwrap().unwrap();
        texts.as_string::<i32>().iter().map(|text| text.unwrap_or("NULL").to_owned()).collect()
    }

    #[test]
    fn dates_beyond_the_formatter_are_dates() {
        let dates = Date32Array::from(vec![Some(i32::MAX), Some(-i32::MAX), Some(19_723), None]);
        assert_eq!(shown(&(Arc::new(dates) as ArrayRef)), ["+5881580-07-11", "-5877641-06-24", "2024-01-01", "NULL"]);
        let times = TimestampMicrosecondArray::from(vec![i64::MAX, 0]).with_timezone("UTC");
        assert_eq!(shown(&(Arc::new(times) as ArrayRef)), ["+294247-01-10T04:00:54.775807Z", "1970-01-01T00:00:00Z"]);
        assert!(printable(&(Arc::new(Date32Array::from(vec![0, 2_932_897])) as ArrayRef)).unwrap().is_none());
    }

    #[test]
    fn dates_within_others_are_dates() {
        let dates = Arc::new(Date32Array::from(vec![Some(i32::MAX), None])) as ArrayRef;
        let of_struct = Arc::new(StructArray::from(vec![
            (Arc::new(Field::new("n", DataType::Int32, true)), Arc::new(Int32Array::from(vec![1, 2])) as ArrayRef),
            (Arc::new(Field::new("d", DataType::Date32, true)), dates),
        ])) as ArrayRef;
        let item = Arc::new(Field::new("item", of_struct.data_type().clone(), true));
        let lists = ListArray::new(item, OffsetBuffer::from_lengths([2, 0]), of_struct, Some(vec![true, false].into()));
        let texts = value_texts(&(Arc::new(lists) as ArrayRef)).unwrap();
        assert_eq!(texts, [Some("[{n: 1, d: +5881580-07-11}, {n: 2, d: }]".to_owned()), None]);
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for (days, date) in [(0, (1970, 1, 1)), (-1, (1969, 12, 31)), (11_016, (2000, 2, 29)), (-719_528, (0, 1, 1))] {
            assert_eq!(date_of(days), date);
        }
    }
}
