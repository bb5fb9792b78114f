//! Casts rows to the types of the table that they are written to.

use std::fmt::Display;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use thiserror::Error;

use crate::types::{plain, widened};

/// A value that the table cannot hold.
#[derive(Debug, Error)]
#[error("column `{column}` does not fit the table: {problem}")]
pub struct Misfit {
    column: String,
    problem: String,
}

/// Casts the rows to the types of the table. A value that does not fit is an error of the stream.
#[must_use]
pub fn fitted(rows: SendableRecordBatchStream, schema: &SchemaRef) -> SendableRecordBatchStream {
    let into = Arc::clone(schema);
    let fitted = rows.map(move |batch: Result<RecordBatch, DataFusionError>| -> Result<_, DataFusionError> {
        let batch = batch?;
        let columns = batch.columns().iter().zip(into.fields()).map(|(column, field)| as_in_table(column, field));
        Ok(RecordBatch::try_new(Arc::clone(&into), columns.collect::<Result<Vec<_>, DataFusionError>>()?)?)
    });
    Box::pin(RecordBatchStreamAdapter::new(Arc::clone(schema), fitted))
}

/// Returns the columns that may have a value that does not fit, with their fields in the table.
#[must_use]
pub fn narrowed(rows: &Schema, table: &Schema) -> Vec<Arc<Field>> {
    let always_fits = |from: &DataType, to: &DataType| {
        from == to || from.is_null() || from.is_string() && to.is_string() || from.is_binary() && to.is_binary()
    };
    let target = table.fields().iter().filter(|target| {
        rows.field_with_name(target.name()).is_ok_and(|field| {
            !always_fits(field.data_type(), target.data_type()) || field.is_nullable() && !target.is_nullable()
        })
    });
    target.cloned().collect()
}

/// Returns true if values of a type can be stored in a column of another, except for single values that do not fit.
pub(super) fn is_storable_as(data_type: &DataType, target: &DataType) -> bool {
    data_type == target || !target.is_nested() && widened(data_type, target).as_ref() == Some(target)
}

/// Returns the columns with the table's type where their values fit.
#[must_use]
pub fn with_table_types(rows: &Schema, table: &Schema) -> SchemaRef {
    let fields = rows.fields().iter().map(|field| {
        let target = table.field_with_name(field.name()).ok().map(|target| plain(target.data_type()));
        // Strings and binary are stored alike, whatever their type in memory.
        let differs = |target: &DataType| !target.is_string() && !target.is_binary() && !target.is_null();
        match target.filter(|target| differs(target) && is_storable_as(field.data_type(), target)) {
            Some(target) => Arc::new(Field::clone(field).with_data_type(target)),
            None => Arc::clone(field),
        }
    });
    Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), rows.metadata().clone()))
}

/// Casts a column to its type in the table.
fn as_in_table(column: &ArrayRef, field: &Field) -> Result<ArrayRef, DataFusionError> {
    let misfit = |problem: &dyn Display| {
        let misfit = Misfit { column: field.name().clone(), problem: problem.to_string() };
        Err(DataFusionError::External(Box::new(misfit)))
    };
    if !field.is_nullable() && column.logical_null_count() > 0 {
        return misfit(
            &"it is NULL in a row, and the column of the table is NOT NULL; COALESCE it in the source query, or \
              replace the table with mode = \"overwrite\"",
        );
    }
    if column.data_type() == field.data_type() {
        return Ok(Arc::clone(column));
    }
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let cast = |column: &ArrayRef, to: &DataType| cast_with_options(column, to, &options);
    let values = match cast(column, field.data_type()) {
        Ok(values) => values,
        Err(e) => {
            let e = e.to_string();
            let problem = e.strip_prefix("Cast error: ").unwrap_or(&e);
            return misfit(&format!(
                "{problem}, which the column has there; filter such rows out in the source query, or give the column \
                 another name and type"
            ));
        }
    };
    // Large integers are not exact as floats.
    let is_rounded = column.data_type().is_integer() && field.data_type().is_floating();
    if is_rounded && !cast(&values, column.data_type()).is_ok_and(|back| back.as_ref() == column.as_ref()) {
        let to = field.data_type();
        return misfit(&format!(
            "it is {to} there, which does not hold every integer here exactly; CAST it to DOUBLE in the source query to \
             round it"
        ));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int64Array, NullArray, UInt32Array};
    use arrow::datatypes::{Float64Type, Int64Type};

    use super::*;

    fn fitted(column: &ArrayRef, target: DataType, nullable: bool) -> Result<ArrayRef, String> {
        as_in_table(column, &Field::new("v", target, nullable)).map_err(|e| e.to_string())
    }

    #[test]
    fn a_column_takes_the_type_of_the_table_or_is_refused() {
        let large: ArrayRef = Arc::new(UInt32Array::from(vec![Some(4_000_000_000), None]));
        let values = fitted(&large, DataType::Int64, true).unwrap();
        assert_eq!(values.as_primitive::<Int64Type>().value(0), 4_000_000_000);
        let problem = fitted(&large, DataType::Int32, true).unwrap_err();
        assert!(problem.contains("column `v` does not fit the table: ") && problem.contains("4000000000"), "{problem}");
        let problem = fitted(&large, DataType::Int64, false).unwrap_err();
        assert!(problem.contains("of the table is NOT NULL; COALESCE it in the source query"), "{problem}");
        let empty: ArrayRef = Arc::new(NullArray::new(2));
        assert_eq!(fitted(&empty, DataType::Float64, true).unwrap().null_count(), 2);
    }

    #[test]
    fn integers_become_floats_only_where_they_are_exact() {
        let exact: ArrayRef = Arc::new(Int64Array::from(vec![Some(1 << 53), None]));
        let values = fitted(&exact, DataType::Float64, true).unwrap();
        assert_eq!(values.as_primitive::<Float64Type>().value(0).to_bits(), 9_007_199_254_740_992_f64.to_bits());
        let rounded: ArrayRef = Arc::new(Int64Array::from(vec![(1 << 53) + 1]));
        let problem = fitted(&rounded, DataType::Float64, true).unwrap_err();
        assert!(problem.contains("does not hold every integer here exactly; CAST it to DOUBLE"), "{problem}");
    }
}
