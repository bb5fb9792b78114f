//! The types of a table's columns, by the schemas of its files.
//!
//! The files of one table often differ: pandas writes integers as floats where one is missing, and its categories as
//! dictionaries with keys of their own; a column without a value has no type at all. A column gets the narrowest type
//! that holds the values of all files. Where there is none, the message names both files.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::compute::{cast, max, min};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, SchemaRef, TimeUnit};
use datafusion::common::Column;
use datafusion::logical_expr::{Expr, cast as cast_to};
use datafusion::prelude::{encode, lit, regexp_replace};
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::basic::LogicalType;
use parquet::file::metadata::ParquetMetaData;

/// The key of a field's metadata that names its extension type, and the name of UUIDs.
const EXTENSION: (&str, &str) = ("ARROW:extension:name", "arrow.uuid");

/// Integers up to this magnitude are exact in a 64-bit float.
const EXACT_IN_FLOAT: i64 = 1 << 53;

/// A file and its columns.
#[derive(Debug, Clone)]
pub(crate) struct FileSchema {
    /// The file, as messages name it.
    pub(crate) place: String,
    /// Its columns, as its reader has them.
    pub(crate) schema: SchemaRef,
    /// The footer of a Parquet file.
    pub(crate) footer: Option<Arc<ParquetMetaData>>,
}

/// The columns of a table.
#[derive(Debug)]
pub(crate) struct Columns {
    /// Their names and types.
    pub(crate) schema: Schema,
    /// Those that are UUIDs, which are 16 bytes in the files and texts in SQL.
    uuids: Vec<String>,
}

impl Columns {
    /// The columns that hold the rows of all files.
    ///
    /// # Errors
    /// A column whose types in two files have none that holds both: the column, the types and the files.
    pub(crate) fn of(files: &[FileSchema]) -> Result<Self, String> {
        let mut columns: Vec<Merged> = Vec::new();
        let mut places: HashMap<&str, usize> = HashMap::new();
        let mut folded: HashMap<String, usize> = HashMap::new();
        for file in files {
            for field in file.schema.fields() {
                let column = Merged::new(file, field);
                if let Some(&place) = places.get(field.name().as_str()) {
                    columns[place].add(column)?;
                    continue;
                }
                // Readers find columns by name, so this one would be NULL in the rows of the other file.
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
            // A file without the column has NULL in its rows.
            Field::new(column.name, column.data_type, column.nullable || column.files < files.len())
        });
        Ok(Self { schema: Schema::new(fields.collect::<Vec<_>>()), uuids })
    }

    /// Whether SQL sees other values than those that are read.
    pub(crate) fn needs_view(&self, read: &Schema) -> bool {
        // Views of texts are read as such.
        !self.uuids.is_empty() || read.fields().iter().any(|field| plain(field.data_type()) != *field.data_type())
    }

