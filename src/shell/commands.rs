//! Commands of the shell: lines that begin with a backslash, as in psql, or with a dot, as in `DuckDB`.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::pretty::pretty_format_batches;
use couplet_storage::words::closest;
use couplet_tables::predict::FUNCTION;
use couplet_tables::tables::{is_place, table_names};
use datafusion::common::TableReference;
use datafusion::logical_expr::TableType;
use datafusion::prelude::SessionContext;

use super::path_of;
use crate::error::Error;

/// The output of `\?`.
pub(super) const HELP: &str = "\
A statement ends with `;` and may have several lines. Tab completes names; Ctrl-C ends a statement or clears the line.
  \\d            tables
  \\d NAME       columns of a table
  \\df [WORD]    functions, or those with WORD in their name
  \\i FILE       execute the statements of a file
  \\o FILE       write the next result to a file: .csv, .tsv, .json, .jsonl, .parquet or .txt
  \\o            show results here again
  \\timing [on|off]  show how long statements take, or stop
  \\?            this
  \\q            leave, as do Ctrl-D, quit and exit
.tables, .schema NAME, .read FILE, .once FILE, .timer on, .help and .quit do the same.
";

const NAMES: [&str; 8] = ["\\d", "\\df", "\\i", "\\o", "\\timing", "\\?", "\\q", "\\h"];

/// The call syntax of `predict`.
const PREDICT: &str = "predict(model, text [, text_pair])";

/// A shell command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Tables,
    Columns(String),
    /// Functions whose names contain this text.
    Functions(String),
    Include(PathBuf),
    Output(Option<PathBuf>),
    /// Switches timing on or off; none toggles it.
    Timing(Option<bool>),
    Help,
    Leave,
}

impl Command {
    /// Parses a command. Returns none if the text is not a command.
    pub(super) fn parse(text: &str) -> Option<Result<Self, String>> {
        let text = text.trim();
        // Words that users of other shells try.
        match text.trim_end_matches(';').trim_end().to_ascii_lowercase().as_str() {
            "quit" | "exit" => return Some(Ok(Self::Leave)),
            "help" => return Some(Ok(Self::Help)),
            _ if !text.starts_with(['\\', '.']) => return None,
            _ => {}
        }
        let (name, argument) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        // Users type a trailing `;` out of habit.
        let (name, argument) = (name.trim_end_matches(';'), argument.trim().trim_end_matches(';').trim_end());
        Some(match (name, argument) {
            ("\\d" | "\\dt" | "\\dv" | "\\d+" | "\\dt+" | ".tables" | ".schema", "") => Ok(Self::Tables),
            ("\\d" | "\\d+" | ".schema", _) => Ok(Self::Columns(table_of(argument))),
            ("\\df", _) => Ok(Self::Functions(argument.to_lowercase())),
            ("\\i" | "\\ir" | ".read", "") => {
                Err(format!("{name} takes the name of a file with statements, as in {name} sql/accuracy.sql"))
            }
            ("\\i" | "\\ir" | ".read", _) => Ok(Self::Include(path_of(&unquoted(argument)))),
            ("\\o" | ".output" | ".once", "" | "-") => Ok(Self::Output(None)),
            ("\\o" | ".output" | ".once", _) => Ok(Self::Output(Some(path_of(&unquoted(argument))))),
            ("\\timing" | ".timer", _) => match argument.to_ascii_lowercase().as_str() {
                "" => Ok(Self::Timing(None)),
                "on" => Ok(Self::Timing(Some(true))),
                "off" => Ok(Self::Timing(Some(false))),
                _ => Err(format!("{name} {argument}: expected on or off")),
            },
            ("\\?" | "\\h" | "\\help" | ".help", _) => Ok(Self::Help),
            ("\\q" | "\\quit" | ".quit" | ".exit", _) => Ok(Self::Leave),
            ("\\copy", _) => Err("there is no command \\copy; \\o FILE writes the next result to a file".into()),
            ("\\x" | "\\pset" | "\\a" | "\\t" | ".mode", _) => {
                Err(format!("there is no command {name}; set the output format with --format at the start"))
            }
            _ => {
                let near = closest(name, NAMES.iter().copied());
                let near = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
                Err(format!("there is no command {name}{near} (\\? lists them)"))
            }
        })
    }
}

/// Parses a table name as SQL would write it: quoted or not, with or without a schema.
fn table_of(argument: &str) -> String {
    let name = argument.strip_prefix("datafusion.").unwrap_or(argument);
    let name = name.strip_prefix("public.").unwrap_or(name);
    let inside = |mark: char| name.strip_prefix(mark)?.strip_suffix(mark);
    match (inside('"'), inside('\'')) {
        (Some(name), _) => name.replace("\"\"", "\""),
        (None, Some(file)) => file.replace("''", "'"),
        (None, None) => name.to_owned(),
    }
}

/// Removes the quotation marks around a file name, if there are any.
fn unquoted(argument: &str) -> String {
    let inside = |mark: char| argument.strip_prefix(mark)?.strip_suffix(mark);
    match (inside('\''), inside('"')) {
        (Some(name), _) => name.replace("''", "'"),
        (None, Some(name)) => name.to_owned(),
        (None, None) => argument.to_owned(),
    }
}

