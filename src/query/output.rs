//! Writes the rows of a result to stdout or to a file, in one of the output formats.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::RecordBatch;
use arrow::csv::WriterBuilder as CsvBuilder;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::json::{ArrayWriter, LineDelimitedWriter, WriterBuilder as JsonBuilder};
use arrow::util::display::FormatOptions;
use arrow::util::pretty::pretty_format_batches_with_options;
use couplet_storage::escape::printable;
use couplet_storage::files::AtomicFile;
use couplet_storage::trouble::Explained;
use couplet_tables::dates::printable_dates;
use couplet_tables::sink::{ParquetSink, SinkError, parquet_problem};

use crate::error::Error;
use crate::terminal::note_closed_stdout;

/// An output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns for people to read.
    Table,
    /// Comma-separated values with a header.
    Csv,
    /// Tab-separated values with a header.
    Tsv,
    /// One JSON array of objects.
    Json,
    /// JSON Lines, one object per line; couplet can also read it as a table.
    #[value(alias = "ndjson")]
    Jsonl,
    /// Parquet, to a file only.
    Parquet,
}

impl Format {
    /// Returns the format for a file's extension.
    #[must_use]
    pub fn of_extension(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "csv" => Some(Self::Csv),
            "tsv" | "tab" => Some(Self::Tsv),
            "json" => Some(Self::Json),
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            "parquet" => Some(Self::Parquet),
            "txt" => Some(Self::Table),
            _ => None,
        }
    }
}

/// Returns the requested format, or else the format of the output file's extension.
///
/// # Errors
/// A file whose extension implies no format.
pub fn format_of(requested: Option<Format>, output: Option<&Path>) -> Result<Format, Error> {
    match (requested, output) {
        (Some(format), _) => Ok(format),
        (None, None) => Ok(Format::Table),
        (None, Some(path)) => Format::of_extension(path).ok_or_else(|| {
            Error::Usage(format!(
                "-o {}: the extension implies no format (csv, tsv, json, jsonl, parquet, txt); add --format",
                path.display()
            ))
        }),
    }
}

/// The number of rows printed with common column widths. A longer result is printed in pages, so that not all of it is
/// kept in memory.
const PAGE: usize = 10_000;

/// Writes the rows of a result.
pub(super) enum ResultWriter {
    /// A page is buffered until the widths of its columns are known.
    Table {
        batches: Vec<RecordBatch>,
        schema: SchemaRef,
        pages: usize,
        out: Out,
    },
    Delimited {
        writer: Box<arrow::csv::Writer<Out>>,
        path: PathBuf,
    },
    Json {
        writer: ArrayWriter<Out>,
        path: PathBuf,
    },
    JsonLines {
        writer: LineDelimitedWriter<Out>,
        path: PathBuf,
    },
    Parquet(Box<ParquetSink>),
}

