//! Run lock: the id of a run, the lock of its store, and its run record.

use std::time::Duration;

use chrono::Utc;
use couplet_storage::escape::printable;
use couplet_storage::files::{self, MAX_TEXT};
use couplet_storage::lock::{self, Claim, DEFAULT_LEASE, Held, LockError};
use couplet_storage::objects::{StoreFolder, abort_noted_uploads};
use couplet_storage::redact::without_credentials;
use couplet_storage::words::counted;
use couplet_tables::sink::Origin;
use couplet_tables::store::{Outcome, RunRecord, Runs, remove_staged};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{RunState, outputs};
use crate::config::Pipeline;
use crate::error::Error;

/// A run that holds the lock of its store.
pub(super) struct RunLock {
    run: String,
    pipeline: String,
    pipeline_hash: Option<String>,
    /// The id of the store, also if its lock file was lost.
    store: String,
    held: Held,
    runs: Runs,
}

/// Maximum records searched for the record of a killed run.
const LOOK_BACK: usize = 50;

impl RunLock {
    /// Acquires the lock of the store, and records runs that were killed while they held it.
    ///
    /// # Errors
    /// Another run holds the lock; a store that does not support the lock.
    pub(super) async fn begin(pipeline: &Pipeline, store: &StoreFolder, wait: Option<Duration>) -> Result<Self, Error> {
        let run = Uuid::now_v7().simple().to_string();
        let place = store.objects.lock_place();
        let claim = Claim { run_id: run.clone(), pipeline: pipeline.name.clone(), wait, lease: DEFAULT_LEASE };
        let mut held = lock::acquire(&place, &claim).await?;
        let runs = Runs::of(&store.objects);
        for killed in held.left_behind() {
            // It may have been killed after it was recorded, or the run that recorded the kill was killed itself.
            let recorded = runs.records(&killed.pipeline, LOOK_BACK).await?;
            if recorded.iter().any(|record| record.run == killed.run_id) {
                continue;
            }
            tracing::info!("the previous run was killed: {killed}");
            let record = RunRecord {
                run: killed.run_id.clone(),
                pipeline: killed.pipeline.clone(),
                started_at: killed.started_at.parse().ok(),
                outcome: Some(Outcome::Killed),
                host: Some(killed.host.clone()),
                ..RunRecord::default()
            };
            runs.add(&record).await?;
        }
        match abort_noted_uploads(store, &outputs::of_scoring(pipeline)?).await {
            Ok(0) => {}
            Ok(n) => tracing::info!("{} of killed runs aborted", counted(n as u64, "unfinished upload")),
            Err(error) => return Err(store.objects.error(&error).into()),
        }
        match remove_staged(store) {
            Ok(0) => {}
            Ok(n) => tracing::info!("{} of killed runs removed", counted(n, "unfinished file")),
            Err(error) => tracing::warn!("unfinished files of killed runs in {} stay: {error}", store.objects),
        }
        held.settle().await?;
        let text = files::read(&pipeline.path, MAX_TEXT).ok();
        let pipeline_hash = text.map(|text| {
            let digest = Sha256::digest(&text);
            digest.iter().take(8).fold(String::new(), |hash, byte| format!("{hash}{byte:02x}"))
        });
        Ok(Self { run, pipeline: pipeline.name.clone(), pipeline_hash, store: store.id().to_owned(), held, runs })
    }

    /// The run's id; ids increase from run to run if the clocks are right.
    pub(super) fn run(&self) -> &str {
        &self.run
    }

    /// Creates the run record with what is known at the start.
    pub(super) fn record(&self, state: &RunState) -> RunRecord {
        RunRecord {
            run: self.run.clone(),
            pipeline: self.pipeline.clone(),
            pipeline_hash: self.pipeline_hash.clone(),
            started_at: Some(state.started_at),
            stages: state.stages,
            promoted: state.promoted,
            host: Some(lock::host()),
            couplet_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            ..RunRecord::default()
        }
    }

    /// Checks before a commit that no other run has taken the lock.
    ///
    /// # Errors
    /// Another run has taken it.
    pub(super) async fn confirm(&self) -> Result<(), Error> {
        Ok(self.held.confirm().await?)
    }

    /// Resolves with an error once another run has taken the lock.
    pub(super) async fn lost(&self) -> Error {
        Error::from(self.held.lost().await)
    }

    /// Returns the run's identity for its commits. `key` is the key under which it appends rows.
    pub(super) fn origin(&self, key: Option<String>) -> Origin {
        let (run, pipeline, store) = (self.run.clone(), self.pipeline.clone(), self.store.clone());
        Origin { run, pipeline, store, key }
    }

    /// Records the outcome of the run, runs `then`, and releases the lock. Returns the record, and an error if the run
    /// succeeded but has lost the lock. Other failures here are only logged.
    pub(super) async fn end(
        self,
        mut record: RunRecord,
        state: &RunState,
        error: Option<&Error>,
        then: impl Future<Output = ()>,
    ) -> (RunRecord, Option<Error>) {
        let held = if error.is_none() { self.held.confirm().await } else { self.held.check() };
        let lost = held.err().filter(|error| matches!(error, LockError::Lost { .. })).map(Error::from);
        let error = error.or(lost.as_ref());
        record.ended_at = Some(Utc::now());
        record.seconds = Some(state.seconds());
        record.outcome = Some(match error {
            None => Outcome::Done,
            Some(Error::Interrupted { .. }) => Outcome::Interrupted,
            Some(_) => Outcome::Failed,
        });
        // Control characters are escaped and credentials removed, as the message may be shown anywhere later.
        if let Some(error) = error {
            record.message = Some(printable(&without_credentials(&error.to_string())).into_owned());
        }
        // A run that has lost the lock must not write to the store any more.
        if lost.is_some() {
            return (record, lost);
        }
        if !matches!(error, Some(Error::Lock(_)))
            && let Err(unrecorded) = self.runs.add(&record).await
        {
            tracing::warn!("this run could not be recorded: {unrecorded}");
            if error.is_some() {
                // The lock is not released, so the next run records this one.
                return (record, None);
            }
        }
        then.await;
        match self.held.release().await {
            Ok(()) => (record, None),
            Err(lost @ LockError::Lost { .. }) => (record, Some(lost.into())),
            Err(error) => {
                tracing::warn!("{error}");
                (record, None)
            }
        }
    }
}
