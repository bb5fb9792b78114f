//! The stage that scores: read the rows once, score what has no score yet, remember it, publish.
//!
//! ```text
//! source ─ rows ─ check ids ─┬─ texts without a score ─ score ─ remember, now and then ─┐
//!          (staged)           └──────────── rows with their scores ◀── store ◀───────────┘
//!                                                    └─ check ─ publish in one step
//! ```
//!
//! Only two steps change anything that lasts: a commit to the store, which costs nothing to repeat, and the commit to
//! the sink. A run that was stopped between any two of them is simply run again.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::ArrayRef;
use arrow::datatypes::SchemaRef;
use datafusion::common::DataFusionError;
use datafusion::prelude::SessionContext;
use futures::{Stream, StreamExt};

use super::checked::output_schema;
use super::cluster_scoring::{self, ClusterScoring};
use super::pending::Pending;
use super::rejected;
use super::run_key;
use super::run_lock::RunLock;
use super::sinks::{self, Sink, SinkKind};
use super::staged_rows::StagedRows;
use super::window_stats::WindowStats;
use super::{
    NOTHING_WRITTEN, RunState, blame, folder_of, interrupted, missing_model, model_name, models_of, outputs, pool,
    query_text, readable_place, resources,
};
use crate::cluster::Address;
use crate::config::{Pipeline, Scoring, SinkMode};
use crate::crash;
use crate::error::Error;
use crate::objects::StoreFolder;
use crate::progress::{Progress, Style};
use crate::report::{Appended, Report, Rows};
use crate::scorer::{Prediction, Rejection, Scorer};
use crate::session::{self, Resources};
use crate::source::Source;
use crate::store::{self, RunRecord, ScoreStore, model_class};
use crate::tables;
use crate::tables::SourceFile;
use crate::words::grouped;

/// Windows that are scored at once: while the last batches of one run, the next is tokenized.
const WINDOWS_UNDER_WAY: usize = 2;

/// Texts of a window for each thread at most: with a slow model, they are some seconds' work, which is what a kill costs
/// besides what waits for its commit.
const TEXTS_OF_A_THREAD: usize = 512;

/// Rows whose scores are kept in memory at most before they are remembered for good.
const ROWS_TO_COMMIT: usize = 1 << 17;

/// And bytes: a score of thousands of labels is long.
const BYTES_TO_COMMIT: usize = 64 << 20;

/// What the operating system says of a full disk, after the words for people.
const DISK_FULL: &str = "(os error 28)";

/// What the command line asks of a run.
#[derive(Debug, Clone, Default)]
pub struct Remembering {
    /// Forget this model's scores first.
    pub fresh: bool,
    /// Try the rows again that the tokenizer refused before.
    pub retry_errors: bool,
    /// For how long to wait while another run is under way; none to give up at once.
    pub wait: Option<Duration>,
    /// The cluster that scores; this machine if none.
    pub cluster: Option<Address>,
    /// The key under which rows are appended, once; made of what the run reads if none.
    pub run_key: Option<String>,
    /// Append rows also where some were appended under the same key.
    pub again: bool,
}

/// Scores the source into the sink until it is done or `stop` is; a stage that does not end well leaves the sink as it was.
/// `whole` gets what was recorded of the run, also of one that failed.
#[tracing::instrument(skip_all)]
pub(super) async fn score(
    pipeline: &Pipeline,
    scoring: &Scoring,
    variables: &BTreeMap<String, String>,
    remembering: Remembering,
    style: Style,
    stop: &mut (impl Future<Output = ()> + Unpin),
    whole: &mut RunState,
) -> Result<Done, Error> {
    let begin = async {
        let store = store::open(&scoring.score.store.place).await?;
        let lock = RunLock::begin(pipeline, &store, remembering.wait).await?;
        Ok::<_, Error>((store, lock))
    };
    let (store, begun) = tokio::select! {
        biased;
        () = &mut *stop => return Err(interrupted(scoring, "before the first row was scored", None)),
        begun = begin => begun?,
    };
    let run = Run { pipeline, scoring, variables, remembering, style, store, run_lock: &begun };
    let mut record = begun.record(whole);
    let (outcome, scores) = match run.all(&mut record, stop).await {
        Ok((done, scores)) => (Ok(done), Some(scores)),
        Err(error) => (Err(error), None),
    };
    // Whatever becomes of it, the run has ended well by then. No other one may begin meanwhile.
    let compacting = async {
        if let Some(mut scores) = scores {
            crash::point("compact");
            scores.compact().await;
        }
    };
    let (record, lost) = begun.end(record, whole, outcome.as_ref().err(), compacting).await;
    whole.record = Some(record);
    match lost {
        Some(lost) if outcome.is_ok() => Err(lost),
        _ => outcome,
    }
}

