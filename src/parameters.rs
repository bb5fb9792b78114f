//! Query parameters: `$name` in the SQL, `--param name=value` on the command line.
//!
//! A value is bound to the plan as a typed literal; its text never becomes part of the SQL. Its type is the type that
//! the SQL compares or computes the parameter with, if that is a single type: `label = $label` gives it the type of
//! `label`. Otherwise the value decides: an integer, a number, `true` or `false`, or else text. A value with leading
//! zeros is text. A number keeps all its digits: it becomes a decimal if a double would round it.
//!
//! A query may declare its parameters, with defaults and descriptions, in the comments at its head:
//!
//! ```sql
//! -- How are the scores distributed?
//! --
//! --   $width = 0.05    the width of a bin
//! --   $label           a label that must be given, as it has no default
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};

use arrow::datatypes::{DECIMAL128_MAX_PRECISION, DECIMAL256_MAX_PRECISION, DataType, i256};
use couplet_storage::words::closest;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, ParamValues, ScalarValue};
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use crate::error::Error;

/// A parameter declared in the comments at the head of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Its name, without the `$`.
    pub name: String,
    /// The default value.
    pub default: Option<String>,
    /// The description.
    pub meaning: String,
}

/// Returns the parameters declared in the comments at the head of a query, in order.
#[must_use]
pub fn declared(sql: &str) -> Vec<Declared> {
    let head = sql.lines().map(str::trim).take_while(|line| line.is_empty() || line.starts_with("--"));
    head.filter_map(|line| {
        let text = line.strip_prefix("--")?.trim().strip_prefix('$')?;
        let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        // Two spaces separate the value, which may contain single spaces, from the description.
        let (default, meaning) = match rest.trim_start().strip_prefix('=') {
            Some(rest) => {
                let (value, meaning) = rest.trim().split_once("  ").unwrap_or((rest.trim(), ""));
                (Some(value.to_owned()), meaning)
            }
            None if rest.starts_with("  ") || rest.is_empty() => (None, rest),
            // A sentence that begins with a parameter is not a declaration.
            None => return None,
        };
        (!name.is_empty()).then(|| Declared { name: name.to_owned(), default, meaning: meaning.trim().to_owned() })
    })
    .collect()
}

/// The values of a query's parameters, as text.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    values: BTreeMap<String, String>,
}

impl Parameters {
    /// Takes the values for one of several statements. Each statement uses some of them.
    ///
    /// # Errors
    /// A parameter without a value; a parameter that is given twice.
    pub fn of_statement(sql: &str, origin: &str, given: &[(String, String)]) -> Result<Self, Error> {
        let used = used(sql);
        let of_it: Vec<_> =
            given.iter().filter(|(name, _)| used.contains(name.trim_start_matches('$'))).cloned().collect();
        Self::of(sql, origin, &of_it)
    }

    /// Rejects values that none of several statements uses.
    ///
    /// # Errors
    /// The name of the unused parameter, with the names that the SQL uses.
    pub fn check_used(sql: &str, origin: &str, given: &[(String, String)]) -> Result<(), Error> {
        let used = used(sql);
        let unused = given.iter().find(|(name, _)| !used.contains(name.trim_start_matches('$')));
        unused.map_or(Ok(()), |(name, value)| Err(unknown(origin, name.trim_start_matches('$'), value, &used)))
    }

    /// Takes the given values for `sql`, and its declared defaults for the other parameters.
    ///
    /// # Errors
    /// A value for a parameter that the SQL does not use; a parameter without a value; a parameter that is given twice.
    pub fn of(sql: &str, origin: &str, given: &[(String, String)]) -> Result<Self, Error> {
        let used = used(sql);
        let declared = declared(sql);
        let mistake = |problem: String| Err(Error::Usage(format!("{origin}: {problem}")));
        if used.iter().any(|name| name.starts_with('?')) {
            return mistake("a parameter needs a name: write $name instead of ?".into());
        }
        let mut values = BTreeMap::new();
        for (name, value) in given {
            let name = name.trim_start_matches('$');
            if !used.contains(name) {
                return Err(unknown(origin, name, value, &used));
            }
            if values.insert(name.to_owned(), value.clone()).is_some() {
                return mistake(format!("--param {name} is given twice"));
            }
        }
        for Declared { name, default, .. } in &declared {
            if let Some(default) = default {
                values.entry(name.clone()).or_insert_with(|| default.clone());
            }
        }
        let missing: Vec<String> = used
            .iter()
            .filter(|name| !values.contains_key(*name))
            .map(|name| {
                let meaning = declared.iter().find(|declared| declared.name == *name);
                let meaning = meaning.filter(|declared| !declared.meaning.is_empty());
                let meaning = meaning.map_or_else(String::new, |declared| format!(" ({})", declared.meaning));
                format!("${name}{meaning}")
            })
            .collect();
        if let Some(first) = used.iter().find(|name| !values.contains_key(*name)) {
            let have = if missing.len() == 1 { "has" } else { "have" };
            return mistake(format!("{} {have} no value: add --param {first}=VALUE", missing.join(", ")));
        }
        // Drop defaults of parameters that the SQL does not use.
        values.retain(|name, _| used.contains(name));
        Ok(Self { values })
    }

