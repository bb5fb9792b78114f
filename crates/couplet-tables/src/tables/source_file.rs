//! Source files of a run, and detection of changes to them.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// A file that a run read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// The URL of the file.
    pub url: String,
    /// The size in bytes.
    pub bytes: u64,
    /// The `ETag`, if the store provides one.
    pub etag: Option<String>,
    /// Time of the last modification.
    pub modified: DateTime<Utc>,
}

impl SourceFile {
    /// Describes the first file that was added, removed or changed.
    #[must_use]
    pub fn first_change(before: &[Self], after: &[Self]) -> Option<String> {
        for file in before {
            match after.iter().find(|other| other.url == file.url) {
                None => return Some(format!("{} was removed", file.url)),
                Some(other) if other.bytes != file.bytes => {
                    return Some(format!("{} had {} bytes and now has {}", file.url, file.bytes, other.bytes));
                }
                Some(other) if other != file => return Some(format!("{} was written again", file.url)),
                Some(_) => {}
            }
        }
        after
            .iter()
            .find(|file| !before.iter().any(|other| other.url == file.url))
            .map(|new| format!("{} is new", new.url))
    }
}
