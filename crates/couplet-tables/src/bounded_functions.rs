//! Size limits for SQL functions whose result can be far larger than their arguments.
//!
//! `repeat('a', 2000000000)` creates 2 GB from one row, and `range(0, 1000000000000)` requests 8 TB, which would abort
//! the process. No memory pool accounts for such a result, because the function allocates it in one piece. So the size
//! is estimated first and compared with the memory of the session.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, GenericListArray, OffsetSizeTrait};
use arrow::compute::{cast, kernels::length::length};
use arrow::datatypes::{
    DataType, FieldRef, Float64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit, TimeUnit,
};
use couplet_storage::words::grouped;
use datafusion::common::{DataFusionError, Result, plan_err};
use datafusion::functions::regex::{self, compile_regex};
use datafusion::functions::{string, unicode};
use datafusion::functions_nested::string as list_text;
use datafusion::functions_nested::{range, repeat, resize};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};

/// Returns the limited functions for a session with `memory` bytes. A result may take a quarter of the memory per
/// record batch, because several batches are in memory at once.
///
/// Functions whose result is at most a few times as large as their first argument are not limited: that argument is in
/// memory already.
#[must_use]
pub fn functions(memory: u64) -> Vec<ScalarUDF> {
    let limit = usize::try_from(memory / 4).unwrap_or(usize::MAX);
    let all: [(Arc<ScalarUDF>, Estimate); 12] = [
        (string::repeat(), Estimate::Repeat),
        (string::replace(), Estimate::Replace),
        (regex::regexp_replace(), Estimate::ReplaceMatches),
        (string::concat(), Estimate::Concat),
        (string::concat_ws(), Estimate::ConcatWith),
        (unicode::lpad(), Estimate::Pad),
        (unicode::rpad(), Estimate::Pad),
        (list_text::array_to_string_udf(), Estimate::Join),
        (repeat::array_repeat_udf(), Estimate::Repeat),
        (resize::array_resize_udf(), Estimate::Resize),
        (range::range_udf(), Estimate::Range),
        (range::gen_series_udf(), Estimate::Range),
    ];
    all.into_iter().map(|(inner, estimate)| Bounded { inner, estimate, limit }.into()).collect()
}

/// The size in bytes of a list element, and of most numbers as text.
const ELEMENT: f64 = 8.0;

/// The method to estimate the size of a function's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Estimate {
    /// Repeats the first argument. The second is the number of repetitions.
    Repeat,
    /// Pads to the number of bytes in the second argument.
    Pad,
    /// Resizes to the number of elements in the second argument.
    Resize,
    /// Replaces each occurrence of the second argument in the first by the third.
    Replace,
    /// Replaces matches of a regular expression, the second argument: the first match only, unless the fourth argument
    /// contains `g`.
    ReplaceMatches,
    /// Concatenates all arguments.
    Concat,
    /// Concatenates all arguments but the first, which is the separator.
    ConcatWith,
    /// Joins the elements of the first argument with the second as separator and the third in place of NULLs.
    Join,
    /// Counts from the first argument to the second, numbers or times, in steps of the third.
    Range,
}

/// A function with a size limit.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded {
    inner: Arc<ScalarUDF>,
    estimate: Estimate,
    /// The limit in bytes.
    limit: usize,
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let limit = self.limit as f64;
        let mut bytes = self.estimate.bytes(&args.args)?;
        if bytes > limit && matches!(self.estimate, Estimate::Replace | Estimate::ReplaceMatches) {
            // The first estimate of a replacement assumes the most matches possible; count the actual matches instead.
            bytes = self.estimate.bytes_of_matches(&args.args)?;
        }
        if bytes > limit {
            return plan_err!(
                "{}() would produce about {} bytes in one batch of rows, and a quarter of run.memory is {}; make its \
                 arguments smaller, or raise run.memory",
                self.name(),
                grouped(bytes as u64),
                grouped(self.limit as u64)
            );
        }
        self.inner.invoke_with_args(args)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}

