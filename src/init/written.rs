//! Writes the pipeline for an inspected table as TOML that the user can edit.

use std::fmt::Write as _;

use arrow::datatypes::DataType;
use couplet_tables::source::OUTPUT_COLUMNS;
use datafusion::sql::sqlparser::keywords::ALL_KEYWORDS;

use super::ModelChoice;
use super::guess::{Guess, plain};
use super::look::InspectedTable;

/// The column in which comments begin.
const COMMENT: usize = 45;

/// Quotes a text as a TOML string.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for char in text.chars() {
        match char {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\t' => quoted.push_str("\\t"),
            char if char.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", char as u32);
            }
            char => quoted.push(char),
        }
    }
    quoted.push('"');
    quoted
}

/// Quotes a text of several lines as a TOML string, literal if possible so that SQL stays readable.
fn quoted_lines(text: &str) -> String {
    // Column names from a file may contain anything, and TOML allows no raw control characters.
    let is_literal = !text.contains("'''") && !text.chars().any(|char| char.is_control() && char != '\n');
    if is_literal {
        return format!("'''\n{text}\n'''");
    }
    let lines = text.split('\n').map(|line| {
        let line = quoted(line);
        line[1..line.len() - 1].to_owned()
    });
    format!("\"\"\"\n{}\n\"\"\"", lines.collect::<Vec<_>>().join("\n"))
}

/// Makes a text fit into a one-line comment.
fn in_comment(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Appends a comment to a line.
pub(super) fn with_comment(line: &str, comment: &str) -> String {
    let comment = in_comment(comment);
    format!("{line:<width$}# {comment}", width = COMMENT.max(line.chars().count() + 1))
}

fn add_line(toml: &mut String, line: &str, comment: &str) {
    toml.push_str(&with_comment(line, comment));
    toml.push('\n');
}

/// A selected column with its name in the query result.
struct Selected<'a> {
    column: &'a str,
    name: String,
    /// True if the column must be cast to text.
    cast: bool,
}

impl Selected<'_> {
    fn sql(&self) -> String {
        let (column, name) = (identifier(self.column), identifier(&self.name));
        if self.cast {
            format!("CAST({column} AS VARCHAR) AS {name}")
        } else if self.column == self.name {
            column
        } else {
            format!("{column} AS {name}")
        }
    }
}