    /// The columns as SQL sees them, of those that are read.
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

/// The schema of files whose reader finds columns by their places, and so needs one for all.
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
        let place = (0..).find(|&i| found.get(i) != expected.get(i)).unwrap_or(0);
        let said = |column: Option<&(String, DataType)>| match column {
            Some((name, data_type)) => format!("`{name}` {data_type}"),
            None => "missing".to_owned(),
        };
        return Err(format!(
            "column {} is {} in {} and {} in {}; Arrow files of one table must have the same columns in the same order",
            place + 1,
            said(expected.get(place)),
            first.place,
            said(found.get(place)),
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

/// A column of the files so far.
struct Merged<'a> {
    name: &'a str,
    data_type: DataType,
    nullable: bool,
    is_uuid: bool,
    /// How many files have it.
    files: usize,
    /// The file that it has its type from.
    file: &'a FileSchema,
}

impl<'a> Merged<'a> {
    fn new(file: &'a FileSchema, field: &'a Field) -> Self {
        let is_uuid = file.is_uuid(field);
        let data_type = plain(field.data_type());
        Self { name: field.name(), data_type, nullable: field.is_nullable(), is_uuid, files: 1, file }
    }

    fn add(&mut self, other: Self) -> Result<(), String> {
        let has_type = |column: &Self| column.data_type != DataType::Null;
        let is_same_kind = self.is_uuid == other.is_uuid || !has_type(self) || !has_type(&other);
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
    /// Whether a column of 16 bytes is marked as UUIDs: by Arrow's extension type, or Parquet's logical type.
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

    /// Whether the values of a column are the same in a wider type that does not hold every value of their own.
    fn holds(&self, name: &str, from: &DataType, to: &DataType) -> bool {
        let (most, known) = match (from, to) {
            (DataType::Int64 | DataType::UInt64, DataType::Float64) => (EXACT_IN_FLOAT, self.range(name)),
            // Where nothing is known of the values, the reader itself refuses those that are out of range.
            (DataType::Timestamp(from, _), DataType::Timestamp(to, _)) if per_second(*to) > per_second(*from) => {
                let range = self.range(name).or(Some((0, 0)));
                (i64::MAX / (per_second(*to) / per_second(*from)), range)
            }
            _ => return true,
        };
        known.is_some_and(|(least, greatest)| least >= -most && greatest <= most)
    }

    /// The least and the greatest value of a column as integers, by the footer; none if that does not tell.
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

/// The type that a column of a file has in SQL: values for codes of dictionaries and runs, and lists for views of them.
pub(crate) fn plain(data_type: &DataType) -> DataType {
    let item = |field: &FieldRef| plain_field(field);
    match data_type {
        DataType::Dictionary(_, values) => plain(values),
        DataType::RunEndEncoded(_, values) => plain(values.data_type()),
        // Whole days, in milliseconds.
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

/// The narrowest type that holds the values of both. 64-bit integers become floats beside floats: whether their values
/// are exact in these is asked of the files.
pub(crate) fn widened(a: &DataType, b: &DataType) -> Option<DataType> {
    use DataType::{
        Binary, BinaryView, Date32, Duration, FixedSizeBinary, FixedSizeList, Float32, Float64, LargeBinary, LargeList,
        LargeUtf8, List, Map, Null, Struct, Timestamp, Utf8, Utf8View,
    };
    if a == b {
        return Some(a.clone());
    }
    let either = |data_type: DataType| *a == data_type || *b == data_type;
    let is_bytes = |t: &DataType| matches!(t, Binary | LargeBinary | BinaryView | FixedSizeBinary(_));
    let is_list = |t: &DataType| matches!(t, List(_) | LargeList(_) | FixedSizeList(..));
    let is_small = |t: &DataType| t.is_integer() && bits(t) <= 16;
    Some(match (a, b) {
        (Null, other) | (other, Null) => other.clone(),
        _ if a.is_string() && b.is_string() => match (either(Utf8View), either(LargeUtf8)) {
            (true, _) => Utf8View,
            (_, true) => LargeUtf8,
            _ => Utf8,
        },
        _ if is_bytes(a) && is_bytes(b) => match (either(BinaryView), either(LargeBinary)) {
            (true, _) => BinaryView,
            (_, true) => LargeBinary,
            _ => Binary,
        },
        _ if a.is_integer() && b.is_integer() => integer(a, b)?,
        _ if a.is_floating() && b.is_floating() => {
            if either(Float64) {
                Float64
            } else {
                Float32
            }
        }
        _ if a.is_floating() && b.is_integer() || a.is_integer() && b.is_floating() => {
            if !either(Float64) && (is_small(a) || is_small(b)) { Float32 } else { Float64 }
        }
        _ if (a.is_decimal() || a.is_integer()) && (b.is_decimal() || b.is_integer()) => decimal(a, b)?,
        (Date32, Timestamp(unit, zone)) | (Timestamp(unit, zone), Date32) => Timestamp(*unit, zone.clone()),
        (Timestamp(unit, zone), Timestamp(other_unit, other_zone)) if zone.is_some() == other_zone.is_some() => {
            // The instants are the same in any zone.
            let zone = if zone == other_zone { zone.clone() } else { Some("UTC".into()) };
            Timestamp(finest(*unit, *other_unit), zone)
        }
        (Duration(unit), Duration(other)) => Duration(finest(*unit, *other)),
        (Struct(fields), Struct(others)) => {
            let twin = |field: &FieldRef| others.iter().find(|other| other.name() == field.name());
            let shared = fields.iter().map(|field| match twin(field) {
                Some(other) => widened_field(field, other),
                None => Some(Arc::new(Field::clone(field).with_nullable(true))),
            });
            let mut all = shared.collect::<Option<Vec<_>>>()?;
            let new = others.iter().filter(|other| fields.iter().all(|field| field.name() != other.name()));
            all.extend(new.map(|other| Arc::new(Field::clone(other).with_nullable(true))));
            Struct(all.into())
        }
        (Map(entries, sorted), Map(others, _)) => {
            let (Struct(fields), Struct(other_fields)) = (entries.data_type(), others.data_type()) else { return None };
            // Writers name the two in many ways; the first is the key.
            let pairs = fields.iter().zip(other_fields).map(|(field, other)| widened_field(field, other));
            let fields = Struct(pairs.collect::<Option<Vec<_>>>()?.into());
            Map(Arc::new(Field::clone(entries).with_data_type(fields)), *sorted)
        }
        _ if is_list(a) && is_list(b) => {
            let (item, other) = (element(a)?, element(b)?);
            let item = widened_field(item, other)?;
            if matches!(a, LargeList(_)) || matches!(b, LargeList(_)) { LargeList(item) } else { List(item) }
        }
        _ => time(a, b)?,
    })
}

fn element(list: &DataType) -> Option<&FieldRef> {
    match list {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => Some(item),
        _ => None,
    }
}

fn widened_field(field: &FieldRef, other: &FieldRef) -> Option<FieldRef> {
    let (a, b) = (field.data_type(), other.data_type());
    let data_type = widened(a, b)?;
    // No footer tells the values of a nested column.
    let is_exact = |from: &DataType| !matches!(from, DataType::Int64 | DataType::UInt64) || !data_type.is_floating();
    let nullable = field.is_nullable() || other.is_nullable();
    (is_exact(a) && is_exact(b))
        .then(|| Arc::new(Field::clone(field).with_data_type(data_type.clone()).with_nullable(nullable)))
}

fn bits(integer: &DataType) -> usize {
    integer.primitive_width().map_or(64, |bytes| bytes * 8)
}

fn integer(a: &DataType, b: &DataType) -> Option<DataType> {
    let unsigned = |t: &DataType| t.is_unsigned_integer();
    let needed = match (unsigned(a), unsigned(b)) {
        (true, false) => bits(b).max(2 * bits(a)),
        (false, true) => bits(a).max(2 * bits(b)),
        _ => bits(a).max(bits(b)),
    };
    Some(match (unsigned(a) && unsigned(b), needed) {
        (false, 16) => DataType::Int16,
        (false, 32) => DataType::Int32,
        (false, 64) => DataType::Int64,
        (true, 16) => DataType::UInt16,
        (true, 32) => DataType::UInt32,
        (true, 64) => DataType::UInt64,
        _ => return decimal(a, b),
    })
}

/// The decimal that holds the digits of both before and behind the point.
fn decimal(a: &DataType, b: &DataType) -> Option<DataType> {
    use DataType::{Decimal32, Decimal64, Decimal128, Decimal256};
    let digits = |t: &DataType| match t {
        Decimal32(precision, scale)
        | Decimal64(precision, scale)
        | Decimal128(precision, scale)
        | Decimal256(precision, scale) => (i16::from(*precision) - i16::from(*scale), *scale),
        DataType::UInt64 => (20, 0),
        t if bits(t) == 8 => (3, 0),
        t if bits(t) == 16 => (5, 0),
        t if bits(t) == 32 => (10, 0),
        _ => (19, 0),
    };
    let ((before, scale), (other_before, other_scale)) = (digits(a), digits(b));
    let scale = scale.max(other_scale);
    match u8::try_from(before.max(other_before) + i16::from(scale)).ok()? {
        precision @ 0..=38 => Some(Decimal128(precision, scale)),
        precision @ 39..=76 => Some(Decimal256(precision, scale)),
        _ => None,
    }
}

/// The finer of two times of the day.
fn time(a: &DataType, b: &DataType) -> Option<DataType> {
    let unit = |t: &DataType| match t {
        DataType::Time32(unit) | DataType::Time64(unit) => Some(*unit),
        _ => None,
    };
    let unit = finest(unit(a)?, unit(b)?);
    Some(if per_second(unit) > 1_000 { DataType::Time64(unit) } else { DataType::Time32(unit) })
}

fn finest(a: TimeUnit, b: TimeUnit) -> TimeUnit {
    if per_second(a) < per_second(b) { b } else { a }
}

fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(place: &str, fields: Vec<Field>) -> FileSchema {
        FileSchema { place: place.to_owned(), schema: Arc::new(Schema::new(fields)), footer: None }
    }

    fn of(a: DataType, b: DataType) -> Option<DataType> {
        let both = [widened(&a, &b), widened(&b, &a)];
        assert_eq!(both[0], both[1], "{a} and {b}");
        both[0].clone()
    }

    #[test]
    fn numbers_are_widened_where_no_value_is_lost() {
        use DataType::*;
        assert_eq!(of(Int32, Int64), Some(Int64));
        assert_eq!(of(UInt8, Int8), Some(Int16));
        assert_eq!(of(UInt32, Int32), Some(Int64));
        assert_eq!(of(UInt64, Int8), Some(Decimal128(20, 0)));
        assert_eq!(of(Int16, Float32), Some(Float32));
        assert_eq!(of(Int32, Float32), Some(Float64));
        assert_eq!(of(Decimal128(10, 2), Decimal128(38, 10)), Some(Decimal128(38, 10)));
        assert_eq!(of(Decimal128(38, 0), Decimal128(38, 10)), Some(Decimal256(48, 10)));
        assert_eq!(of(Decimal128(5, 2), Int64), Some(Decimal128(21, 2)));
        assert_eq!(of(Decimal256(76, 0), Decimal256(76, 38)), None);
        assert_eq!(of(Decimal128(5, 2), Float64), None);
        assert_eq!(of(Boolean, Int64), None);
        assert_eq!(of(Utf8, Int64), None);
        assert_eq!(of(Null, Float64), Some(Float64));
    }

    #[test]
    fn times_take_the_finer_unit_and_keep_their_zone() {
        use DataType::{Date32, Time32, Time64, Timestamp};
        use TimeUnit::*;
        assert_eq!(of(Timestamp(Nanosecond, None), Timestamp(Microsecond, None)), Some(Timestamp(Nanosecond, None)));
        let (utc, berlin) = (Some("UTC".into()), Some("Europe/Berlin".into()));
        let utc = || Timestamp(Microsecond, utc.clone());
        assert_eq!(of(utc(), Timestamp(Microsecond, berlin)), Some(utc()));
        assert_eq!(of(utc(), Timestamp(Microsecond, None)), None);
        assert_eq!(of(Date32, utc()), Some(utc()));
        assert_eq!(of(Time32(Second), Time64(Microsecond)), Some(Time64(Microsecond)));
    }

    #[test]
    fn nested_types_are_widened_by_name() {
        let field = |name: &str, data_type| Field::new(name, data_type, false);
        let narrow = DataType::Struct(vec![field("a", DataType::Int32)].into());
        let wide = DataType::Struct(vec![field("b", DataType::Utf8), field("a", DataType::Int64)].into());
        let both =
            DataType::Struct(vec![field("a", DataType::Int64), field("b", DataType::Utf8).with_nullable(true)].into());
        assert_eq!(widened(&narrow, &wide), Some(both));
        let list = |name: &str, data_type| DataType::List(Arc::new(field(name, data_type)));
        assert_eq!(
            widened(&list("item", DataType::Null), &list("element", DataType::Utf8)),
            Some(list("item", DataType::Utf8))
        );
        // Whether these integers are exact as floats is not known.
        assert_eq!(of(list("item", DataType::Int64), list("item", DataType::Float64)), None);
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
        // Nothing tells whether the integers are exact as floats.
        let problem = Columns::of(&[one.clone(), file("b.parquet", vec![Field::new("x", DataType::Float64, false)])]);
        assert!(problem.unwrap_err().starts_with("column `x` is Float64 in b.parquet and Int64 in a.parquet"));
        let problem = Columns::of(&[one.clone(), file("b.parquet", vec![Field::new("X", DataType::Int64, false)])]);
        assert!(problem.unwrap_err().starts_with("column `X` of b.parquet is `x` in a.parquet"));
        let columns = Columns::of(&[one, file("b.parquet", vec![Field::new("y", DataType::Int64, false)])]).unwrap();
        assert!(columns.schema.fields().iter().all(|field| field.is_nullable()));
    }
}
