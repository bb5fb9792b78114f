//! Criterion benchmarks, one module per stage: `cargo bench`, or `cargo bench -- forward` for one of them.
//!
//! Comparisons of whole runs with other programs are in `benches/peers/`.

#![expect(clippy::disallowed_methods, reason = "the files are those of the repository")]

mod forward;
mod ops;
mod pack;
mod pipeline;
mod scorer;
mod statistics;
mod tokenize;

use std::path::{Path, PathBuf};

use arrow::array::{AsArray, StringViewArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use criterion::{criterion_group, criterion_main};
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// Returns the folder of the bundled model.
fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/quickstart/model")
}

/// Reads the two texts of each bundled pair.
fn pairs() -> [StringViewArray; 2] {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/quickstart/pairs.parquet");
    let file = std::fs::File::open(path).expect("the pairs are in the repository");
    let mut batches = ParquetRecordBatchReaderBuilder::try_new(file)
        .and_then(ParquetRecordBatchReaderBuilder::build)
        .expect("a Parquet file");
    let batch = batches.next().expect("the pairs are one batch").expect("whole pages");
    ["sentence1", "sentence2"].map(|name| {
        let column = batch.column_by_name(name).expect("a column of texts");
        cast(column, &DataType::Utf8View).expect("texts").as_string_view().clone()
    })
}

criterion_group! {
    name = benches;
    config = criterion::Criterion::default().sample_size(20);
    targets = tokenize::bench, pack::bench, ops::bench, forward::bench, scorer::bench, pipeline::bench, statistics::bench
}
criterion_main!(benches);
