//! The definition of a table: its name in SQL, its files and their format.

use std::fmt;
use std::path::Path;

use couplet_storage::place::Place;
use serde::{Deserialize, Serialize};

/// The SQL name of a pipeline's sink, whatever the pipeline is called. The files in `sql/` use it.
pub const PREDICTIONS: &str = "predictions";

/// A location as the user wrote it: a file, a folder (ends in `/` or has no extension), or a glob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// The text as written, with variables not yet replaced; for messages.
    pub written: String,
    /// The place with its variables replaced; a path is resolved against the folder of the file that names it.
    pub place: Place,
}

impl Location {
    /// Returns the path, if the place is on the local disk.
    #[must_use]
    pub fn local(&self) -> Option<&Path> {
        self.place.local()
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// A table that SQL can name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// The name of the table, an SQL identifier.
    pub name: String,
    /// The files of the table.
    pub location: Location,
    /// The format of the files.
    pub format: TableFormat,
    /// The partition columns, read from folder names such as `dt=2026-01-01`, outermost first.
    pub partitions: Vec<String>,
}

/// The format of the files of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TableFormat {
    /// Apache Parquet.
    Parquet,
    /// Delimited text: `csv` and `tsv`.
    Csv(CsvOptions),
    /// JSON, one object per line.
    Json {
        /// The columns with a declared type; other types are inferred.
        types: ColumnTypes,
    },
    /// Apache Arrow IPC files.
    Arrow,
    /// A Delta table.
    Delta {
        /// The version to read; `None` for the newest.
        version: Option<u64>,
    },
    /// A folder with one subfolder per run of a pipeline.
    Runs {
        /// True to read all runs, false to read the newest only.
        all: bool,
        /// The folder in which runs are published; runs that are missing from it are skipped.
        published_in: Option<Place>,
    },
}

impl TableFormat {
    /// Returns the display name of the format.
    #[must_use]
    pub fn title(&self) -> &'static str {
        match self {
            Self::Parquet => "Parquet",
            Self::Csv(_) => "CSV",
            Self::Json { .. } => "JSON",
            Self::Arrow => "Arrow",
            Self::Delta { .. } => "Delta",
            Self::Runs { .. } => "a folder of runs",
        }
    }
}

/// The options of delimited text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CsvOptions {
    /// The byte between two fields; by default `,` for `csv` and a tab for `tsv`.
    pub delimiter: u8,
    /// True if the first line holds the column names, the default.
    pub header: bool,
    /// The byte around a field that contains the delimiter, by default `"`; `None` disables quoting.
    pub quote: Option<u8>,
    /// The byte that escapes a quote, or itself, in a quoted field; `None` if quotes are doubled.
    pub escape: Option<u8>,
    /// A field value that is read as NULL, in addition to the empty field.
    pub null: Option<String>,
    /// The columns with a declared type; other types are inferred.
    pub types: ColumnTypes,
}

/// Columns of a text file with their declared types, in the order of the pipeline file.
pub type ColumnTypes = Vec<(String, ColumnType)>;

/// The type of a column of a text file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ColumnType {
    /// Text, unchanged.
    Text,
    /// A signed 64-bit integer.
    Integer,
    /// A 64-bit floating-point number.
    Float,
    /// A decimal number.
    Decimal {
        /// The number of digits, at most 38.
        precision: u8,
        /// The number of digits after the decimal point.
        scale: i8,
    },
    /// `true` or `false`.
    Boolean,
    /// A date, `2026-01-31`.
    Date,
    /// A date and time without an offset, `2026-01-31T12:00:00`.
    Timestamp,
    /// A date and time with an offset, `2026-01-31T12:00:00+01:00`, converted to UTC.
    TimestampTz,
}
