//! Parameters of a query: `$name` in the SQL, `--param name=value` on the command line.
//!
//! A value is bound to the plan as a typed literal; its text never becomes SQL. Its type is that of what the SQL
//! compares or computes the parameter with, where that is one type: `label = $label` makes it what `label` is. Else the
//! value decides: a whole number, a number, `true` or `false`, and text for everything else.
//!
//! A query may declare its parameters in the comments at its head, with defaults and what they mean:
//!
//! ```sql
//! -- How are the scores distributed?
//! --
//! --   $width = 0.05    the width of a bin
//! --   $label           a label that must be given, as it has no default
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, ParamValues, ScalarValue};
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use crate::error::Error;
use crate::sql_error::nearest;

/// A parameter that the comments at the head of a query declare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Its name, without the `$`.
    pub name: String,
    /// Its value where none is given.
    pub default: Option<String>,
    /// What it means.
    pub meaning: String,
}

/// The parameters that the comments at the head of a query declare, in their order.
#[must_use]
pub fn declared(sql: &str) -> Vec<Declared> {
    let head = sql.lines().map(str::trim).take_while(|line| line.is_empty() || line.starts_with("--"));
    head.filter_map(|line| {
        let text = line.strip_prefix("--")?.trim().strip_prefix('$')?;
        let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        // Two spaces part the value, which may have one in it, from what it means.
        let (default, meaning) = match rest.trim_start().strip_prefix('=') {
            Some(rest) => {
                let (value, meaning) = rest.trim().split_once("  ").unwrap_or((rest.trim(), ""));
                (Some(value.to_owned()), meaning)
            }
            None if rest.starts_with("  ") || rest.is_empty() => (None, rest),
            // A sentence that begins with a parameter declares none.
            None => return None,
        };
        (!name.is_empty()).then(|| Declared { name: name.to_owned(), default, meaning: meaning.trim().to_owned() })
    })
    .collect()
}

/// The values of a query's parameters, as texts.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    values: BTreeMap<String, String>,
}

impl Parameters {
    /// The same for one of several statements, each of which uses some of the values.
    ///
    /// # Errors
    /// A parameter that has no value, one that is given twice.
    pub fn of_statement(sql: &str, origin: &str, given: &[(String, String)]) -> Result<Self, Error> {
        let used = used(sql);
        let of_it: Vec<_> =
            given.iter().filter(|(name, _)| used.contains(name.trim_start_matches('$'))).cloned().collect();
        Self::of(sql, origin, &of_it)
    }

    /// Takes the values that are given for `sql`, and the defaults that it declares for the others.
    ///
    /// # Errors
    /// A parameter that the SQL does not use, one that has no value, one that is given twice.
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
                let near = nearest(name, used.iter().map(String::as_str));
                let near = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
                let has = match used.len() {
                    0 => "it has no parameters".to_owned(),
                    _ => format!("its parameters are {}", listed(&used)),
                };
                return mistake(format!("--param {name}={value}: the SQL has no ${name} ({has}){near}"));
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
        // A default of what the SQL does not use binds nothing.
        values.retain(|name, _| used.contains(name));
        Ok(Self { values })
    }

    /// Puts the values into a plan of the query.
    ///
    /// # Errors
    /// A value that does not suit what the SQL compares it with.
    pub fn bind(&self, plan: LogicalPlan, origin: &str) -> Result<LogicalPlan, Error> {
        if self.values.is_empty() {
            return Ok(plan);
        }
        let failed = |e: DataFusionError| Error::sql(origin, &e, None);
        let contexts = contexts(&plan).map_err(failed)?;
        let mut bound = HashMap::new();
        for (name, types) in contexts {
            // What has no value is refused with its name, by whoever replaces it.
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

/// The names of the parameters in SQL, without their `$`; those without a name as they are written.
fn used(sql: &str) -> BTreeSet<String> {
    // What cannot be taken apart is refused by the parser, in better words.
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize().unwrap_or_default();
    let names = tokens.into_iter().filter_map(|token| match token {
        Token::Placeholder(text) => Some(text.strip_prefix('$').map(str::to_owned).unwrap_or(text)),
        _ => None,
    });
    names.collect()
}

fn listed(names: &BTreeSet<String>) -> String {
    names.iter().map(|name| format!("${name}")).collect::<Vec<_>>().join(", ")
}

/// What each parameter of a plan is used as, as far as the planner knows.
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

/// The value as what the SQL uses it as; what was expected, if it is not that.
fn scalar(value: &str, types: &[DataType]) -> Result<ScalarValue, String> {
    let guessed = || match (value.parse::<i64>(), value.parse::<f64>(), value.to_ascii_lowercase().as_str()) {
        (Ok(whole), _, _) => ScalarValue::from(whole),
        (_, Ok(number), _) if number.is_finite() => ScalarValue::from(number),
        (_, _, "true") => ScalarValue::from(true),
        (_, _, "false") => ScalarValue::from(false),
        _ => ScalarValue::from(value),
    };
    let Some(first) = types.first() else { return Ok(guessed()) };
    if types.iter().any(DataType::is_string) {
        return Ok(ScalarValue::from(value));
    }
    if types.iter().all(DataType::is_numeric) {
        // Numbers are compared as numbers, whatever the width of either: 0.5 may stand where the SQL has a count.
        return match guessed() {
            number @ (ScalarValue::Int64(_) | ScalarValue::Float64(_)) if types.iter().all(|t| t == first) => {
                Ok(number.cast_to(first).ok().filter(|cast| is_same(&number, cast)).unwrap_or(number))
            }
            number @ (ScalarValue::Int64(_) | ScalarValue::Float64(_)) => Ok(number),
            _ => Err("a number".into()),
        };
    }
    if types.iter().any(|other| other != first) {
        return Ok(guessed());
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

/// Whether a number is still the same as another type.
fn is_same(number: &ScalarValue, cast: &ScalarValue) -> bool {
    let as_double = |scalar: &ScalarValue| match scalar.cast_to(&DataType::Float64) {
        Ok(ScalarValue::Float64(Some(value))) => Some(value),
        _ => None,
    };
    match (as_double(number), as_double(cast)) {
        // A 32-bit float of 0.1 is what a 32-bit column has for it.
        (Some(a), Some(b)) => matches!(cast, ScalarValue::Float32(_)) || (a - b).abs() < f64::MIN_POSITIVE,
        _ => false,
    }
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
    fn what_is_given_goes_before_defaults_and_what_is_unknown_or_missing_is_named() {
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
    fn a_value_is_what_the_sql_uses_it_as_or_what_it_looks_like() {
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
        assert_eq!(scalar("2026-11-24", &[DataType::Date32]), Ok(ScalarValue::Date32(Some(20_781))));
        assert_eq!(scalar("today", &[DataType::Date32]), Err("a date such as 2026-11-24".into()));
    }
}