impl ResultWriter {
    /// Creates a writer to a file or to stdout. `shown` becomes true once the first bytes are on stdout.
    pub(super) fn create(
        format: Format,
        output: Option<&Path>,
        schema: SchemaRef,
        shown: &Arc<AtomicBool>,
    ) -> Result<Self, Error> {
        let path = output.unwrap_or(Path::new("stdout")).to_owned();
        if format == Format::Parquet {
            return match output {
                Some(_) if parquet_problem(&schema).is_some() => Err(Error::Usage(format!(
                    "-o {}: {}",
                    path.display(),
                    parquet_problem(&schema).unwrap_or_default()
                ))),
                Some(path) => Ok(Self::Parquet(Box::new(ParquetSink::create(path, &schema, &[])?))),
                None => Err(Error::Usage("--format parquet needs a file: add -o FILE.parquet".into())),
            };
        }
        let out = match output {
            Some(path) => {
                let failed = |e: io::Error| SinkError { path: path.to_owned(), problem: (&e).into() };
                Out::File(Box::new(AtomicFile::create(path).map_err(failed)?))
            }
            None => Out::Stdout { buffer: Vec::new(), shown: Arc::clone(shown) },
        };
        Ok(match format {
            Format::Table => Self::Table { batches: Vec::new(), schema, pages: 0, out },
            Format::Csv | Format::Tsv => {
                let delimiter = if format == Format::Tsv { b'\t' } else { b',' };
                let mut writer = CsvBuilder::new().with_header(true).with_delimiter(delimiter).build(out);
                // A result without rows still gets a header.
                let empty = flat(&RecordBatch::new_empty(schema)).map_err(|e| sink_error(&path, &e))?;
                writer.write(&empty).map_err(|e| sink_error(&path, &e))?;
                Self::Delimited { writer: Box::new(writer), path }
            }
            // Each object has all columns, so that a single row shows the schema and NULL differs from a misspelled
            // name.
            Format::Json => Self::Json { writer: JsonBuilder::new().with_explicit_nulls(true).build(out), path },
            Format::Jsonl => Self::JsonLines { writer: JsonBuilder::new().with_explicit_nulls(true).build(out), path },
            Format::Parquet => unreachable!("returned above"),
        })
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        if let Self::Parquet(sink) = self {
            return Ok(sink.write(batch)?);
        }
        let batch = printable_dates(batch).map_err(|e| Error::sql("the result", &e.into(), None))?;
        match self {
            Self::Table { batches, pages, out, .. } => {
                batches.push(batch);
                if batches.iter().map(RecordBatch::num_rows).sum::<usize>() >= PAGE {
                    write_page(batches, *pages, out)?;
                    batches.clear();
                    *pages += 1;
                }
            }
            Self::Delimited { writer, path } => {
                flat(&batch).and_then(|batch| writer.write(&batch)).map_err(|e| sink_error(path, &e))?;
            }
            Self::Json { writer, path } => writer.write(&batch).map_err(|e| sink_error(path, &e))?,
            Self::JsonLines { writer, path } => writer.write(&batch).map_err(|e| sink_error(path, &e))?,
            Self::Parquet(_) => unreachable!("returned above"),
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<(), Error> {
        match self {
            Self::Table { mut batches, schema, pages, mut out } => {
                if batches.is_empty() && pages == 0 {
                    batches.push(RecordBatch::new_empty(schema));
                }
                if !batches.is_empty() {
                    write_page(&batches, pages, &mut out)?;
                }
                out.finish()
            }
            Self::Delimited { writer, .. } => writer.into_inner().finish(),
            Self::JsonLines { mut writer, path } => {
                writer.finish().map_err(|e| sink_error(&path, &e))?;
                writer.into_inner().finish()
            }
            Self::Json { mut writer, path } => {
                writer.finish().map_err(|e| sink_error(&path, &e))?;
                let mut out = writer.into_inner();
                writeln!(out).map_err(|e| sink_error(&path, &e))?;
                out.finish()
            }
            Self::Parquet(sink) => Ok(sink.publish().map(drop)?),
        }
    }
}

/// Prints rows as a table. Only the first page has the column names.
fn write_page(batches: &[RecordBatch], page: usize, out: &mut Out) -> Result<(), Error> {
    let options = FormatOptions::default().with_display_error(false).with_null("NULL");
    let table = pretty_format_batches_with_options(batches, &options)
        .map_err(|e| Error::sql("the result", &e.into(), None))?
        .to_string();
    // A border, the column names and another border precede the rows. Later pages drop the first two.
    let heads = if page == 0 { 0 } else { 2 };
    let rows = table.splitn(heads + 1, '\n').last().unwrap_or_default();
    // Only tables are escaped for the terminal; CSV, JSON and Parquet have the original values.
    writeln!(out, "{}", printable(rows)).map_err(|e| sink_error(Path::new("stdout"), &e))
}

/// The destination of the bytes: stdout, or a file that appears once it is complete.
pub(super) enum Out {
    /// A small result is held back until its end, because the statement may have to be executed again until then.
    Stdout {
        buffer: Vec<u8>,
        shown: Arc<AtomicBool>,
    },
    File(Box<AtomicFile>),
}

/// The number of bytes buffered before they go to stdout.
const BUFFER: usize = 8192;

impl Out {
    fn finish(self) -> Result<(), Error> {
        match self {
            Self::Stdout { mut buffer, shown } => {
                show(&mut buffer, &shown).map_err(|e| sink_error(Path::new("stdout"), &e))
            }
            Self::File(file) => file.publish().map(drop).map_err(|e| sink_error(Path::new("the result"), &e)),
        }
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout { buffer, shown } => {
                buffer.extend_from_slice(bytes);
                if buffer.len() >= BUFFER {
                    show(buffer, shown)?;
                }
                Ok(bytes.len())
            }
            Self::File(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            // The format writers flush after each batch.
            Self::Stdout { .. } => Ok(()),
            Self::File(file) => file.flush(),
        }
    }
}

fn show(buffer: &mut Vec<u8>, shown: &AtomicBool) -> io::Result<()> {
    shown.store(true, Ordering::Relaxed);
    let mut out = io::stdout();
    note_closed_stdout(out.write_all(buffer).and_then(|()| out.flush()))?;
    buffer.clear();
    Ok(())
}

fn sink_error(path: &Path, error: &(dyn std::error::Error + 'static)) -> Error {
    SinkError { path: path.to_owned(), problem: Explained::of(error) }.into()
}

/// Converts structs and lists to text, because CSV has no nested values.
fn flat(batch: &RecordBatch) -> Result<RecordBatch, arrow::error::ArrowError> {
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    let options = FormatOptions::default().with_display_error(false);
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if field.data_type().is_nested() {
            let formatter = arrow::util::display::ArrayFormatter::try_new(column, &options)?;
            let text = |row| column.is_valid(row).then(|| formatter.value(row).try_to_string()).transpose();
            let texts = (0..column.len()).map(text).collect::<Result<arrow::array::StringArray, _>>()?;
            columns.push(Arc::new(texts) as _);
            fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
        } else {
            columns.push(Arc::clone(column));
            fields.push(Arc::clone(field));
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}
