//! Finds the file that a reader failed on.
//!
//! `DataFusion`'s errors do not name the Parquet or Arrow file. After a failed read, the files are read again one by
//! one to find out which is broken and where.

use std::fmt;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use couplet_storage::files;
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use thiserror::Error;

use super::TableFormat;
use super::arrow_lengths;
use super::encrypted::is_encrypted;

/// A broken file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct Broken {
    /// The file, as messages name it.
    pub file: String,
    /// The line, counted from 1, for text files.
    pub line: Option<u64>,
    /// The problem and how to fix it.
    pub problem: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

/// Reads a binary file and returns its problem, if it has one. The readers of text files report problems themselves.
#[must_use]
pub fn problem_of(format: &TableFormat, file: &Path) -> Option<String> {
    let found = match format {
        TableFormat::Parquet => parquet(file),
        TableFormat::Arrow => arrow_ipc(file),
        TableFormat::Csv(_) | TableFormat::Json { .. } | TableFormat::Delta { .. } | TableFormat::Runs { .. } => Ok(()),
    };
    found.err()
}

type Found = Result<(), String>;

fn unreadable(e: impl fmt::Display) -> String {
    e.to_string()
}

fn parquet(path: &Path) -> Found {
    let file = files::open(path).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    let mut start = Vec::new();
    (&file).take(4).read_to_end(&mut start).map_err(unreadable)?;
    if start != *b"PAR1" && start != *b"PARE" {
        let start = String::from_utf8_lossy(&start).into_owned();
        let problem = format!(
            "it is not a Parquet file: it begins with {start:?}; name its format, as in {{ uri = \"…\", format = \
             \"csv\" }}"
        );
        return Err(problem);
    }
    if is_encrypted(&file) {
        return Err(ENCRYPTED.into());
    }
    (&file).rewind().map_err(unreadable)?;
    let broken = |e: &dyn fmt::Display| {
        format!("not a whole Parquet file ({length} bytes): {e}; was it cut off while it was written or copied?")
    };
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| broken(&e))?;
    let groups = reader.metadata().num_row_groups();
    let reader = reader.build().map_err(|e| broken(&e))?;
    let mut rows = 0;
    for batch in reader {
        match batch {
            Ok(batch) => rows += batch.num_rows(),
            Err(e) => return Err(format!("a page after row {rows} cannot be read ({groups} row groups): {e}")),
        }
    }
    Ok(())
}

/// The message for a Parquet file that is encrypted or has encrypted columns.
const ENCRYPTED: &str = "it is an encrypted Parquet file, which couplet cannot read; write it without encryption";

fn arrow_ipc(path: &Path) -> Found {
    arrow_lengths::check(path)?;
    let file = || files::open(path).map(BufReader::new).map_err(unreadable);
    let read = arrow::ipc::reader::FileReader::try_new(file()?, None)
        .and_then(|mut reader| reader.try_for_each(|batch| batch.map(drop)));
    let Err(problem) = read else { return Ok(()) };
    // The IPC stream format has no footer.
    let read = arrow::ipc::reader::StreamReader::try_new(file()?, None)
        .and_then(|mut reader| reader.try_for_each(|batch| batch.map(drop)));
    read.map_err(|_| format!("neither a complete Arrow file nor a complete Arrow stream: {problem}"))
}
