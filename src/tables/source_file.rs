//! The files that a run reads, and whether they stay as they are meanwhile.

use chrono::{DateTime, Utc};

/// A file that a run read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Where it is.
    pub url: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// What names its contents, if the store says.
    pub etag: Option<String>,
    /// When it was last changed.
    pub modified: DateTime<Utc>,
}

impl SourceFile {
    /// The first file that came, went or changed.
    pub(crate) fn first_change(before: &[Self], after: &[Self]) -> Option<String> {
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
