//! Plan of the scoring stage: columns, rows, texts without a score, their lengths, and the estimated duration.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use couplet_encoder::model::Problem;
use couplet_encoder::scorer::{Pace, Scorer, ScorerError, TextColumn, Window};
use couplet_tables::dates::value_texts;
use couplet_tables::predict::{Models, predictions_to_array};
use couplet_tables::session::Resources;
use couplet_tables::sink::properties;
use couplet_tables::source::Source;
use couplet_tables::store::{self, ScoreStore, model_class};
use couplet_tables::tables;
use datafusion::common::DataFusionError;
use datafusion::functions_aggregate::expr_fn::{count, max, min};
use datafusion::logical_expr::{col, lit};
use datafusion::prelude::SessionContext;
use parquet::arrow::ArrowWriter;

use super::super::checked::output_schema;
use super::super::joins::bytes_of_scores;
use super::super::pending::Pending;
use super::super::rejected;
use super::super::sinks;
use super::super::staged_rows::{StagedRows, column};
use super::super::{
    NOTHING_WRITTEN, blame, missing_model, model_name, query_text, readable, readable_place, scorer_options,
};
use super::planned::{Column, Lengths, PlannedScoring, Seconds};
use super::{Opened, Plan, PlannedTraining, Planner, PlanningModel};
use crate::config::{ModelSettings, Scoring};
use crate::error::Error;

/// Texts that are tokenized to estimate the lengths of all: about a window.
pub(in crate::run) const SAMPLE: u64 = 8192;

/// Maximum number of labels listed.
const MAX_LABELS: usize = 12;

