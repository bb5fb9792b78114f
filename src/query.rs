//! `couplet query`: SQL over tables and models, its result streamed in the format that is asked for.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::RecordBatch;
use arrow::csv::WriterBuilder;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::json::ArrayWriter;
use arrow::util::display::FormatOptions;
use arrow::util::pretty::pretty_format_batches_with_options;
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::DFParserBuilder;
use futures::StreamExt;

use crate::config::{Pipeline, SinkFormat, SinkMode, Table, TableFormat};
use crate::delta;
use crate::error::Error;
use crate::objects::Objects;
use crate::parameters::Parameters;
use crate::printable::printable;
use crate::sink::runs;
use crate::sink::{AtomicFile, ParquetSink, SinkError};

/// The name under which SQL finds a pipeline's sink whatever the pipeline is called; the files in `sql/` use it.
pub const PREDICTIONS: &str = "predictions";

/// How a result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns, for people.
    Table,
    /// Comma-separated values with a header.
    Csv,
    /// One JSON array of objects.
    Json,
    /// Parquet; needs a file.
    Parquet,
}

impl Format {
    /// The format that a file's extension asks for.
    #[must_use]
    pub fn of_extension(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "csv" => Some(Self::Csv),
            "json" => Some(Self::Json),
            "parquet" => Some(Self::Parquet),
            "txt" => Some(Self::Table),
            _ => None,
        }
    }
}

/// The tables of a pipeline: its own, and its sink under the pipeline's name and as [`PREDICTIONS`].
///
/// # Errors
/// A server that does not say whether there is a sink.
pub async fn tables_of(pipeline: &Pipeline) -> Result<Vec<Table>, Error> {
    let mut tables = pipeline.tables.clone();
    let Some(sink) = pipeline.scoring.as_ref().map(|scoring| &scoring.sink) else {
        return Ok(tables);
    };
    let location = &sink.location;
    let format = match sink.format {
        SinkFormat::Delta => TableFormat::Delta { version: None },
        SinkFormat::Parquet if sink.is_one_file() => TableFormat::Parquet,
        SinkFormat::Parquet => TableFormat::Runs { all: sink.mode == SinkMode::Append },
    };
    // Before the first run there is no sink; a query that needs it will say so.
    let objects = Objects::open(&location.place)?;
    let is_there = match format {
        TableFormat::Delta { .. } => delta::open(&objects, None).await?.is_some(),
        // A run that was killed may have left files that nobody reads.
        TableFormat::Runs { .. } => runs::latest(&objects.lock_place()).await?.is_some(),
        _ => objects.exists().await?,
    };
    if is_there {
        for name in [pipeline.name.as_str(), PREDICTIONS] {
            if !tables.iter().any(|table| table.name.eq_ignore_ascii_case(name)) {
                let location = location.clone();
                tables.push(Table { name: name.to_owned(), location, format: format.clone(), partitions: Vec::new() });
            }
        }
    }
    Ok(tables)
}

/// What became of the last result of some statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shown {
    /// Its rows that were written; none if no statement has a result.
    pub rows: Option<u64>,
    /// Whether it has more rows.
    pub cut: bool,
}

/// The format that is asked for, or that the extension of the output file tells.
///
/// # Errors
/// A file whose extension tells none.
pub fn format_of(asked: Option<Format>, output: Option<&Path>) -> Result<Format, Error> {
    match (asked, output) {
        (Some(format), _) => Ok(format),
        (None, None) => Ok(Format::Table),
        (None, Some(path)) => Format::of_extension(path).ok_or_else(|| {
            Error::Usage(format!(
                "-o {}: the format is not told by the extension (csv, json, parquet, txt); add --format",
                path.display()
            ))
        }),
    }
}

/// Executes the statements of `sql` one after the other, with the values of its parameters, and writes the result of
/// each.
///
/// # Errors
/// SQL that cannot be planned or executed, a value that does not suit, an output that cannot be written.
pub async fn query(
    context: &SessionContext,
    sql: &str,
    origin: &str,
    parameters: &Parameters,
    format: Format,
    output: Option<&Path>,
) -> Result<(), Error> {
    show(context, sql, origin, parameters, format, output, None).await.map(drop)
}

/// Refuses a text that is not SQL, without executing anything of it.
///
/// # Errors
/// What the parser says.
pub(crate) fn check_syntax(context: &SessionContext, sql: &str, origin: &str) -> Result<(), Error> {
    let parsed = DFParserBuilder::new(sql).build().and_then(|mut parser| parser.parse_statements());
    parsed.map(drop).map_err(|e| Error::sql(origin, &e, Some(context)))
}

