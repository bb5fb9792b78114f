//! Metadata files of a run: `_STARTED` when it begins, `_SUCCESS` when it is complete.

use arrow::datatypes::{Schema, SchemaRef};
use couplet_storage::files::FolderKind;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::sink::Origin;

/// File name of the manifest. Spark, pyarrow and others skip names that begin with `_`.
pub(super) const SUCCESS: &str = "_SUCCESS";

/// File name of the start marker, which identifies the pipeline of a dead run.
pub(super) const STARTED: &str = "_STARTED";

/// The folder of a run.
pub(super) const RUN_FOLDER: FolderKind =
    FolderKind { name: "a run", marker: STARTED, has: |name| name == STARTED || name == SUCCESS || is_part(name) };

/// Returns the name of a run's file, numbered in row order.
pub(super) fn part_name(number: usize) -> String {
    format!("part-{number:05}.parquet")
}

/// Returns true for the names of a run's data files.
pub(super) fn is_part(name: &str) -> bool {
    let number = name.strip_prefix("part-").and_then(|rest| rest.strip_suffix(".parquet"));
    number.is_some_and(|number| number.parse().is_ok_and(|number| part_name(number) == name))
}

/// Version of the metadata format that this version writes and reads.
const FORMAT: u32 = 1;

/// Prefix of run folders; readers of partitioned tables derive a column `run` from it.
const PREFIX: &str = "run=";

/// Manifest of a complete run, stored in `_SUCCESS`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// The run's id.
    pub run_id: String,
    /// The run's sequence number, from 1; greater than that of every run that was complete when it began.
    pub sequence: u64,
    /// The pipeline's name.
    pub pipeline: String,
    /// The id of the pipeline's store.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub store: String,
    /// The fingerprint of the model.
    pub model: String,
    /// The number of rows of all files.
    pub rows: u64,
    /// The files in row order.
    pub files: Vec<RunFile>,
    /// The columns, with types for display; the files have the exact types.
    pub schema: Vec<RunColumn>,
    /// The key under which the rows were appended. No other run of the pipeline appends rows under it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Completion time by the run's own clock, as RFC 3339. Informational: the sequence number defines the order.
    pub created_at: String,
}

/// A file of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFile {
    /// The file name in the run's folder.
    pub name: String,
    /// The number of rows.
    pub rows: u64,
    /// The size in bytes.
    pub bytes: u64,
    /// The server's `ETag`, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

/// A column of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunColumn {
    /// The column name.
    pub name: String,
    /// The Arrow type, for display.
    pub r#type: String,
    /// True if values may be NULL.
    pub nullable: bool,
}

impl Manifest {
    pub(super) fn new(run: &super::Run, sequence: u64, files: Vec<RunFile>, schema: &SchemaRef) -> Self {
        let Origin { run: run_id, pipeline, store, key } = run.origin.clone();
        Self {
            format: FORMAT,
            run_id,
            sequence,
            pipeline,
            store,
            model: run.model.clone(),
            rows: files.iter().map(|file| file.rows).sum(),
            files,
            schema: columns(schema),
            key,
            created_at: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        }
    }

    /// Returns the name of the run's folder within the sink.
    #[must_use]
    pub fn folder(&self) -> String {
        folder_name(self.sequence, &self.run_id)
    }

    /// Returns the paths of the run's files on an object store, for the sink at `root`.
    #[must_use]
    pub fn paths(&self, root: &Path) -> Vec<Path> {
        let folder = root.clone().join(self.folder());
        self.files.iter().map(|file| folder.clone().join(file.name.as_str())).collect()
    }

    /// Returns the total size of the files in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        // The manifest may have been written by another program, so the sum must not overflow.
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }
}

fn columns(schema: &Schema) -> Vec<RunColumn> {
    let column = |field: &arrow::datatypes::FieldRef| RunColumn {
        name: field.name().clone(),
        r#type: field.data_type().to_string(),
        nullable: field.is_nullable(),
    };
    schema.fields().iter().map(column).collect()
}

