//! Merges the schemas of a table's files into one column type each.
//!
//! The files of one table often differ: pandas writes integers as floats if a value is missing, writes categories as
//! dictionaries with a key type per file, and a column without values has no type at all. A column gets the narrowest
//! type that holds the values of all files. If there is none, the message names both files.

mod widened;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::compute::{cast, max, min};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, SchemaRef};
use datafusion::common::Column;
use datafusion::logical_expr::{Expr, cast as cast_to};
use datafusion::prelude::{encode, lit, regexp_replace};
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::basic::LogicalType;
use parquet::file::metadata::ParquetMetaData;

use widened::per_second;
pub(crate) use widened::widened;

/// The field metadata key of Arrow extension types, and the extension name of UUIDs.
const EXTENSION: (&str, &str) = ("ARROW:extension:name", "arrow.uuid");

/// Integers up to this magnitude are exact in a 64-bit float.
const EXACT_IN_FLOAT: i64 = 1 << 53;

/// A file and its schema.
#[derive(Debug, Clone)]
pub struct FileSchema {
    /// The file, as messages name it.
    pub place: String,
    /// Its schema, as its reader returns it.
    pub schema: SchemaRef,
    /// The footer of a Parquet file.
    pub footer: Option<Arc<ParquetMetaData>>,
}

/// The columns of a table.
#[derive(Debug)]
pub struct Columns {
    /// Column names and types.
    pub schema: Schema,
    /// The UUID columns, which are 16 bytes in the files and strings in SQL.
    uuids: Vec<String>,
}

impl Columns {
    /// Merges the columns of all files.
    ///
    /// # Errors
    /// A column whose types in two files have no common type. The message names the column, the types and the files.
    pub fn of(files: &[FileSchema]) -> Result<Self, String> {
        let mut columns: Vec<Merged> = Vec::new();
        let mut places: HashMap<&str, usize> = HashMap::new();
        let mut folded: HashMap<String, usize> = HashMap::new();
        for file in files {
            for field in file.schema.fields() {
                let column = Merged::new(file, field);
                if let Some(&place) = places.get(field.name().as_str()) {
                    columns[place].add(&column)?;
                    continue;
                }
                // Readers match columns by name, so a column that differs in case would be NULL in the rows of the
                // other file.
                if let Some(&place) = folded.get(&field.name().to_lowercase())
                    && file.schema.field_with_name(columns[place].name).is_err()
                {
                    return Err(format!(
                        "column `{}` of {} is `{}` in {}",
                        field.name(),
                        file.place,
                        columns[place].name,
                        columns[place].file.place
                    ));
                }
                folded.entry(field.name().to_lowercase()).or_insert(columns.len());
                places.insert(field.name(), columns.len());
                columns.push(column);
            }
        }
        for file in files {
            for field in file.schema.fields() {
                let column = &columns[places[field.name().as_str()]];
                if !file.holds(field.name(), &plain(field.data_type()), &column.data_type) {
                    return Err(column.differs(file, &plain(field.data_type())));
                }
            }
        }
        let uuids = columns.iter().filter(|column| column.is_uuid).map(|column| column.name.to_owned()).collect();
        let fields = columns.into_iter().map(|column| {
            // The column is NULL in the rows of files that lack it.
            Field::new(column.name, column.data_type, column.nullable || column.files < files.len())
        });
        Ok(Self { schema: Schema::new(fields.collect::<Vec<_>>()), uuids })
    }

    /// Returns true if SQL sees other values than those that are read.
    pub(crate) fn needs_view(&self, read: &Schema) -> bool {
        // View types for strings and bytes are read as they are.
        !self.uuids.is_empty() || read.fields().iter().any(|field| plain(field.data_type()) != *field.data_type())
    }

    /// Maps the columns that are read to the columns that SQL sees.
    pub(crate) fn expressions(&self, read: &Schema) -> impl Iterator<Item = Expr> {
        read.fields().iter().map(|field| {
            let (column, data_type) = (Expr::Column(Column::from_name(field.name())), plain(field.data_type()));
            if self.uuids.contains(field.name()) {
                let (digits, groups) = (lit("(.{8})(.{4})(.{4})(.{4})(.{12})"), lit(r"\1-\2-\3-\4-\5"));
                regexp_replace(encode(column, lit("hex")), digits, groups, None).alias(field.name())
            } else if data_type == *field.data_type() {
                column
            } else {
                cast_to(column, data_type).alias(field.name())
            }
        })
    }
}

