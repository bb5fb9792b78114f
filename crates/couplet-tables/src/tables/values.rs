//! Scalar values of text files and the type that holds them exactly. [`Column`] builds Arrow columns from them.
//!
//! A type is inferred only if it reproduces each value: `00123`, `+5` and numbers with more digits than the type has
//! stay text. Floating-point numbers, booleans and timestamps have several spellings of one value (`1.50`, `True`, a
//! space instead of `T`); all are accepted.

mod column;

use arrow::compute::kernels::cast_utils::{Parser, string_to_datetime};
use arrow::datatypes::{DataType, Date32Type, TimeUnit};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

pub(super) use self::column::Column;
use super::ColumnType;

/// Integers up to this magnitude are exact as 64-bit floats.
const EXACT_IN_FLOAT: u64 = 1 << 53;

/// The number of significant decimal digits that every 64-bit float preserves.
const DIGITS_OF_FLOAT: usize = 15;

/// The set of value kinds found in a column.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kinds(u16);

impl Kinds {
    pub(super) const BOOLEAN: Self = Self(1);
    /// An integer that a 64-bit float represents exactly.
    const SMALL: Self = Self(1 << 1);
    /// A 64-bit signed integer that a float may not represent exactly.
    const LARGE: Self = Self(1 << 2);
    const NEGATIVE: Self = Self(1 << 3);
    /// An integer that fits only an unsigned 64-bit integer.
    const UNSIGNED: Self = Self(1 << 4);
    const FLOAT: Self = Self(1 << 5);
    /// A number such as `5e10`: a float if the column has other floats, otherwise an id.
    const EXPONENT: Self = Self(1 << 6);
    const DATE: Self = Self(1 << 7);
    const SECONDS: Self = Self(1 << 8);
    const MILLIS: Self = Self(1 << 9);
    const MICROS: Self = Self(1 << 10);
    const NANOS: Self = Self(1 << 11);
    /// A timestamp without an offset.
    const NAIVE: Self = Self(1 << 12);
    /// A timestamp in UTC.
    const ZULU: Self = Self(1 << 13);
    /// A timestamp outside the range of 64-bit nanoseconds.
    const FAR: Self = Self(1 << 14);
    pub(super) const TEXT: Self = Self(1 << 15);

    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(super) fn is_subset_of(self, kinds: Self) -> bool {
        self.0 & !kinds.0 == 0
    }

    pub(super) fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Returns the kind of a non-empty field of delimited text.
    pub(super) fn of_field(field: &[u8]) -> Self {
        match field.first() {
            Some(b'0'..=b'9' | b'-' | b'.') => {}
            Some(b't' | b'T' | b'f' | b'F') if boolean(field).is_some() => return Self::BOOLEAN,
            _ => return Self::TEXT,
        }
        if let Some(kind) = Self::of_integer(field) {
            return kind;
        }
        if let Some((_, spelling)) = float(field) {
            return if spelling == Spelling::BareExponent { Self::EXPONENT } else { Self::FLOAT };
        }
        let Ok(text) = std::str::from_utf8(field) else { return Self::TEXT };
        if date(text).is_some() {
            return Self::DATE;
        }
        timestamp(text).map_or(Self::TEXT, |(time, unit, zone)| {
            let unit = match unit {
                TimeUnit::Second => Self::SECONDS,
                TimeUnit::Millisecond => Self::MILLIS,
                TimeUnit::Microsecond => Self::MICROS,
                TimeUnit::Nanosecond => Self::NANOS,
            };
            let unit = if time.timestamp_nanos_opt().is_none() { unit.and(Self::FAR) } else { unit };
            match zone {
                Zone::None => unit.and(Self::NAIVE),
                Zone::Utc => unit.and(Self::ZULU),
                // A timestamp column would lose the offset.
                Zone::Offset => Self::TEXT,
            }
        })
    }

    /// Returns the kind of a JSON number.
    pub(super) fn of_number(number: &[u8]) -> Self {
        Self::of_integer(number).or_else(|| float(number).map(|_| Self::FLOAT)).unwrap_or(Self::TEXT)
    }

