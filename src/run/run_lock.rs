//! What surrounds the work of a run: its id, the lock of its store, and its record.

use std::time::Duration;

use chrono::Utc;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{RunState, outputs};
use crate::config::Pipeline;
use crate::error::Error;
use crate::escape::printable;
use crate::files::{self, MAX_TEXT};
use crate::lock::{self, Claim, DEFAULT_LEASE, Held, LockError};
use crate::objects::{StoreFolder, abort_noted_uploads};
use crate::progress::counted;
use crate::redact::without_credentials;
use crate::sink::Origin;
use crate::store::{Outcome, RunRecord, Runs, remove_staged};

/// A run that has begun.
pub(super) struct RunLock {
    run: String,
    pipeline: String,
    pipeline_hash: Option<String>,
    /// The id of the store, also of one whose lock file was lost.
    store: String,
    held: Held,
    runs: Runs,
}

/// Records that are looked at for that of a run that was killed.
const LOOK_BACK: usize = 50;

impl RunLock {
    /// Takes the lock of the store, and records runs that were killed while they had it.
    ///
    /// # Errors
    /// Another run is under way; a store that cannot keep the promises of a lock.
    pub(super) async fn begin(pipeline: &Pipeline, store: &StoreFolder, wait: Option<Duration>) -> Result<Self, Error> {
        let run = Uuid::now_v7().simple().to_string();
        let place = store.objects.lock_place();
        let claim = Claim { run_id: run.clone(), pipeline: pipeline.name.clone(), wait, lease: DEFAULT_LEASE };
        let mut held = lock::acquire(&place, &claim).await?;
        let runs = Runs::of(&store.objects);
        for killed in held.left_behind() {
            // A kill may have come after its record, or after that of its kill.
            let recorded = runs.records(&killed.pipeline, LOOK_BACK).await?;
            if recorded.iter().any(|record| record.run == killed.run_id) {
                continue;
            }
            tracing::info!("the run before was killed: {killed}");
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

    /// The run's id; later runs have greater ones, as far as clocks can be trusted.
    pub(super) fn run(&self) -> &str {
        &self.run
    }

    /// The record, as far as it is known at the start.
    pub(super) fn record(&self, state: &RunState) -> RunRecord {
        RunRecord {
            run: self.run.clone(),
            pipeline: self.pipeline.clone(),
            pipeline_hash: self.pipeline_hash.clone(),
            started_at: Some(state.started_at),
            earlier: state.earlier.clone(),
            host: Some(lock::host()),
            couplet_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            ..RunRecord::default()
        }
    }

    /// Makes sure before a commit that no other run has taken the lock.
    ///
    /// # Errors
    /// It has.
    pub(super) async fn confirm(&self) -> Result<(), Error> {
        Ok(self.held.confirm().await?)
    }

    /// Resolves when another run has taken the lock, with the reason.
    pub(super) async fn lost(&self) -> Error {
        Error::from(self.held.lost().await)
    }

    /// What its commits say of it; `key` is that under which it appends rows.
    pub(super) fn origin(&self, key: Option<String>) -> Origin {
        let (run, pipeline, store) = (self.run.clone(), self.pipeline.clone(), self.store.clone());
        Origin { run, pipeline, store, key }
    }

    /// Records how the run ended, does the work of `then`, and releases the lock; returns the record, and the error of a
    /// run that went well and then found that it had lost the lock. Anything else that fails here is said and changes
    /// nothing.
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
        // Whatever shows it later, it does nothing there.
        if let Some(error) = error {
            record.message = Some(printable(&without_credentials(&error.to_string())).into_owned());
        }
        // A run that has lost the lock writes nothing to the store any more.
        if lost.is_some() {
            return (record, lost);
        }
        if !matches!(error, Some(Error::Lock(_)))
            && let Err(unrecorded) = self.runs.add(&record).await
        {
            tracing::warn!("this run could not be recorded: {unrecorded}");
            if error.is_some() {
                // A lock that is not released tells the next run of it.
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