/// Returns the common schema of files whose reader matches columns by position.
///
/// # Errors
/// Two files that differ in a column.
pub(crate) fn one_schema(files: &[FileSchema]) -> Result<SchemaRef, String> {
    let [first, others @ ..] = files else { return Ok(Arc::new(Schema::empty())) };
    let columns = |file: &FileSchema| {
        let fields = file.schema.fields().iter();
        fields.map(|field| (field.name().clone(), field.data_type().clone())).collect::<Vec<_>>()
    };
    let expected = columns(first);
    for other in others {
        let found = columns(other);
        if found == expected {
            continue;
        }
        let columns = found.len().max(expected.len());
        let place = (0..columns).find(|&i| found.get(i) != expected.get(i)).unwrap_or(0);
        let described = |column: Option<&(String, DataType)>| match column {
            Some((name, data_type)) => format!("`{name}` {data_type}"),
            None => "missing".to_owned(),
        };
        return Err(format!(
            "column {} is {} in {} and {} in {}; Arrow files of one table must have the same columns in the same order",
            place + 1,
            described(expected.get(place)),
            first.place,
            described(found.get(place)),
            other.place
        ));
    }
    let nullable = |name: &str| files.iter().any(|f| f.schema.field_with_name(name).is_ok_and(Field::is_nullable));
    let fields = expected.into_iter().map(|(name, data_type)| {
        let nullable = nullable(&name);
        Field::new(name, data_type, nullable)
    });
    Ok(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
}

/// A column merged over the files so far.
struct Merged<'a> {
    name: &'a str,
    data_type: DataType,
    nullable: bool,
    is_uuid: bool,
    /// The number of files that have it.
    files: usize,
    /// The file that its type comes from.
    file: &'a FileSchema,
}

impl<'a> Merged<'a> {
    fn new(file: &'a FileSchema, field: &'a Field) -> Self {
        let is_uuid = file.is_uuid(field);
        let data_type = plain(field.data_type());
        Self { name: field.name(), data_type, nullable: field.is_nullable(), is_uuid, files: 1, file }
    }

    fn add(&mut self, other: &Self) -> Result<(), String> {
        let has_type = |column: &Self| column.data_type != DataType::Null;
        let is_same_kind = self.is_uuid == other.is_uuid || !has_type(self) || !has_type(other);
        let Some(data_type) = widened(&self.data_type, &other.data_type).filter(|_| is_same_kind) else {
            return Err(self.differs(other.file, &other.data_type));
        };
        if data_type != self.data_type {
            (self.data_type, self.file) = (data_type, other.file);
        }
        self.nullable |= other.nullable;
        self.is_uuid |= other.is_uuid;
        self.files += 1;
        Ok(())
    }

    fn differs(&self, file: &FileSchema, data_type: &DataType) -> String {
        format!(
            "column `{}` is {} in {} and {data_type} in {}, and no type holds the values of both exactly",
            self.name, self.data_type, self.file.place, file.place
        )
    }
}

impl FileSchema {
    /// Returns true if a 16-byte column is marked as UUID by Arrow's extension type or Parquet's logical type.
    fn is_uuid(&self, field: &Field) -> bool {
        if *field.data_type() != DataType::FixedSizeBinary(16) {
            return false;
        }
        let (key, uuid) = EXTENSION;
        let is_marked = |footer: &Arc<ParquetMetaData>| {
            let columns = footer.file_metadata().schema_descr().root_schema().get_fields();
            let column = columns.iter().find(|column| column.name() == field.name());
            column.is_some_and(|c| c.get_basic_info().logical_type_ref() == Some(&LogicalType::Uuid))
        };
        field.metadata().get(key).is_some_and(|name| name == uuid) || self.footer.as_ref().is_some_and(is_marked)
    }

