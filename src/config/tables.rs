//! Reads the section `[tables]`: the tables that SQL can name, and their formats.

use std::collections::BTreeMap;
use std::path::Path;

use couplet_storage::place::Problem;
use couplet_tables::tables::{
    ColumnType, ColumnTypes, CsvOptions, FormatName, Table, TableFormat, check_name, infer, table_from_uri,
    table_of_format,
};
use toml::de::DeTable;

use super::described::TABLES;
use super::item::{Choice, Item};
use super::reader::{Keys, Read, Reader, join};
use super::syntax::Syntax;

pub(super) const KINDS: [Choice<FormatName>; 7] = [
    ("parquet", FormatName::Parquet),
    ("csv", FormatName::Csv),
    ("tsv", FormatName::Tsv),
    ("json", FormatName::Json),
    ("ndjson", FormatName::Json),
    ("arrow", FormatName::Arrow),
    ("delta", FormatName::Delta),
];

/// A table of the command line, as in `--table NAME=…`.
#[derive(Debug, Clone)]
pub struct GivenTable {
    /// The table.
    pub table: Table,
    /// The given keys other than `uri`, with their values as TOML.
    pub options: Vec<(String, String)>,
}

impl GivenTable {
    /// The URI that was given, without options.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.table.location.written
    }
}

/// Creates a table from a command-line argument: a URI, as for [`table_from_uri`], or a table of options as in
/// `[tables]`, for example `{ uri = "a.txt", format = "csv", delimiter = ";" }`. A relative path starts at the current
/// folder.
///
/// # Errors
/// A one-line message about an invalid argument.
pub fn table_from_argument(name: &str, text: &str) -> Result<GivenTable, String> {
    if !text.trim_start().starts_with('{') {
        return table_from_uri(name, text).map(|table| GivenTable { table, options: Vec::new() });
    }
    check_name(name).map_err(Problem::into_line)?;
    let text = format!("{name} = {}", text.trim());
    let (document, errors) = DeTable::parse_recoverable(&text);
    let syntax = Syntax::new(&text, document.get_ref(), &errors);
    let variables = BTreeMap::new();
    let reader = Reader::new(Path::new(""), &text, &variables, &syntax);
    let entry = document.get_ref().get_key_value(name);
    let read = entry.map(|(key, value)| {
        let item = Item { reader: &reader, kind: &TABLES, path: join("tables", name), key, value };
        let options = item.value.get_ref().as_table().into_iter().flatten();
        let options = options.filter(|(key, _)| &**key.get_ref() != "uri");
        let options = options.map(|(key, value)| (key.get_ref().to_string(), text[value.span()].to_owned())).collect();
        table(name, &item).map(|table| GivenTable { table, options })
    });
    let problems: Vec<String> = reader.into_problems().into_iter().map(Problem::into_line).collect();
    match read {
        Some(Ok(given)) if problems.is_empty() => Ok(given),
        _ => Err(problems.join("; ")),
    }
}

/// Creates a table from a URI, as [`table_from_uri`], with an explicit format name that overrides the extension.
///
/// # Errors
/// As [`table_from_uri`], and for an unknown format.
pub fn table_from_uri_as(name: &str, uri: &str, format: Option<&str>) -> Result<Table, String> {
    let explicit = |format: &str| {
        let kind = KINDS.iter().find(|(name, _)| *name == format).map(|(_, kind)| *kind);
        kind.ok_or_else(|| {
            let known = KINDS.map(|(name, _)| name);
            Problem::new(format!("the format cannot be \"{format}\""), "unknown format")
                .suggest(format, known)
                .allowed(known.join(", "))
        })
    };
    let format = check_name(name).and_then(|()| format.map(explicit).transpose());
    format.and_then(|format| table_of_format(name, uri, format)).map_err(Problem::into_line)
}

