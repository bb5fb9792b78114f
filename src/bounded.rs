//! Functions of SQL whose result can be far larger than their arguments, with a limit.
//!
//! `repeat('a', 2000000000)` makes 2 GB of one row, and `range(0, 1000000000000)` asks for 8 TB, at which the process
//! would be aborted. No memory pool counts such a result, since it is made in one piece by the function itself. So the
//! size is estimated first, and compared with the memory that the session may use.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::{cast, kernels::length::length};
use arrow::datatypes::{
    DataType, FieldRef, Float64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit, TimeUnit,
};
use datafusion::common::{DataFusionError, Result, plan_err};
use datafusion::functions::{string, unicode};
use datafusion::functions_nested::{range, repeat, resize};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};

use crate::progress::grouped;

/// The functions, for results of at most `most` bytes in a record batch.
pub(crate) fn functions(most: usize) -> Vec<ScalarUDF> {
    let all: [(Arc<ScalarUDF>, Estimate); 8] = [
        (string::repeat(), Estimate::Repeat),
        (string::replace(), Estimate::Replace),
        (unicode::lpad(), Estimate::Pad),
        (unicode::rpad(), Estimate::Pad),
        (repeat::array_repeat_udf(), Estimate::Repeat),
        (resize::array_resize_udf(), Estimate::Pad),
        (range::range_udf(), Estimate::Range),
        (range::gen_series_udf(), Estimate::Range),
    ];
    all.into_iter().map(|(inner, estimate)| Bounded { inner, estimate, most }.into()).collect()
}

/// How the size of a result is estimated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Estimate {
    /// The size of the first argument as often as the second says.
    Repeat,
    /// As many bytes as the second argument says.
    Pad,
    /// The first argument with the third one in place of each second one.
    Replace,
    /// The numbers or times from the first argument to the second in steps of the third.
    Range,
}

/// A function with a limit.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded {
    inner: Arc<ScalarUDF>,
    estimate: Estimate,
    /// In bytes.
    most: usize,
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

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let bytes = self.estimate.bytes(&args.args)?;
        if bytes > self.most as f64 {
            return plan_err!(
                "{}() would make about {} bytes in one batch of rows, and run.memory allows {}; make its arguments smaller, \
                 or raise run.memory",
                self.name(),
                grouped(bytes as u64),
                grouped(self.most as u64)
            );
        }
        self.inner.invoke_with_args(args)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}

impl Estimate {
    /// Bytes of the result.
    fn bytes(self, args: &[ColumnarValue]) -> Result<f64> {
        let measured = |place: usize, measure: fn(&ArrayRef) -> Result<Vec<f64>>| match args.get(place) {
            // A scalar is one value, however many rows there are.
            Some(ColumnarValue::Scalar(scalar)) => measure(&scalar.to_array()?),
            Some(ColumnarValue::Array(array)) => measure(array),
            None => Ok(vec![0.0]),
        };
        let columns = match self {
            Self::Repeat => [measured(0, sizes)?, measured(1, values)?, vec![0.0]],
            Self::Pad => [vec![0.0], measured(1, values)?, vec![0.0]],
            Self::Replace => [measured(0, sizes)?, measured(1, sizes)?, measured(2, sizes)?],
            // With one argument it is the end.
            Self::Range if args.len() == 1 => [vec![0.0], measured(0, values)?, vec![1.0]],
            Self::Range if args.len() == 2 => [measured(0, values)?, measured(1, values)?, vec![1.0]],
            Self::Range => [measured(0, values)?, measured(1, values)?, measured(2, values)?],
        };
        let rows = columns.iter().map(Vec::len).max().unwrap_or_default();
        let of_row = |row: usize| {
            let [a, b, c] = [0, 1, 2].map(|column: usize| {
                let column = &columns[column];
                column.get(if column.len() == 1 { 0 } else { row }).copied().unwrap_or_default()
            });
            match self {
                Self::Repeat => a * b.max(0.0),
                Self::Pad => b.max(0.0),
                Self::Replace => a + a / b.max(1.0) * c,
                Self::Range if c == 0.0 => 0.0,
                Self::Range => ((b - a) / c).max(0.0) * 8.0,
            }
        };
        Ok((0..rows).map(of_row).sum())
    }
}

/// Bytes of each value.
fn sizes(array: &ArrayRef) -> Result<Vec<f64>> {
    if array.data_type().is_string() {
        return values(&length(array)?);
    }
    let all = array.to_data().get_slice_memory_size().map_err(DataFusionError::from)?;
    Ok(vec![all as f64 / array.len().max(1) as f64; array.len()])
}

/// Each value as a number; times and intervals in nanoseconds.
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
        DataType::Timestamp(..) => {
            let nanoseconds = DataType::Timestamp(TimeUnit::Nanosecond, None);
            cast(&cast(&cast(array, &nanoseconds)?, &DataType::Int64)?, &DataType::Float64)?
        }
        _ => cast(array, &DataType::Float64)?,
    };
    Ok(numbers.as_primitive::<Float64Type>().iter().map(Option::unwrap_or_default).collect())
}
