//! Inspects the file that a new pipeline will read: its format, its columns and a sample of its rows.

use std::collections::HashSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Int64Type};
use couplet_storage::files;
use couplet_storage::place::table_place;
use couplet_tables::dates::value_texts;
use couplet_tables::delta::LOG;
use couplet_tables::predict::Models;
use couplet_tables::session::{self, Resources};
use couplet_tables::source::OUTPUT_COLUMNS;
use couplet_tables::tables::format_of_name;
use couplet_tables::tables::{CsvOptions, Table, TableFormat};
use datafusion::common::{Column as Named, DataFusionError};
use datafusion::functions_aggregate::expr_fn::{count, count_distinct};
use datafusion::logical_expr::{Expr, lit};
use datafusion::prelude::SessionContext;

use crate::config::{GivenTable, table_from_argument, table_from_uri_as};
use crate::error::Error;
use crate::run;

/// The number of sampled rows.
const SAMPLE: usize = 10_000;

/// The number of bytes of a text file that are read to detect its format.
const HEAD: usize = 64 * 1024;

/// The number of lines of these in which delimiters are counted.
const LINES: usize = 20;

/// The keys of a `[tables]` entry, with their values as TOML.
pub type TableOptions = Vec<(String, String)>;

/// A column and its statistics in the sample.
#[derive(Debug, Clone)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its Arrow type.
    pub data_type: DataType,
    /// The number of sampled rows with a value.
    pub filled: usize,
    /// The number of distinct values among them.
    pub distinct: usize,
    /// The mean number of characters per value.
    pub characters: f64,
    /// The mean number of words per value.
    pub words: f64,
}

impl Column {
    /// Returns true if the values are strings, including dictionary-encoded strings.
    #[must_use]
    pub fn is_text(&self) -> bool {
        match &self.data_type {
            DataType::Dictionary(_, values) => values.is_string(),
            data_type => data_type.is_string(),
        }
    }
}

/// An inspected table.
pub struct InspectedTable {
    /// The URI as given.
    pub uri: String,
    /// The other options of its `[tables]` entry, such as the format if the extension does not imply it.
    pub options: TableOptions,
    /// Its columns.
    pub columns: Vec<Column>,
    /// The number of sampled rows.
    pub sampled: usize,
    /// The number of all rows.
    pub rows: u64,
    context: SessionContext,
    _resources: Resources,
}

/// Inspects a file, a folder or a glob, local or in a bucket, given as a URI or as a table of options as in `[tables]`.
///
/// # Errors
/// A location that cannot be read, or whose format cannot be detected.
pub async fn look(from: &str, format: Option<&str>) -> Result<InspectedTable, Error> {
    let wrong = |problem: String| Error::Usage(format!("--from {from}: {problem}"));
    if from.trim().is_empty() {
        return Err(Error::Usage("--from names no data; name a file, a folder or a glob".into()));
    }
    let (table, options) = table(from, format).map_err(wrong)?;
    let uri = table.location.written.clone();
    let settings = crate::config::RunSettings::default();
    let resources = run::resources(&settings)?;
    let models = Models::new(run::pool(Some(1))?, std::env::current_dir().unwrap_or_default());
    let tables = [table];
    let session = session::open(&tables, Arc::new(models), settings.window, 1, &resources);
    let context = session.await.map_err(Error::Tables)?;
    let failed = |e: DataFusionError| Error::sql(format!("--from {uri}"), &e, Some(&context));
    let frame = context.table("data").await.map_err(failed)?;
    let schema = frame.schema().as_arrow().clone();
    let read = async {
        let sample = frame.clone().limit(0, Some(SAMPLE))?.collect().await?;
        let sample = concat_batches(&Arc::new(schema.clone()), &sample)?;
        Ok::<_, DataFusionError>((sample, frame.clone().count().await? as u64))
    };
    let (sample, rows) = match read.await {
        Ok(read) => read,
        Err(e) => return Err(run::blame(&context, &tables, failed(e), "nothing was written").await),
    };
    let mut columns = Vec::new();
    for (field, values) in schema.fields().iter().zip(sample.columns()) {
        columns.push(describe(field.name(), values).map_err(|e| failed(e.into()))?);
    }
    Ok(InspectedTable { uri, options, columns, sampled: sample.num_rows(), rows, context, _resources: resources })
}

impl InspectedTable {
    /// Returns true if couplet itself added this column to those of its source.
    #[must_use]
    pub fn is_own(&self, column: &Column) -> bool {
        let has = |name: &str| self.columns.iter().any(|column| column.name == name);
        has("predicted_label") && has("probabilities") && OUTPUT_COLUMNS.contains(&column.name.as_str())
    }