impl Estimate {
    /// Estimates the size of the result in bytes. For replacements, this assumes that everything matches.
    fn bytes(self, args: &[ColumnarValue]) -> Result<f64> {
        let measured = |place: usize, measure: fn(&ArrayRef) -> Result<Vec<f64>>| match args.get(place) {
            // A scalar is evaluated once, independent of the number of rows.
            Some(ColumnarValue::Scalar(scalar)) => measure(&scalar.to_array()?),
            Some(ColumnarValue::Array(array)) => measure(array),
            None => Ok(vec![0.0]),
        };
        let columns = match self {
            Self::Repeat => vec![measured(0, sizes)?, measured(1, values)?],
            Self::Pad | Self::Resize => vec![measured(1, values)?],
            Self::Replace => vec![measured(0, sizes)?, measured(1, sizes)?, measured(2, sizes)?],
            Self::ReplaceMatches => {
                vec![measured(0, sizes)?, measured(2, sizes)?, measured(2, groups)?, measured(3, is_for_all)?]
            }
            Self::Concat | Self::ConcatWith => {
                (0..args.len()).map(|place| measured(place, sizes)).collect::<Result<_>>()?
            }
            Self::Join => {
                vec![measured(0, leaf_sizes)?, measured(0, leaves)?, measured(1, sizes)?, measured(2, sizes)?]
            }
            // A single argument is the end of the range.
            Self::Range if args.len() == 1 => vec![vec![0.0], measured(0, values)?, vec![1.0]],
            Self::Range if args.len() == 2 => vec![measured(0, values)?, measured(1, values)?, vec![1.0]],
            Self::Range => vec![measured(0, values)?, measured(1, values)?, measured(2, values)?],
        };
        let of_row = |row: usize| {
            let at = |column: usize| {
                let column = &columns[column];
                column.get(if column.len() == 1 { 0 } else { row }).copied().unwrap_or_default()
            };
            match self {
                Self::Repeat => at(0) * at(1).max(0.0),
                Self::Pad => at(0).max(0.0),
                Self::Resize => at(0).max(0.0) * ELEMENT,
                Self::Replace => at(0) + at(0) / at(1).max(1.0) * at(2),
                Self::ReplaceMatches => {
                    let matches = if at(3) == 0.0 { 1.0 } else { at(0) + 1.0 };
                    at(0) + replaced(at(0), matches, at(1), at(2))
                }
                Self::Concat => (0..columns.len()).map(at).sum(),
                Self::ConcatWith => {
                    (1..columns.len()).map(at).sum::<f64>() + at(0) * (columns.len() as f64 - 2.0).max(0.0)
                }
                Self::Join => at(0) + at(1) * (at(2) + at(3)),
                Self::Range => {
                    let step = at(2);
                    if step == 0.0 { 0.0 } else { ((at(1) - at(0)) / step).max(0.0) * ELEMENT }
                }
            }
        };
        Ok((0..rows_of(args)).map(of_row).sum())
    }

    /// Estimates the size of the result of a replacement in bytes, from the actual matches.
    fn bytes_of_matches(self, args: &[ColumnarValue]) -> Result<f64> {
        let texts = args.iter().map(|arg| Ok(cast(&arg.to_array(1)?, &DataType::LargeUtf8)?));
        let texts = texts.collect::<Result<Vec<_>>>()?;
        let at = |place: usize, row: usize| {
            let column = texts.get(place)?.as_string::<i64>();
            let row = if column.len() == 1 { 0 } else { row };
            column.is_valid(row).then(|| column.value(row))
        };
        let mut known = HashMap::new();
        let of_row = |row: usize| {
            let (text, pattern, replacement) = (at(0, row)?, at(1, row)?, at(2, row)?);
            let (matches, groups) = if self == Self::Replace {
                (text.matches(pattern).count(), 0)
            } else {
                let flags = if args.len() > 3 { at(3, row)? } else { "" };
                let expression = known
                    .entry((pattern, flags))
                    .or_insert_with(|| compile_regex(pattern, Some(&flags.replace('g', ""))).ok());
                // The function itself reports an invalid expression.
                let found = expression.as_ref()?.find_iter(text);
                let matches = if flags.contains('g') { usize::MAX } else { 1 };
                (found.take(matches).count(), groups_in(replacement))
            };
            let (text, replacement) = (text.len() as f64, replacement.len() as f64);
            Some(text + replaced(text, matches as f64, replacement, groups as f64))
        };
        Ok((0..rows_of(args)).filter_map(of_row).sum())
    }
}

/// Returns the number of rows of a batch, or one if all arguments are constants.
fn rows_of(args: &[ColumnarValue]) -> usize {
    let of = |arg: &ColumnarValue| match arg {
        ColumnarValue::Array(array) => Some(array.len()),
        ColumnarValue::Scalar(_) => None,
    };
    args.iter().find_map(of).unwrap_or(1)
}

/// Estimates the bytes that replace all matches in a text. A group that the replacement refers to is at most as long as
/// the match.
fn replaced(text: f64, matches: f64, replacement: f64, groups: f64) -> f64 {
    if matches == 0.0 { 0.0 } else { matches * replacement + groups * text }
}

