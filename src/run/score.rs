//! Scoring stage: reads the rows once, scores the texts that have no cached score, caches the scores, publishes.
//!
//! ```text
//! source ─ rows ─ check ids ─┬─ texts without a score ─ score ─ commit, periodically ────┐
//!          (staged)           └──────────── rows with their scores ◀── store ◀───────────┘
//!                                                    └─ check ─ publish atomically
//! ```
//!
//! Only two steps have lasting effects: the commit to the store, which is idempotent, and the commit to the sink. A run
//! that is stopped between any two steps is resumed by running it again.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant};

use arrow::array::ArrayRef;
use couplet_cluster::Address;
use couplet_encoder::scorer::{Prediction, Rejection, Scorer};
use couplet_storage::crash;
use couplet_storage::objects::StoreFolder;
use couplet_storage::words::grouped;
use couplet_tables::store::{self, RunRecord, ScoreStore};
use datafusion::common::DataFusionError;
use futures::{Stream, StreamExt};

use super::cluster_scoring::ClusterScoring;
use super::pending::Pending;
use super::prepare::Prepared;
use super::rejected;
use super::run_lock::RunLock;
use super::sinks::{Sink, SinkKind};
use super::staged_rows::StagedRows;
use super::window_stats::WindowStats;
use super::{RunState, interrupted, readable_place};
use crate::config::{Pipeline, Scoring};
use crate::error::Error;
use crate::progress::{Progress, Style};
use crate::report::{Appended, Report};

/// Windows scored concurrently: while the last batches of one run, the next is tokenized.
const WINDOWS_IN_FLIGHT: usize = 2;

/// Maximum texts per thread in a window. With a slow model, a window is a few seconds of work. If the process is
/// killed, this work is lost, and so are the scores that are not committed yet.
const TEXTS_PER_THREAD: usize = 512;

/// Maximum rows whose scores are held in memory before they are committed to the store.
const ROWS_TO_COMMIT: usize = 1 << 17;

/// Maximum bytes of scores held in memory: a score with thousands of labels is large.
const BYTES_TO_COMMIT: usize = 64 << 20;

/// Command-line options of a run.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Deletes this model's cached scores first.
    pub fresh: bool,
    /// Retries rows that the tokenizer rejected before.
    pub retry_errors: bool,
    /// Time to wait for another run to end; `None` fails at once.
    pub wait: Option<Duration>,
    /// The cluster that scores; `None` scores locally.
    pub cluster: Option<Address>,
    /// The key under which rows are appended once; `None` derives it from the inputs of the run.
    pub run_key: Option<String>,
    /// Appends rows even if rows were appended under this key before.
    pub again: bool,
}

/// Scores the source into the sink until done or until `stop` completes. A failed or stopped run leaves the sink
/// unchanged. `state` receives the run record, also if the run fails.
#[tracing::instrument(skip_all)]
pub(super) async fn score(
    pipeline: &Pipeline,
    scoring: &Scoring,
    variables: &BTreeMap<String, String>,
    options: RunOptions,
    style: Style,
    stop: &mut (impl Future<Output = ()> + Unpin),
    state: &mut RunState,
) -> Result<Done, Error> {
    let begin = async {
        let store = store::open(&scoring.score.store.place).await?;
        let lock = RunLock::begin(pipeline, &store, options.wait).await?;
        Ok::<_, Error>((store, lock))
    };
    let (store, begun) = tokio::select! {
        biased;
        () = &mut *stop => return Err(interrupted(scoring, "before the first row was scored", None)),
        begun = begin => begun?,
    };
    let run = Run { pipeline, scoring, variables, options, style, store, lock: &begun };
    let mut record = begun.record(state);
    let (outcome, scores) = match run.all(&mut record, stop).await {
        Ok((done, scores)) => (Ok(done), Some(scores)),
        Err(error) => (Err(error), None),
    };
    // Compaction runs under the lock, and its failure does not fail the run.
    let compacting = async {
        if let Some(mut scores) = scores {
            crash::point("compact");
            scores.compact().await;
        }
    };
    let (record, lost) = begun.end(record, state, outcome.as_ref().err(), compacting).await;
    state.record = Some(record);
    match lost {
        Some(lost) if outcome.is_ok() => Err(lost),
        _ => outcome,
    }
}

/// The result of the stage.
pub(super) enum Done {
    /// The rows were scored and published.
    Published(Box<Report>),
    /// The sink already has rows of this key.
    Appended(Appended),
}

/// A run that holds the lock of its store.
pub(super) struct Run<'a> {
    pub(super) pipeline: &'a Pipeline,
    pub(super) scoring: &'a Scoring,
    pub(super) variables: &'a BTreeMap<String, String>,
    pub(super) options: RunOptions,
    style: Style,
    pub(super) store: StoreFolder,
    pub(super) lock: &'a RunLock,
}

/// A window of scored texts.
pub(super) struct Scored {
    pub(super) keys: ArrayRef,
    pub(super) outcomes: Vec<Result<Prediction, Rejection>>,
    /// The executor that scored them; `None` for this process.
    pub(super) executor: Option<String>,
    pub(super) took: Duration,
}

