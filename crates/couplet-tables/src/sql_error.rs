//! Rewrites DataFusion's errors as helpful messages: adds what couplet knows, and removes DataFusion's internals.

use couplet_encoder::scorer::ScorerError;
use couplet_storage::objects::without_responses;
use couplet_storage::words::closest;
use datafusion::common::{Column, DataFusionError, SchemaError};
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use crate::predict::FUNCTION;
use crate::sink::Misfit;
use crate::tables::{self, TableError, table_names};

/// Explains what is wrong with a query, using the tables and functions of the session. `sql` is the query text, if
/// available.
pub fn explain(error: &DataFusionError, context: Option<&SessionContext>, sql: Option<&str>) -> String {
    let root = error.find_root();
    let message = match root {
        DataFusionError::External(e) => without_responses(&**e),
        DataFusionError::SQL(e, _) => e.to_string().trim_start_matches("sql parser error: ").to_owned(),
        _ => root.message().split("\n\nbacktrace:").next().unwrap_or_default().to_owned(),
    };
    if let Some(sql) = sql
        && let Some(message) = from_first(&message, sql)
    {
        return message;
    }
    if let DataFusionError::SchemaError(error, _) = root
        && let SchemaError::FieldNotFound { field, valid_fields } = &**error
    {
        let columns: Vec<&str> = valid_fields.iter().map(Column::name).collect();
        let is_quoted = sql.is_some_and(|sql| is_quoted(sql, &field.name));
        return no_such_column(&field.name, &columns, is_quoted, context);
    }
    let rules = [
        table_not_found,
        no_such_function,
        dot_access,
        no_such_field,
        function_arguments,
        not_one_select,
        unterminated_string,
        redacted_value,
    ];
    rules.into_iter().find_map(|rule| rule(&message, context)).unwrap_or(message)
}

/// Returns true if the query itself is wrong, as opposed to its execution.
pub fn is_mistake(error: &DataFusionError) -> bool {
    match error.find_root() {
        DataFusionError::SQL(..)
        | DataFusionError::Plan(_)
        | DataFusionError::SchemaError(..)
        | DataFusionError::NotImplemented(_) => true,
        DataFusionError::External(e) => {
            e.downcast_ref().is_some_and(ScorerError::is_mistake)
                || e.downcast_ref().is_some_and(|table: &TableError| !table.passes())
                || e.is::<Misfit>()
        }
        _ => false,
    }
}

/// Returns the name of the missing column, table or function that an error reports.
pub fn missing_name(error: &DataFusionError) -> Option<String> {
    let root = error.find_root();
    if let DataFusionError::SchemaError(error, _) = root
        && let SchemaError::FieldNotFound { field, .. } = &**error
    {
        return Some(field.name.clone());
    }
    let message = root.message();
    missing_table(&message).or_else(|| missing_function(&message).map(|(name, _)| name)).map(str::to_owned)
}

/// Returns the name of the missing table that a planner message reports.
#[must_use]
pub fn missing_table(message: &str) -> Option<&str> {
    let name = message.strip_prefix("table '")?.split_once("' not found")?.0;
    Some(name.trim_start_matches("datafusion.public."))
}

/// Returns the name of the missing function that a planner message reports, and true if it is a table function.
fn missing_function(message: &str) -> Option<(&str, bool)> {
    let of = |start: &str, end: &str| Some(message.strip_prefix(start)?.split_once(end)?.0);
    let scalar = of("Invalid function '", "'").map(|name| (name, false));
    scalar.or_else(|| of("table function '", "' not found").map(|name| (name, true)))
}

/// Returns true if the SQL contains this name in double quotation marks.
fn is_quoted(sql: &str, name: &str) -> bool {
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize().unwrap_or_default();
    tokens.iter().any(|token| matches!(token, Token::Word(word) if word.quote_style == Some('"') && word.value == name))
}

