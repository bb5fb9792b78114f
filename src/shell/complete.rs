//! Support for the line editor: detects the end of a statement and completes names.

use std::collections::{BTreeMap, BTreeSet};

use couplet_tables::tables::table_names;
use datafusion::common::TableReference;
use datafusion::prelude::SessionContext;
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Context, Helper, Result};

use super::commands::Command;
use super::script;

/// The SQL keywords offered for completion. The parser knows about a thousand, which would bury the names.
const KEYWORDS: &str = "ALL AND ANTI ANY AS ASC BETWEEN BY CASE CAST COPY CREATE CROSS CUBE CURRENT DATE DESC DESCRIBE \
    DISTINCT DROP ELSE END EXCEPT EXISTS EXPLAIN FALSE FILTER FIRST FOLLOWING FROM FULL GROUP GROUPING HAVING ILIKE IN \
    INNER INTERSECT INTERVAL IS JOIN LAST LATERAL LEFT LIKE LIMIT NATURAL NOT NULL NULLS OFFSET ON OR ORDER OUTER OVER \
    PARTITION PRECEDING QUALIFY RANGE RECURSIVE RIGHT ROLLUP ROWS SELECT SEMI SET SHOW SIMILAR TABLE TABLES THEN \
    TIMESTAMP TRUE UNBOUNDED UNION UNNEST USING VALUES VIEW WHEN WHERE WINDOW WITH ANALYZE BIGINT BOOLEAN DOUBLE \
    INTEGER VARCHAR";

/// Completes and validates input. A new one is created per statement, because statements may create views.
pub(super) struct Assistant {
    /// The columns of each table.
    tables: BTreeMap<String, Vec<String>>,
    functions: BTreeSet<String>,
    files: FilenameCompleter,
}

impl Assistant {
    pub(super) async fn of(context: &SessionContext) -> Self {
        let mut tables = BTreeMap::new();
        for name in table_names(context) {
            if let Ok(table) = context.table_provider(TableReference::bare(name.as_str())).await {
                let schema = table.schema();
                tables.insert(name, schema.fields().iter().map(|field| field.name().clone()).collect());
            }
        }
        let state = context.state();
        let names = state.scalar_functions().keys().chain(state.aggregate_functions().keys());
        let names = names.chain(state.window_functions().keys()).chain(state.table_functions().keys());
        Self { tables, functions: names.cloned().collect(), files: FilenameCompleter::new() }
    }

    /// Returns completions for the word before the cursor, and the offset of that word.
    fn names(&self, line: &str) -> (usize, Vec<Pair>) {
        if let Some(('"', start)) = script::open_quote(line) {
            return (start, self.quoted_names(&line[start + 1..]));
        }
        let start = line
            .rfind(|c: char| !(c.is_alphanumeric() || c == '_'))
            .map_or(0, |at| at + line[at..].chars().next().map_or(1, char::len_utf8));
        let word = &line[start..];
        let begins = |name: &str| name.len() >= word.len() && name.to_lowercase().starts_with(&word.to_lowercase());
        let pair = |name: &str, replacement: String| Pair { display: name.to_owned(), replacement };
        // After `table.`, only the columns of that table are offered.
        if let Some(table) = line[..start].strip_suffix('.') {
            let table = table.rsplit(|c: char| !(c.is_alphanumeric() || "_-\"".contains(c))).next().unwrap_or_default();
            let table = table.trim_matches('"');
            let found = self.tables.iter().find(|(name, _)| name.eq_ignore_ascii_case(table));
            let columns = found.into_iter().flat_map(|(_, columns)| columns).filter(|name| begins(name));
            return (start, columns.map(|name| pair(name, in_sql(name))).collect());
        }
        if word.is_empty() {
            return (start, Vec::new());
        }
        let columns: BTreeSet<&String> = self.tables.values().flatten().collect();
        let mut found: Vec<Pair> = Vec::new();
        let names = self.tables.keys().chain(columns);
        found.extend(names.filter(|name| begins(name)).map(|name| pair(name, in_sql(name))));
        let functions = self.functions.iter().filter(|name| begins(name));
        found.extend(functions.map(|name| pair(&format!("{name}("), format!("{name}("))));
        // Keywords follow the case of the first letter that the user typed.
        let lower = word.chars().next().is_some_and(char::is_lowercase);
        let keywords = KEYWORDS.split_whitespace().filter(|name| begins(name));
        found.extend(keywords.map(|name| {
            let name = if lower { name.to_lowercase() } else { name.to_owned() };
            pair(&name, format!("{name} "))
        }));
        found.dedup_by(|a, b| a.replacement == b.replacement);
        (start, found)
    }
}