impl Planner<'_> {
    pub(super) async fn score(
        &self,
        scoring: &Scoring,
        opened: Opened,
        plan: &mut Plan,
    ) -> Result<PlannedScoring, Error> {
        let (pipeline, settings) = (self.pipeline, &scoring.source);
        let Opened { context, models, resources, seconds: opening } = opened;
        let store = store::open_existing(&scoring.score.store.place).await?;
        let sql = query_text(pipeline, &settings.query, "source.file", self.variables)?;
        let source = Source::open(&context, &sql, &settings.id, &settings.text, settings.label.as_deref())
            .await
            .map_err(|e| Error::source(pipeline, &scoring.source.query, e, &context))?;
        self.explain(plan, "the source query", source.frame()).await;
        sinks::look(pipeline, scoring, &output_schema(source.schema())).await?;
        let loaded = self.model(&scoring.model, &models).await?;
        let changes = self.changes(scoring, plan);
        note_substitute(scoring, &loaded, changes, plan);
        let scorer = &loaded.scorer;

        let reading = Instant::now();
        let labels = scorer.model().config.labels.len();
        let read = self.read(scoring, &context, &source, labels, resources, plan).await?;
        let staged = &read.staged;
        let known = match &loaded.substitute {
            None if !self.options.fresh && !changes => match &store {
                Some(store) => Some(ScoreStore::open_read_only(store, model_class(scorer)).await?),
                None => None,
            },
            _ => None,
        };
        let held = known.as_ref().map_or(0, ScoreStore::rows);
        let scores = match &known {
            Some(known) => known.scores(staged.joins(held))?,
            None => staged.context().read_empty().map_err(|e| self.rows_failed(&e))?,
        };
        let pending = match staged.pending(scores, held, pipeline.run.window).await {
            Ok(pending) => pending,
            Err(e) => {
                let noticed = self.rows_failed(&e);
                return Err(match &known {
                    Some(known) => known.blame(noticed).await,
                    None => noticed,
                });
            }
        };
        let reading = reading.elapsed().as_secs_f64();

        let tried = self.try_texts(&pending, scorer).await?;
        let written = self.write_trial(staged, scorer).await.map_err(|e| self.rows_failed(&e))?;
        let on_disk = staged.bytes().map_err(|e| self.rows_failed(&e.into()))?;
        let rejected: u64 = staged.rejected().iter().sum();
        let mut planned = PlannedScoring {
            columns: columns(&source, scoring),
            other_columns: other_columns(&source, scoring),
            limited: read.limited,
            all_rows: read.all_rows,
            rows: staged.len(),
            texts: pending.texts,
            remembered: staged.len() - rejected - pending.rows,
            repeated: pending.rows - pending.texts,
            rejected: staged.rejected(),
            labels: self.labels(staged, scoring, scorer, plan).await.map_err(|e| self.rows_failed(&e))?,
            seconds: Seconds {
                loading: opening + loaded.seconds,
                reading,
                scoring: tried.seconds(pending.texts),
                publishing: written.seconds_per_row * staged.len() as f64 + read.one_pass,
            },
            lengths: tried.lengths,
            pace: tried.pace,
            model: readable_place(&scoring.model.location.place),
            fingerprint: match &loaded.substitute {
                None => Ok(scorer.model().fingerprint.as_str().to_owned()),
                Some(path) => Err(readable(path).display().to_string()),
            },
            precision: scorer.precision().to_string(),
            temporary_bytes: on_disk + pending.bytes(),
            joins_bytes: bytes_of_scores(held + pending.texts, labels),
            output_bytes: (written.bytes_per_row * staged.len() as f64) as u64,
        };
        planned.scale_up();
        Ok(planned)
    }

    fn rows_failed(&self, error: &DataFusionError) -> Error {
        Error::sql(format!("{}: the rows", self.pipeline.path.display()), error, None)
    }

    /// Reads the rows as a run would, and checks ids and texts.
    async fn read(
        &self,
        scoring: &Scoring,
        context: &SessionContext,
        source: &Source,
        labels: usize,
        resources: Resources,
        plan: &mut Plan,
    ) -> Result<Read, Error> {
        let (pipeline, settings) = (self.pipeline, &scoring.source);
        let mut frame = source.frame().clone();
        let mut known = None;
        if let Some(rows) = self.options.rows {
            known = known_rows(&frame).await;
            frame = frame.limit(0, Some(rows)).map_err(|e| self.rows_failed(&e))?;
        }
        let staged = match StagedRows::fill(frame, &settings.text, labels, pipeline.run.memory, resources).await {
            Ok(staged) => staged,
            Err(e) => {
                let error = Error::sql(format!("{}: the source query", pipeline.path.display()), &e, Some(context));
                return Err(blame(context, &pipeline.tables, error, NOTHING_WRITTEN).await);
            }
        };
        let checking = Instant::now();
        let rows = staged.rows().await.map_err(|e| self.rows_failed(&e))?;
        let ids = Source::check_ids(&rows, &settings.id).await;
        let one_pass = checking.elapsed().as_secs_f64();
        plan.problems.extend(ids.err().map(|e| Error::source(pipeline, &scoring.source.query, e, context)));
        plan.problems.extend(rejected::check(scoring, &staged).await.err());
        // If the row count is unknown and the limit was reached, there may be more rows.
        let limited =
            self.options.rows.is_some_and(|limit| staged.len() >= limit as u64) && known != Some(staged.len());
        let all_rows = known.filter(|all| limited && *all > staged.len());
        Ok(Read { staged, limited, all_rows, one_pass })
    }

    /// Tokenizes a sample of the texts without a score, and runs some batches of it.
    async fn try_texts(&self, pending: &Pending, scorer: &Scorer) -> Result<Tried, Error> {
        if pending.texts == 0 {
            return Ok(Tried::default());
        }
        let sample = pending.sample(SAMPLE.max(self.pipeline.run.window as u64)).map_err(|e| self.rows_failed(&e))?;
        let sample = Arc::new(scorer.tokenize(sample).await?);
        let seconds_per_text = sample.seconds / sample.lengths.len().max(1) as f64;
        let lengths = Some(Lengths::of(&sample, pending.texts, scorer.max_length()));
        let pace = scorer.pace(sample, self.options.budget).await?;
        Ok(Tried { lengths, pace, seconds_per_text })
    }

    /// Loads a model, or its substitute if it does not exist yet.
    pub(super) async fn model(&self, settings: &ModelSettings, models: &Models) -> Result<PlanningModel, Error> {
        let began = Instant::now();
        let place = &settings.location.place;
        if place.local().is_some_and(|path| !path.exists())
            && let Some(inputs) = self.untrained_model(place)
        {
            let (options, pool) = (scorer_options(settings, self.pipeline), models.pool().clone());
            let name = inputs.name().to_owned();
            let loading = tokio::task::spawn_blocking(move || Scorer::untrained(&inputs, options, &pool));
            let scorer = loading.await.map_err(|_| ScorerError::Stopped)??;
            return Ok(PlanningModel { scorer, substitute: Some(name), seconds: began.elapsed().as_secs_f64() });
        }
        if let Some(error) = missing_model(settings) {
            return Err(error);
        }
        let scorer = models.get(&model_name(settings)).await?;
        Ok(PlanningModel { scorer, substitute: None, seconds: began.elapsed().as_secs_f64() })
    }

    /// Returns true if an earlier stage of the plan replaces the existing model.
    fn changes(&self, scoring: &Scoring, plan: &Plan) -> bool {
        let output = self.pipeline.finetune.as_ref().map(|stage| stage.learning.output.path.as_path());
        let trained = plan.finetune.as_ref().is_some_and(PlannedTraining::changes_the_model);
        trained && output.is_some() && output == scoring.model.location.local()
    }

    /// Summarizes the label column, and notes labels that the model does not have.
    async fn labels(
        &self,
        staged: &StagedRows,
        scoring: &Scoring,
        scorer: &Scorer,
        plan: &mut Plan,
    ) -> Result<Option<String>, DataFusionError> {
        let Some(label) = &scoring.source.label else { return Ok(None) };
        let rows = staged.rows().await?;
        let data_type = staged.schema().field_with_name(label)?.data_type().clone();
        if data_type.is_nested() {
            return Ok(Some(format!("lists ({data_type})")));
        }
        if data_type.is_floating() {
            let range = rows.aggregate(vec![], vec![min(column(label)), max(column(label)), count(column(label))])?;
            let range = range.collect().await?;
            let Some(range) = range.first() else { return Ok(None) };
            let value = |i: usize| cast(range.column(i), &DataType::Float64);
            let (low, high) = (value(0)?, value(1)?);
            let (low, high) = (low.as_primitive::<Float64Type>(), high.as_primitive::<Float64Type>());
            if low.is_null(0) {
                return Ok(Some("all NULL".into()));
            }
            let null = staged.len() - range.column(2).as_primitive::<Int64Type>().value(0).unsigned_abs();
            let null = if null > 0 { format!(" · NULL in {null} rows") } else { String::new() };
            return Ok(Some(format!("numbers from {} to {}{null}", low.value(0), high.value(0))));
        }
        let counts = rows.aggregate(vec![column(label)], vec![count(lit(1)).alias("__rows")])?;
        let counts = counts.sort(vec![col("__rows").sort(false, false), column(label).sort(true, false)])?;
        let counts = counts.limit(0, Some(MAX_LABELS + 1))?.collect().await?;
        let mut found: Vec<(Option<String>, i64)> = Vec::new();
        for batch in &counts {
            let n = batch.column(1).as_primitive::<Int64Type>();
            found.extend(value_texts(batch.column(0))?.into_iter().zip(n.values().iter().copied()));
        }
        let config = &scorer.model().config;
        let unknown = found.iter().filter_map(|(name, _)| name.as_ref()).find(|name| !config.labels.contains(name));
        if let (Problem::SingleLabel, Some(unknown)) = (config.problem, unknown) {
            let more = if config.labels.len() > MAX_LABELS { ", …" } else { "" };
            plan.notes.push(format!(
                "label `{label}` has the value {unknown:?}, which is not among the model's labels ({}{more}); queries that \
                 compare them with predicted_label need a CASE in the source query",
                config.labels[..config.labels.len().min(MAX_LABELS)].join(", ")
            ));
        }
        let more = if found.len() > MAX_LABELS { " · and more" } else { "" };
        let named = |(name, n): &(Option<String>, i64)| {
            format!("{} {}", name.as_deref().unwrap_or("NULL"), couplet_storage::words::grouped(n.unsigned_abs()))
        };
        let named = found.iter().take(MAX_LABELS).map(named).collect::<Vec<_>>().join(" · ");
        Ok(Some(format!("{named}{more}")))
    }

    /// Writes some rows with placeholder predictions as Parquet into memory, to measure time and size.
    async fn write_trial(&self, staged: &StagedRows, scorer: &Scorer) -> Result<Written, DataFusionError> {
        let rows = staged.rows().await?.limit(0, Some(self.pipeline.run.window))?;
        let names = staged.schema().fields().iter().map(|field| column(field.name())).collect::<Vec<_>>();
        let batches = rows.select(names)?.collect().await?;
        let Some(first) = batches.first() else { return Ok(Written::default()) };
        let rows = concat_batches(&first.schema(), &batches)?;
        if rows.num_rows() == 0 {
            return Ok(Written::default());
        }
        let (_, predicted, _) =
            predictions_to_array(&scorer.placeholder_predictions(rows.num_rows()), &scorer.model().config).into_parts();
        let fingerprint = scorer.model().fingerprint.to_string();
        let model: ArrayRef = Arc::new(arrow::array::StringArray::from(vec![fingerprint.as_str(); rows.num_rows()]));
        let schema = output_schema(staged.schema());
        let columns = rows.columns().iter().cloned().chain(predicted).chain([model]);
        let columns = columns.zip(schema.fields()).map(|(column, field)| cast(&column, field.data_type()));
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns.collect::<Result<_, _>>()?)?;
        let began = Instant::now();
        let mut writer = ArrowWriter::try_new(Vec::new(), schema, Some(properties(&[])))?;
        writer.write(&batch)?;
        let bytes = writer.into_inner()?.len();
        let n = rows.num_rows() as f64;
        Ok(Written { seconds_per_row: began.elapsed().as_secs_f64() / n, bytes_per_row: bytes as f64 / n })
    }
}