/// Returns the text of a pipeline over a table.
#[must_use]
pub fn pipeline_over(name: &str, uri: &str, table: &InspectedTable, guess: &Guess, model: &ModelChoice) -> String {
    let mut taken: Vec<String> = Vec::new();
    let mut select = |column: &str, preferred: &str| {
        let mut name = if is_plain(column) { column.to_owned() } else { preferred.to_owned() };
        // couplet's own output columns are reserved, and names that differ only in case collide.
        if OUTPUT_COLUMNS.iter().any(|own| own.eq_ignore_ascii_case(&name)) {
            name = format!("source_{name}");
        }
        while taken.iter().any(|other| other.eq_ignore_ascii_case(&name)) {
            name.push('_');
        }
        taken.push(name.clone());
        name
    };
    let mut columns: Vec<Selected> = Vec::new();
    let (mut ids, mut texts) = (Vec::new(), Vec::new());
    if guess.id.is_empty() {
        ids.push(select("id", "id"));
    }
    for (i, column) in guess.id.iter().enumerate() {
        let preferred = if guess.id.len() == 1 { "id".to_owned() } else { format!("id{}", i + 1) };
        ids.push(select(column, &preferred));
        columns.push(Selected { column, name: ids[i].clone(), cast: false });
    }
    for (i, column) in guess.text.iter().enumerate() {
        let preferred = if guess.text.len() == 1 { "text".to_owned() } else { format!("text{}", i + 1) };
        texts.push(select(column, &preferred));
        let found = table.columns.iter().find(|found| found.name == *column);
        let cast = found.is_some_and(|found| needs_cast(&found.data_type));
        columns.push(Selected { column, name: texts[i].clone(), cast });
    }
    let label = guess.label.as_ref().map(|column| {
        let name = select(column, "label");
        columns.push(Selected { column, name: name.clone(), cast: false });
        name
    });
    let named: Vec<&str> = columns.iter().map(|selected| selected.column).collect();
    for column in table.columns.iter().map(|column| column.name.as_str()).filter(|name| !named.contains(name)) {
        let mut preferred = plain(column);
        if !preferred.starts_with(|c: char| c.is_ascii_alphabetic()) || !is_plain(&preferred) {
            preferred = format!(
                "column_{}",
                preferred.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>()
            );
        }
        columns.push(Selected { column, name: select(column, &preferred), cast: false });
    }

    let mut selected: Vec<String> = columns.iter().map(Selected::sql).collect();
    if guess.id.is_empty() {
        selected.insert(0, format!("row_number() OVER () AS {}", identifier(&ids[0])));
    }
    let table_entry = match &table.options[..] {
        [] => format!("data = {}", quoted(&doubled(uri))),
        options => {
            let options = options.iter().map(|(key, value)| format!(", {key} = {value}")).collect::<Vec<_>>().concat();
            format!("data = {{ uri = {}{options} }}", quoted(&doubled(uri)))
        }
    };
    let list = |names: &[String]| match names {
        [name] => quoted(name),
        names => format!("[{}]", names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")),
    };
    let sql = format!("SELECT\n  {}\nFROM data", selected.join(",\n  "));
    let mut toml = format!(
        "# Scores the rows of {}. couplet init guessed the role of each column; correct the guesses where needed.\n\
         #   couplet plan pipeline.toml      what a run would do, how long it takes, where it writes\n\
         #   couplet run pipeline.toml\n\
         # Paths start at this file's folder.\n\n\
         name = {}\n\n[tables]\n{table_entry}\n\n[source]\nsql = {}\n",
        in_comment(uri),
        quoted(name),
        quoted_lines(&doubled(&sql))
    );
    let mut line = |line: String, comment: &str| add_line(&mut toml, &line, comment);
    line(format!("id = {}", list(&ids)), &guess.why_id);
    line(format!("text = {}", list(&texts)), &guess.why_text);
    match &label {
        Some(label) => line(format!("label = {}", quoted(label)), &guess.why_label),
        None => line("# label = \"…\"".into(), &guess.why_label),
    }
    toml.push_str("\n[model]\n");
    let mut line = |line: String, comment: &str| add_line(&mut toml, &line, comment);
    line(format!("uri = {}", quoted(&doubled(&model.uri))), &model.why);
    line("max_length = 128".into(), "tokens; longer inputs are truncated, and couplet plan counts them");
    toml.push_str("\n[sink]\n");
    let mut line = |line: String, comment: &str| add_line(&mut toml, &line, comment);
    line("uri = \"out/predictions.parquet\"".into(), "replaces the previous file once it is complete");
    if let Some(label) = &label {
        toml.push_str(&finetune(table, guess, &sql, &texts, label));
    }
    toml
}

/// Returns a commented-out stage that fine-tunes on these labels.
fn finetune(table: &InspectedTable, guess: &Guess, sql: &str, texts: &[String], label: &str) -> String {
    let column = guess.label.as_ref().and_then(|label| table.columns.iter().find(|column| column.name == *label));
    let task = match column.map(|column| &column.data_type) {
        Some(data_type) if data_type.is_floating() => "regression",
        Some(DataType::List(_) | DataType::LargeList(_)) => "multilabel",
        _ => "classification",
    };
    let texts = texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(", ");
    // Rows without a label cannot be used for training.
    let sql = match column.filter(|column| column.filled < table.sampled) {
        Some(column) => format!("{sql}\nWHERE {} IS NOT NULL", identifier(&column.name)),
        None => sql.to_owned(),
    };
    let sql = quoted_lines(&doubled(&sql)).replace('\n', "\n# ");
    format!(
        "\n# To fine-tune on the labels first, uncomment this, set `model` to a base model, and set [model] to the output.\n\
         # [finetune]\n# sql = {sql}\n# task = \"{task}\"\n# text = [{texts}]\n# label = {}\n\
         # model = \"models/base\"\n# output = \"models/trained\"\n",
        quoted(label)
    )
}

/// Returns true if a text column must be cast to text: a numeric code, or a text stored as bytes.
fn needs_cast(data_type: &DataType) -> bool {
    !data_type.is_string() && !data_type.is_null() && !data_type.is_nested()
}

/// Returns true if a name consists of ASCII letters, digits and `_`, and does not begin with a digit.
fn is_plain(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|first| first == '_' || first.is_ascii_alphabetic())
        && chars.all(|char| char == '_' || char.is_ascii_alphanumeric())
}

/// Returns a name as a SQL identifier, quoted if necessary.
fn identifier(name: &str) -> String {
    let usual = ["id", "text", "label", "title", "source", "date", "category"];
    let upper = name.to_ascii_uppercase();
    let is_word = ALL_KEYWORDS.contains(&upper.as_str()) && !usual.contains(&name);
    if is_plain(name) && name.to_ascii_lowercase() == name && !is_word {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// Doubles the braces that would otherwise mark a variable.
pub(super) fn doubled(text: &str) -> String {
    let pattern = regex::Regex::new(r"\{([A-Za-z_][A-Za-z0-9_]*)\}").expect("a pattern of this program");
    pattern.replace_all(text, "{{$1}}").into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_are_quoted_if_necessary() {
        assert_eq!(identifier("sentence1"), "sentence1");
        assert_eq!(identifier("#1 ID"), "\"#1 ID\"");
        assert_eq!(identifier("Text"), "\"Text\"");
        assert_eq!(identifier("order"), "\"order\"");
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(quoted("a\"b\\c\u{1}"), "\"a\\\"b\\\\c\\u0001\"");
        assert_eq!(doubled("a/{b}/{ c }"), "a/{{b}}/{ c }");
    }

    #[test]
    fn a_multi_line_text_cannot_end_early() {
        let value = |toml: &str| {
            let toml = format!("a = {toml}");
            let table = toml::de::DeTable::parse(&toml).unwrap();
            let value = table.get_ref().get("a").unwrap().get_ref().as_str();
            value.map(str::to_owned)
        };
        for text in ["SELECT \"a\\b\"\nFROM t", "'''\nb = 1\n'''", "\"\"\"", "a\r\n\u{1}\u{7f}\t\\\"", "'"] {
            let toml = quoted_lines(text);
            assert_eq!(value(&toml), Some(format!("{text}\n")), "{toml}");
        }
        assert_eq!(with_comment("a = 1", "one\nb = 2").lines().count(), 1);
    }
}