    /// Returns true if a wider type that does not hold every value of the column's type holds the column's actual
    /// values.
    fn holds(&self, name: &str, from: &DataType, to: &DataType) -> bool {
        let (most, known) = match (from, to) {
            (DataType::Int64 | DataType::UInt64, DataType::Float64) => (EXACT_IN_FLOAT, self.range(name)),
            // If the range is unknown, the reader rejects values that are out of range.
            (DataType::Timestamp(from, _), DataType::Timestamp(to, _)) if per_second(*to) > per_second(*from) => {
                let range = self.range(name).or(Some((0, 0)));
                (i64::MAX / (per_second(*to) / per_second(*from)), range)
            }
            _ => return true,
        };
        known.is_some_and(|(least, greatest)| least >= -most && greatest <= most)
    }

    /// Returns the minimum and maximum of a column as integers, from the footer; none if the footer has no such
    /// statistics.
    fn range(&self, name: &str) -> Option<(i64, i64)> {
        let footer = self.footer.as_ref()?;
        let groups = footer.row_groups();
        let converter = StatisticsConverter::try_new(name, &self.schema, footer.file_metadata().schema_descr()).ok()?;
        let filled = |group: usize| -> Option<bool> {
            let nulls = converter.row_group_null_counts(&groups[group..=group]).ok()?;
            Some(nulls.is_null(0) || nulls.value(0) < u64::try_from(groups[group].num_rows()).ok()?)
        };
        let (least, greatest) = (converter.row_group_mins(groups).ok()?, converter.row_group_maxes(groups).ok()?);
        let (least, greatest) = (cast(&least, &DataType::Int64).ok()?, cast(&greatest, &DataType::Int64).ok()?);
        let (least, greatest) = (least.as_primitive::<Int64Type>(), greatest.as_primitive::<Int64Type>());
        for group in (0..groups.len()).filter(|&group| least.is_null(group) || greatest.is_null(group)) {
            if filled(group)? {
                return None;
            }
        }
        Some((min(least).unwrap_or(0), max(greatest).unwrap_or(0)))
    }
}

/// Returns the SQL type of a file's column: dictionaries and run-end encodings become their values, list views become
/// lists.
pub(crate) fn plain(data_type: &DataType) -> DataType {
    let item = |field: &FieldRef| plain_field(field);
    match data_type {
        DataType::Dictionary(_, values) => plain(values),
        DataType::RunEndEncoded(_, values) => plain(values.data_type()),
        // Date64 counts whole days in milliseconds.
        DataType::Date64 => DataType::Date32,
        DataType::List(field) | DataType::ListView(field) => DataType::List(item(field)),
        DataType::LargeList(field) | DataType::LargeListView(field) => DataType::LargeList(item(field)),
        DataType::FixedSizeList(field, size) => DataType::FixedSizeList(item(field), *size),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(item).collect()),
        DataType::Map(entries, sorted) => DataType::Map(item(entries), *sorted),
        other => other.clone(),
    }
}

fn plain_field(field: &FieldRef) -> FieldRef {
    Arc::new(Field::new(field.name(), plain(field.data_type()), field.is_nullable()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(place: &str, fields: Vec<Field>) -> FileSchema {
        FileSchema { place: place.to_owned(), schema: Arc::new(Schema::new(fields)), footer: None }
    }

    #[test]
    fn columns_that_differ_are_named_with_both_files() {
        let one = file("a.parquet", vec![Field::new("x", DataType::Int64, false)]);
        let problem = Columns::of(&[one.clone(), file("b.parquet", vec![Field::new("x", DataType::Utf8, false)])]);
        let problem = problem.unwrap_err();
        assert!(
            problem.starts_with("column `x` is Int64 in a.parquet and Utf8 in b.parquet, and no type"),
            "{problem}"
        );
        // Without a footer, nothing shows that the integers are exact as floats.
        let problem = Columns::of(&[one.clone(), file("b.parquet", vec![Field::new("x", DataType::Float64, false)])]);
        assert!(problem.unwrap_err().starts_with("column `x` is Float64 in b.parquet and Int64 in a.parquet"));
        let problem = Columns::of(&[one.clone(), file("b.parquet", vec![Field::new("X", DataType::Int64, false)])]);
        assert!(problem.unwrap_err().starts_with("column `X` of b.parquet is `x` in a.parquet"));
        let columns = Columns::of(&[one, file("b.parquet", vec![Field::new("y", DataType::Int64, false)])]).unwrap();
        assert!(columns.schema.fields().iter().all(|field| field.is_nullable()));
    }
}
