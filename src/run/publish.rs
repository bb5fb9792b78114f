//! Publishing: rows with their scores are written to the sinks, checked on the way, and become visible atomically.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use couplet_encoder::model::Problem;
use couplet_encoder::scorer::{Rejection, Scorer};
use couplet_storage::crash;
use couplet_storage::objects::Objects;
use couplet_tables::delta::is_unreadable_parquet;
use couplet_tables::histogram::Histogram;
use couplet_tables::sink::rejected_version;
use couplet_tables::store::ScoreStore;
use datafusion::common::DataFusionError;

use super::checked::{Check, Checked, Published, Refusal, output_schema, refusal};
use super::digest::checked_at_end;
use super::quarantine::Pending;
use super::rejected;
use super::score::Run;
use super::sinks::{Attempt, Sink, SinkKind};
use super::staged_rows::StagedRows;
use super::{interrupted, readable_place};
use crate::error::Error;

/// Result of publishing to all sinks of a run.
#[derive(Debug, Default)]
pub(super) struct PublishedTo {
    pub(super) output: String,
    pub(super) bytes: u64,
    pub(super) version: Option<u64>,
    pub(super) rejected: u64,
    pub(super) truncated: u64,
    pub(super) labels: BTreeMap<String, u64>,
    pub(super) scores: Histogram,
    pub(super) quarantine: Option<(String, u64)>,
}

/// Maximum attempts to write the rows, if other writers commit first.
const ATTEMPTS: u32 = 10;

/// Inputs of publishing.
#[derive(Clone, Copy)]
struct Rows<'a> {
    staged: &'a StagedRows,
    scores: &'a ScoreStore,
    scorer: &'a Scorer,
}