    fn of_integer(text: &[u8]) -> Option<Self> {
        let (is_negative, size) = integer(text)?;
        let size_of = |most: u64| size <= most;
        Some(match (is_negative, size) {
            (false, _) if size_of(EXACT_IN_FLOAT) => Self::SMALL,
            (true, _) if size_of(EXACT_IN_FLOAT) => Self::SMALL.and(Self::NEGATIVE),
            (false, _) if size_of(i64::MAX.unsigned_abs()) => Self::LARGE,
            (true, _) if size_of(i64::MIN.unsigned_abs()) => Self::LARGE.and(Self::NEGATIVE),
            (false, _) => Self::UNSIGNED,
            (true, _) => return None,
        })
    }

    /// Returns the narrowest type that holds all kinds exactly.
    pub(super) fn data_type(self) -> DataType {
        const INTEGERS: Kinds = Kinds::SMALL.and(Kinds::LARGE).and(Kinds::NEGATIVE);
        const UNITS: Kinds = Kinds::SECONDS.and(Kinds::MILLIS).and(Kinds::MICROS).and(Kinds::NANOS).and(Kinds::FAR);
        let floats = Self::SMALL.and(Self::NEGATIVE).and(Self::FLOAT).and(Self::EXPONENT);
        let unit = if self.has(Self::NANOS) {
            TimeUnit::Nanosecond
        } else if self.has(Self::MICROS) {
            TimeUnit::Microsecond
        } else if self.has(Self::MILLIS) {
            TimeUnit::Millisecond
        } else {
            TimeUnit::Second
        };
        match self {
            Self(0) => DataType::Null,
            _ if self.is_subset_of(Self::BOOLEAN) => DataType::Boolean,
            _ if self.is_subset_of(INTEGERS) => DataType::Int64,
            _ if self.is_subset_of(Self::SMALL.and(Self::LARGE).and(Self::UNSIGNED)) => DataType::UInt64,
            _ if self.has(Self::FLOAT) && self.is_subset_of(floats) => DataType::Float64,
            _ if self.is_subset_of(Self::DATE) => DataType::Date32,
            _ if self.has(Self::FAR) && self.has(Self::NANOS) => DataType::Utf8,
            _ if self.is_subset_of(UNITS.and(Self::NAIVE)) => DataType::Timestamp(unit, None),
            _ if self.is_subset_of(UNITS.and(Self::ZULU)) => DataType::Timestamp(unit, Some("+00:00".into())),
            _ => DataType::Utf8,
        }
    }
}

/// Returns the Arrow type of a type named in `types`.
pub(super) fn data_type(given: ColumnType) -> DataType {
    match given {
        ColumnType::Text => DataType::Utf8,
        ColumnType::Integer => DataType::Int64,
        ColumnType::Float => DataType::Float64,
        ColumnType::Decimal { precision, scale } => DataType::Decimal128(precision, scale),
        ColumnType::Boolean => DataType::Boolean,
        ColumnType::Date => DataType::Date32,
        ColumnType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        ColumnType::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
    }
}

/// Returns the name of a type in messages and in `types`.
pub(super) fn name_of(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 => "text".into(),
        DataType::Int64 => "int".into(),
        DataType::UInt64 => "unsigned int".into(),
        DataType::Float64 => "float".into(),
        DataType::Boolean => "bool".into(),
        DataType::Date32 => "date".into(),
        DataType::Timestamp(_, None) => "timestamp".into(),
        DataType::Timestamp(..) => "timestamptz".into(),
        DataType::Decimal128(precision, scale) => format!("decimal({precision}, {scale})"),
        DataType::Null => "empty".into(),
        DataType::Struct(_) => "an object".into(),
        DataType::List(_) => "a list".into(),
        other => other.to_string(),
    }
}

/// Describes the form of a value for messages. The value itself is never shown, as it may be confidential.
pub(super) fn form_of(field: &str) -> String {
    let digits = field.trim_start_matches(['-', '+']);
    if digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.is_empty() {
        return if digits.len() > 1 && digits.starts_with('0') {
            "a number that begins with 0".into()
        } else if field.starts_with('+') {
            "a number that begins with +".into()
        } else {
            format!("an integer of {} digits", digits.len())
        };
    }
    match Kinds::of_field(field.as_bytes()).data_type() {
        DataType::Utf8 => match field.chars().count() {
            1 => "a text of 1 character".into(),
            n => format!("a text of {n} characters"),
        },
        other => format!("a value of type {}", name_of(&other)),
    }
}

fn boolean(text: &[u8]) -> Option<bool> {
    if text.eq_ignore_ascii_case(b"true") { Some(true) } else { text.eq_ignore_ascii_case(b"false").then_some(false) }
}

