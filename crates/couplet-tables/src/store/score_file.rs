//! Score files: digest and Parquet encoding.

use arrow::array::RecordBatch;
use arrow::compute::{filter_record_batch, is_null};
use bytes::Bytes;
use datafusion::common::{DataFusionError, Result};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::scores::SCHEMA;

/// The number of hexadecimal digits of a digest.
const DIGITS: usize = 32;

/// Starts the digest of a model's score file.
pub(super) fn hasher(model: &str) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new_derive_key("couplet 2026-11-30 scores of a model");
    hasher.update(&(model.len() as u64).to_le_bytes()).update(model.as_bytes());
    hasher
}

/// Returns the digits of a digest that are used in a file's name.
pub(super) fn digits(digest: &blake3::Hash) -> String {
    digest.to_hex()[..DIGITS].to_owned()
}

/// Computes the digest of a score file in memory.
pub(super) fn digest_of(model: &str, file: &[u8]) -> String {
    digits(&hasher(model).update(file).finalize())
}

/// Encodes rows as a Parquet file.
pub(super) fn to_parquet(batches: &[RecordBatch]) -> Result<Vec<u8>> {
    let mut writer = writer()?;
    batches.iter().try_for_each(|batch| writer.write(batch))?;
    Ok(writer.into_inner()?)
}

/// Merges files into one.
pub(super) fn merged(files: Vec<Bytes>) -> Result<Vec<u8>> {
    let mut writer = writer()?;
    for file in files {
        for batch in rows(file)? {
            writer.write(&batch?)?;
        }
    }
    Ok(writer.into_inner()?)
}

/// Removes rows with an error from a file. Returns the new file and its number of rows; `None` if there are none to
/// remove.
pub(super) fn without_errors(file: Bytes) -> Result<Option<(Vec<u8>, u64)>> {
    let (mut writer, mut all, mut kept) = (writer()?, 0, 0);
    for batch in rows(file)? {
        let batch = batch?;
        let Some(errors) = batch.column_by_name("error") else { return Ok(None) };
        let scored = filter_record_batch(&batch, &is_null(errors)?)?;
        all += batch.num_rows() as u64;
        kept += scored.num_rows() as u64;
        writer.write(&scored)?;
    }
    Ok(if kept < all { Some((writer.into_inner()?, kept)) } else { None })
}

fn writer() -> Result<ArrowWriter<Vec<u8>>> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        // All keys differ, so a dictionary is useless.
        .set_column_dictionary_enabled(ColumnPath::from("key"), false)
        .set_statistics_enabled(EnabledStatistics::None)
        .build();
    Ok(ArrowWriter::try_new(Vec::new(), SCHEMA.clone(), Some(properties))?)
}

/// Reads the rows of a file, with the columns of the current version.
fn rows(file: Bytes) -> Result<impl Iterator<Item = Result<RecordBatch>>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)?.build()?;
    Ok(reader.map(|batch| {
        let batch = batch?;
        let columns = SCHEMA.fields().iter().map(|field| {
            let column = batch.column_by_name(field.name());
            let missing = || DataFusionError::Execution(format!("a file of scores has no column {}", field.name()));
            Ok(arrow::compute::cast(column.ok_or_else(missing)?, field.data_type())?)
        });
        Ok(RecordBatch::try_new(SCHEMA.clone(), columns.collect::<Result<_>>()?)?)
    }))
}
