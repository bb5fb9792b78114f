//! `couplet store gc`: removes scores and files that no pipeline of a store uses.

use chrono::Duration;
use couplet_storage::lock::{self, Claim};
use couplet_storage::objects::StoreFolder;

use super::StoreError;
use super::own::remove_staged;
use super::runs::Runs;
use super::scores::{FOLDER, files_of};

/// Minimum age of unused files of the table of runs, for readers of older versions.
const MIN_AGE: Duration = Duration::hours(24);

/// Counts of what [`collect_garbage`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Garbage {
    /// Models whose scores were removed.
    pub models: usize,
    /// Scores removed.
    pub scores: u64,
    /// Files removed.
    pub files: usize,
}

/// Removes the scores of all models except `keep`, and leftovers of killed runs. Files that couplet did not write stay.
/// With `dry_run`, nothing is removed, only counted.
///
/// # Errors
/// A place that cannot be read or written.
pub async fn collect_garbage(store: &StoreFolder, keep: &[String], dry_run: bool) -> Result<Garbage, StoreError> {
    // A run in progress may use a model that is not in `keep` yet, and writes files.
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
    garbage.files += runs.clean(MIN_AGE, dry_run).await?;
    if let Some(held) = held {
        let staged =
            remove_staged(store).map_err(|error| StoreError::Io { place: store.objects.to_string(), error })?;
        garbage.files += usize::try_from(staged).unwrap_or(usize::MAX);
        held.release().await?;
    }
    Ok(garbage)
}