impl Run<'_> {
    async fn all(
        &self,
        record: &mut RunRecord,
        stop: &mut (impl Future<Output = ()> + Unpin),
    ) -> Result<(Done, ScoreStore), Error> {
        let began = Instant::now();
        let reading = async {
            let (prepared, resources) = self.prepare().await?;
            record.stages.prepare = Some(began.elapsed().as_secs_f64());
            let staged =
                if self.has_key(&prepared.sinks).await? { None } else { Some(self.read(&prepared, resources).await?) };
            Ok::<_, Error>((prepared, staged))
        };
        let (prepared, staged) = tokio::select! {
            biased;
            () = &mut *stop => return Err(interrupted(self.scoring, "before the first row was scored", None)),
            read = reading => read?,
        };
        let Prepared { scorer, mut scores, sinks, cluster, files: sources, key, .. } = prepared;
        let Some(staged) = staged else {
            for sink in sinks {
                sink.give_up().await;
            }
            return Ok((self.appended(record, key), scores));
        };
        tracing::debug!("{} rows are read from {} files", grouped(staged.len()), sources.len());
        if staged.len() == 0 {
            tracing::warn!("the source has no rows, so the output is empty");
        }
        record.sources = sources;
        record.rows_read = Some(staged.len());
        record.rows_rejected = Some(staged.rejected().iter().sum());
        record.rejected = rejected::kinds(staged.rejected());
        rejected::check(self.scoring, &staged).await?;
        let fits = tokio::select! {
            biased;
            () = &mut *stop => Err(interrupted(self.scoring, "before the first row was scored", None)),
            fits = self.check_fit(&staged, &sinks) => fits,
        };
        if let Err(error) = fits {
            for sink in sinks {
                sink.give_up().await;
            }
            return Err(error);
        }
        self.record_model(record, &scorer);
        crash::point("read");

        let pending = tokio::select! {
            biased;
            () = &mut *stop => return Err(interrupted(self.scoring, "before the first row was scored", None)),
            pending = self.pending(&staged, &scores, TEXTS_PER_THREAD * scorer.threads()) => pending?,
        };
        let (texts, rows_without_score) = (pending.texts, pending.rows);
        record.stages.read = Some(began.elapsed().as_secs_f64() - record.stages.prepare.unwrap_or_default());
        let start = Instant::now();
        let progress = Progress::start(self.style, &scorer, texts);
        let mut pace = WindowStats::default();
        let scored = self.score_pending(pending, &scorer, cluster, &mut scores, &mut pace, stop).await;
        drop(progress);
        pace.record(record, &scorer.tally().counts(), start.elapsed());
        if scored.is_err() {
            // The windows in progress are lost.
            record.rows_scored = Some(pace.texts().min(texts));
        }
        record.measure_speed();
        scored?;

        let rejected_texts: u64 = staged.rejected().iter().sum();
        let start = Instant::now();
        let published = Box::pin(self.publish(&staged, &scores, sinks, &scorer, key.as_ref(), stop)).await?;
        let Some(published) = published else { return Ok((self.appended(record, key), scores)) };
        record.stages.publish = Some(start.elapsed().as_secs_f64());
        let mut rejected = staged.rejected();
        // Rejections that the text does not explain come from the tokenizer.
        rejected[Rejection::KINDS.len() - 1] += published.rejected.saturating_sub(rejected_texts);
        rejected::warn_if_none_scored(rejected, staged.len());
        record.rows_remembered = Some(staged.len() - rejected_texts - rows_without_score);
        record.rows_repeated = Some(rows_without_score - texts);
        record.rows_rejected = Some(published.rejected);
        tracing::debug!("published to {}", published.output);
        record.rejected = rejected::kinds(rejected);
        record.rows_truncated = Some(published.truncated);
        record.scores_damaged = Some(scores.damaged());
        record.output = Some(published.output);
        record.output_version = published.version;
        record.output_bytes = Some(published.bytes);
        record.scores = Some(published.scores);
        let labels = scorer.model().config.labels.iter();
        let labels = labels.map(|label| (label.clone(), published.labels.get(label).copied().unwrap_or_default()));
        record.labels = Some(labels.collect());
        let report = Report {
            record: record.clone(),
            model: readable_place(&self.scoring.model.location.place),
            revision: scorer.revision().map(str::to_owned),
            executors: pace.executors().to_vec(),
            elapsed: began.elapsed(),
            quarantine: published.quarantine,
            run_key: key,
        };
        Ok((Done::Published(Box::new(report)), scores))
    }

    /// Returns true if the sink already has rows of the run's key and `again` is not set.
    pub(super) async fn has_key(&self, sinks: &[Sink]) -> Result<bool, Error> {
        if self.options.again {
            return Ok(false);
        }
        match sinks.iter().find(|sink| sink.kind() == SinkKind::Predictions) {
            Some(sink) => sink.has_key().await,
            None => Ok(false),
        }
    }

    /// Records that the sink already has the rows.
    fn appended(&self, record: &mut RunRecord, key: Option<String>) -> Done {
        let output = readable_place(&self.scoring.sink.location.place);
        let appended =
            Appended { run: self.lock.run().to_owned(), run_key: key.unwrap_or_default(), output: output.clone() };
        record.message = Some(appended.to_string());
        record.output = Some(output);
        Done::Appended(appended)
    }

    fn record_model(&self, record: &mut RunRecord, scorer: &Scorer) {
        record.model = Some(scorer.model().fingerprint.as_str().to_owned());
        record.model_uri = Some(self.scoring.model.location.place.to_string());
        record.precision = Some(scorer.precision().to_string());
        record.max_length = Some(scorer.max_length() as u64);
        record.task = Some(scorer.model().config.problem.to_string());
    }

    #[tracing::instrument(skip_all)]
    async fn pending(&self, staged: &StagedRows, scores: &ScoreStore, window: usize) -> Result<Pending, Error> {
        let known = scores.scores(staged.joins(scores.rows()))?;
        match staged.pending(known, scores.rows(), window).await {
            Ok(pending) => Ok(pending),
            Err(e) => Err(scores.blame(self.staging_failed(&e)).await),
        }
    }

    /// Scores the texts and caches the scores. Scores from before an error or a stop are cached too.
    #[tracing::instrument(skip_all, fields(texts = pending.texts.cast_signed(), tokens))]
    async fn score_pending(
        &self,
        pending: Pending,
        scorer: &Scorer,
        cluster: Option<ClusterScoring>,
        scores: &mut ScoreStore,
        pace: &mut WindowStats,
        stop: &mut (impl Future<Output = ()> + Unpin),
    ) -> Result<(), Error> {
        let texts = pending.texts;
        let mut windows = match &cluster {
            None => self.score_here(pending, scorer).boxed_local(),
            Some(cluster) => cluster.score(self, pending, scorer).await?,
        };
        let mut last_commit = Instant::now();
        let ended = loop {
            let next = tokio::select! {
                biased;
                () = &mut *stop => {
                    let done = pace.texts().min(texts);
                    let after = format!("after scoring {} of {} texts", grouped(done), grouped(texts));
                    break Err(interrupted(self.scoring, &after, (done > 0).then_some(scores)));
                }
                lost = self.lock.lost() => break Err(lost),
                next = windows.next() => next,
            };
            match next {
                Some(Ok(Scored { keys, outcomes, executor, took })) => {
                    pace.add(&outcomes, took, executor);
                    if let Err(error) = scores.remember(&keys, &outcomes, scorer) {
                        break Err(error.into());
                    }
                }
                Some(Err(error)) => break Err(error),
                None => break Ok(()),
            }
            let is_full = scores.waiting() >= ROWS_TO_COMMIT || scores.waiting_bytes() >= BYTES_TO_COMMIT;
            if is_full || last_commit.elapsed() >= self.scoring.score.checkpoint {
                if let Err(error) = self.commit(scores).await {
                    break Err(error);
                }
                last_commit = Instant::now();
            }
        };
        drop(windows);
        tracing::Span::current().record("tokens", scorer.tally().counts().tokens.cast_signed());
        // After a lost lock another run works on the same store, and scores these texts itself.
        let committed = if matches!(&ended, Err(Error::Lock(_))) { Ok(()) } else { self.commit(scores).await };
        if let Some(cluster) = cluster {
            cluster.end(self, ended.is_ok()).await;
        }
        ended.and(committed)
    }

    fn score_here(&self, pending: Pending, scorer: &Scorer) -> impl Stream<Item = Result<Scored, Error>> {
        let scored = pending.windows().map(move |window| async move {
            let (keys, window) = window.map_err(|e| self.staging_failed(&e))?;
            let start = Instant::now();
            // Each text is in exactly one window.
            let outcomes = scorer.score_once(window).await?;
            Ok(Scored { keys, outcomes, executor: None, took: start.elapsed() })
        });
        scored.buffered(WINDOWS_IN_FLIGHT)
    }

    async fn commit(&self, scores: &mut ScoreStore) -> Result<(), Error> {
        if scores.waiting() == 0 {
            return Ok(());
        }
        self.lock.confirm().await?;
        crash::point("store.before");
        let waiting = scores.waiting();
        scores.commit().await?;
        tracing::debug!("{} scores are cached", grouped(waiting as u64));
        crash::point("store.after");
        Ok(())
    }

    pub(super) fn staging_failed(&self, error: &DataFusionError) -> Error {
        self.staging_error()(error)
    }

    /// Returns [`Self::staging_failed`] as a function that does not borrow the run.
    pub(super) fn staging_error(&self) -> impl Fn(&DataFusionError) -> Error + use<> {
        let origin = format!("{}: the rows in {}", self.pipeline.path.display(), self.pipeline.run.spill.display());
        move |error| Error::sql(origin.clone(), error, None)
    }
}