impl Assistant {
    /// Returns the tables and columns that begin with the text after an opening quotation mark, with quotation marks.
    fn quoted_names(&self, word: &str) -> Vec<Pair> {
        let word = word.to_lowercase();
        let names: BTreeSet<&String> = self.tables.keys().chain(self.tables.values().flatten()).collect();
        let names = names.into_iter().filter(|name| name.to_lowercase().starts_with(&word));
        names.map(|name| Pair { display: name.clone(), replacement: in_quotes(name) }).collect()
    }
}

impl Completer for Assistant {
    type Candidate = Pair;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> Result<(usize, Vec<Pair>)> {
        let before = &line[..at];
        let is_file_command = ["\\i ", "\\o ", ".read ", ".output ", ".once "]
            .iter()
            .any(|command| before.trim_start().starts_with(command));
        // Inside a string literal, paths are completed: the literals that name models are paths.
        if is_file_command || matches!(script::open_quote(before), Some(('\'', _))) {
            return self.files.complete_path(line, at);
        }
        if ["\\d ", "\\d+ ", ".schema "].iter().any(|command| before.trim_start().starts_with(command)) {
            let start = before.rfind(char::is_whitespace).map_or(0, |space| space + 1);
            let word = before[start..].to_lowercase();
            let names = self.tables.keys().filter(|name| name.to_lowercase().starts_with(&word));
            let pairs = names.map(|name| Pair { display: name.clone(), replacement: name.clone() });
            return Ok((start, pairs.collect()));
        }
        Ok(self.names(before))
    }
}

impl Validator for Assistant {
    fn validate(&self, context: &mut ValidationContext<'_>) -> Result<ValidationResult> {
        let text = context.input();
        let ended = Command::parse(text).is_some() || script::is_complete(text);
        Ok(if ended { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

impl Hinter for Assistant {
    type Hint = String;
}

impl Highlighter for Assistant {}

impl Helper for Assistant {}

/// Returns the list of tables on one line, for the greeting.
pub(super) fn summary(context: &SessionContext) -> String {
    let names = table_names(context);
    if names.is_empty() { "no tables".into() } else { format!("tables: {}", names.join(", ")) }
}

/// Returns a name as SQL needs it, quoted if necessary.
fn in_sql(name: &str) -> String {
    let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !name.starts_with(|c: char| c.is_ascii_digit());
    if plain { name.to_owned() } else { in_quotes(name) }
}

fn in_quotes(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str) -> Vec<String> {
        let columns = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let tables = [("pairs", columns(&["id", "sentence1", "Sentence 2"])), ("my-runs", columns(&["started"]))];
        let assistant = Assistant {
            tables: tables.into_iter().map(|(name, columns)| (name.to_owned(), columns)).collect(),
            functions: ["predict".to_owned(), "power".to_owned()].into(),
            files: FilenameCompleter::new(),
        };
        assistant.names(line).1.into_iter().map(|pair| pair.replacement).collect()
    }

    #[test]
    fn names_are_completed_by_context() {
        assert_eq!(found("sel"), ["select "]);
        assert_eq!(found("SELECT p.x FROM pai"), ["pairs"]);
        assert_eq!(found("SELECT sen"), ["\"Sentence 2\"", "sentence1"]);
        assert_eq!(found("SELECT pairs.s"), ["sentence1", "\"Sentence 2\""]);
        assert_eq!(found("SELECT pre"), ["predict(", "preceding "]);
        assert_eq!(found("SELECT * FROM my"), ["\"my-runs\""]);
        assert_eq!(found("SELECT \"sentence 2"), ["\"Sentence 2\""]);
        assert_eq!(found("SELECT \"id\" FROM \"pa"), ["\"pairs\""]);
        assert!(found("SELECT ").is_empty() && found("SELECT none.s").is_empty());
    }
}