/// Rows read for the plan.
struct Read {
    staged: StagedRows,
    /// True if there may be more rows than were read.
    limited: bool,
    /// The number of rows of the source, if it is known that not all were read.
    all_rows: Option<u64>,
    /// Duration of one pass over the rows, in seconds.
    one_pass: f64,
}

/// Measurements of a sample of the texts.
#[derive(Default)]
struct Tried {
    lengths: Option<Lengths>,
    pace: Option<Pace>,
    seconds_per_text: f64,
}

impl Tried {
    /// Estimates the duration of tokenizing and scoring `texts` texts, in seconds.
    fn seconds(&self, texts: u64) -> f64 {
        let tokens = self.lengths.as_ref().map_or(0, |lengths| lengths.tokens_of(texts));
        self.pace.map_or(0.0, |pace| tokens as f64 / pace.tokens_per_second) + self.seconds_per_text * texts as f64
    }
}

/// Measurements of writing a sample of the rows.
#[derive(Debug, Clone, Copy, Default)]
struct Written {
    seconds_per_row: f64,
    bytes_per_row: f64,
}

/// Adds a note if sizes and times are those of a substitute, or if the model's scores will not be valid any more.
fn note_substitute(scoring: &Scoring, loaded: &PlanningModel, changes: bool, plan: &mut Plan) {
    if let Some(path) = &loaded.substitute {
        let model = readable_place(&scoring.model.location.place);
        let substitute = readable(path).display().to_string();
        plan.notes.push(format!("{model} does not exist yet: sizes and times are those of {substitute}"));
    } else if changes {
        plan.notes.push("the model will be trained again, so none of its scores are cached".into());
    }
}