/// Parses an integer in canonical form, without `+`, `-0` or leading zeros, into its sign and magnitude.
fn integer(text: &[u8]) -> Option<(bool, u64)> {
    let (is_negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if !matches!(digits, [b'1'..=b'9', ..]) && (is_negative || digits != b"0") {
        return None;
    }
    let size = digits.iter().try_fold(0_u64, |size, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        size.checked_mul(10)?.checked_add(digit)
    });
    size.map(|size| (is_negative, size))
}

/// The notation of a floating-point number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// With a decimal point, with a signed exponent, or as an integer.
    Plain,
    /// With an exponent but neither a point nor a sign in it, as in many ids.
    BareExponent,
}

/// Parses a floating-point number if the float prints the same digits again.
fn float(text: &[u8]) -> Option<(f64, Spelling)> {
    let unsigned = text.strip_prefix(b"-").unwrap_or(text);
    let (mantissa, exponent) = match unsigned.iter().position(|byte| matches!(byte, b'e' | b'E')) {
        Some(place) => (&unsigned[..place], Some(&unsigned[place + 1..])),
        None => (unsigned, None),
    };
    let (whole, fraction) = match mantissa.iter().position(|byte| *byte == b'.') {
        Some(place) => (&mantissa[..place], Some(&mantissa[place + 1..])),
        None => (mantissa, None),
    };
    let is_number = |digits: &[u8]| digits.iter().all(u8::is_ascii_digit);
    let has_digits = !whole.is_empty() || fraction.is_some_and(|fraction| !fraction.is_empty());
    if !has_digits || !is_number(whole) || !fraction.is_none_or(is_number) || matches!(whole, [b'0', _, ..]) {
        return None;
    }
    if fraction.is_none() && exponent.is_none() {
        let (_, size) = integer(text)?;
        let value = std::str::from_utf8(text).ok()?.parse().ok()?;
        return (size <= EXACT_IN_FLOAT).then_some((value, Spelling::Plain));
    }
    let has_sign = match exponent {
        Some([b'+' | b'-', digits @ ..]) if !digits.is_empty() && is_number(digits) => true,
        Some(digits) if !digits.is_empty() && is_number(digits) => false,
        Some(_) => return None,
        None => false,
    };
    let value: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    if !value.is_finite() {
        return None;
    }
    if whole.len() + fraction.map_or(0, <[u8]>::len) > DIGITS_OF_FLOAT || exponent.is_some() {
        let digits = [whole, fraction.unwrap_or_default()].concat();
        let first = digits.iter().position(|digit| *digit != b'0');
        let last = digits.iter().rposition(|digit| *digit != b'0');
        let is_exact = match (first, last) {
            (Some(first), Some(last)) => {
                let digits = &digits[first..=last];
                let printed = format!("{:.*e}", digits.len() - 1, value.abs());
                let mantissa = printed.split('e').next().unwrap_or_default();
                mantissa.bytes().filter(|byte| *byte != b'.').eq(digits.iter().copied())
            }
            _ => value == 0.0,
        };
        if !is_exact {
            return None;
        }
    }
    let is_bare = exponent.is_some() && fraction.is_none() && !has_sign;
    Some((value, if is_bare { Spelling::BareExponent } else { Spelling::Plain }))
}

fn date(text: &str) -> Option<i32> {
    let is_date = text.len() == 10
        && text
            .bytes()
            .enumerate()
            .all(|(i, byte)| if matches!(i, 4 | 7) { byte == b'-' } else { byte.is_ascii_digit() });
    if is_date { Date32Type::parse(text) } else { None }
}

/// The UTC offset of a timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zone {
    None,
    Utc,
    Offset,
}

