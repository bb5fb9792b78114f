//! `couplet store gc`: forgets what no pipeline of a store uses any more.

use chrono::Duration;

use super::own::remove_staged;
use super::runs::Runs;
use super::scores::{FOLDER, files_of};
use crate::error::Error;
use crate::lock::{self, Claim};
use crate::objects::StoreFolder;

/// How long files stay that a reader of an older version of the table of runs may still need.
const READERS: Duration = Duration::hours(24);

/// What [`collect_garbage`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Garbage {
    /// Models of which no score is left.
    pub models: usize,
    /// Scores that were forgotten.
    pub scores: u64,
    /// Files that were removed.
    pub files: usize,
}

/// Forgets every model's scores but those of `keep`, and removes files that killed runs left. No file goes that couplet
/// did not write.
///
/// # Errors
/// A place that cannot be read or written.
pub async fn collect_garbage(store: &StoreFolder, keep: &[String], dry_run: bool) -> Result<Garbage, Error> {
    // A run that is under way may use a model that is new to the pipelines, and writes files.
    let held = if dry_run {
        None
    } else {
        let pipeline = "couplet store gc".into();
        let claim = Claim { run_id: "gc".into(), pipeline, wait: None, lease: lock::DEFAULT_LEASE };
        let held = lock::acquire(&store.objects.lock_place(), &claim).await?;
        super::adopt::adopt(store).await?;
        Some(held)
    };
    let mut garbage = Garbage::default();
    let scores = store.folder(FOLDER);
    for name in scores.objects.entries().await?.folders {
        if name.strip_prefix("model=").is_none_or(|model| keep.iter().any(|kept| kept == model)) {
            continue;
        }
        let folder = scores.folder(&name);
        let files = files_of(&folder).await?;
        if files.is_empty() {
            continue;
        }
        garbage.models += 1;
        garbage.scores += files.iter().map(|file| file.rows).sum::<u64>();
        garbage.files += files.len();
        if held.is_some() {
            for file in &files {
                folder.objects.remove(&file.path).await?;
            }
            folder.objects.remove_if_empty();
        }
    }
    let runs = Runs::of(&store.objects);
    garbage.files += runs.clean(READERS, dry_run).await?;
    if let Some(held) = held {
        let staged = remove_staged(store).map_err(|error| Error::Io { context: store.objects.to_string(), error })?;
        garbage.files += usize::try_from(staged).unwrap_or(usize::MAX);
        held.release().await?;
    }
    Ok(garbage)
}
