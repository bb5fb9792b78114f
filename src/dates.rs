//! Dates beyond the calendar that Arrow's formatter knows, such as those that databases write for `infinity`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, make_array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, TimeUnit};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// Days of either side of 1970 that the formatter knows.
const KNOWN_DAYS: i64 = 95_000_000;

/// The batch, in which dates or timestamps of a column, at any depth, are their texts where one is too far away for the
/// formatter.
pub(crate) fn printable_dates(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
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

/// The values of a column as texts; none for NULL.
///
/// # Errors
/// A value that the formatter has no text for, for which it would have the text of its error.
pub(crate) fn value_texts(column: &ArrayRef) -> Result<Vec<Option<String>>, ArrowError> {
    let known = printable(column)?;
    let column = known.as_ref().unwrap_or(column);
    let options = FormatOptions::default().with_display_error(false);
    let formatter = ArrayFormatter::try_new(column, &options)?;
    // A column that has no value at all has a type without a mask of NULLs, and one of codes has NULLs among the values.
    let nulls = column.logical_nulls();
    let has_value = |row: usize| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
    (0..column.len()).map(|row| has_value(row).then(|| formatter.value(row).try_to_string()).transpose()).collect()
}

/// The column with texts for dates and timestamps, at any depth, where one is too far away; none where none is.
fn printable(column: &ArrayRef) -> Result<Option<ArrayRef>, ArrowError> {
    let fields: Vec<&FieldRef> = match column.data_type() {
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => vec![item],
        DataType::Struct(fields) => fields.iter().collect(),
        _ => return far_texts(column),
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

/// The texts of a column of dates or timestamps, where one is too far away.
fn far_texts(column: &ArrayRef) -> Result<Option<ArrayRef>, ArrowError> {
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
    let is_far = |number: i64| number.div_euclid(per_day).abs() > KNOWN_DAYS;
    if !numbers.iter().flatten().any(is_far) {
        return Ok(None);
    }
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(column, &options)?;
    let text = |(row, number): (usize, Option<i64>)| match number {
        Some(number) if is_far(number) => Ok(Some(far(number, per_day, column.data_type()))),
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

/// A date, with a time where it has one, as ISO 8601 writes years of more than four digits.
fn far(number: i64, per_day: i64, data_type: &DataType) -> String {
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

/// Year, month and day of a number of days since 1970 in the Gregorian calendar, whose years have 400 of a pattern.
fn date_of(days: i64) -> (i64, i64, i64) {
    // Years begin in March here, so that a leap day ends one.
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