    /// Returns true if these columns together are unique over all rows.
    ///
    /// # Errors
    /// A table that cannot be read.
    pub async fn is_unique(&self, names: &[&str]) -> Result<bool, Error> {
        let failed = |e: DataFusionError| Error::sql("--from", &e, Some(&self.context));
        let columns: Vec<Expr> = names.iter().map(|name| Expr::Column(Named::from_name(*name))).collect();
        let frame = self.context.table("data").await.map_err(failed)?;
        let filled = columns.iter().map(|column| count(column.clone()).alias(format!("n{column}"))).collect();
        let filled = frame.clone().aggregate(vec![], filled).map_err(failed)?.collect().await.map_err(failed)?;
        let has_null = filled.first().is_none_or(|batch| {
            batch.columns().iter().any(|n| n.as_primitive::<Int64Type>().value(0).unsigned_abs() < self.rows)
        });
        if has_null {
            return Ok(false);
        }
        let distinct = match &columns[..] {
            [column] => frame.aggregate(vec![], vec![count_distinct(column.clone())]),
            _ => frame.aggregate(columns, vec![]).and_then(|groups| groups.aggregate(vec![], vec![count(lit(1))])),
        };
        let distinct = distinct.map_err(failed)?.collect().await.map_err(failed)?;
        let distinct = distinct.first().map_or(0, |batch| batch.column(0).as_primitive::<Int64Type>().value(0));
        Ok(distinct.unsigned_abs() == self.rows)
    }
}

fn describe(name: &str, values: &ArrayRef) -> Result<Column, arrow::error::ArrowError> {
    let mut distinct = HashSet::new();
    let (mut filled, mut characters, mut words) = (0, 0, 0);
    for value in value_texts(values)?.into_iter().flatten() {
        filled += 1;
        characters += value.chars().count();
        words += value.split_whitespace().count();
        distinct.insert(value);
    }
    let mean = |sum: usize| if filled == 0 { 0.0 } else { sum as f64 / filled as f64 };
    Ok(Column {
        name: name.to_owned(),
        data_type: values.data_type().clone(),
        filled,
        distinct: distinct.len(),
        characters: mean(characters),
        words: mean(words),
    })
}

/// Returns the table `data` and its options for `[tables]`.
fn table(from: &str, format: Option<&str>) -> Result<(Table, TableOptions), String> {
    let GivenTable { mut table, mut options } = given(from, format)?;
    let first = table.location.local().and_then(first_file);
    if let (TableFormat::Csv(csv), Some(head)) = (&mut table.format, first.as_deref().and_then(head)) {
        let (mut sniffed, mut found) = (csv.clone(), Vec::new());
        sniff(&mut sniffed, &head, &mut found);
        for (key, value) in found {
            // Options that the user has given are not guessed.
            if options.iter().any(|(given, _)| *given == key) {
                continue;
            }
            match key.as_str() {
                "delimiter" => csv.delimiter = sniffed.delimiter,
                "quote" => csv.quote = sniffed.quote,
                "escape" => csv.escape = sniffed.escape,
                _ => csv.header = sniffed.header,
            }
            options.push((key, value));
        }
    }
    Ok((table, options))
}

/// Returns the table as given, in the given or detected format.
fn given(from: &str, format: Option<&str>) -> Result<GivenTable, String> {
    let is_table = from.trim_start().starts_with('{');
    let given = match table_from_argument("data", from) {
        Ok(given) if !given.options.is_empty() => {
            let problem = "give the format with the other options, as in { uri = \"…\", format = \"csv\" }";
            return if format.is_none() { Ok(given) } else { Err(format!("{problem}; omit --format")) };
        }
        Err(problem) if is_table => return Err(problem),
        given => given,
    };
    let uri = given.as_ref().map_or(from, GivenTable::uri).to_owned();
    if let Some(format) = format {
        return in_format(&uri, format);
    }
    let place = table_place(&uri)?;
    let is_implied = given.is_ok() && place.extension().is_some();
    match place.local().and_then(|path| format_by_content(path, is_implied)) {
        Some(format) => in_format(&uri, &format),
        None => given.map_err(|problem| format!("{problem}; name the format with --format csv")),
    }
}

/// Returns a table in the named format. The options include the format if the URI does not imply it.
fn in_format(uri: &str, format: &str) -> Result<GivenTable, String> {
    let table = table_from_uri_as("data", uri, Some(format))?;
    let is_plain = table_from_argument("data", uri).is_ok_and(|plain| plain.table.format == table.format);
    let options = if is_plain { Vec::new() } else { vec![("format".to_owned(), super::quoted(format))] };
    Ok(GivenTable { table, options })
}

/// Detects the format of a file or folder from its contents. `is_implied` means that the name implies the format; then
/// only folders are inspected.
fn format_by_content(path: &Path, is_implied: bool) -> Option<String> {
    if path.is_dir() {
        // A folder counts as Parquet by default, so its files are checked.
        return format_of_folder(path);
    }
    if is_implied {
        return None;
    }
    format_of_file(path).map(str::to_owned)
}

/// Detects the format of a file from its contents.
fn format_of_file(path: &Path) -> Option<&'static str> {
    binary(path).or_else(|| head(path).and_then(|head| delimiter(&head)))
}

