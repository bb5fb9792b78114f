//! Column types in Parquet files.

use std::io;
use std::sync::Arc;

use arrow::array::{RecordBatch, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use parquet::arrow::ArrowWriter;
use parquet::errors::Result;

/// Returns the types of the columns as they are passed to the writer.
pub(super) fn schema(schema: &SchemaRef) -> SchemaRef {
    mapped(schema, &|data_type| match data_type {
        // Parquet has no time of day in seconds.
        DataType::Time32(TimeUnit::Second) => Some(DataType::Time32(TimeUnit::Millisecond)),
        DataType::RunEndEncoded(_, values) => Some(values.data_type().clone()),
        _ => None,
    })
}

/// Casts a batch to the types that are passed to the writer.
pub(super) fn batch(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    if batch.schema_ref().fields() == schema.fields() {
        return Ok(batch.clone());
    }
    let columns = batch.columns().iter().zip(schema.fields()).map(|(column, field)| {
        if column.data_type() == field.data_type() { Ok(Arc::clone(column)) } else { cast(column, field.data_type()) }
    });
    Ok(RecordBatch::try_new(Arc::clone(schema), columns.collect::<Result<Vec<_>, _>>()?)?)
}

/// Returns the Arrow schema in a Parquet file's metadata, a hint for readers. It has no view types at any depth:
/// pyarrow can neither compare, sort nor join views, and pandas cannot read lists of them.
pub(super) fn hint(schema: &SchemaRef) -> SchemaRef {
    mapped(&self::schema(schema), &|data_type| match data_type {
        DataType::Utf8View => Some(DataType::Utf8),
        DataType::BinaryView => Some(DataType::Binary),
        DataType::ListView(item) => Some(DataType::List(Arc::clone(item))),
        DataType::LargeListView(item) => Some(DataType::LargeList(Arc::clone(item))),
        _ => None,
    })
}

/// Describes the first column that Parquet cannot represent, if any.
#[must_use]
pub fn parquet_problem(schema: &SchemaRef) -> Option<String> {
    let cannot_hold = |field: &FieldRef| {
        let alone = self::schema(&Arc::new(Schema::new(vec![Field::clone(field).with_nullable(true)])));
        // The writer panics on these.
        if has_unwritable(field.data_type()) {
            return true;
        }
        let write = || -> Result<()> {
            let mut writer = ArrowWriter::try_new(io::sink(), Arc::clone(&alone), None)?;
            writer.write(&RecordBatch::try_new(
                Arc::clone(&alone),
                vec![new_null_array(alone.field(0).data_type(), 1)],
            )?)?;
            writer.close().map(drop)
        };
        write().is_err()
    };
    let field = schema.fields().iter().find(|field| cannot_hold(field))?;
    Some(format!(
        "column `{}` is {}, which no Parquet file can hold; CAST it to VARCHAR, or leave it out",
        field.name(),
        field.data_type()
    ))
}

/// Returns true if a type is, or contains, a union or a struct without fields.
fn has_unwritable(data_type: &DataType) -> bool {
    match data_type {
        DataType::Union(..) => true,
        DataType::Struct(fields) => fields.is_empty() || fields.iter().any(|field| has_unwritable(field.data_type())),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _)
        | DataType::RunEndEncoded(_, item) => has_unwritable(item.data_type()),
        DataType::Dictionary(_, values) => has_unwritable(values),
        _ => false,
    }
}

/// Maps the types of a schema, at any depth. Types for which `map` returns `None` are kept.
fn mapped(schema: &SchemaRef, map: &impl Fn(&DataType) -> Option<DataType>) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| mapped_field(field, map));
    Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone()))
}

fn mapped_field(field: &FieldRef, map: &impl Fn(&DataType) -> Option<DataType>) -> FieldRef {
    let data_type = map(field.data_type());
    let data_type = data_type.as_ref().unwrap_or(field.data_type());
    let inner = |field: &FieldRef| mapped_field(field, map);
    let data_type = match data_type {
        DataType::List(item) => DataType::List(inner(item)),
        DataType::LargeList(item) => DataType::LargeList(inner(item)),
        DataType::ListView(item) => DataType::ListView(inner(item)),
        DataType::LargeListView(item) => DataType::LargeListView(inner(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(inner(item), *size),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inner).collect()),
        DataType::Map(entries, sorted) => DataType::Map(inner(entries), *sorted),
        DataType::Dictionary(keys, values) => {
            DataType::Dictionary(keys.clone(), Box::new(map(values).unwrap_or_else(|| (**values).clone())))
        }
        data_type => data_type.clone(),
    };
    Arc::new(Field::clone(field).with_data_type(data_type))
}