    /// Binds the values to a plan of the query.
    ///
    /// # Errors
    /// A value whose type does not fit the expression in which the SQL uses it.
    pub fn bind(&self, plan: LogicalPlan, origin: &str) -> Result<LogicalPlan, Error> {
        if self.values.is_empty() {
            return Ok(plan);
        }
        let failed = |e: DataFusionError| Error::sql(origin, &e, None);
        let contexts = contexts(&plan).map_err(failed)?;
        let mut bound = HashMap::new();
        for (name, types) in contexts {
            // `with_param_values` reports a parameter without a value by name.
            let Some(value) = self.values.get(&name) else { continue };
            let scalar = scalar(value, &types).map_err(|expected| {
                Error::Usage(format!("{origin}: --param {name}={value}: expected {expected}, as the SQL uses ${name}"))
            })?;
            bound.insert(name, scalar.into());
        }
        if bound.is_empty() {
            return Ok(plan);
        }
        plan.with_param_values(ParamValues::Map(bound)).map_err(failed)
    }
}

/// Returns the parameter names in the SQL without `$`. Unnamed placeholders are returned as written.
fn used(sql: &str) -> BTreeSet<String> {
    // The parser reports SQL that cannot be tokenized, with a better message.
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize().unwrap_or_default();
    let names = tokens.into_iter().filter_map(|token| match token {
        Token::Placeholder(text) => Some(text.strip_prefix('$').map(str::to_owned).unwrap_or(text)),
        _ => None,
    });
    names.collect()
}

/// Returns the error for a value whose parameter the SQL does not use.
fn unknown(origin: &str, name: &str, value: &str, used: &BTreeSet<String>) -> Error {
    let near = closest(name, used.iter().map(String::as_str));
    let near = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
    let has = match used.len() {
        0 => "it has no parameters".to_owned(),
        _ => format!("its parameters are {}", listed(used)),
    };
    Error::Usage(format!("{origin}: --param {name}={value}: the SQL has no ${name} ({has}){near}"))
}

fn listed(names: &BTreeSet<String>) -> String {
    names.iter().map(|name| format!("${name}")).collect::<Vec<_>>().join(", ")
}