/// The same, with no more than so many rows of a result. It ends when the future is dropped.
///
/// It runs as a task of its own: some plans, such as joins without a condition, do not return for minutes, and whoever
/// waits for them must be able to give up meanwhile.
pub(crate) async fn show(
    context: &SessionContext,
    sql: &str,
    origin: &str,
    parameters: &Parameters,
    format: Format,
    output: Option<&Path>,
    most_rows: Option<usize>,
) -> Result<Shown, Error> {
    let (context, sql, origin) = (context.clone(), sql.to_owned(), origin.to_owned());
    let parameters = parameters.clone();
    let output = output.map(Path::to_owned);
    let mut task = tokio::task::JoinSet::new();
    task.spawn(
        async move { execute(&context, &sql, &origin, &parameters, format, output.as_deref(), most_rows).await },
    );
    let done = task.join_next().await.expect("the set has one task");
    done.unwrap_or_else(|e| Err(Error::Io { context: "executing SQL".into(), error: io::Error::other(e) }))
}

async fn execute(
    context: &SessionContext,
    sql: &str,
    origin: &str,
    parameters: &Parameters,
    format: Format,
    output: Option<&Path>,
    most_rows: Option<usize>,
) -> Result<Shown, Error> {
    let failed = |e: DataFusionError| Error::sql(origin, &e, Some(context));
    let statements =
        DFParserBuilder::new(sql).build().and_then(|mut parser| parser.parse_statements()).map_err(failed)?;
    if statements.is_empty() {
        return Err(Error::Usage(format!("{origin}: there is no SQL")));
    }
    if output.is_some() && statements.len() > 1 {
        return Err(Error::Usage(format!("{origin}: {} statements cannot share one output file", statements.len())));
    }
    // Views, tables in memory and settings end with the session.
    let mut shown = Shown::default();
    let reads_only = SQLOptions::new().with_allow_dml(false);
    for statement in statements {
        let plan = context.state().statement_to_plan(statement).await.map_err(failed)?;
        reads_only.verify_plan(&plan).map_err(|_| {
            Error::Usage(format!("{origin}: a query reads; to write its result, use -o FILE instead of COPY or INSERT"))
        })?;
        let plan = parameters.bind(plan, origin)?;
        let frame = context.execute_logical_plan(plan).await.map_err(failed)?;
        let stream = frame.execute_stream().await.map_err(failed)?;
        // CREATE VIEW and SET have no columns to show, and have been executed by now.
        if !stream.schema().fields().is_empty() {
            // A file gets all rows.
            shown = write(stream, format, output, most_rows.filter(|_| output.is_none()), failed).await?;
        }
    }
    Ok(shown)
}

async fn write(
    mut stream: SendableRecordBatchStream,
    format: Format,
    output: Option<&Path>,
    most_rows: Option<usize>,
    failed: impl Fn(DataFusionError) -> Error,
) -> Result<Shown, Error> {
    let mut writer = ResultWriter::create(format, output, stream.schema())?;
    let (mut rows, mut cut) = (0, false);
    while let Some(batch) = stream.next().await {
        let mut batch = batch.map_err(&failed)?;
        if let Some(left) = most_rows.map(|most| most - rows).filter(|left| *left < batch.num_rows()) {
            batch = batch.slice(0, left);
            cut = true;
        }
        rows += batch.num_rows();
        // Where the task ends if nobody waits for it any more: what comes too late is not shown.
        tokio::task::yield_now().await;
        writer.write(&batch)?;
        if cut {
            break;
        }
    }
    tokio::task::yield_now().await;
    writer.finish()?;
    Ok(Shown { rows: Some(rows as u64), cut })
}

/// Rows of a table whose columns have one width: those of a longer result are printed in parts, so that not all of it
/// is kept.
const PAGE: usize = 10_000;

/// Where the rows of a result go.
enum ResultWriter {
    /// A page is kept until the widths of its columns are known.
    Table {
        batches: Vec<RecordBatch>,
        schema: SchemaRef,
        pages: usize,
        out: Out,
    },
    Csv {
        writer: Box<arrow::csv::Writer<Out>>,
        path: PathBuf,
    },
    Json {
        writer: ArrayWriter<Out>,
        path: PathBuf,
    },
    Parquet(Box<ParquetSink>),
}