/// What the stage did.
pub(super) enum Done {
    /// Scored the rows and published them.
    Published(Box<Report>),
    /// Found that the sink has rows of the same key.
    Appended(Appended),
}

/// A run that holds the lock of its store.
pub(super) struct Run<'a> {
    pub(super) pipeline: &'a Pipeline,
    pub(super) scoring: &'a Scoring,
    variables: &'a BTreeMap<String, String>,
    remembering: Remembering,
    style: Style,
    pub(super) store: StoreFolder,
    pub(super) run_lock: &'a RunLock,
}

/// Texts that have their scores.
pub(super) struct Scored {
    pub(super) keys: ArrayRef,
    pub(super) outcomes: Vec<Result<Prediction, Rejection>>,
    /// Who scored them; this machine if none.
    pub(super) executor: Option<String>,
    pub(super) took: Duration,
}

/// All that a run needs before its first row.
struct Prepared {
    context: SessionContext,
    source: Source,
    scorer: Scorer,
    scores: ScoreStore,
    sinks: Vec<Sink>,
    cluster: Option<ClusterScoring>,
    /// The files of the source as they are before they are read.
    files: Vec<SourceFile>,
    /// The key under which rows are appended, if they are.
    key: Option<String>,
}

impl Run<'_> {
    #[expect(clippy::too_many_lines, reason = "the stages of a run, one after the other")]
    async fn all(
        &self,
        record: &mut RunRecord,
        stop: &mut (impl Future<Output = ()> + Unpin),
    ) -> Result<(Done, ScoreStore), Error> {
        let began = Instant::now();
        let reading = async {
            let (prepared, resources) = self.prepare().await?;
            record.prepare_seconds = Some(began.elapsed().as_secs_f64());
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
            tracing::warn!("the source has no rows: what is published is empty");
        }
        record.sources = sources;
        record.rows_read = Some(staged.len());
        record.rows_rejected = Some(staged.rejected().iter().sum());
        record.rejected = rejected::kinds(staged.rejected());
        rejected::check(self.scoring, &staged).await?;
        self.check_fit(&staged, &sinks).await?;
        self.record_model(record, &scorer);
        crash::point("read");

        let pending = tokio::select! {
            biased;
            () = &mut *stop => return Err(interrupted(self.scoring, "before the first row was scored", None)),
            pending = self.pending(&staged, &scores, TEXTS_OF_A_THREAD * scorer.threads()) => pending?,
        };
        let (texts, rows_without_score) = (pending.texts, pending.rows);
        record.read_seconds = Some(began.elapsed().as_secs_f64() - record.prepare_seconds.unwrap_or_default());
        let start = Instant::now();
        let progress = Progress::start(self.style, &scorer, texts);
        let mut pace = WindowStats::default();
        let scored = self.score_pending(pending, &scorer, cluster, &mut scores, &mut pace, stop).await;
        drop(progress);
        let scoring_time = start.elapsed();
        let counts = scorer.tally().counts();
        pace.record(record, &counts, scoring_time);
        if scored.is_err() {
            // What was under way is lost.
            record.rows_scored = Some(pace.texts().min(texts));
        }
        scored?;

        let rejected_texts: u64 = staged.rejected().iter().sum();
        let start = Instant::now();
        let published = Box::pin(self.publish(&staged, &scores, sinks, &scorer, key.as_ref(), stop)).await?;
        let Some(published) = published else { return Ok((self.appended(record, key), scores)) };
        record.publish_seconds = Some(start.elapsed().as_secs_f64());
        let mut rejected = staged.rejected();
        // What is not the text's fault is the tokenizer's.
        rejected[Rejection::KINDS.len() - 1] += published.rejected.saturating_sub(rejected_texts);
        rejected::warn_of_all(rejected, staged.len());
        let rows = Rows {
            read: staged.len(),
            scored: counts.scored,
            remembered: staged.len() - rejected_texts - rows_without_score,
            repeated: rows_without_score - texts,
            rejected,
            truncated: published.truncated,
            damaged_scores: scores.damaged(),
        };
        record.rows_remembered = Some(rows.remembered);
        record.rows_repeated = Some(rows.repeated);
        record.rows_rejected = Some(published.rejected);
        tracing::debug!("published to {}", published.output);
        record.rejected = rejected::kinds(rows.rejected);
        record.rows_truncated = Some(rows.truncated);
        record.scores_damaged = Some(scores.damaged());
        record.output = Some(published.output.clone());
        record.output_version = published.version;
        record.output_bytes = Some(published.bytes);
        record.scores = Some(published.scores);
        let labels = scorer.model().config.labels.iter();
        let labels: Vec<_> =
            labels.map(|label| (label.clone(), published.labels.get(label).copied().unwrap_or_default())).collect();
        record.labels = Some(labels.clone());
        let report = Report {
            pipeline: self.pipeline.name.clone(),
            run: self.run_lock.run().to_owned(),
            model: readable_place(&self.scoring.model.location.place),
            precision: scorer.precision(),
            fingerprint: scorer.model().fingerprint.as_str().to_owned(),
            revision: scorer.revision().map(str::to_owned),
            rows,
            counts,
            problem: scorer.model().config.problem,
            labels,
            executors: pace.executors().to_vec(),
            elapsed: began.elapsed(),
            scoring: scoring_time,
            output: published.output,
            output_bytes: published.bytes,
            output_version: published.version,
            quarantine: published.quarantine,
            run_key: key,
        };
        Ok((Done::Published(Box::new(report)), scores))
    }

    /// Whether the sink has rows of the run's key, which are not appended once more.
    pub(super) async fn has_key(&self, sinks: &[Sink]) -> Result<bool, Error> {
        if self.remembering.again {
            return Ok(false);
        }
        match sinks.iter().find(|sink| sink.kind() == SinkKind::Predictions) {
            Some(sink) => sink.has_key().await,
            None => Ok(false),
        }
    }

    /// Refuses values that the tables of the sinks cannot hold, before anything is scored.
    async fn check_fit(&self, staged: &StagedRows, sinks: &[Sink]) -> Result<(), Error> {
        for sink in sinks {
            let Some(table) = sink.table_schema() else { continue };
            staged.check_fit(table, (sinks.len() > 1).then_some(sink.kind())).await.map_err(|e| {
                let place = readable_place(&sink.kind().place(self.scoring));
                Error::sql(format!("{}: the rows for {place}", self.pipeline.path.display()), &e, None)
            })?;
        }
        Ok(())
    }

    /// Says that the rows are in the sink already.
    fn appended(&self, record: &mut RunRecord, key: Option<String>) -> Done {
        let output = readable_place(&self.scoring.sink.location.place);
        let appended =
            Appended { run: self.run_lock.run().to_owned(), run_key: key.unwrap_or_default(), output: output.clone() };
        record.message = Some(appended.to_string());
        record.output = Some(output);
        Done::Appended(appended)
    }

    fn record_model(&self, record: &mut RunRecord, scorer: &Scorer) {
        record.model = Some(scorer.model().fingerprint.as_str().to_owned());
        record.model_uri = Some(self.scoring.model.location.place.to_string());
        record.precision = Some(scorer.precision().to_string());
        record.max_length = Some(scorer.max_length());
        record.task = Some(scorer.model().config.problem.to_string());
    }

    /// Opens the tables, plans the query, loads the model, opens store and sink: all that can turn out wrong before the work.
    #[tracing::instrument(skip_all)]
    async fn prepare(&self) -> Result<(Prepared, Resources), Error> {
        let Self { pipeline, scoring, .. } = self;
        let settings = &scoring.source;
        outputs::check_sinks(pipeline)?;
        cluster_scoring::clean(&self.store).await?;
        let sql = query_text(pipeline, &settings.query, "source.file", self.variables)?;
        let models = Arc::new(models_of(pipeline, pool(pipeline.run.threads)?, &folder_of(&pipeline.path)));
        let resources = resources(&pipeline.run)?;
        let versions = tables::source_versions(&pipeline.tables).await.map_err(Error::Tables)?;
        // One partition keeps the rows in the order of the files; the cores belong to the model.
        let context = session::open(&pipeline.tables, Arc::clone(&models), pipeline.run.window, 1, &resources)
            .await
            .map_err(Error::Tables)?;
        // From here on they are as they were opened, whatever happens to them.
        let opened = tables::source_versions(&pipeline.tables).await.map_err(Error::Tables)?;
        if let Some((before, after)) = versions.iter().zip(&opened).find(|(before, after)| before != after) {
            let change = format!("{before} was replaced by {after}");
            return Err(Error::SourceChanged { pipeline: pipeline.path.display().to_string(), change });
        }
        let files = tables::source_files(&context, &pipeline.tables).await.map_err(Error::Tables)?;
        let source = Source::open(&context, &sql, &settings.id, &settings.text, settings.label.as_deref())
            .await
            .map_err(|e| Error::source(pipeline, &scoring.source.query, e, &context))?;
        if let Some(error) = missing_model(&scoring.model) {
            return Err(error);
        }
        let scorer = models.get(&model_name(&scoring.model)).await?;
        let cluster = match &self.remembering.cluster {
            Some(address) => Some(ClusterScoring::reach(address, pipeline, models).await?),
            None => None,
        };
        let mut scores = ScoreStore::open(&self.store, model_class(&scorer)).await?;
        if self.remembering.fresh {
            scores.forget().await?;
        } else if self.remembering.retry_errors {
            scores.forget_errors().await?;
        }
        let key = (scoring.sink.mode == SinkMode::Append).then(|| {
            let given = self.remembering.run_key.clone();
            given.unwrap_or_else(|| run_key::default(pipeline, &sql, self.variables, &files, &versions))
        });
        let schema = output_schema(source.schema());
        let mut sinks = Vec::new();
        // The one that is committed last first: where it has begun, no older run can be committed.
        for kind in sinks::kinds(scoring).into_iter().rev() {
            sinks.insert(0, self.open_sink(kind, &schema, &scorer, key.as_ref()).await?);
        }
        Ok((Prepared { context, source, scorer, scores, sinks, cluster, files, key }, resources))
    }

    pub(super) async fn open_sink(
        &self,
        kind: SinkKind,
        schema: &SchemaRef,
        scorer: &Scorer,
        key: Option<&String>,
    ) -> Result<Sink, Error> {
        let origin = self.run_lock.origin(key.filter(|_| kind == SinkKind::Predictions).cloned());
        let metadata = self.metadata(scorer);
        Sink::open(kind, self.pipeline, self.scoring, schema, &metadata, origin, &self.store).await
    }

    /// Reads the rows of the source, and notices whether its files change meanwhile.
    #[tracing::instrument(skip_all, fields(rows))]
    async fn read(&self, prepared: &Prepared, resources: Resources) -> Result<StagedRows, Error> {
        let Self { pipeline, scoring, .. } = self;
        let Prepared { context, source, scorer, files: before, .. } = prepared;
        let broken = async |error: Error| blame(context, &pipeline.tables, error, NOTHING_WRITTEN).await;
        let text = &scoring.source.text;
        let labels = scorer.model().config.labels.len();
        let filled = StagedRows::fill(source.frame().clone(), text, labels, pipeline.run.memory, resources).await;
        let staged = match filled {
            Ok(staged) => staged,
            // What is full is where the rows are kept.
            Err(e) if e.to_string().contains(DISK_FULL) => return Err(self.staging_failed(&e)),
            Err(e) => {
                let origin = format!("{}: the source query", pipeline.path.display());
                return Err(broken(Error::sql(origin, &e, Some(context))).await);
            }
        };
        let after = tables::source_files(context, &pipeline.tables).await.map_err(Error::Tables)?;
        if let Some(changed) = SourceFile::first_change(before, &after) {
            return Err(Error::SourceChanged { pipeline: pipeline.path.display().to_string(), change: changed });
        }
        let rows = staged.rows().await.map_err(|e| self.staging_failed(&e))?;
        let ids = Source::check_ids(&rows, &scoring.source.id).await;
        ids.map_err(|e| Error::source(pipeline, &scoring.source.query, e, context))?;
        tracing::Span::current().record("rows", staged.len().cast_signed());
        Ok(staged)
    }

    #[tracing::instrument(skip_all)]
    async fn pending(&self, staged: &StagedRows, scores: &ScoreStore, together: usize) -> Result<Pending, Error> {
        let known = scores.scores(staged.joins(scores.rows()))?;
        match staged.pending(known, scores.rows(), together).await {
            Ok(pending) => Ok(pending),
            Err(e) => Err(scores.blame(self.staging_failed(&e)).await),
        }
    }

    /// Scores the texts and remembers them; what was scored before an error or a stop is remembered too.
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
                lost = self.run_lock.lost() => break Err(lost),
                next = windows.next() => next,
            };
            match next {
                Some(Ok(Scored { keys, outcomes, executor, took })) => {
                    pace.add(&outcomes, took, executor);
                    if let Err(error) = scores.remember(&keys, &outcomes, scorer) {
                        break Err(error);
                    }
                }
                Some(Err(error)) => break Err(error),
                None => break Ok(()),
            }
            let is_much = scores.waiting() >= ROWS_TO_COMMIT || scores.waiting_bytes() >= BYTES_TO_COMMIT;
            if is_much || last_commit.elapsed() >= self.scoring.score.checkpoint {
                if let Err(error) = self.commit(scores).await {
                    break Err(error);
                }
                last_commit = Instant::now();
            }
        };
        drop(windows);
        tracing::Span::current().record("tokens", scorer.tally().counts().tokens.cast_signed());
        // After a lost lock another run is at work on the same store, and scores these texts itself.
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
            // Each text is in one window, once.
            let outcomes = scorer.score_once(window).await?;
            Ok(Scored { keys, outcomes, executor: None, took: start.elapsed() })
        });
        scored.buffered(WINDOWS_UNDER_WAY)
    }

    async fn commit(&self, scores: &mut ScoreStore) -> Result<(), Error> {
        if scores.waiting() == 0 {
            return Ok(());
        }
        self.run_lock.confirm().await?;
        crash::point("store.before");
        let waiting = scores.waiting();
        scores.commit().await?;
        tracing::debug!("{} scores are remembered", grouped(waiting as u64));
        crash::point("store.after");
        Ok(())
    }

    fn metadata(&self, scorer: &Scorer) -> Vec<(&'static str, String)> {
        let mut metadata = vec![
            ("couplet.version", env!("CARGO_PKG_VERSION").to_owned()),
            ("couplet.pipeline", self.pipeline.name.clone()),
            ("couplet.model", scorer.model().fingerprint.as_str().to_owned()),
            ("couplet.model_uri", self.scoring.model.location.place.to_string()),
            ("couplet.max_length", scorer.max_length().to_string()),
            ("couplet.precision", scorer.precision().to_string()),
        ];
        metadata.extend(scorer.revision().map(|commit| ("couplet.model_revision", commit.to_owned())));
        metadata
    }

    pub(super) fn staging_failed(&self, error: &DataFusionError) -> Error {
        self.staging_error()(error)
    }

    /// The same for whoever outlives the run.
    pub(super) fn staging_error(&self) -> impl Fn(&DataFusionError) -> Error + use<> {
        let origin = format!("{}: the rows in {}", self.pipeline.path.display(), self.pipeline.run.spill.display());
        move |error| Error::sql(origin.clone(), error, None)
    }
}