/// Reads `[tables]`. A table must not have the name of the pipeline, which names the sink.
pub(super) fn tables(section: &Item<'_>, pipeline: Option<&str>) -> Read<Vec<Table>> {
    let entries = section.entries()?;
    let mut tables = Vec::with_capacity(entries.len());
    for (index, item) in entries.iter().enumerate() {
        let name = item.key.get_ref();
        let twin = entries[..index].iter().find(|earlier| earlier.key.get_ref().eq_ignore_ascii_case(name));
        let name_check = if let Some(first) = twin {
            let message = format!("tables `{}` and `{name}` have the same name in SQL", first.key.get_ref());
            Err(Problem::new(message, "the same name")
                .related(first.key.span(), "first here")
                .help("give one of the two another name"))
        } else if pipeline.is_some_and(|pipeline| pipeline.eq_ignore_ascii_case(name)) {
            let problem = Problem::new(format!("table `{name}` has the name of the pipeline"), "taken by the sink");
            Err(problem.help("rename the table: in SQL, the name of the pipeline is the table of its sink"))
        } else {
            check_name(name)
        };
        let checked = name_check.map_err(|problem| item.refuse(problem.at(item.key.span())));
        tables.push(table(name, item).and_then(|table| checked.map(|()| table)));
    }
    tables.into_iter().collect()
}

fn table(name: &str, item: &Item<'_>) -> Read<Table> {
    if item.is_table() {
        return item.table(|keys| table_with_options(name, keys));
    }
    if item.value.get_ref().as_str().is_none() {
        let problem = item.wrong_type("a URI or a table of options");
        return Err(item.refuse(problem.help(format!("write for example `{name} = \"{name}.parquet\"`"))));
    }
    let location = item.location()?;
    let kind = infer(&location.place, None).map_err(|problem| item.refuse(problem))?;
    Ok(Table { name: name.to_owned(), location, format: kind.with_defaults(), partitions: Vec::new() })
}

fn table_with_options(name: &str, keys: &mut Keys<'_>) -> Read<Table> {
    let location = keys.required("uri", Item::location);
    let kind = keys.optional("format", |format| format.choice(&KINDS));
    let delimiter = keys.optional("delimiter", ascii_character);
    let header = keys.or("header", Item::boolean);
    let quote = keys.or("quote", quotation_mark);
    let escape = keys.optional("escape", ascii_character);
    let null = keys.optional("null", Item::string);
    let types = keys.optional("types", column_types);
    let partitions = keys.optional("partitions", Item::names);
    let version = keys.optional("version", Item::integer);

    let location = location?;
    let kind = infer(&location.place, kind?).map_err(|problem| keys.refuse("uri", problem))?;
    let partitions = partitions?.unwrap_or_default();
    if !partitions.is_empty() && !location.place.is_folder() && !location.place.is_glob() {
        let problem =
            Problem::new(format!("`{location}` is one file, which has no partitions"), "read from folder names");
        return Err(keys.refuse("partitions", problem.help("name the folder above `dt=…/`, or remove `partitions`")));
    }
    let format = match kind.with_defaults() {
        TableFormat::Csv(defaults) => {
            let delimiter = delimiter?.unwrap_or(defaults.delimiter);
            let (quote, escape) = (quote?, escape?);
            if quote == Some(delimiter) {
                let problem = Problem::new("`delimiter` and `quote` are the same character", "the same as `delimiter`");
                return Err(keys.refuse("quote", problem.help("write `quote = false` to disable quoting")));
            }
            if escape.is_some() && (quote.is_none() || escape == Some(delimiter)) {
                let problem = Problem::new("`escape` needs quoted fields", "only in quoted fields");
                let problem = match quote {
                    None => problem.help("remove it, or remove `quote = false`"),
                    Some(_) => {
                        Problem::new("`delimiter` and `escape` are the same character", "the same as `delimiter`")
                    }
                };
                return Err(keys.refuse("escape", problem));
            }
            let null = null?.filter(|null| !null.is_empty()).map(str::to_owned);
            let types = types?.unwrap_or_default();
            TableFormat::Csv(CsvOptions { delimiter, header: header?, quote, escape, null, types })
        }
        format => {
            check_no_csv_options(keys, &format)?;
            match (format, types?) {
                (TableFormat::Json { .. }, types) => TableFormat::Json { types: types.unwrap_or_default() },
                (format, None) => format,
                (format, Some(_)) => {
                    let message = format!("`types` does not apply to {}", format.title());
                    let problem = Problem::new(message, "only for csv, tsv and json");
                    return Err(keys.refuse("types", problem.help("remove it: the files define the types")));
                }
            }
        }
    };
    let format = match (format, version?.map(|version| version as u64)) {
        (TableFormat::Delta { .. }, version) => TableFormat::Delta { version },
        (format, None) => format,
        (format, Some(_)) => {
            let problem =
                Problem::new(format!("`version` does not apply to {}", format.title()), "only for Delta tables");
            return Err(keys.refuse("version", problem.help("remove it, or set `format` to \"delta\"")));
        }
    };
    Ok(Table { name: name.to_owned(), location, format, partitions })
}