/// The number of rows of a query, if its statistics are exact.
async fn known_rows(frame: &datafusion::prelude::DataFrame) -> Option<u64> {
    tables::known_rows(frame.clone().create_physical_plan().await.ok()?.as_ref())
}

fn columns(source: &Source, scoring: &Scoring) -> Vec<Column> {
    let settings = &scoring.source;
    let named = settings.id.iter().map(|name| ("id", name));
    let named = named.chain(settings.text.iter().map(|name| ("text", name)));
    let named = named.chain(settings.label.iter().map(|name| ("label", name)));
    named
        .filter_map(|(role, name)| {
            let data_type = source.schema().field_with_name(name).ok()?.data_type().to_string();
            Some(Column { role, name: name.clone(), data_type })
        })
        .collect()
}

fn other_columns(source: &Source, scoring: &Scoring) -> Vec<String> {
    let settings = &scoring.source;
    let is_named = |name: &String| {
        settings.id.contains(name) || settings.text.contains(name) || settings.label.as_ref() == Some(name)
    };
    let names = source.schema().fields().iter().map(|field| field.name().clone());
    names.filter(|name| !is_named(name)).collect()
}

/// Builds a window from rows in memory.
pub(super) fn window_of(text: Vec<&str>, pair: Option<Vec<&str>>) -> Window {
    let column = |name: &str, values: Vec<&str>| TextColumn {
        name: name.to_owned(),
        values: values.into_iter().map(Some).collect(),
    };
    Window::new(column("text", text), pair.map(|pair| column("text_pair", pair)))
}