/// Start marker of a run, stored in `_STARTED`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Started {
    format: u32,
    run_id: String,
    pipeline: String,
    #[serde(default)]
    store: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    at: String,
}

impl Started {
    pub(super) fn new(origin: &Origin) -> Self {
        let Origin { run, pipeline, store, key } = origin.clone();
        Self {
            format: FORMAT,
            run_id: run,
            pipeline,
            store,
            key,
            at: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        }
    }

    /// Returns true if this run must not complete once `next` has begun: `next` holds the lock of the same store, so
    /// that this run has lost it, or `next` appends rows of the same key.
    pub(super) fn is_fenced_by(&self, next: &Origin) -> bool {
        let same_store = self.store == next.store || self.store.is_empty();
        self.pipeline == next.pipeline && (same_store || self.key.is_some() && self.key == next.key)
    }
}

/// Content of `_SUCCESS` for a dead run that is removed. The run can never complete then, even if one of its writes
/// arrives late. The file stays, as nobody knows when that might be.
pub(super) const REMOVED: &str = "{\"format\": 1, \"removed\": true}\n";

/// Content of `_SUCCESS`.
pub(super) enum Success {
    Complete(Box<Manifest>),
    Removed,
}

impl Success {
    /// Parses a `_SUCCESS` file; the error is the reason why it cannot be parsed.
    pub(super) fn from_json(json: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
            #[serde(default)]
            removed: bool,
        }
        let head: Head = serde_json::from_slice(json).map_err(|e| format!("it is not a manifest of couplet ({e})"))?;
        if head.format > FORMAT {
            return Err(format!(
                "it is of format {}, and this version of couplet knows formats up to {FORMAT}; use a newer one",
                head.format
            ));
        }
        if head.removed {
            return Ok(Self::Removed);
        }
        let manifest: Manifest =
            serde_json::from_slice(json).map_err(|e| format!("it is not a manifest of couplet ({e})"))?;
        if let Some(file) = manifest.files.iter().find(|file| file.name.contains(['/', '\\'])) {
            return Err(format!("it names a file outside of its folder, {:?}", file.name));
        }
        Ok(Self::Complete(Box::new(manifest)))
    }
}

/// Serializes a metadata file.
pub(super) fn to_json(value: &impl Serialize) -> Vec<u8> {
    let mut json = serde_json::to_vec_pretty(value).expect("texts and numbers can be written as JSON");
    json.push(b'\n');
    json
}

/// Returns the name of a run's folder.
pub(super) fn folder_name(sequence: u64, run_id: &str) -> String {
    format!("{PREFIX}{sequence:06}-{run_id}")
}

/// Parses the sequence number from the name of a run's folder; `None` for other names.
pub(super) fn sequence_of(folder: &str) -> Option<u64> {
    let (digits, id) = folder.strip_prefix(PREFIX)?.split_once('-')?;
    let is_number = digits.len() >= 6 && digits.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && !id.is_empty()).then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_folders_sort_as_their_sequence_and_are_read_back() {
        assert_eq!(folder_name(12, "a-b"), "run=000012-a-b");
        assert_eq!(sequence_of("run=000012-a-b"), Some(12));
        assert_eq!(sequence_of(&folder_name(12_345_678, "x")), Some(12_345_678));
        for other in ["run=12-a", "run=000012", "run=000012-", "run=00x012-a", "dt=000012-a", ".run=000012-a.tmp"] {
            assert_eq!(sequence_of(other), None, "{other}");
        }
    }

    #[test]
    fn texts_of_other_programs_and_of_newer_versions_are_told_apart() {
        let problem = |json: &str| Success::from_json(json.as_bytes()).err().unwrap_or_default();
        assert!(problem("").starts_with("it is not a manifest of couplet"));
        assert!(problem("{\"format\": 1}").contains("missing field `run_id`"));
        assert!(problem("{\"format\": 2, \"parts\": []}").ends_with("formats up to 1; use a newer one"));
        assert!(matches!(Success::from_json(REMOVED.as_bytes()), Ok(Success::Removed)));
    }
}
