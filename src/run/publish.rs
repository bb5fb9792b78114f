//! The last step of a night: rows with their scores go to the sinks, checked on the way, and become visible at once.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use datafusion::common::DataFusionError;

use super::checked::{Check, Checked, Refusal, output_schema, refusal};
use super::intact::checked_at_end;
use super::interrupted;
use super::rejected;
use super::score::Run;
use super::sinks::{Sink, SinkKind};
use super::spool::Spool;
use crate::crash;
use crate::error::Error;
use crate::histogram::Histogram;
use crate::model::Problem;
use crate::scorer::{Rejection, Scorer};
use crate::store::{ScoreStore, model_class};

/// What all sinks of a run have.
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

impl Run<'_> {
    /// Writes the rows with their scores to the sinks, and makes them visible there.
    #[tracing::instrument(skip_all, fields(rows = spool.len().cast_signed()))]
    pub(super) async fn publish(
        &self,
        spool: &Spool,
        scores: &ScoreStore,
        sinks: Vec<Sink>,
        scorer: &Scorer,
        stop: &mut (impl Future<Output = ()> + Unpin),
    ) -> Result<PublishedTo, Error> {
        let mut all = PublishedTo::default();
        let max_rejected = rejected::most(self.scoring, spool.len());
        let config = &scorer.model().config;
        let any_of = if config.problem == Problem::MultiLabel { config.labels.clone() } else { Vec::new() };
        let split = sinks.len() > 1;
        for sink in sinks {
            let kind = sink.kind();
            let rows = match kind {
                SinkKind::Rejected => None,
                SinkKind::Predictions => Some(spool.len() - if split { all.rejected } else { 0 }),
            };
            let check = Arc::new(Check {
                rows,
                max_rejected,
                model: scorer.model().fingerprint.to_string(),
                any_of: any_of.clone(),
                stopped: false.into(),
                published: Mutex::default(),
            });
            let known = scores.scores(spool.joins(scores.rows()))?;
            let which = split.then_some(kind);
            let stream = spool.scored(known, scores.rows(), which).await.map_err(|e| self.spool_failed(&e))?;
            // What was read is compared with what was written before it is committed.
            let intact = scores.check();
            let intact = async { intact.await.map_err(|e| DataFusionError::External(e.into())) };
            let stream = checked_at_end(stream, intact);
            let stream = Checked::new(stream, output_schema(spool.schema()), Arc::clone(&check));
            self.night.confirm().await?;
            let inputs = if sink.appends() { self.inputs(spool, scorer).await? } else { None };
            let there = match &inputs {
                Some(inputs) => sink.published_by(&self.night.unfinished().await?, inputs).await?,
                None => None,
            };
            let merging = sink.merges().then(|| spool.merging()).transpose().map_err(|e| self.spool_failed(&e))?;
            let context = merging.as_ref().unwrap_or(spool.context());
            crash::point("publish.before");
            let mut publishing = std::pin::pin!(async {
                let Some((run, there)) = there else {
                    return sink.publish(Box::pin(stream), context, self.night, inputs.as_deref()).await;
                };
                tracing::info!("run {run} appended these rows before it was killed; they are not appended again");
                sink.pass_over(Box::pin(stream)).await.map(|()| there)
            });
            let done = tokio::select! {
                biased;
                () = &mut *stop => {
                    // The stream then ends with an error, on which the sink clears up.
                    check.stopped.store(true, Ordering::Relaxed);
                    publishing.await
                }
                done = &mut publishing => done,
            };
            let done = match done {
                Ok(done) => done,
                Err(error) => {
                    let error = self.not_published(error, &check, spool, Some(scores));
                    // Pages of the store that nothing has read before may be what is broken.
                    let unreadable = matches!(&error, Error::Publish { source, known: true, .. } if source.to_string().contains("Parquet"));
                    return Err(if unreadable { scores.blame(error).await } else { error });
                }
            };
            crash::point("publish.after");
            let published = check.published();
            all.rejected += published.rejected;
            match kind {
                SinkKind::Rejected => all.quarantine = Some((done.output, published.rows)),
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
        Ok(all)
    }

    /// What the rows to publish are made of; none where a column has values that cannot be told apart.
    async fn inputs(&self, spool: &Spool, scorer: &Scorer) -> Result<Option<String>, Error> {
        match spool.contents().await {
            Ok(contents) => Ok(Some(format!("{contents}-{}", model_class(scorer)))),
            Err(DataFusionError::NotImplemented(_) | DataFusionError::Internal(_)) => Ok(None),
            Err(error) => Err(self.spool_failed(&error)),
        }
    }

    /// Says in the pipeline's words why the sink gave up.
    fn not_published(&self, error: Error, check: &Check, spool: &Spool, scores: Option<&ScoreStore>) -> Error {
        let written = check.published().rows;
        match refusal(&error) {
            Some(Refusal::Stopped) => interrupted(self.scoring, "while the table was written", scores),
            Some(Refusal::TooManyErrors { .. }) => {
                let mut rejected = spool.rejected();
                let texts: u64 = rejected.iter().sum();
                rejected[Rejection::KINDS.len() - 1] += check.published().rejected.saturating_sub(texts);
                rejected::too_many(self.scoring, rejected, spool.len(), &[])
            }
            Some(Refusal::Unscored { .. } | Refusal::Lost { .. }) => {
                Error::RowsLost { read: check.rows.unwrap_or(spool.len()), written }
            }
            None => error,
        }
    }
}
