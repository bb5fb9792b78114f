//! The `DataFusion` reader and the file extensions of each format.

use std::sync::Arc;

use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::arrow::ArrowFormat;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::file_format::parquet::ParquetFormat;

use super::TableFormat;

/// Returns the reader of a binary format. The files of Delta tables and of runs are Parquet too.
pub(super) fn file_format(format: &TableFormat) -> Arc<dyn FileFormat> {
    match format {
        TableFormat::Arrow => Arc::new(ArrowFormat),
        _ => Arc::new(parquet()),
    }
}

/// The unit of timestamps that Spark writes as INT96. In nanoseconds, the usual unit, timestamps outside the years 1677
/// to 2262 would overflow to other times.
pub const INT96: &str = "us";

/// Returns the Parquet reader with the settings that all tables share.
pub(crate) fn parquet() -> ParquetFormat {
    ParquetFormat::default().with_coerce_int96(Some(INT96.to_owned()))
}

/// Returns the compression of a file, from its name.
pub(super) fn compression_of(name: &str) -> FileCompressionType {
    match split(name) {
        (_, "gz") => FileCompressionType::GZIP,
        (_, "zst") => FileCompressionType::ZSTD,
        _ => FileCompressionType::UNCOMPRESSED,
    }
}

/// Returns the file extensions of a format, in lower case and without the compression extension.
pub(super) fn endings(format: &TableFormat) -> &'static [&'static str] {
    match format {
        TableFormat::Parquet | TableFormat::Delta { .. } | TableFormat::Runs { .. } => &["parquet"],
        TableFormat::Csv(options) if options.delimiter == b'\t' => &["tsv", "tab"],
        TableFormat::Csv(_) => &["csv"],
        TableFormat::Json { .. } => &["json", "jsonl", "ndjson"],
        TableFormat::Arrow => &["arrow", "feather", "ipc"],
    }
}

/// Returns the extensions of files that are read if a folder has none with the format's own extensions.
pub(super) fn other_endings(format: &TableFormat) -> &'static [&'static str] {
    match format {
        // Files with tabs are often named `.csv`.
        TableFormat::Csv(options) if options.delimiter == b'\t' => &["csv"],
        _ => &[],
    }
}

/// Returns the format that a file's extension implies, as the `format` option names it.
#[must_use]
pub fn format_of_name(name: &str) -> Option<&'static str> {
    Some(match ending(name).as_str() {
        "parquet" => "parquet",
        "csv" => "csv",
        "tsv" | "tab" => "tsv",
        "json" | "jsonl" | "ndjson" => "json",
        "arrow" | "feather" | "ipc" => "arrow",
        _ => return None,
    })
}

/// Returns the extension of a name in lower case, without the compression extension; empty if it has none.
pub(super) fn ending(name: &str) -> String {
    let (name, _) = split(name);
    name.rsplit_once('.').map_or_else(String::new, |(_, ending)| ending.to_lowercase())
}

/// Splits off the compression extension, which is returned in lower case.
fn split(name: &str) -> (&str, &'static str) {
    let ending = |ending: &'static str| {
        let (stem, found) = name.rsplit_once('.')?;
        found.eq_ignore_ascii_case(ending).then_some((stem, ending))
    };
    ending("gz").or_else(|| ending("zst")).unwrap_or((name, ""))
}