/// Returns the types that each parameter of a plan is used with, as far as the planner knows them.
fn contexts(plan: &LogicalPlan) -> Result<BTreeMap<String, Vec<DataType>>, DataFusionError> {
    let mut contexts = BTreeMap::<String, Vec<DataType>>::new();
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::Placeholder(Placeholder { id, field }) = expr {
                    let types = contexts.entry(id.trim_start_matches('$').to_owned()).or_default();
                    let known = field.iter().map(|field| field.data_type()).filter(|known| !known.is_null());
                    types.extend(known.cloned());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(contexts)
}

/// Converts the value to the type that the SQL uses it with. The error names the expected type.
fn scalar(value: &str, types: &[DataType]) -> Result<ScalarValue, String> {
    let Some(first) = types.first() else { return Ok(guessed(value)) };
    if types.iter().any(DataType::is_string) {
        return Ok(ScalarValue::from(value));
    }
    if types.iter().all(DataType::is_numeric) {
        let Some(number) = number(value) else { return Err("a number".into()) };
        // Numbers of different types can be compared: 0.5 is allowed where the SQL has an integer column.
        let same = types.iter().all(|other| other == first);
        return Ok(if same { as_the_column(&number, first).unwrap_or(number) } else { number });
    }
    if types.iter().any(|other| other != first) {
        return Ok(guessed(value));
    }
    let expected = match first {
        DataType::Boolean => "true or false".to_owned(),
        DataType::Date32 | DataType::Date64 => "a date such as 2026-11-24".to_owned(),
        DataType::Timestamp(..) => "a time such as 2026-11-24T03:00:00Z".to_owned(),
        other => format!("{other}"),
    };
    match ScalarValue::try_from_string(value.to_owned(), first) {
        Ok(scalar) if !scalar.is_null() => Ok(scalar),
        _ => Err(expected),
    }
}

/// Infers the type from the value, for parameters whose use does not determine it.
fn guessed(value: &str) -> ScalarValue {
    let digits = value.strip_prefix('-').unwrap_or(value);
    // A leading `+` or zero marks codes such as postcodes, phone numbers and article numbers, which are not numbers.
    let is_code =
        digits.starts_with('+') || digits.starts_with('0') && digits[1..].starts_with(|c: char| c.is_ascii_digit());
    match (number(value).filter(|_| !is_code), value.to_ascii_lowercase().as_str()) {
        (Some(number), _) => number,
        (_, "true") => ScalarValue::from(true),
        (_, "false") => ScalarValue::from(false),
        _ => ScalarValue::from(value),
    }
}

/// Parses a number without losing digits: a double only if it has the same digits.
fn number(value: &str) -> Option<ScalarValue> {
    if let Ok(integer) = value.parse::<i64>() {
        return Some(ScalarValue::from(integer));
    }
    if let Ok(integer) = value.parse::<u64>() {
        return Some(ScalarValue::from(integer));
    }
    let double = value.parse::<f64>().ok().filter(|double| double.is_finite())?;
    match Digits::of(value) {
        Some(digits) if Digits::of(&format!("{double}")).as_ref() != Some(&digits) => {
            Some(digits.decimal().unwrap_or_else(|| ScalarValue::from(value)))
        }
        _ => Some(ScalarValue::from(double)),
    }
}

/// The digits of a number written without an exponent.
#[derive(Debug, PartialEq, Eq)]
struct Digits {
    is_negative: bool,
    /// All digits, without leading zeros and without trailing zeros of the fraction.
    all: String,
    /// The number of digits after the decimal point.
    scale: usize,
}

impl Digits {
    fn of(text: &str) -> Option<Self> {
        let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
        let (integer, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
        let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !are_digits(integer) || !are_digits(fraction) || integer.is_empty() && fraction.is_empty() {
            return None;
        }
        let fraction = fraction.trim_end_matches('0');
        let digits = format!("{}{fraction}", integer.trim_start_matches('0'));
        Some(Self { is_negative: text.starts_with('-'), all: digits, scale: fraction.len() })
    }

    /// Converts to a decimal; none if there are more digits than a decimal holds.
    fn decimal(&self) -> Option<ScalarValue> {
        let sign = if self.is_negative { "-" } else { "" };
        let digits = format!("{sign}{}", if self.all.is_empty() { "0" } else { self.all.as_str() });
        let precision = u8::try_from(self.all.len().max(1)).ok()?;
        let scale = i8::try_from(self.scale).ok()?;
        if precision <= DECIMAL128_MAX_PRECISION {
            Some(ScalarValue::Decimal128(Some(digits.parse().ok()?), precision, scale))
        } else if precision <= DECIMAL256_MAX_PRECISION {
            Some(ScalarValue::Decimal256(Some(i256::from_string(&digits)?), precision, scale))
        } else {
            None
        }
    }
}

/// Casts the number to the type of the column that it is compared with, if that does not change it.
fn as_the_column(number: &ScalarValue, column: &DataType) -> Option<ScalarValue> {
    let cast = number.cast_to(column).ok().filter(|cast| !cast.is_null())?;
    // A 32-bit float column stores the nearest float for 0.1, so the cast must round in the same way; likewise for
    // doubles.
    let is_same = column.is_floating() || cast.cast_to(&number.data_type()).is_ok_and(|back| back == *number);
    is_same.then_some(cast)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "-- How many?\n--\n--   $bins = 10     how many bins\n--   $note = a b\n--   $label         the label\n\
                        -- $bins is a number.\n\nSELECT $bins, $note, $label, '$text' -- $comment = 1\n";

    #[test]
    fn parameters_are_declared_in_the_comments_at_the_head() {
        let named = |name: &str, default: Option<&str>, meaning: &str| Declared {
            name: name.into(),
            default: default.map(Into::into),
            meaning: meaning.into(),
        };
        let expected = [
            named("bins", Some("10"), "how many bins"),
            named("note", Some("a b"), ""),
            named("label", None, "the label"),
        ];
        assert_eq!(declared(FILE), expected);
    }

    #[test]
    fn given_values_override_defaults_and_bad_names_are_errors() {
        let given = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let values = Parameters::of(FILE, "q.sql", &given(&[("label", "yes"), ("bins", "20")])).unwrap().values;
        let values: Vec<_> = values.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(values, [("bins", "20"), ("label", "yes"), ("note", "a b")]);
        let refused = |pairs: &[(&str, &str)]| Parameters::of(FILE, "q.sql", &given(pairs)).unwrap_err().to_string();
        assert_eq!(refused(&[]), "q.sql: $label (the label) has no value: add --param label=VALUE");
        assert_eq!(
            refused(&[("lable", "x")]),
            "q.sql: --param lable=x: the SQL has no $lable (its parameters are $bins, $label, $note); did you mean `label`?"
        );
        assert_eq!(refused(&[("label", "x"), ("label", "y")]), "q.sql: --param label is given twice");
        assert!(Parameters::of("SELECT ?", "SQL", &[]).unwrap_err().to_string().ends_with("write $name instead of ?"));
    }

    #[test]
    fn a_value_has_the_type_of_its_use_or_of_its_text() {
        let scalar = |value: &str, types: &[DataType]| scalar(value, types);
        assert_eq!(scalar("1", &[]), Ok(ScalarValue::from(1_i64)));
        assert_eq!(scalar("0.5", &[]), Ok(ScalarValue::from(0.5)));
        assert_eq!(scalar("True", &[]), Ok(ScalarValue::from(true)));
        assert_eq!(scalar("nan", &[]), Ok(ScalarValue::from("nan")));
        assert_eq!(scalar("1", &[DataType::Utf8View]), Ok(ScalarValue::from("1")));
        assert_eq!(scalar("0.1", &[DataType::Float32]), Ok(ScalarValue::from(0.1_f32)));
        assert_eq!(scalar("3", &[DataType::Int32]), Ok(ScalarValue::from(3_i32)));
        assert_eq!(scalar("2.5", &[DataType::Int64]), Ok(ScalarValue::from(2.5)));
        assert_eq!(scalar("3", &[DataType::Int32, DataType::Float32]), Ok(ScalarValue::from(3_i64)));
        assert_eq!(scalar("ten", &[DataType::Int64]), Err("a number".into()));
        assert_eq!(scalar("007", &[DataType::Int64]), Ok(ScalarValue::from(7_i64)));
        assert_eq!(scalar("2026-11-24", &[DataType::Date32]), Ok(ScalarValue::Date32(Some(20_781))));
        assert_eq!(scalar("today", &[DataType::Date32]), Err("a date such as 2026-11-24".into()));
    }

    #[test]
    fn numbers_keep_all_digits() {
        let scalar = |value: &str, types: &[DataType]| scalar(value, types).unwrap();
        let decimal = |value: i128, precision, scale| ScalarValue::Decimal128(Some(value), precision, scale);
        assert_eq!(scalar("9223372036854775807", &[]), ScalarValue::from(i64::MAX));
        assert_eq!(scalar("9999999999999999999", &[]), ScalarValue::from(9_999_999_999_999_999_999_u64));
        assert_eq!(scalar("18446744073709551616", &[]), decimal(18_446_744_073_709_551_616, 20, 0));
        assert_eq!(scalar("-9223372036854775809", &[]), decimal(-9_223_372_036_854_775_809, 19, 0));
        // These are printed by a double without a change of digits; the numbers below are not.
        for (text, value) in
            [("0.1", 0.1), ("1.50", 1.5), ("-.5", -0.5), ("5.", 5.0), ("1e3", 1e3), ("0.30000000000000004", 0.1 + 0.2)]
        {
            assert_eq!(scalar(text, &[]), ScalarValue::from(value), "{text}");
        }
        assert_eq!(scalar("0.1234567890123456789", &[]), decimal(1_234_567_890_123_456_789, 19, 19));
        assert_eq!(scalar("-123456789012345678.90", &[]), decimal(-1_234_567_890_123_456_789, 19, 1));
        assert_eq!(scalar(&format!("1.{}", "7".repeat(60)), &[]).data_type(), DataType::Decimal256(61, 60));
        let long = "7".repeat(90);
        assert_eq!(scalar(&long, &[]), ScalarValue::from(long.as_str()));
        for code in ["007", "00", "-01", "+49", "01.5"] {
            assert_eq!(scalar(code, &[]), ScalarValue::from(code), "{code}");
        }
        // A number takes the type of the column: decimal or integer.
        let column = [DataType::Decimal128(20, 2)];
        assert_eq!(scalar("0.1", &column), decimal(10, 20, 2));
        assert_eq!(scalar("12345678901234567.89", &column), decimal(1_234_567_890_123_456_789, 20, 2));
        assert_eq!(scalar("18446744073709551615", &[DataType::UInt64]), ScalarValue::from(u64::MAX));
        assert_eq!(scalar("16777217", &[DataType::Int32]), ScalarValue::from(16_777_217_i32));
        assert_eq!(scalar("4294967296", &[DataType::Int32]), ScalarValue::from(4_294_967_296_i64));
    }
}