/// Detects a binary format by its magic bytes.
fn binary(path: &Path) -> Option<&'static str> {
    let mut start = Vec::new();
    files::open(path).ok()?.take(6).read_to_end(&mut start).ok()?;
    match &start[..] {
        [b'P', b'A', b'R', b'1', ..] => Some("parquet"),
        b"ARROW1" => Some("arrow"),
        _ => None,
    }
}

/// Detects the delimiter, the header, and whether fields are quoted.
fn sniff(csv: &mut CsvOptions, head: &str, options: &mut TableOptions) {
    // Text fields may contain commas even with another delimiter, so the delimiter is judged by the first line, which
    // usually has column names. A comma within a name is recognized because not all lines have the same number of
    // commas.
    let first = head.lines().next().unwrap_or_default();
    let others = [(b';', "\";\""), (b'\t', "\"\\t\""), (b'|', "\"|\"")];
    let is_in_each = |delimiter: char| {
        let mut counts =
            head.lines().filter(|line| !line.is_empty()).take(LINES).map(|line| line.matches(delimiter).count());
        counts.next().is_some_and(|first| first > 0 && counts.all(|count| count == first))
    };
    let separates = |other: char| {
        if first.contains(',') { !is_in_each(',') && is_in_each(other) } else { first.contains(other) }
    };
    if csv.delimiter == b','
        && let Some((other, written)) = others.into_iter().find(|(other, _)| separates(char::from(*other)))
    {
        csv.delimiter = other;
        options.push(("delimiter".into(), written.into()));
    }
    let delimiter = char::from(csv.delimiter);
    let lines: Vec<&str> = head.lines().filter(|line| !line.is_empty()).collect();
    // A field that begins with a quotation mark must end with one; otherwise the marks are part of the text.
    let stray = |field: &str| field.starts_with('"') && !(field.len() > 1 && field.ends_with('"'));
    let inner = |field: &str| !field.starts_with('"') && field.contains('"');
    if csv.delimiter == b'\t' && lines.iter().flat_map(|line| line.split(delimiter)).any(|f| stray(f) || inner(f)) {
        csv.quote = None;
        options.push(("quote".into(), "false".into()));
    }
    // Detects a backslash before a quotation mark that does not end its field, as Spark writes it.
    let is_escaped = |line: &&str| {
        line.match_indices("\\\"").any(|(place, _)| {
            let next = line[place + 2..].chars().next();
            next.is_some_and(|next| next != delimiter && next != '\r')
        })
    };
    if csv.quote == Some(b'"') && lines.iter().any(is_escaped) {
        csv.escape = Some(b'\\');
        options.push(("escape".into(), "\"\\\\\"".into()));
    }
    let names: Vec<&str> = lines
        .first()
        .map_or("", |line| line)
        .trim_start_matches('\u{feff}')
        .split(delimiter)
        .map(|f| f.trim_matches('"'))
        .collect();
    let is_value = |name: &&str| name.parse::<f64>().is_ok() || name.split_whitespace().count() > 4;
    if names.iter().any(is_value) {
        csv.header = false;
        options.push(("header".into(), "false".into()));
    }
}

/// Returns the file itself, or the first file of a folder.
fn first_file(path: &Path) -> Option<PathBuf> {
    if !path.is_dir() {
        return Some(path.to_owned());
    }
    let mut entries: Vec<PathBuf> = path.read_dir().ok()?.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    let hidden = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(['.', '_']));
    entries.iter().filter(|path| !hidden(path)).find_map(|path| first_file(path))
}

/// Returns the beginning of an uncompressed text file.
fn head(path: &Path) -> Option<String> {
    let compressed = path.extension().is_some_and(|extension| extension == "gz" || extension == "zst");
    if compressed || !path.is_file() {
        return None;
    }
    let mut head = Vec::with_capacity(HEAD);
    files::open(path).ok()?.take(HEAD as u64).read_to_end(&mut head).ok()?;
    let is_complete = head.len() < HEAD;
    let mut text = String::from_utf8_lossy(&head).into_owned();
    if !is_complete && let Some(end) = text.rfind('\n') {
        text.truncate(end);
    }
    Some(text)
}

/// Returns `tsv`, `json` or `csv`, guessed from the first line of a file whose name does not imply a format.
fn delimiter(head: &str) -> Option<&'static str> {
    let first = head.lines().next()?;
    if first.contains('\t') {
        Some("tsv")
    } else if first.starts_with('{') {
        Some("json")
    } else {
        first.contains([',', ';', '|']).then_some("csv")
    }
}

/// Returns the format of most files in a folder and its subfolders.
fn format_of_folder(path: &Path) -> Option<String> {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().ok()?.flatten().take(1000) {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().to_lowercase());
            if path.is_dir() {
                if name == LOG {
                    return None;
                }
                folders.push(path);
            } else if !name.starts_with(['.', '_'])
                && let Some(known) = format_of_name(&name)
            {
                *counts.entry(known).or_default() += 1;
            }
        }
    }
    let most = counts.into_iter().max_by_key(|(_, n)| *n).map(|(format, _)| format);
    // The files may have no extension.
    most.or_else(|| first_file(path).and_then(|file| format_of_file(&file))).map(str::to_owned)
}
