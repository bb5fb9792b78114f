//! A table from a URI alone: its format by the extension, its options by default.

#![expect(clippy::result_large_err, reason = "a table is defined once, and an error in it ends the program")]

use std::path::Path;

use couplet_storage::place::{Place, Problem, resolve};

use super::definition::{CsvOptions, Location, Table, TableFormat};

/// The format of a table's files, without its options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormatName {
    /// Apache Parquet.
    Parquet,
    /// Delimited text, by default with commas.
    Csv,
    /// Delimited text, by default with tabs.
    Tsv,
    /// JSON, one object per line.
    Json,
    /// Apache Arrow IPC files.
    Arrow,
    /// A Delta table.
    Delta,
}

impl FormatName {
    /// Returns the format with default options.
    #[must_use]
    pub fn with_defaults(self) -> TableFormat {
        let delimited = |delimiter| {
            let quote = Some(b'"');
            TableFormat::Csv(CsvOptions { delimiter, header: true, quote, escape: None, null: None, types: Vec::new() })
        };
        match self {
            Self::Parquet => TableFormat::Parquet,
            Self::Csv => delimited(b','),
            Self::Tsv => delimited(b'\t'),
            Self::Json => TableFormat::Json { types: Vec::new() },
            Self::Arrow => TableFormat::Arrow,
            Self::Delta => TableFormat::Delta { version: None },
        }
    }
}

const EXTENSIONS: &str = ".parquet, .csv, .tsv, .tab, .json, .ndjson, .jsonl, .arrow, .feather, .ipc; \
                          text also with .gz or .zst behind it";

/// Help for a table whose format cannot be inferred, in a file and on the command line.
const NAME_FORMAT: &str = "write a table with its format: `{ uri = \"…\", format = \"csv\" }`";

/// Creates a table from a URI alone, as in `--table NAME=URI`. The extension selects the format, a relative path is
/// resolved against the current folder, and variables are not replaced. `URI@3` is version 3 of a Delta table.
///
/// # Errors
/// A one-line message about an invalid name or URI.
pub fn table_from_uri(name: &str, uri: &str) -> Result<Table, String> {
    check_name(name).and_then(|()| table_of_format(name, uri, None)).map_err(Problem::into_line)
}

/// Creates a table from a URI, as [`table_from_uri`], with a format that overrides the extension. The name is not
/// checked.
///
/// # Errors
/// An invalid URI, or an extension that names no format.
pub fn table_of_format(name: &str, uri: &str, format: Option<FormatName>) -> Result<Table, Problem> {
    let versioned = uri.rsplit_once('@').and_then(|(uri, version)| Some((uri, version.parse().ok()?)));
    let (path, version) = versioned.map_or((uri, None), |(uri, version)| (uri, Some(version)));
    let place = resolve(Path::new(""), path)?;
    let format = match version {
        Some(_) => TableFormat::Delta { version },
        None => infer(&place, format)?.with_defaults(),
    };
    let location = Location { written: uri.to_owned(), place };
    Ok(Table { name: name.to_owned(), location, format, partitions: Vec::new() })
}

/// Infers the format of a table from its extension. A folder without an extension is Parquet, unless a format is given.
///
/// # Errors
/// An extension that names no format, and compression of a format that has its own.
pub fn infer(place: &Place, explicit: Option<FormatName>) -> Result<FormatName, Problem> {
    let path = place.as_path();
    let extension = |path: &Path| path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    let is_compressed = matches!(extension(path).as_deref(), Some("gz" | "zst")) && !place.is_folder();
    let name = if is_compressed { Path::new(path.file_stem().unwrap_or_default()) } else { path };
    let kind = match (explicit, extension(name).as_deref()) {
        (Some(kind), _) => kind,
        (None, Some("parquet")) => FormatName::Parquet,
        (None, Some("csv")) => FormatName::Csv,
        (None, Some("tsv" | "tab")) => FormatName::Tsv,
        (None, Some("json" | "ndjson" | "jsonl")) => FormatName::Json,
        (None, Some("arrow" | "feather" | "ipc")) => FormatName::Arrow,
        (None, _) if place.is_folder() => FormatName::Parquet,
        (None, _) => {
            let problem = Problem::new(
                format!("cannot infer the format of `{}`", Path::new(path.file_name().unwrap_or_default()).display()),
                "unknown extension",
            );
            return Err(problem.allowed(EXTENSIONS).help(NAME_FORMAT));
        }
    };
    if is_compressed && matches!(kind, FormatName::Parquet | FormatName::Arrow) {
        let format = kind.with_defaults().title();
        let problem = Problem::new(
            format!("{format} files cannot be read with .gz or .zst compression"),
            "compressed as a whole",
        );
        return Err(problem.help("decompress the file: the format has its own compression"));
    }
    Ok(kind)
}

/// Checks that a table can have this name in SQL without quotes.
///
/// # Errors
/// A name that is not an SQL identifier.
pub fn check_name(name: &str) -> Result<(), Problem> {
    let is_name = |char: char| char == '_' || char.is_alphanumeric();
    if name.chars().all(is_name) && name.starts_with(|first: char| first == '_' || first.is_alphabetic()) {
        return Ok(());
    }
    let problem = Problem::new(format!("\"{name}\" cannot be the name of a table"), "not a SQL name")
        .allowed("a letter or `_`, then letters, digits and `_`");
    let suggestion: String = name.chars().map(|char| if is_name(char) { char } else { '_' }).collect();
    Err(if suggestion.starts_with(|first: char| first == '_' || first.is_alphabetic()) {
        problem.help(format!("write for example `{suggestion}`"))
    } else {
        problem
    })
}
