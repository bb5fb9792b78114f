//! Finds the place in a file that a reader stumbled over.
//!
//! DataFusion's errors name a line at best, and of a piece of a file. When a read has failed, the files are
//! read once more here, one by one, to say which is broken and where.

use std::collections::HashMap;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::Path;

use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::arrow_lengths;
use super::encrypted::is_encrypted;
use crate::config::{Compression, CsvOptions, TableFormat};
use crate::files;

/// A broken file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The file, as messages name it.
    pub file: String,
    /// The line, counted from 1, where lines make sense.
    pub line: Option<u64>,
    /// What is wrong there, and how to mend it.
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

/// Reads a file and says what is wrong with it, with the line where lines make sense.
#[must_use]
pub fn problem_of(format: &TableFormat, file: &Path) -> Option<(Option<u64>, String)> {
    let found = match format {
        TableFormat::Parquet => parquet(file),
        TableFormat::Csv(options) if options.compression == Compression::None => delimited(file, options),
        TableFormat::Json { compression: Compression::None } => json_lines(file),
        TableFormat::Arrow => arrow_ipc(file),
        // What the decompressor stumbled over has no line.
        TableFormat::Csv(_) | TableFormat::Json { .. } | TableFormat::Delta { .. } | TableFormat::Runs { .. } => Ok(()),
    };
    found.err()
}

type Found = Result<(), (Option<u64>, String)>;

fn without_line(e: impl fmt::Display) -> (Option<u64>, String) {
    (None, e.to_string())
}

fn parquet(path: &Path) -> Found {
    let file = files::open(path).map_err(without_line)?;
    let length = file.metadata().map_err(without_line)?.len();
    let mut start = Vec::new();
    (&file).take(4).read_to_end(&mut start).map_err(without_line)?;
    if start != *b"PAR1" && start != *b"PARE" {
        let start = String::from_utf8_lossy(&start).into_owned();
        let problem = format!(
            "it is no Parquet file, as it begins with {start:?}; write it with its format, as in {{ uri = \"…\", format = \
             \"csv\" }}"
        );
        return Err((None, problem));
    }
    if is_encrypted(&file) {
        return Err((None, ENCRYPTED.into()));
    }
    (&file).rewind().map_err(without_line)?;
    let broken = |e: &dyn fmt::Display| {
        (
            None,
            format!("not a whole Parquet file ({length} bytes): {e}; was it cut off while it was written or copied?"),
        )
    };
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| broken(&e))?;
    let groups = reader.metadata().num_row_groups();
    let reader = reader.build().map_err(|e| broken(&e))?;
    let mut rows = 0;
    for batch in reader {
        match batch {
            Ok(batch) => rows += batch.num_rows(),
            Err(e) => return Err((None, format!("a page after row {rows} cannot be read ({groups} row groups): {e}"))),
        }
    }
    Ok(())
}

fn delimited(path: &Path, options: &CsvOptions) -> Found {
    let mut reader = csv::ReaderBuilder::new();
    reader.has_headers(false).flexible(true).delimiter(options.delimiter);
    match options.quote {
        Some(quote) => reader.quote(quote),
        None => reader.quoting(false),
    };
    let mut reader = reader.from_reader(files::open(path).map_err(without_line)?);
    let mut record = csv::ByteRecord::new();
    let mut first = None;
    while reader.read_byte_record(&mut record).map_err(without_line)? {
        let line = record.position().map(csv::Position::line);
        if let Some(field) = record.iter().position(|field| std::str::from_utf8(field).is_err()) {
            let text = String::from_utf8_lossy(&record[field]).chars().take(60).collect::<String>();
            return Err((
                line,
                format!("field {} is not valid UTF-8: {text:?}; convert the file, for example with iconv", field + 1),
            ));
        }
        if first.is_none() && options.header {
            no_name_twice(&record).map_err(|problem| (line, problem))?;
        }
        let width = *first.get_or_insert(record.len());
        if record.len() != width {
            let hint = match options.quote {
                Some(quote) => format!(
                    "is a quotation mark ({}) unbalanced? {{ uri = \"…\", quote = false }} takes them as they are",
                    quote as char
                ),
                None => "is there a delimiter within a field?".to_owned(),
            };
            let s = if record.len() == 1 { "" } else { "s" };
            return Err((line, format!("{} field{s} where the first line has {width}; {hint}", record.len())));
        }
    }
    Ok(())
}

/// An encrypted file, or one with encrypted columns.
const ENCRYPTED: &str = "it is an encrypted Parquet file, which couplet cannot read; write it without encryption";

/// What `--format json` writes, among others.
const AN_ARRAY: &str = "it is one JSON array, and what is read are JSON Lines, an object a line: `jq -c '.[]' FILE > \
                        FILE.jsonl` makes them of it, and `couplet query … -o FILE.jsonl` writes them";

/// Refuses a head in which two columns have one name, which the reader takes for a head with fewer columns.
fn no_name_twice(head: &csv::ByteRecord) -> Result<(), String> {
    let mut places = HashMap::new();
    for (place, name) in head.iter().enumerate() {
        if let Some(first) = places.insert(name, place) {
            return Err(format!(
                "fields {} and {} of the first line are both named \"{}\"; rename one, or read the file with {{ uri = \"…\", \
                 header = false }}, which names the columns column_1, column_2, …",
                first + 1,
                place + 1,
                String::from_utf8_lossy(name)
            ));
        }
    }
    Ok(())
}

fn json_lines(path: &Path) -> Found {
    let mut reader = BufReader::new(files::open(path).map_err(without_line)?);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).map_err(without_line)? == 0 {
            break;
        }
        let Ok(text) = std::str::from_utf8(&bytes) else {
            return Err((Some(line), "not valid UTF-8; convert the file, for example with iconv".into()));
        };
        match serde_json::from_str::<serde_json::Value>(text.trim()) {
            _ if text.trim().is_empty() => {}
            Ok(value) if value.is_object() => {}
            _ if line == 1 && text.trim_start().starts_with('[') => return Err((None, AN_ARRAY.into())),
            Ok(_) => {
                return Err((
                    Some(line),
                    "expected one JSON object a line, such as {\"id\": 1, \"sentence1\": \"…\"}".into(),
                ));
            }
            Err(e) if e.is_eof() => {
                return Err((Some(line), "the line ends within a JSON object; a line must be a whole one".into()));
            }
            Err(e) => {
                // The line that serde_json counts is that of the text it was given, which is always 1.
                let problem = e.to_string();
                let problem = problem.split(" at line ").next().unwrap_or_default();
                return Err((Some(line), format!("not a JSON object: {problem} at column {}", e.column())));
            }
        }
    }
    Ok(())
}

fn arrow_ipc(path: &Path) -> Found {
    arrow_lengths::check(path).map_err(|problem| (None, problem))?;
    let file = || files::open(path).map(BufReader::new).map_err(without_line);
    let read = arrow::ipc::reader::FileReader::try_new(file()?, None)
        .and_then(|mut reader| reader.try_for_each(|batch| batch.map(drop)));
    let Err(problem) = read else { return Ok(()) };
    // The other form of IPC has no footer.
    let read = arrow::ipc::reader::StreamReader::try_new(file()?, None)
        .and_then(|mut reader| reader.try_for_each(|batch| batch.map(drop)));
    read.map_err(|_| (None, format!("neither a whole Arrow file nor a whole Arrow stream: {problem}")))
}