fn no_such_function(message: &str, context: Option<&SessionContext>) -> Option<String> {
    let (name, gives_table) = missing_function(message)?;
    // The planner suggests the least dissimilar name, which is rarely the intended one.
    let state = context.map(SessionContext::state);
    let mut known: Vec<&String> = Vec::new();
    if let Some(state) = &state {
        if gives_table {
            known.extend(state.table_functions().keys());
        } else {
            known.extend(state.scalar_functions().keys().chain(state.aggregate_functions().keys()));
            known.extend(state.window_functions().keys());
        }
    }
    let near = closest(name, known.into_iter().map(String::as_str));
    let hint = match near {
        Some(near) => format!("; did you mean `{near}`?"),
        None => "; \\df in the shell, `couplet query`, lists them all".into(),
    };
    Some(format!("there is no {}function `{name}`{hint}", if gives_table { "table " } else { "" }))
}

fn table_not_found(message: &str, context: Option<&SessionContext>) -> Option<String> {
    let name = missing_table(message)?;
    let tables = table_names(context?);
    let nearest = closest(name, tables.iter().map(String::as_str));
    let nearest = nearest.map_or_else(String::new, |other| format!("; did you mean `{other}`?"));
    let in_query = context.is_some_and(tables::takes_places);
    Some(match tables.is_empty() {
        true if in_query => {
            format!(
                "there is no table `{name}`, and no tables are defined: name one with --table {name}=URI or \
                 --pipeline FILE, or read a file with FROM 'FILE'"
            )
        }
        true => format!(
            "there is no table `{name}`, and no tables are defined: name it under [tables], as in {name} = \
             \"{name}.parquet\""
        ),
        false if in_query && name == tables::PREDICTIONS => format!(
            "there is no table `{name}`: run the pipeline first, or name a result with --table {name}=URI (tables: {})",
            tables.join(", ")
        ),
        false => format!("there is no table `{name}` (tables: {}){nearest}", tables.join(", ")),
    })
}

fn no_such_column(name: &str, columns: &[&str], is_quoted: bool, context: Option<&SessionContext>) -> String {
    let is_plain =
        |name: &str| name.chars().all(|char| char == '_' || char.is_ascii_lowercase() || char.is_ascii_digit());
    let nearest = closest(name, columns.iter().copied());
    let hint = match (nearest, columns) {
        (_, [only]) if tables::delimiter_in(only).is_some() => {
            let delimiter = tables::delimiter_in(only).unwrap_or(';');
            let options = format!("{{ uri = \"…\", delimiter = \"{}\" }}", delimiter.escape_default());
            let in_query = context.is_some_and(tables::takes_places);
            let write = if in_query { format!("--table 'NAME={options}'") } else { options };
            format!("; is {delimiter:?} its delimiter? Write {write}")
        }
        (Some(other), _) if is_plain(other) => format!("; did you mean `{other}`?"),
        (Some(other), _) => {
            format!("; did you mean \"{other}\"? SQL reads a name as it is only in double quotation marks")
        }
        _ if is_quoted || !is_plain(name) => {
            format!("; a string literal needs single quotation marks: '{name}'")
        }
        _ => String::new(),
    };
    match columns.len() {
        0 => format!("there is no column `{name}`{hint}"),
        _ => format!("there is no column `{name}` (columns: {}){hint}", columns.join(", ")),
    }
}

fn dot_access(message: &str, _: Option<&SessionContext>) -> Option<String> {
    message.starts_with("Dot access not supported").then(|| {
        "a field of a call is written with brackets: predict('model', text)['label'], not predict('model', text).label".into()
    })
}

fn no_such_field(message: &str, _: Option<&SessionContext>) -> Option<String> {
    let field = message.strip_prefix("Field ")?.strip_suffix(" not found in struct")?;
    let fields = crate::predict::prediction_fields();
    let names: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
    let nearest = closest(field, names.iter().copied());
    let nearest = nearest.map_or_else(String::new, |other| format!("; did you mean ['{other}']?"));
    Some(format!("there is no field '{field}'; a prediction has {}{nearest}", names.join(", ")))
}

fn function_arguments(message: &str, _: Option<&SessionContext>) -> Option<String> {
    let about_arguments = ["argument", "coerc"].iter().any(|word| message.contains(word));
    (message.contains(&format!("'{FUNCTION}'")) && about_arguments).then(|| {
        format!(
            "{FUNCTION} takes a model and one or two texts, all of them strings: {FUNCTION}('models/mrpc', sentence1, \
             sentence2); write CAST(… AS VARCHAR) for other types"
        )
    })
}