/// Lists the tables with their number of columns.
pub(super) async fn tables(context: &SessionContext) -> Result<String, Error> {
    let mut rows = Vec::new();
    for name in table_names(context) {
        // Skip a table that has been dropped meanwhile.
        let Ok(table) = context.table_provider(TableReference::bare(name.as_str())).await else { continue };
        let kind = match table.table_type() {
            TableType::Base => "table",
            TableType::View => "view",
            TableType::Temporary => "temporary",
        };
        rows.push([name, kind.to_owned(), table.schema().fields().len().to_string()]);
    }
    if rows.is_empty() {
        return Ok("there are no tables: start again with --table NAME=URI or --pipeline FILE, \
                   or read a file directly, as in SELECT * FROM 'FILE'\n"
            .into());
    }
    formatted(["table", "kind", "columns"], &rows)
}

/// Lists the columns of a table, or of a file that SQL could name.
pub(super) async fn columns(context: &SessionContext, name: &str) -> Result<String, Error> {
    let names = table_names(context);
    let found = names.iter().find(|table| *table == name).or(names.iter().find(|t| t.eq_ignore_ascii_case(name)));
    let Some(found) = found.map(String::as_str).or(Some(name).filter(|name| is_place(name))) else {
        let near = closest(name, names.iter().map(String::as_str));
        let near = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
        return Err(Error::Usage(format!("there is no table `{name}` (tables: {}){near}", names.join(", "))));
    };
    let table = context.table_provider(TableReference::bare(found)).await;
    let table = table.map_err(|e| Error::sql(format!("\\d {name}"), &e, Some(context)))?;
    let schema = table.schema();
    let rows: Vec<[String; 3]> = schema
        .fields()
        .iter()
        .map(|field| {
            let nulls = if field.is_nullable() { "yes" } else { "no" };
            [field.name().clone(), field.data_type().to_string(), nulls.to_owned()]
        })
        .collect();
    formatted(["column", "type", "nullable"], &rows)
}

/// Lists the functions whose names contain `part`, with their call syntax.
pub(super) fn functions(context: &SessionContext, part: &str) -> Result<String, Error> {
    let state = context.state();
    let mut rows = Vec::new();
    let mut add = |name: &str, kind: &str, documentation: Option<(&str, &str)>| {
        let (call, about) = match documentation {
            Some((call, about)) => (call.lines().next().unwrap_or(name), about.lines().next().unwrap_or_default()),
            None if name == FUNCTION => (PREDICT, "Scores a text or a pair by a model: label, score, probabilities, …"),
            None => (name, ""),
        };
        if name.to_lowercase().contains(part) {
            rows.push([call.to_owned(), kind.to_owned(), about.trim().to_owned()]);
        }
    };
    // Aliases have entries of their own, without documentation.
    for (name, function) in state.scalar_functions() {
        let about = function.documentation().map(|d| (d.syntax_example.as_str(), d.description.as_str()));
        add(name, "scalar", about.filter(|_| name == function.name()));
    }
    for (name, function) in state.aggregate_functions() {
        let about = function.documentation().map(|d| (d.syntax_example.as_str(), d.description.as_str()));
        add(name, "aggregate", about.filter(|_| name == function.name()));
    }
    for (name, function) in state.window_functions() {
        let about = function.documentation().map(|d| (d.syntax_example.as_str(), d.description.as_str()));
        add(name, "window", about.filter(|_| name == function.name()));
    }
    for name in state.table_functions().keys() {
        add(name, "table", None);
    }
    if rows.is_empty() {
        return Ok(format!("no function has `{part}` in its name\n"));
    }
    rows.sort();
    formatted(["function", "kind", "description"], &rows)
}

fn formatted(heads: [&str; 3], rows: &[[String; 3]]) -> Result<String, Error> {
    let fields: Vec<Field> = heads.iter().map(|head| Field::new(*head, DataType::Utf8, false)).collect();
    let columns = (0..heads.len())
        .map(|column| Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row[column].as_str()))) as Arc<_>);
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.collect())
        .and_then(|batch| pretty_format_batches(&[batch]).map(|table| format!("{table}\n")))
        .map_err(|e| Error::sql("the list", &e.into(), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_and_near_misses_named() {
        assert_eq!(Command::parse("\\d"), Some(Ok(Command::Tables)));
        assert_eq!(Command::parse("\\d  \"A b\";"), Some(Ok(Command::Columns("A b".into()))));
        assert_eq!(Command::parse("\\o 'a b.csv'"), Some(Ok(Command::Output(Some("a b.csv".into())))));
        assert_eq!(Command::parse("EXIT;"), Some(Ok(Command::Leave)));
        assert_eq!(Command::parse("\\o 'it''s.csv'"), Some(Ok(Command::Output(Some("it's.csv".into())))));
        assert_eq!(Command::parse("\\o it's.csv"), Some(Ok(Command::Output(Some("it's.csv".into())))));
        assert_eq!(Command::parse("\\d public.\"a\"\"b\""), Some(Ok(Command::Columns("a\"b".into()))));
        assert_eq!(Command::parse("\\timing on"), Some(Ok(Command::Timing(Some(true)))));
        assert_eq!(Command::parse(".timer OFF"), Some(Ok(Command::Timing(Some(false)))));
        assert_eq!(Command::parse(".tables"), Some(Ok(Command::Tables)));
        assert!(Command::parse("\\copy t TO 'x.csv'").unwrap().unwrap_err().contains("\\o FILE"));
        assert_eq!(Command::parse("SELECT 1"), None);
        let problem = Command::parse("\\time").unwrap().unwrap_err();
        assert_eq!(problem, "there is no command \\time; did you mean \\timing? (\\? lists them)");
    }
}
