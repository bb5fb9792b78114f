//! How DataFusion is told to read a format, and which files of a folder have it.

use std::sync::Arc;

use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::arrow::ArrowFormat;
use datafusion::datasource::file_format::csv::CsvFormat;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::file_format::json::JsonFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;

use crate::config::{Compression, CsvOptions, TableFormat};

/// Rows that the types of a text file's columns are told by.
pub(super) const ROWS_TO_INFER_FROM: usize = 100_000;

/// A byte that valid UTF-8 never contains: the quotation mark of files in which quotation marks mean nothing.
pub(super) const NO_QUOTE: u8 = 0xFF;

/// The format with its options.
pub(super) fn file_format(format: &TableFormat) -> Arc<dyn FileFormat> {
    match format {
        // What the log of a Delta table or the manifest of a run names is Parquet too.
        TableFormat::Parquet | TableFormat::Delta { .. } | TableFormat::Runs { .. } => Arc::new(parquet()),
        TableFormat::Csv(options) => Arc::new(
            CsvFormat::default()
                .with_has_header(options.header)
                .with_delimiter(options.delimiter)
                .with_quote(options.quote.unwrap_or(NO_QUOTE))
                // A line break between quotation marks belongs to the value; such files cannot be read in pieces.
                .with_newlines_in_values(options.quote.is_some())
                .with_null_regex(null_pattern(options))
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

/// The unit of timestamps that Spark writes as INT96. In nanoseconds, the usual unit, those outside of 1677 to 2262 would
/// be other times.
pub(crate) const INT96: &str = "us";

/// Parquet as every table reads it.
pub(crate) fn parquet() -> ParquetFormat {
    ParquetFormat::default().with_coerce_int96(Some(INT96.to_owned()))
}

/// What a field looks like that means NULL, if not the empty one alone does.
pub(super) fn null_pattern(options: &CsvOptions) -> Option<String> {
    options.null.as_ref().map(|null| format!("^({})?$", regex::escape(null)))
}

pub(super) fn file_compression(compression: Compression) -> FileCompressionType {
    match compression {
        Compression::None => FileCompressionType::UNCOMPRESSED,
        Compression::Gzip => FileCompressionType::GZIP,
        Compression::Zstd => FileCompressionType::ZSTD,
    }
}

/// The ending that files in a folder must have.
pub(super) fn extension(format: &TableFormat) -> String {
    let compressed = |extension: &str, compression: &Compression| match compression {
        Compression::None => extension.to_owned(),
        Compression::Gzip => format!("{extension}.gz"),
        Compression::Zstd => format!("{extension}.zst"),
    };
    match format {
        TableFormat::Parquet | TableFormat::Delta { .. } | TableFormat::Runs { .. } => ".parquet".into(),
        TableFormat::Csv(options) => {
            compressed(if options.delimiter == b'\t' { ".tsv" } else { ".csv" }, &options.compression)
        }
        TableFormat::Json { compression } => compressed("json", compression),
        TableFormat::Arrow => ".arrow".into(),
    }
}