/// The start of the message for a statement that is not a query, followed by the statement's first word.
pub(crate) const NOT_A_QUERY: &str = "Not a query: ";

/// Explains that a pipeline's SQL must be a single SELECT. Only a pipeline's query is planned in one step;
/// `couplet query` accepts most kinds of statements.
fn not_one_select(message: &str, _: Option<&SessionContext>) -> Option<String> {
    let starts = [
        NOT_A_QUERY,
        "DML not supported",
        "DDL not supported",
        "Statement not supported",
        "The context currently only",
    ];
    starts.iter().any(|start| message.starts_with(start)).then(|| {
        let found = message.strip_prefix(NOT_A_QUERY).map_or_else(String::new, |word| format!(", not {word}"));
        format!("it must be one SELECT{found}: the SQL of a pipeline only reads; set the output under [sink]")
    })
}

/// Explains that `FROM` without `SELECT` takes tables only: the parser accepts nothing after them.
fn from_first(message: &str, sql: &str) -> Option<String> {
    let is_from = sql.trim_start().get(..5).is_some_and(|start| start.trim_end().eq_ignore_ascii_case("from"));
    (is_from && message.starts_with("Expected: end of statement"))
        .then(|| format!("{message}; FROM without SELECT takes tables only: begin with SELECT * FROM"))
}

fn unterminated_string(message: &str, _: Option<&SessionContext>) -> Option<String> {
    message.starts_with("Unterminated string literal").then(|| {
        format!("{message}; a quotation mark in a text is written twice, as in 'it''s', also in the value of a --var")
    })
}

/// The text before and after a value that messages of Arrow and DataFusion quote. The text after it is empty if the
/// value is at the end.
const QUOTED_VALUES: [(&str, &str); 13] = [
    ("Cannot cast string '", "' to value of "),
    ("Cannot cast value '", "' to value of "),
    ("Cannot parse decimal format: ", ""),
    ("Invalid decimal format: ", ""),
    ("Cannot convert ", " to Decimal"),
    ("can't parse the string value ", " to decimal"),
    ("parse decimal overflow (", ")"),
    ("Error parsing timestamp from '", "': "),
    ("Error parsing '", "' as "),
    ("Failed to parse '", "' as "),
    ("Failed to parse ", " as interval amount"),
    ("Invalid input syntax for type interval: ", ""),
    ("duplicate key found: ", ""),
];

/// Removes a quoted value from a message. A value that does not fit a CAST is data from a row and must not get into
/// logs.
fn redacted_value(message: &str, _: Option<&SessionContext>) -> Option<String> {
    let found = QUOTED_VALUES.into_iter().filter_map(|(before, after)| {
        let at = message.find(before)?;
        message[at + before.len()..].contains(after).then_some((at, before, after))
    });
    let (_, before, after) = found.min_by_key(|(at, ..)| *at)?;
    let (head, rest) = message.split_once(before)?;
    // The value may itself contain the text that follows it.
    let (_, tail) = rest.rsplit_once(after)?;
    Some(format!(
        "{head}{before}…{after}{tail}; the value is not shown, as it is one of a row: WHERE x IS NOT NULL AND TRY_CAST(x AS …) \
         IS NULL finds it"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_s_value_is_not_in_a_message() {
        for (message, expected) in [
            (
                "Cast error: Cannot cast string 'a 'secret'' to value of Int32 type",
                "string '…' to value of Int32 type; the",
            ),
            (
                "Cast error: Cannot cast value 'secret' to value of Boolean type",
                "value '…' to value of Boolean type; the",
            ),
            (
                "Invalid argument error: Cannot parse decimal format: secret",
                "error: Cannot parse decimal format: …; the",
            ),
            ("Cannot convert secret to Decimal128: Overflow", "Cannot convert … to Decimal128: Overflow; the"),
            ("Error parsing timestamp from 'secret': error parsing date", "from '…': error parsing date; the"),
            ("map key must be unique, duplicate key found: secret", "duplicate key found: …; the"),
        ] {
            let redacted = redacted_value(message, None).unwrap();
            assert!(redacted.contains(expected) && !redacted.contains("secret"), "{redacted}");
        }
        assert_eq!(redacted_value("Divide by zero error", None), None);
    }
}