/// Returns the maximum number of groups that a replacement refers to.
fn groups_in(replacement: &str) -> usize {
    replacement.matches(['$', '\\']).count()
}

/// Maps each text to a number.
fn of_texts(array: &ArrayRef, number: fn(&str) -> f64) -> Result<Vec<f64>> {
    let texts = cast(array, &DataType::LargeUtf8)?;
    Ok(texts.as_string::<i64>().iter().map(|text| text.map_or(0.0, number)).collect())
}

fn groups(array: &ArrayRef) -> Result<Vec<f64>> {
    of_texts(array, |text| groups_in(text) as f64)
}

fn is_for_all(array: &ArrayRef) -> Result<Vec<f64>> {
    of_texts(array, |flags| f64::from(flags.contains('g')))
}

/// Counts the elements of each list, including those of nested lists.
fn leaves(array: &ArrayRef) -> Result<Vec<f64>> {
    of_elements(array, |elements| Ok(vec![1.0; elements.len()]))
}

/// Estimates the size in bytes of the elements of each list as text.
fn leaf_sizes(array: &ArrayRef) -> Result<Vec<f64>> {
    of_elements(array, |elements| {
        let sizes = sizes(elements)?;
        Ok(if elements.data_type().is_string() { sizes } else { sizes.iter().map(|size| size.max(ELEMENT)).collect() })
    })
}

/// Sums a measure of the elements of each list.
fn of_elements(array: &ArrayRef, number: fn(&ArrayRef) -> Result<Vec<f64>>) -> Result<Vec<f64>> {
    fn of_lists<O: OffsetSizeTrait>(
        lists: &GenericListArray<O>,
        number: fn(&ArrayRef) -> Result<Vec<f64>>,
    ) -> Result<Vec<f64>> {
        let lists = lists.iter().map(|list| match list {
            Some(list) => Ok(of_elements(&list, number)?.iter().sum()),
            None => Ok(0.0),
        });
        lists.collect()
    }
    match array.data_type() {
        DataType::List(_) => of_lists(array.as_list::<i32>(), number),
        DataType::LargeList(_) => of_lists(array.as_list::<i64>(), number),
        DataType::FixedSizeList(_, size) => {
            let elements = of_elements(array.as_fixed_size_list().values(), number)?;
            let size = usize::try_from(*size).unwrap_or_default().max(1);
            Ok(elements.chunks(size).map(|list| list.iter().sum()).collect())
        }
        DataType::Dictionary(_, values) => number(&cast(array, values)?),
        _ => number(array),
    }
}

/// Estimates the size of each value in bytes.
fn sizes(array: &ArrayRef) -> Result<Vec<f64>> {
    if array.data_type().is_string() {
        return values(&length(array)?);
    }
    let all = array.to_data().get_slice_memory_size().map_err(DataFusionError::from)?;
    Ok(vec![all as f64 / array.len().max(1) as f64; array.len()])
}

/// Converts each value to a number; times and intervals to nanoseconds.
fn values(array: &ArrayRef) -> Result<Vec<f64>> {
    const DAY: f64 = 86_400e9;
    let numbers = match array.data_type() {
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            let intervals = array.as_primitive::<IntervalMonthDayNanoType>();
            let of = |interval: IntervalMonthDayNano| {
                (f64::from(interval.months) * 30.0 + f64::from(interval.days)) * DAY + interval.nanoseconds as f64
            };
            return Ok(intervals.iter().map(|interval| interval.map_or(0.0, of)).collect());
        }
        DataType::Date32 => {
            let days = cast(&cast(array, &DataType::Int32)?, &DataType::Float64)?;
            return Ok(days.as_primitive::<Float64Type>().iter().map(|days| days.unwrap_or_default() * DAY).collect());
        }
        DataType::Timestamp(unit, _) => {
            let nanoseconds = match unit {
                TimeUnit::Second => 1e9,
                TimeUnit::Millisecond => 1e6,
                TimeUnit::Microsecond => 1e3,
                TimeUnit::Nanosecond => 1.0,
            };
            let times = cast(&cast(array, &DataType::Int64)?, &DataType::Float64)?;
            let times = times.as_primitive::<Float64Type>();
            return Ok(times.iter().map(|time| time.unwrap_or_default() * nanoseconds).collect());
        }
        _ => cast(array, &DataType::Float64)?,
    };
    Ok(numbers.as_primitive::<Float64Type>().iter().map(Option::unwrap_or_default).collect())
}
