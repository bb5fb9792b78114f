//! Files become SQL tables: Parquet, delimited text, JSON lines and Arrow IPC; files, globs and folders.

pub mod diagnose;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::{Column, DataFusionError, TableReference};
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::arrow::ArrowFormat;
use datafusion::datasource::file_format::csv::CsvFormat;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::file_format::json::JsonFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::logical_expr::Expr;
use datafusion::prelude::{SessionContext, lit, ltrim};
use futures::TryStreamExt;
use thiserror::Error;

use crate::config::{Compression, CsvOptions, Table, TableFormat};

/// Rows that the types of a text file's columns are told by.
const ROWS_TO_INFER_FROM: usize = 100_000;

/// A byte that valid UTF-8 never contains: the quotation mark of files in which quotation marks mean nothing.
const NO_QUOTE: u8 = 0xFF;

const BYTE_ORDER_MARK: &str = "\u{feff}";

/// A table that cannot be read.
#[derive(Debug, Error)]
#[error("table `{table}`: {problem}")]
pub struct TableError {
    /// The table's name in SQL.
    pub table: String,
    /// What is wrong, with the file.
    pub problem: String,
}

/// Gives the session a table.
///
/// # Errors
/// Files that are missing, or that are not what the format says.
pub async fn register(context: &SessionContext, table: &Table) -> Result<(), TableError> {
    let error = |problem: String| TableError { table: table.name.clone(), problem };
    let files = files(context, table).await.map_err(error)?;
    let unreadable = |e: DataFusionError| {
        error(match diagnose::first_broken(&table.format, &files) {
            Some(broken) => broken.to_string(),
            None => format!("{}: {}", table.location, e.strip_backtrace()),
        })
    };
    try_register(context, table, &files).await.map_err(unreadable)
}

async fn try_register(context: &SessionContext, table: &Table, files: &[PathBuf]) -> Result<(), DataFusionError> {
    let url = url(table)?;
    let state = context.state();
    let mut options = ListingOptions::new(file_format(&table.format)).with_file_extension(extension(table));
    let partitions = if table.partitions.is_empty() && url.is_collection() {
        options.infer_partitions(&state, &url).await?
    } else {
        table.partitions.clone()
    };
    let partitions: Vec<_> = partitions.into_iter().map(|name| (name, DataType::Utf8)).collect();
    options = options.with_table_partition_cols(partitions.clone());
    if !table.partitions.is_empty() {
        options.validate_partitions(&state, &url).await?;
    }
    let schema = options.infer_schema(&state, &url).await?;
    let marked =
        matches!(table.format, TableFormat::Csv(_)) && files.first().is_some_and(|file| has_byte_order_mark(file));
    let schema = if marked { without_byte_order_mark(&schema) } else { schema };
    let config = ListingTableConfig::new(url).with_listing_options(options).with_schema(Arc::clone(&schema));
    let mut provider: Arc<dyn TableProvider> = Arc::new(ListingTable::try_new(config)?);
    match &table.format {
        // Without a header the mark is part of the first value.
        TableFormat::Csv(CsvOptions { header: false, .. }) if marked && schema.field(0).data_type().is_string() => {
            let columns =
                schema.fields().iter().map(|field| field.name()).chain(partitions.iter().map(|(name, _)| name));
            let columns = columns.enumerate().map(|(i, name)| {
                let column = Expr::Column(Column::from_name(name));
                if i == 0 { ltrim(vec![column, lit(BYTE_ORDER_MARK)]).alias(name) } else { column }
            });
            provider = context.read_table(provider)?.select(columns.collect::<Vec<_>>())?.into_view();
        }
        _ => {}
    }
    register_under_its_name(context, &table.name, &provider)
}

/// Registers the table as it is written, and in lower case, which is what SQL makes of a name without quotation marks.
fn register_under_its_name(
    context: &SessionContext,
    name: &str,
    provider: &Arc<dyn TableProvider>,
) -> Result<(), DataFusionError> {
    let lower = name.to_ascii_lowercase();
    for name in [name, &lower].into_iter().take(if lower == name { 1 } else { 2 }) {
        context.register_table(TableReference::bare(name), Arc::clone(provider))?;
    }
    Ok(())
}

fn url(table: &Table) -> Result<ListingTableUrl, DataFusionError> {
    let path = std::path::absolute(&table.location.path)?;
    let mut text = path.to_string_lossy().into_owned();
    if path.is_dir() && !text.ends_with('/') {
        text.push('/');
    }
    ListingTableUrl::parse(text)
}

/// Reads the files of the tables once more, to find the one that made a query fail.
pub async fn first_broken(context: &SessionContext, tables: &[Table]) -> Option<diagnose::Broken> {
    for table in tables {
        let files = files(context, table).await.ok()?;
        let format = table.format.clone();
        let search = tokio::task::spawn_blocking(move || diagnose::first_broken(&format, &files));
        if let Ok(Some(broken)) = search.await {
            return Some(broken);
        }
    }
    None
}

