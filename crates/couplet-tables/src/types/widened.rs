//! The narrowest type that holds the values of two types.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};

/// Returns the narrowest type that holds the values of both types. 64-bit integers and floats become floats; the caller
/// checks against the files that these integers are exact as floats.
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
            // A time zone does not change the instant.
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
            // Writers name the two fields differently; the first is always the key.
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
    // The footer has no statistics for values of nested columns that could prove them exact.
    let is_exact = |from: &DataType| !matches!(from, DataType::Int64 | DataType::UInt64) || !data_type.is_floating();
    let nullable = field.is_nullable() || other.is_nullable();
    (is_exact(a) && is_exact(b))
        .then(|| Arc::new(Field::clone(field).with_data_type(data_type.clone()).with_nullable(nullable)))
}

fn bits(integer: &DataType) -> usize {
    integer.primitive_width().map_or(64, |bytes| bytes * 8)
}

fn integer(a: &DataType, b: &DataType) -> Option<DataType> {
    let unsigned = DataType::is_unsigned_integer;
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

/// Returns the decimal type that holds the digits of both on each side of the decimal point.
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

/// Returns the time-of-day type with the finer unit.
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

pub(super) fn per_second(unit: TimeUnit) -> i64 {
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

    #[expect(clippy::needless_pass_by_value, reason = "types are written in place")]
    fn of(a: DataType, b: DataType) -> Option<DataType> {
        let both = [widened(&a, &b), widened(&b, &a)];
        assert_eq!(both[0], both[1], "{a} and {b}");
        both[0].clone()
    }

    #[test]
    fn numbers_are_widened_where_no_value_is_lost() {
        use DataType::{
            Boolean, Decimal128, Decimal256, Float32, Float64, Int8, Int16, Int32, Int64, Null, UInt8, UInt32, UInt64,
            Utf8,
        };
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
        use TimeUnit::{Microsecond, Nanosecond, Second};
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
        // Nothing shows that these integers are exact as floats.
        assert_eq!(of(list("item", DataType::Int64), list("item", DataType::Float64)), None);
    }
}