/// Rejects the options of delimited text for other formats.
fn check_no_csv_options(keys: &Keys<'_>, format: &TableFormat) -> Read<()> {
    let mut checked = Ok(());
    for option in ["delimiter", "header", "quote", "escape", "null"].into_iter().filter_map(|key| keys.item(key)) {
        let message = format!("`{}` does not apply to {}", option.path, format.title());
        let problem = Problem::new(message, "only for csv and tsv").at(option.key.span());
        checked = Err(option.refuse(problem.help("remove it, or set `format` to \"csv\" or \"tsv\"")));
    }
    checked
}

/// Reads a string of exactly one byte, the most that the CSV reader supports.
fn ascii_character(item: &Item<'_>) -> Read<u8> {
    match item.string()?.as_bytes() {
        &[byte] if byte.is_ascii() && !matches!(byte, b'\n' | b'\r') => Ok(byte),
        _ => {
            let problem =
                Problem::new(format!("`{}` must be exactly one ASCII character", item.path), "not one ASCII character");
            Err(item.refuse(problem.allowed("one character, for example \",\", \";\" or \"\\t\"; no line break")))
        }
    }
}

fn quotation_mark(item: &Item<'_>) -> Read<Option<u8>> {
    match item.value.get_ref().as_bool() {
        Some(false) => Ok(None),
        Some(true) => {
            let problem = Problem::new(format!("`{}` cannot be true", item.path), "which character?");
            Err(item.refuse(
                problem.allowed("false, or one character such as \"'\"").help("remove it: the default is `\"`"),
            ))
        }
        None => ascii_character(item).map(Some),
    }
}

/// The type names that `types` accepts, for messages.
const TYPES: &str = "text, int, float, decimal(PRECISION, SCALE), bool, date, timestamp, timestamptz";

/// Reads a table of column names and type names.
fn column_types(item: &Item<'_>) -> Read<ColumnTypes> {
    let entries = item.entries()?;
    let types = entries.iter().map(|entry| {
        let written = entry.non_blank()?;
        let data_type = column_type(written).ok_or_else(|| {
            let problem = Problem::new(format!("`{}` cannot be \"{written}\"", entry.path), "unknown type");
            let names = TYPES.split(", ").filter(|name| !name.contains(['(', ')']));
            entry.refuse(problem.suggest(written, names).allowed(TYPES))
        })?;
        Ok((entry.key.get_ref().to_string(), data_type))
    });
    types.collect()
}

fn column_type(written: &str) -> Option<ColumnType> {
    Some(match written {
        "text" => ColumnType::Text,
        "int" => ColumnType::Integer,
        "float" => ColumnType::Float,
        "bool" => ColumnType::Boolean,
        "date" => ColumnType::Date,
        "timestamp" => ColumnType::Timestamp,
        "timestamptz" => ColumnType::TimestampTz,
        _ => {
            let (precision, scale) = written.strip_prefix("decimal(")?.strip_suffix(')')?.split_once(',')?;
            let (precision, scale) = (precision.trim().parse::<u8>().ok()?, scale.trim().parse::<i8>().ok()?);
            let is_valid = (1..=38).contains(&precision) && (0..=precision.cast_signed()).contains(&scale);
            is_valid.then_some(ColumnType::Decimal { precision, scale })?
        }
    })
}
