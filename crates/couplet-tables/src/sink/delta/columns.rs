//! Columns of a Delta table: their types in the table, their statistics in its log, and problems with them.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use couplet_storage::words::closest;
use deltalake_core::kernel::StructType;
use deltalake_core::kernel::engine::arrow_conversion::TryIntoKernel;

use crate::delta;
use crate::sink::fit;

/// Returns the columns with type and nullability as in the table, where their values fit. A column of only NULLs has no
/// type yet.
pub(super) fn as_in_table(schema: &Schema, table: Option<&Schema>) -> Schema {
    let fields = schema.fields().iter().map(|field| {
        let existing = table.and_then(|table| table.field_with_name(field.name()).ok());
        // A new column is nullable: it may have NULLs in a later run.
        let field = Field::clone(field).with_nullable(existing.is_none_or(Field::is_nullable));
        match existing.map(Field::data_type).filter(|existing| !existing.is_null()) {
            Some(existing) => field.with_data_type(existing.clone()),
            None => field,
        }
    });
    Schema::new(fields.collect::<Vec<_>>())
}

/// Takes types from the table for fields within lists and structs that are NULL in every row.
pub(super) fn typed_as(schema: &Schema, table: Option<&Schema>) -> Schema {
    fn nested(data_type: &DataType, existing: &DataType) -> DataType {
        let field = |field: &Field, existing: &Field| {
            Arc::new(field.clone().with_data_type(match (field.data_type(), existing.data_type()) {
                (DataType::Null, existing) => existing.clone(),
                (data_type, existing) => nested(data_type, existing),
            }))
        };
        match (data_type, existing) {
            (
                DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _),
                DataType::List(existing),
            ) => DataType::List(field(item, existing)),
            (DataType::Struct(fields), DataType::Struct(existing)) => {
                let typed = fields.iter().map(|of_rows| match existing.find(of_rows.name()) {
                    Some((_, existing)) => field(of_rows, existing),
                    None => Arc::clone(of_rows),
                });
                DataType::Struct(typed.collect())
            }
            _ => data_type.clone(),
        }
    }
    let fields =
        schema.fields().iter().map(|field| match table.and_then(|table| table.field_with_name(field.name()).ok()) {
            Some(existing) => {
                Arc::new(Field::clone(field).with_data_type(nested(field.data_type(), existing.data_type())))
            }
            None => Arc::clone(field),
        });
    Schema::new(fields.collect::<Vec<_>>())
}

/// Returns the columns with statistics in the table's log, in the format of the table property. These are the columns
/// whose minimum and maximum delta-rs writes exactly. It writes decimals as 64-bit floats, and timestamps in
/// milliseconds, so that the maximum is too small. For floats it ignores NaN. Far dates make it panic. Strings are
/// truncated to bounds, as every reader expects.
pub(super) fn exact_statistics(schema: &Schema) -> String {
    let is_exact = |data_type: &DataType| match data_type {
        DataType::Boolean => true,
        other => other.is_integer() || other.is_string(),
    };
    // delta-rs applies a name to nested columns too, and requires other names to be quoted.
    let is_plain = |name: &str| name.chars().all(|char| char == '_' || char.is_ascii_alphanumeric());
    let is_within = |name: &str| schema.fields().iter().any(|field| has_within(field.data_type(), name));
    let exact = schema.fields().iter().filter(|field| is_exact(field.data_type()));
    let names = exact.map(|field| field.name().as_str()).filter(|name| is_plain(name) && !is_within(name));
    names.collect::<Vec<_>>().join(",")
}

/// Returns true if a struct has a field of that name, at any depth.
fn has_within(data_type: &DataType, name: &str) -> bool {
    let DataType::Struct(fields) = data_type else { return false };
    fields.iter().any(|field| field.name() == name || has_within(field.data_type(), name))
}

/// Describes the first column of a type that Delta does not support, if any.
pub(super) fn types_problem(schema: &Schema) -> Option<String> {
    schema.fields().iter().find_map(|field| {
        let alone = Schema::new(vec![Arc::clone(field)]);
        let known: Result<StructType, _> = (&alone).try_into_kernel();
        known.err().map(|_| {
            format!(
                "column `{}` is {}, which no Delta table can hold; CAST it in the source query, to VARCHAR if need be",
                field.name(),
                field.data_type()
            )
        })
    })
}

/// Describes the problem with partitioning by these columns, if any.
pub(super) fn partitions_problem(schema: &Schema, partition_by: &[String]) -> Option<String> {
    let columns = || schema.fields().iter().map(|field| field.name().as_str());
    let missing = partition_by.iter().find(|name| schema.column_with_name(name).is_none());
    if let Some(missing) = missing {
        let fix = closest(missing, columns()).map_or_else(
            || format!("select it in the source query, as in `SELECT …, '{{date}}' AS {missing}`"),
            |other| format!("did you mean `{other}`?"),
        );
        return Some(format!(
            "partition_by names `{missing}`, which is no column of the output (it has {}); {fix}",
            columns().collect::<Vec<_>>().join(", ")
        ));
    }
    let nested = schema.fields().iter().find(|f| partition_by.contains(f.name()) && f.data_type().is_nested());
    if let Some(field) = nested {
        return Some(format!("partition_by names `{}`, which is no single value: {}", field.name(), field.data_type()));
    }
    // delta-rs writes bytes escaped in paths, and does not unescape them when it reads.
    let bytes = schema.fields().iter().find(|f| partition_by.contains(f.name()) && *f.data_type() == DataType::Binary);
    if let Some(field) = bytes {
        return Some(format!("partition_by names `{}`, which is bytes; name a column of texts", field.name()));
    }
    (partition_by.len() == schema.fields().len())
        .then(|| "partition_by names every column, but a file needs at least one; leave some out".to_owned())
}

/// Describes the first id column that the table stores with less precision, so that two ids could become equal.
pub(super) fn ids_problem(schema: &Schema, id: &[String]) -> Option<String> {
    let finer =
        |data_type: &DataType| matches!(data_type, DataType::Timestamp(TimeUnit::Nanosecond, _) | DataType::Date64);
    let field = schema.fields().iter().find(|field| id.contains(field.name()) && finer(field.data_type()))?;
    Some(format!(
        "rows are merged by `{}`, which is {}, and a Delta table stores it with less precision; CAST it to \
         BIGINT or VARCHAR in the source query",
        field.name(),
        field.data_type()
    ))
}

/// Lists the differences that prevent rows from being added to a table.
pub(super) fn differences(rows: &Schema, table: &Schema) -> Vec<String> {
    let table = delta::for_delta(table);
    let mut problems = Vec::new();
    for field in rows.fields() {
        match table.field_with_name(field.name()) {
            Err(_) => problems.push(format!("column `{}` is not in the table", field.name())),
            Ok(existing)
                if !fit::is_storable_as(field.data_type(), existing.data_type()) && !existing.data_type().is_null() =>
            {
                problems.push(format!(
                    "column `{}` is {} and in the table {}",
                    field.name(),
                    field.data_type(),
                    existing.data_type()
                ));
            }
            Ok(_) => {}
        }
    }
    let missing = table.fields().iter().filter(|field| rows.field_with_name(field.name()).is_err());
    problems.extend(missing.map(|field| format!("the table's column `{}` is missing", field.name())));
    problems
}