impl ResultWriter {
    fn create(format: Format, output: Option<&Path>, schema: SchemaRef) -> Result<Self, Error> {
        let path = output.unwrap_or(Path::new("stdout")).to_owned();
        if format == Format::Parquet {
            return match output {
                Some(path) => Ok(Self::Parquet(Box::new(ParquetSink::create(path, &schema, &[])?))),
                None => Err(Error::Usage("--format parquet needs a file: add -o FILE.parquet".into())),
            };
        }
        let out = match output {
            Some(path) => Out::File(Box::new(AtomicFile::create(path).map_err(|e| sink_error(path, &e))?)),
            None => Out::Stdout(io::BufWriter::new(io::stdout())),
        };
        Ok(match format {
            Format::Table => Self::Table { batches: Vec::new(), schema, pages: 0, out },
            Format::Csv => {
                let mut writer = WriterBuilder::new().with_header(true).build(out);
                // A result without rows has a header too.
                let empty = flat(&RecordBatch::new_empty(schema)).map_err(|e| sink_error(&path, &e))?;
                writer.write(&empty).map_err(|e| sink_error(&path, &e))?;
                Self::Csv { writer: Box::new(writer), path }
            }
            Format::Json => Self::Json { writer: ArrayWriter::new(out), path },
            Format::Parquet => unreachable!("returned above"),
        })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        match self {
            Self::Table { batches, pages, out, .. } => {
                batches.push(batch.clone());
                if batches.iter().map(RecordBatch::num_rows).sum::<usize>() >= PAGE {
                    write_page(batches, *pages, out)?;
                    batches.clear();
                    *pages += 1;
                }
            }
            Self::Csv { writer, path } => {
                flat(batch).and_then(|batch| writer.write(&batch)).map_err(|e| sink_error(path, &e))?;
            }
            Self::Json { writer, path } => writer.write(batch).map_err(|e| sink_error(path, &e))?,
            Self::Parquet(sink) => sink.write(batch)?,
        }
        Ok(())
    }

    fn finish(self) -> Result<(), Error> {
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
            Self::Csv { writer, .. } => writer.into_inner().finish(),
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

/// Writes some rows as a table; the first of its pages has the names of the columns.
fn write_page(batches: &[RecordBatch], page: usize, out: &mut Out) -> Result<(), Error> {
    let options = FormatOptions::default().with_display_error(true).with_null("NULL");
    let table = pretty_format_batches_with_options(batches, &options)
        .map_err(|e| Error::sql("the result", &e.into(), None))?
        .to_string();
    // Above the rows are a line, the names and another line.
    let heads = if page == 0 { 0 } else { 2 };
    let rows = table.splitn(heads + 1, '\n').last().unwrap_or_default();
    // A table is for people; CSV, JSON and Parquet have the values as they are.
    writeln!(out, "{}", printable(rows)).map_err(|e| sink_error(Path::new("stdout"), &e))
}

/// The bytes of a result go to stdout, or to a file that appears when it is complete.
enum Out {
    Stdout(io::BufWriter<io::Stdout>),
    File(Box<AtomicFile>),
}

impl Out {
    fn finish(self) -> Result<(), Error> {
        match self {
            Self::Stdout(mut out) => end_if_nobody_reads(out.flush()).map_err(|e| sink_error(Path::new("stdout"), &e)),
            Self::File(file) => file.publish().map(drop).map_err(|e| sink_error(Path::new("the result"), &e)),
        }
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(out) => end_if_nobody_reads(out.write(bytes)),
            Self::File(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(out) => end_if_nobody_reads(out.flush()),
            Self::File(file) => file.flush(),
        }
    }
}

/// Whether the reader of stdout has seen enough.
static NOBODY_READS: AtomicBool = AtomicBool::new(false);

/// Notes that the reader of stdout has seen enough, as `head` does: the error that it is still ends what is under way,
/// temporary files go, and [`nobody_reads`] says that nothing went wrong.
pub(crate) fn end_if_nobody_reads<T>(written: io::Result<T>) -> io::Result<T> {
    if written.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
        NOBODY_READS.store(true, Ordering::Relaxed);
    }
    written
}

/// Whether what ended the program is that nobody reads its output any more, which is no failure.
#[must_use]
pub fn nobody_reads() -> bool {
    NOBODY_READS.load(Ordering::Relaxed)
}

fn sink_error(path: &Path, problem: &dyn std::fmt::Display) -> Error {
    SinkError { path: path.to_owned(), problem: problem.to_string() }.into()
}

/// CSV has no nested values: structs and lists become their text.
fn flat(batch: &RecordBatch) -> Result<RecordBatch, arrow::error::ArrowError> {
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if field.data_type().is_nested() {
            let formatter = arrow::util::display::ArrayFormatter::try_new(column, &FormatOptions::default())?;
            let text = (0..column.len()).map(|row| column.is_valid(row).then(|| formatter.value(row).to_string()));
            columns.push(Arc::new(text.collect::<arrow::array::StringArray>()) as _);
            fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
        } else {
            columns.push(Arc::clone(column));
            fields.push(Arc::clone(field));
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}