impl Run<'_> {
    /// Writes the scored rows to the sinks and commits them. Returns `None` if the sink already has rows of the run's
    /// key.
    #[tracing::instrument(skip_all, fields(rows = staged.len().cast_signed()))]
    pub(super) async fn publish(
        &self,
        staged: &StagedRows,
        scores: &ScoreStore,
        sinks: Vec<Sink>,
        scorer: &Scorer,
        key: Option<&String>,
        stop: &mut (impl Future<Output = ()> + Unpin),
    ) -> Result<Option<PublishedTo>, Error> {
        let mut all = PublishedTo::default();
        let rows = Rows { staged, scores, scorer };
        let split = sinks.len() > 1;
        let mut version = None;
        let mut pending = None;
        if split && self.scoring.sink.is_one_file() {
            let place = SinkKind::Rejected.place(self.scoring);
            pending = Some(Pending::of(&place, self.lock.run()).await?);
        }
        for mut sink in sinks {
            let kind = sink.kind();
            let expected = match kind {
                SinkKind::Rejected => None,
                SinkKind::Predictions => Some(staged.len() - if split { all.rejected } else { 0 }),
            };
            let which = split.then_some(kind);
            let (mut attempt, mut seen) = (1, None);
            let (done, published) = loop {
                if self.has_key(std::slice::from_ref(&sink)).await? {
                    return Ok(None);
                }
                if let Some(before) = seen {
                    sink.follows(before).await?;
                }
                seen = Some(sink.version());
                match Box::pin(self.attempt(rows, sink.with_rejected(version), expected, which, stop)).await? {
                    (Attempt::Done(done), published) => break (done, published),
                    (Attempt::Conflict(error), _) if attempt == ATTEMPTS => return Err(error),
                    (Attempt::Conflict(_), _) => {
                        tracing::info!(
                            "another writer has changed {} meanwhile; writing the rows again",
                            readable_place(&kind.place(self.scoring))
                        );
                        attempt += 1;
                        sink = self.open_sink(kind, &output_schema(staged.schema()), scorer, key).await?;
                        // Of two concurrent runs, the later version of the rejected-rows table has the rows of both.
                        if let Some(own) = version {
                            let main = Objects::open(&self.scoring.sink.location.place)?;
                            version = rejected_version(&main, &self.pipeline.name).await?.max(Some(own));
                        }
                    }
                }
            };
            crash::point("publish.after");
            all.rejected += published.rejected;
            match kind {
                SinkKind::Rejected => {
                    version = done.version;
                    all.quarantine = Some((done.output, published.rows));
                }
                SinkKind::Predictions => {
                    all.output = done.output;
                    all.bytes = done.bytes;
                    all.version = done.version;
                    all.truncated = published.truncated;
                    all.labels = published.labels;
                    all.scores = published.scores;
                }
            }
        }
        if let Some(pending) = pending {
            pending.settle().await;
        }
        Ok(Some(all))
    }

    /// Writes scored rows to a sink. The sink recorded the version that it replaces before the lock is confirmed here.
    async fn attempt(
        &self,
        rows: Rows<'_>,
        sink: Sink,
        expected: Option<u64>,
        which: Option<SinkKind>,
        stop: &mut (impl Future<Output = ()> + Unpin),
    ) -> Result<(Attempt, Published), Error> {
        let Rows { staged, scores, scorer, .. } = rows;
        let config = &scorer.model().config;
        let any_of = if config.problem == Problem::MultiLabel { config.labels.clone() } else { Vec::new() };
        let check = Arc::new(Check {
            rows: expected,
            max_rejected: rejected::most(self.scoring, staged.len()),
            model: scorer.model().fingerprint.to_string(),
            any_of,
            stopped: false.into(),
            published: Mutex::default(),
        });
        let known = scores.scores(staged.joins(scores.rows()))?;
        let stream = staged.scored(known, scores.rows(), which).await.map_err(|e| self.staging_failed(&e))?;
        // The score files are verified against their digests before the commit.
        let intact = scores.check();
        let intact = async { intact.await.map_err(|e| DataFusionError::External(e.into())) };
        let stream = checked_at_end(stream, intact);
        let stream = Checked::new(stream, output_schema(staged.schema()), Arc::clone(&check));
        self.lock.confirm().await?;
        let merging = sink.merges().then(|| staged.merging()).transpose().map_err(|e| self.staging_failed(&e))?;
        let context = merging.as_ref().unwrap_or(staged.context());
        crash::point("publish.before");
        let mut publishing = std::pin::pin!(sink.publish(Box::pin(stream), context, self.lock));
        let done = tokio::select! {
            biased;
            () = &mut *stop => {
                // The stream then ends with an error, and the sink cleans up.
                check.stopped.store(true, Ordering::Relaxed);
                publishing.await
            }
            done = &mut publishing => done,
        };
        match done {
            Ok(done) => Ok((done, check.published())),
            Err(error) => {
                let error = self.not_published(error, &check, staged, Some(scores));
                // The cause may be a damaged part of the store that was not read before.
                let unreadable =
                    matches!(&error, Error::Publish { source, known: true, .. } if is_unreadable_parquet(&**source));
                Err(if unreadable { scores.blame(error).await } else { error })
            }
        }
    }

    /// Converts a refusal of the stream into the error of the run.
    fn not_published(&self, error: Error, check: &Check, staged: &StagedRows, scores: Option<&ScoreStore>) -> Error {
        let written = check.published().rows;
        match refusal(&error) {
            Some(Refusal::Stopped) => interrupted(self.scoring, "while the table was written", scores),
            Some(Refusal::TooManyErrors { .. }) => {
                let mut rejected = staged.rejected();
                let texts: u64 = rejected.iter().sum();
                rejected[Rejection::KINDS.len() - 1] += check.published().rejected.saturating_sub(texts);
                rejected::too_many(self.scoring, rejected, staged.len(), &[])
            }
            Some(Refusal::Unscored { .. } | Refusal::Lost { .. }) => {
                Error::RowsLost { read: check.rows.unwrap_or(staged.len()), written }
            }
            None => error,
        }
    }
}
