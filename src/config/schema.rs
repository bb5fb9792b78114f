//! Renders the described keys as a JSON Schema, which editors use to complete and check pipeline files, and as a
//! Markdown reference.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};
use toml::de::{DeTable, DeValue};

use super::described::FILE;
use super::key::{Absent, Key, Kind, Numbers, Section, sections};

/// The JSON Schema (2020-12) of a pipeline file.
///
/// It covers the values of single keys and the required keys. Constraints between keys are checked by
/// [`parse`](super::parse) only.
#[must_use]
pub fn schema() -> Value {
    let mut schema = of_section(&FILE);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("couplet pipeline");
    // A pipeline that scores needs three sections; one that only trains and evaluates has none of them.
    schema["if"] = json!({ "anyOf": needs(&["pretrain", "finetune", "evaluate"]) });
    schema["then"] = json!({ "anyOf": [
        { "required": ["source", "model", "sink"] },
        { "not": { "anyOf": needs(&["source", "model", "sink", "score"]) } },
    ] });
    schema["else"] = json!({ "required": ["source", "model", "sink"] });
    schema
}

fn needs(keys: &[&str]) -> Vec<Value> {
    keys.iter().map(|key| json!({ "required": [key] })).collect()
}

fn of_section(section: &Section) -> Value {
    let properties: Map<String, Value> = section.keys().map(|key| (key.name.to_owned(), of_key(key))).collect();
    let required = section.keys().filter(|key| matches!(key.absent, Absent::Mistake)).map(|key| key.name);
    let mut schema = json!({
        "type": "object",
        "description": section.doc,
        "properties": properties,
        "required": required.collect::<Vec<_>>(),
        "additionalProperties": false,
    });
    if section.key("sql").is_some() && section.key("file").is_some() {
        schema["oneOf"] = needs(&["sql", "file"]).into();
    }
    schema
}

fn of_key(key: &Key) -> Value {
    let mut schema = of_kind(&key.kind);
    schema["description"] = json!(match key.absent {
        Absent::Means(means) => format!("{} Default: {means}.", key.doc),
        _ => key.doc.to_owned(),
    });
    if let Absent::Default(default) = key.absent {
        schema["default"] = value_of(default);
    }
    if !matches!(key.kind, Kind::Section(_) | Kind::Tables(_)) {
        schema["examples"] = json!([value_of(key.example)]);
    }
    schema
}

fn of_kind(kind: &Kind) -> Value {
    const NOT_BLANK: &str = r"\S";
    match kind {
        Kind::Text | Kind::Sql | Kind::Path | Kind::Uri => json!({ "type": "string", "pattern": NOT_BLANK }),
        Kind::Pattern(pattern, _) => json!({ "type": "string", "pattern": pattern }),
        Kind::Only(value) => json!({ "const": value }),
        Kind::Boolean => json!({ "type": "boolean" }),
        Kind::Integer(range) => {
            let mut schema = json!({ "type": "integer", "minimum": range.start() });
            if *range.end() < usize::MAX {
                schema["maximum"] = json!(range.end());
            }
            schema
        }
        Kind::Number(Numbers { low, with_low, high }) => {
            let mut schema = json!({ "type": "number" });
            schema[if *with_low { "minimum" } else { "exclusiveMinimum" }] = json!(low);
            if *high < f64::MAX {
                schema["exclusiveMaximum"] = json!(high);
            }
            schema
        }
        Kind::Share => json!({ "type": "number", "minimum": 0, "maximum": 1 }),
        Kind::Duration => json!({ "type": "string", "pattern": "^[0-9]*[1-9][0-9]*\\s*(ms|s|m|h)\\s*$" }),
        Kind::Bytes => json!({ "type": "string", "pattern": "^[0-9]+\\s*([KMGT]iB|[kKMGT]B)\\s*$" }),
        Kind::Names(most) => {
            let name = json!({ "type": "string", "pattern": NOT_BLANK });
            let mut list = json!({ "type": "array", "items": name, "minItems": 1, "uniqueItems": true });
            if *most < usize::MAX {
                list["maxItems"] = json!(most);
            }
            json!({ "anyOf": [name, list] })
        }
        Kind::Choice(names) => json!({ "enum": names() }),
        Kind::Named(names) => json!({ "anyOf": [{ "enum": names() }, { "type": "string", "pattern": NOT_BLANK }] }),
        Kind::Section(section) => of_section(section),
        Kind::Tables(section) => json!({
            "type": "object",
            "propertyNames": { "pattern": r"^[\p{L}_][\p{L}\p{N}_]*$" },
            "additionalProperties": { "anyOf": [of_kind(&Kind::Uri), of_section(section)] },
        }),
        Kind::Entries(inner) => json!({ "type": "object", "additionalProperties": of_kind(inner) }),
        Kind::List(inner) => json!({ "type": "array", "items": of_kind(inner), "uniqueItems": true }),
        Kind::Either(kinds) => json!({ "anyOf": kinds.iter().map(of_kind).collect::<Vec<_>>() }),
    }
}