/// The files of a table, in the order in which they are read.
async fn files(context: &SessionContext, table: &Table) -> Result<Vec<PathBuf>, String> {
    let path = &table.location.path;
    let describe = |e: DataFusionError| format!("{}: {}", table.location, e.strip_backtrace());
    let url = url(table).map_err(describe)?;
    if url.get_glob().is_none() && !path.exists() {
        return Err(format!("{} does not exist{}", path.display(), nearest_file(path)));
    }
    if let Some(problem) = url.get_glob().as_ref().and_then(|_| pattern_for_folders(path)) {
        return Err(problem);
    }
    let store = context.runtime_env().object_store(&url).map_err(describe)?;
    let state = context.state();
    let extension = extension(table);
    let listed = url.list_all_files(&state, store.as_ref(), &extension).await.map_err(describe)?;
    let listed: Vec<(PathBuf, u64)> = listed
        .map_ok(|meta| (Path::new("/").join(meta.location.as_ref()), meta.size))
        .try_collect()
        .await
        .map_err(describe)?;
    // DataFusion passes over such files in silence; text files without a line are whole.
    let is_binary = matches!(table.format, TableFormat::Parquet | TableFormat::Arrow);
    if let Some((file, _)) = listed.iter().find(|(_, bytes)| is_binary && *bytes == 0) {
        return Err(format!("{} is empty; was it cut off while it was written or copied?", file.display()));
    }
    let mut files: Vec<PathBuf> = listed.into_iter().map(|(file, _)| file).collect();
    if files.is_empty() {
        return Err(match url.get_glob() {
            Some(_) => format!("no file matches {}", path.display()),
            None => format!("folder {} has no *{extension} file", path.display()),
        });
    }
    files.sort();
    Ok(files)
}

/// The ending that files in a folder must have; a file or a glob says itself which files are meant.
fn extension(table: &Table) -> String {
    if !table.location.path.is_dir() {
        return String::new();
    }
    let compressed = |extension: &str, compression: &Compression| match compression {
        Compression::None => extension.to_owned(),
        Compression::Gzip => format!("{extension}.gz"),
        Compression::Zstd => format!("{extension}.zst"),
    };
    match &table.format {
        TableFormat::Parquet => ".parquet".into(),
        TableFormat::Csv(options) => {
            compressed(if options.delimiter == b'\t' { ".tsv" } else { ".csv" }, &options.compression)
        }
        TableFormat::Json { compression } => compressed("json", compression),
        TableFormat::Arrow => ".arrow".into(),
    }
}

/// Why a glob cannot be read that has a pattern for folders, which DataFusion matches never or now and then.
fn pattern_for_folders(glob: &Path) -> Option<String> {
    let folder = glob
        .parent()?
        .ancestors()
        .filter(|folder| folder.file_name().is_some_and(|name| name.to_string_lossy().contains(['*', '?', '['])));
    let folder = folder.last()?;
    let (name, above) = (Path::new(folder.file_name()?).display(), folder.parent()?.display());
    Some(format!(
        "{}: only the name of a file can be a pattern, and `{name}` stands for folders; name the folder {above}/ \
         instead, whose folders of the form key=value are read as columns to filter by",
        glob.display()
    ))
}

/// " (did you mean …?)" where the folder has a file with nearly that name.
fn nearest_file(path: &Path) -> String {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return String::new() };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let Ok(entries) = parent.read_dir() else {
        return format!(", nor does its folder {}", parent.display());
    };
    let name = name.to_string_lossy();
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .map(|other| (strsim::jaro_winkler(&name, &other), other))
        .filter(|(similarity, _)| *similarity > 0.85)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or_else(String::new, |(_, other)| format!("; did you mean {}?", path.with_file_name(other).display()))
}

fn file_format(format: &TableFormat) -> Arc<dyn FileFormat> {
    match format {
        TableFormat::Parquet => Arc::new(ParquetFormat::default()),
        TableFormat::Csv(options) => Arc::new(
            CsvFormat::default()
                .with_has_header(options.header)
                .with_delimiter(options.delimiter)
                .with_quote(options.quote.unwrap_or(NO_QUOTE))
                // A line break between quotation marks belongs to the value; such files cannot be read in pieces.
                .with_newlines_in_values(options.quote.is_some())
                .with_null_regex(options.null.as_ref().map(|null| format!("^({})?$", regex::escape(null))))
                .with_schema_infer_max_rec(ROWS_TO_INFER_FROM)
                .with_file_compression_type(file_compression(options.compression)),
        ),
        TableFormat::Json { compression } => Arc::new(
            JsonFormat::default()
                .with_schema_infer_max_rec(ROWS_TO_INFER_FROM)
                .with_file_compression_type(file_compression(*compression)),
        ),
        TableFormat::Arrow => Arc::new(ArrowFormat),
    }
}

fn file_compression(compression: Compression) -> FileCompressionType {
    match compression {
        Compression::None => FileCompressionType::UNCOMPRESSED,
        Compression::Gzip => FileCompressionType::GZIP,
        Compression::Zstd => FileCompressionType::ZSTD,
    }
}

fn has_byte_order_mark(file: &Path) -> bool {
    let mut start = [0; 3];
    File::open(file).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == BYTE_ORDER_MARK.as_bytes()
}

fn without_byte_order_mark(schema: &SchemaRef) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| {
        let name = field.name().strip_prefix(BYTE_ORDER_MARK).unwrap_or(field.name());
        Field::clone(field).with_name(name)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}
