//! Which reader of `DataFusion` a format has, and which names its files have.

use std::sync::Arc;

use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::arrow::ArrowFormat;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::file_format::parquet::ParquetFormat;

use crate::config::TableFormat;

/// The reader of a format that is not text. What the log of a Delta table or the manifest of a run names is Parquet too.
pub(super) fn file_format(format: &TableFormat) -> Arc<dyn FileFormat> {
    match format {
        TableFormat::Arrow => Arc::new(ArrowFormat),
        _ => Arc::new(parquet()),
    }
}

/// The unit of timestamps that Spark writes as INT96. In nanoseconds, the usual unit, those outside of 1677 to 2262 would
/// be other times.
pub(crate) const INT96: &str = "us";

/// Parquet as every table reads it.
pub(crate) fn parquet() -> ParquetFormat {
    ParquetFormat::default().with_coerce_int96(Some(INT96.to_owned()))
}

/// How a file is compressed, by its name.
pub(super) fn compression_of(name: &str) -> FileCompressionType {
    match split(name) {
        (_, "gz") => FileCompressionType::GZIP,
        (_, "zst") => FileCompressionType::ZSTD,
        _ => FileCompressionType::UNCOMPRESSED,
    }
}

/// The endings of files of a format, in lower case, without that of the compression.
pub(super) fn endings(format: &TableFormat) -> &'static [&'static str] {
    match format {
        TableFormat::Parquet | TableFormat::Delta { .. } | TableFormat::Runs { .. } => &["parquet"],
        TableFormat::Csv(options) if options.delimiter == b'\t' => &["tsv", "tab"],
        TableFormat::Csv(_) => &["csv"],
        TableFormat::Json { .. } => &["json", "jsonl", "ndjson"],
        TableFormat::Arrow => &["arrow", "feather", "ipc"],
    }
}

/// The endings of files that are read where a folder has none with those of the format.
pub(super) fn other_endings(format: &TableFormat) -> &'static [&'static str] {
    match format {
        // Tabs often stand in files that are called CSV.
        TableFormat::Csv(options) if options.delimiter == b'\t' => &["csv"],
        _ => &[],
    }
}

/// The format that a file's ending tells, as `format` names it.
pub(crate) fn format_of_name(name: &str) -> Option<&'static str> {
    Some(match ending(name).as_str() {
        "parquet" => "parquet",
        "csv" => "csv",
        "tsv" | "tab" => "tsv",
        "json" | "jsonl" | "ndjson" => "json",
        "arrow" | "feather" | "ipc" => "arrow",
        _ => return None,
    })
}

/// The ending of a name in lower case, without that of the compression; empty if it has none.
pub(super) fn ending(name: &str) -> String {
    let (name, _) = split(name);
    name.rsplit_once('.').map_or_else(String::new, |(_, ending)| ending.to_lowercase())
}

/// The name without the ending of its compression, and that ending in lower case.
fn split(name: &str) -> (&str, &'static str) {
    let ending = |ending: &'static str| {
        let (stem, found) = name.rsplit_once('.')?;
        found.eq_ignore_ascii_case(ending).then_some((stem, ending))
    };
    ending("gz").or_else(|| ending("zst")).unwrap_or((name, ""))
}
