//! Run key: rows are appended at most once under each key, which is stored in the sink.

use std::collections::BTreeMap;

use couplet_storage::place::Place;
use couplet_tables::tables::SourceFile;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{RunOptions, Stage};
use crate::config::{Pipeline, SinkMode};
use crate::error::Error;

/// Maximum length of a key in bytes.
const MAX_BYTES: usize = 200;

/// Parses a key from the command line.
pub(crate) fn parse(text: &str) -> Result<String, String> {
    if text.trim().is_empty() || text.len() > MAX_BYTES || text.chars().any(char::is_control) {
        return Err(format!("expected 1 to {MAX_BYTES} bytes without control characters, such as 2026-11-29"));
    }
    Ok(text.to_owned())
}

/// Rejects `--run-key` and `--again` for a run that does not append.
///
/// # Errors
/// One of these options is given.
pub(super) fn check(pipeline: &Pipeline, only: &[Stage], options: &RunOptions) -> Result<(), Error> {
    let option = match (&options.run_key, options.again) {
        (Some(_), _) => "--run-key",
        (None, true) => "--again",
        (None, false) => return Ok(()),
    };
    let scoring = pipeline.scoring.as_ref().filter(|_| only.is_empty() || only.contains(&Stage::Score));
    let problem = match scoring.map(|scoring| scoring.sink.mode) {
        Some(SinkMode::Append) => return Ok(()),
        Some(SinkMode::Overwrite) => "with sink.mode = \"overwrite\", every run publishes its rows",
        Some(SinkMode::Merge) => "with sink.mode = \"merge\", every run publishes its rows",
        None => "no stage that appends rows is run",
    };
    let path = pipeline.path.display();
    Err(Error::Usage(format!("{option}: {path}: {problem}; leave {option} out")))
}

/// The default key: equal for equal pipeline, query, variables and source files. Rows, model and time are not part of
/// it, as they may differ when a killed run is retried.
pub(super) fn default(
    pipeline: &Pipeline,
    query: &str,
    variables: &BTreeMap<String, String>,
    files: &[SourceFile],
    versions: &[String],
) -> String {
    let tables = pipeline.tables.iter().map(|table| (&table.name, table.location.place.to_string()));
    let files = files.iter().map(|file| {
        // A bucket's `ETag` identifies the content; on disk, a copy with the same modification time counts as the same
        // file.
        let is_remote =
            couplet_storage::place::table_place(&file.url).is_ok_and(|place| matches!(place, Place::Remote(_)));
        let etag = file.etag.as_ref().filter(|_| is_remote).cloned();
        let modified = if etag.is_none() { file.modified.timestamp_micros() } else { 0 };
        json!([file.url, file.bytes, etag, modified])
    });
    let parts =
        json!([pipeline.name, query, variables, tables.collect::<Vec<_>>(), files.collect::<Vec<_>>(), versions,]);
    let digest = Sha256::digest(parts.to_string());
    digest.iter().take(16).fold(String::new(), |key, byte| format!("{key}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_short_single_lines() {
        assert_eq!(parse("2026-11-29").as_deref(), Ok("2026-11-29"));
        for wrong in ["", " ", "a\nb", &"x".repeat(201)] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