/// Parses a timestamp such as `2026-01-31T12:00:00.5Z`, with `T` or a space, and returns the unit of its digits.
fn timestamp(text: &str) -> Option<(DateTime<Utc>, TimeUnit, Zone)> {
    let bytes = text.as_bytes();
    if bytes.len() < 19 || !matches!(bytes[10], b'T' | b' ') || bytes[13] != b':' || bytes[16] != b':' {
        return None;
    }
    date(text.get(..10)?)?;
    let rest = text.get(19..)?;
    let digits = rest.strip_prefix('.').map_or(0, |rest| rest.bytes().take_while(u8::is_ascii_digit).count());
    let zone = &rest[if digits == 0 { 0 } else { digits + 1 }..];
    let unit = match digits {
        0 => TimeUnit::Second,
        1..=3 => TimeUnit::Millisecond,
        4..=6 => TimeUnit::Microsecond,
        7..=9 => TimeUnit::Nanosecond,
        _ => return None,
    };
    let zone = match zone {
        "" => Zone::None,
        "Z" => Zone::Utc,
        zone if zone.starts_with(['+', '-']) => Zone::Offset,
        _ => return None,
    };
    let time = string_to_datetime(&Utc, text).ok()?;
    Some((time, unit, zone))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn type_of(fields: &[&str]) -> DataType {
        let mut kinds = Kinds::default();
        for field in fields {
            kinds.add(Kinds::of_field(field.as_bytes()));
        }
        kinds.data_type()
    }

    #[test]
    fn a_type_is_inferred_only_if_it_gives_each_value_back() {
        for exact in ["0", "7", "-7", "9223372036854775807", "-9223372036854775808"] {
            assert_eq!(type_of(&[exact]), DataType::Int64, "{exact}");
        }
        assert_eq!(type_of(&["18446744073709551615", "1"]), DataType::UInt64);
        for text in [
            "00123",
            "+5",
            "-0",
            "007",
            "-007",
            "18446744073709551616",
            "-9223372036854775809",
            "5e10",
            "1E5",
            "1e400",
            "1e-400",
            "007.5",
            "123456789012345678901234567890.5",
            "9007199254740993.0",
            "nan",
            "inf",
            ".",
            "-",
            "1e",
            "e5",
            "1.2.3",
            "0x10",
            "1_000",
            "0000-00-00",
            "2024-13-45",
            "2024-02-30",
            "2024-01-01T25:00:00",
            "2024-01-01T00:00:00+02:00",
            "1600-01-01T00:00:00.123456789",
            " 1",
            "1 ",
            "٣",
        ] {
            assert_eq!(type_of(&[text]), DataType::Utf8, "{text}");
        }
        for float in [
            "0.5",
            "1.50",
            ".5",
            "5.",
            "-0.0",
            "1e-05",
            "1e+16",
            "2.5e10",
            "0.10000000000000001",
            "0.30000000000000004",
        ] {
            assert_eq!(type_of(&[float, "1"]), DataType::Float64, "{float}");
        }
        assert_eq!(type_of(&["0.5", "5e10"]), DataType::Float64);
        assert_eq!(type_of(&["5", "5e10"]), DataType::Utf8);
        assert_eq!(type_of(&["0.5", "9007199254740993"]), DataType::Utf8);
        assert_eq!(type_of(&["-1", "18446744073709551615"]), DataType::Utf8);
        assert_eq!(type_of(&["True", "false"]), DataType::Boolean);
        assert_eq!(type_of(&["2024-01-31", "2024-02-29"]), DataType::Date32);
        assert_eq!(type_of(&["2024-01-31", "2024-01-31T00:00:00"]), DataType::Utf8);
        let timestamp = |unit, zone: Option<&str>| DataType::Timestamp(unit, zone.map(Into::into));
        assert_eq!(type_of(&["2024-01-31 00:00:00", "2024-01-31T00:00:00.5"]), timestamp(TimeUnit::Millisecond, None));
        assert_eq!(type_of(&["2024-01-31T00:00:00Z"]), timestamp(TimeUnit::Second, Some("+00:00")));
        assert_eq!(type_of(&["2024-01-31T00:00:00Z", "2024-01-31T00:00:00"]), DataType::Utf8);
    }

    #[test]
    fn a_column_takes_what_its_type_was_inferred_from() {
        for field in ["7", "-7", "18446744073709551615", "0.5", "1e-05", "true", "2024-01-31", "2024-01-31T00:00:00.25"]
        {
            let data_type = type_of(&[field]);
            let mut column = Column::new(&data_type, true);
            assert!(column.append(field), "{field}");
            assert!(data_type == DataType::Utf8 || !column.append("x"), "{field}");
            assert_eq!((column.finish().unwrap().data_type(), column.finish().unwrap().len()), (&data_type, 0));
        }
        let mut decimal = Column::new(&DataType::Decimal128(5, 2), false);
        assert!(decimal.append("123.450") && !decimal.append("0.001") && !decimal.append("12345"));
    }

    #[test]
    fn digits_of_a_time_are_not_cut_off() {
        let mut column = Column::new(&data_type(ColumnType::Timestamp), false);
        assert!(column.append("2026-01-31T12:00:00.123456000"));
        assert!(!column.append("2026-01-31T12:00:00.123456789"));
    }
}