/// Converts a TOML value of the described keys to JSON.
fn value_of(toml: &'static str) -> Value {
    let line = format!("x = {toml}");
    let document = DeTable::parse(&line).expect("examples and defaults are valid TOML").into_inner();
    document.get("x").map_or(Value::Null, |value| json_of(value.get_ref()))
}

fn json_of(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::Boolean(value) => json!(value),
        DeValue::Integer(value) => json!(i64::from_str_radix(value.as_str(), value.radix()).unwrap_or_default()),
        DeValue::Float(value) => json!(value.as_str().parse::<f64>().unwrap_or_default()),
        DeValue::Array(values) => values.iter().map(|value| json_of(value.get_ref())).collect(),
        DeValue::Table(table) => {
            let entries = table.iter().map(|(key, value)| (key.get_ref().to_string(), json_of(value.get_ref())));
            Value::Object(entries.collect())
        }
        DeValue::String(text) => json!(text),
        DeValue::Datetime(time) => json!(time.to_string()),
    }
}

/// Returns the reference of the keys as Markdown, the content of `docs/reference.md`.
#[must_use]
pub fn reference() -> String {
    let mut page =
        "# The pipeline file\n\n<!-- Generated by `couplet schema --markdown` from the definitions that the program \
         reads files with. A test compares the two. -->\n"
            .to_owned();
    for section in sections(&FILE) {
        // Writes to a string cannot fail.
        if section.path.is_empty() {
            let _ = writeln!(page, "\n{}\n", section.doc);
        } else {
            let _ = writeln!(page, "\n## `[{}]`\n\n{}\n", section.path, section.doc);
        }
        page.push_str("| Key | Values | Default | Example | Meaning |\n|---|---|---|---|---|\n");
        for key in section.keys() {
            let absent = match key.absent {
                Absent::Mistake => "required".to_owned(),
                Absent::Default(default) => code(default),
                Absent::Means(means) => means.to_owned(),
            };
            let example = match key.kind {
                Kind::Section(_) | Kind::Tables(_) => code(key.example),
                _ => code(&format!("{} = {}", key.name, key.example)),
            };
            let row = [code(key.name), value_text(&key.kind), absent, example, key.doc.to_owned()];
            let _ = writeln!(page, "| {} |", row.map(|cell| cell.replace('|', "\\|")).join(" | "));
        }
    }
    page
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

/// Describes the values of a key for the reference.
fn value_text(kind: &Kind) -> String {
    let choices = |names: Vec<&str>| names.into_iter().map(code).collect::<Vec<_>>().join(", ");
    match kind {
        Kind::Text => "text".to_owned(),
        Kind::Sql => "SQL".to_owned(),
        Kind::Path => "a local path".to_owned(),
        Kind::Uri => "a path or URI".to_owned(),
        Kind::Pattern(_, description) => (*description).to_owned(),
        Kind::Only(value) => code(&value.to_string()),
        Kind::Boolean => "`true` or `false`".to_owned(),
        Kind::Integer(range) if *range.end() == usize::MAX => format!("an integer, {} or more", range.start()),
        Kind::Integer(range) => format!("an integer, {} to {}", range.start(), range.end()),
        Kind::Number(Numbers { low, with_low, high }) => {
            let from = if *with_low { format!("{low} or more") } else { format!("above {low}") };
            let to = if *high < f64::MAX { format!(" and below {high}") } else { String::new() };
            format!("a number, {from}{to}")
        }
        Kind::Share => "a number, 0 to 1".to_owned(),
        Kind::Duration => "a duration in `ms`, `s`, `m` or `h`".to_owned(),
        Kind::Bytes => "a size in `MiB`, `GiB`, `MB` or `GB`".to_owned(),
        Kind::Names(usize::MAX) => "a name, or a list of names".to_owned(),
        Kind::Names(most) => format!("a name, or a list of at most {most}"),
        Kind::Choice(names) => choices(names()),
        Kind::Named(names) => format!("{}, in any case and with or without dashes", choices(names())),
        Kind::Section(section) if section.path.contains('.') => format!("a table: see `[{}]`", section.path),
        Kind::Section(section) => format!("[a section](#{})", section.path),
        Kind::Tables(section) => format!("names, each with a URI or a table: see `[{}]`", section.path),
        Kind::Entries(inner) => format!("a table of names, each with {}", value_text(inner)),
        Kind::List(inner) => format!("a list of values: {}", value_text(inner)),
        Kind::Either(kinds) => kinds.iter().map(value_text).collect::<Vec<_>>().join("; or "),
    }
}
