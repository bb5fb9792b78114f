//! Evaluation stage: scores labelled rows as a run would, and compares them with the gold labels.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{BooleanArray, RecordBatch, StringViewArray};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::error::ArrowError;
use couplet_encoder::model::{Model, Problem};
use couplet_encoder::scorer::{Prediction, Rejection, Scorer, TextColumn, Window};
use couplet_storage::files::{AtomicFolder, FolderKind};
use couplet_storage::words::{counted, grouped};
use couplet_tables::predict::{Models, text_values};
use couplet_tables::session;
use couplet_tables::sink::SinkError;
use couplet_train::finetune::Row;
use couplet_train::statistics::bootstrap::Bootstrap;
use couplet_train::statistics::evaluation::Evaluation;
use couplet_train::statistics::labels::{Labels, Targets};
use couplet_train::statistics::metrics::{Classes, DEFAULT_BINS, MetricError, Sample, Sets, Values};
use couplet_train::statistics::task::Task;
use datafusion::prelude::SessionContext;
use serde_json::{Value, json};

use super::misclassified::{self, EvaluatedRows};
use super::rows::{Columns, Selection};
use super::{folder_of, missing_model, model_name, pool, readable, readable_place, resources, scorer_options};
use crate::config::{Evaluate, Pipeline};
use crate::error::Error;
use crate::progress::{Progress, Style};
use crate::report::{EvaluationReport, evaluation_lines};

const SECTION: &str = "evaluate";

/// The report of an evaluation, in its folder.
pub(super) const REPORT: &str = "evaluation.json";

/// The folder of an evaluation.
pub(super) const EVALUATION_FOLDER: FolderKind =
    FolderKind { name: "an evaluation", marker: REPORT, has: |name| [REPORT, misclassified::FILE].contains(&name) };

/// Evaluates until done or until `stop` completes. The report folder is replaced atomically.
#[tracing::instrument(skip_all)]
pub(super) async fn evaluate(
    pipeline: &Pipeline,
    stage: &Evaluate,
    variables: &BTreeMap<String, String>,
    style: Style,
    stop: &mut (impl Future<Output = ()> + Unpin),
) -> Result<EvaluationReport, Error> {
    let work = Work { pipeline, settings: stage, variables, style };
    tokio::select! {
        biased;
        () = &mut *stop => Err(Error::Interrupted {
            after: "while evaluating".into(),
            kept: format!("{} is unchanged", readable(&stage.output.path).display()),
        }),
        done = work.run() => done,
    }
}

/// Reads the rows to evaluate on, and checks them against the model if there is one already.
pub(super) async fn rows_of(
    pipeline: &Pipeline,
    stage: &Evaluate,
    variables: &BTreeMap<String, String>,
    context: &SessionContext,
    model: Option<&Model>,
) -> Result<Vec<Row>, Error> {
    let work = Work { pipeline, settings: stage, variables, style: Style::Quiet };
    let selection = Selection { pipeline, context, section: SECTION, variables };
    let Rows { labelled: rows, .. } = work.rows(&selection).await?;
    if let Some(model) = model {
        work.gold(model, &rows).map_err(|problem| selection.refused(format!("[{SECTION}]: {problem}")))?;
    }
    Ok(rows)
}

/// Labelled rows that can be scored.
struct Rows {
    /// All columns of the query.
    table: RecordBatch,
    /// The texts and label of each row of `table`.
    labelled: Vec<Row>,
    /// The rows of the query that cannot be scored, by [`Rejection::KINDS`].
    rejected: [u64; Rejection::KINDS.len()],
}

impl Rows {
    /// Removes the rows that have a rejection reason.
    fn leave_out(&mut self, reasons: &[Option<Rejection>]) -> Result<(), Error> {
        for reason in reasons.iter().flatten() {
            self.rejected[reason.kind()] += 1;
        }
        let keep: BooleanArray = reasons.iter().map(|reason| Some(reason.is_none())).collect();
        self.table = filter_record_batch(&self.table, &keep).map_err(unmeasurable)?;
        let mut reasons = reasons.iter();
        self.labelled.retain(|_| reasons.next().is_none_or(Option::is_none));
        Ok(())
    }

    /// Fails if no rows are left.
    fn check_not_empty(&self, selection: &Selection<'_>, reasons: &[Option<Rejection>]) -> Result<(), Error> {
        match reasons.iter().flatten().next() {
            Some(reason) if self.table.num_rows() == 0 => Err(selection.refused(format!(
                "none of the {} of the query of [{SECTION}] can be scored: in the first, {reason}",
                counted(self.rejected.iter().sum(), "row")
            ))),
            _ => Ok(()),
        }
    }

    /// The number of rejected rows per reason, for reasons that occur.
    fn reasons(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Rejection::KINDS.into_iter().zip(self.rejected).filter(|(_, rows)| *rows > 0)
    }
}

struct Work<'a> {
    pipeline: &'a Pipeline,
    settings: &'a Evaluate,
    variables: &'a BTreeMap<String, String>,
    style: Style,
}

impl Work<'_> {
    async fn run(&self) -> Result<EvaluationReport, Error> {
        let (pipeline, stage, began) = (self.pipeline, self.settings, Instant::now());
        if let Some(error) = missing_model(&stage.model) {
            return Err(error);
        }
        let models = Models::new(pool(pipeline.run.threads)?, folder_of(&pipeline.path));
        let models = Arc::new(models.with_options(scorer_options(&stage.model, pipeline)));
        // One partition keeps the rows in the order of the files; the cores belong to the model.
        let resources = resources(&pipeline.run)?;
        let context = session::open(&pipeline.tables, Arc::clone(&models), pipeline.run.window, 1, &resources);
        let context = context.await.map_err(Error::Tables)?;
        let selection = Selection { pipeline, context: &context, section: SECTION, variables: self.variables };
        let mut rows = self.rows(&selection).await?;

        let scorer = models.get(&model_name(&stage.model)).await?;
        let refused = |problem: String| selection.refused(format!("[{SECTION}]: {problem}"));
        // Checked before the rows are scored, which takes long.
        self.gold(scorer.model(), &rows.labelled).map_err(refused)?;
        let outcomes = self.score(&scorer, &rows.labelled).await?;
        let reasons: Vec<_> = outcomes.iter().map(|outcome| outcome.as_ref().err().cloned()).collect();
        rows.leave_out(&reasons)?;
        rows.check_not_empty(&selection, &reasons)?;
        let predictions = outcomes.into_iter().flatten().collect();
        let (task, labels, gold) = self.gold(scorer.model(), &rows.labelled).map_err(refused)?;
        let slices = stage.slices.iter().map(|column| Ok((column.clone(), selection.values(&rows.table, column)?)));
        let slices: Vec<(String, Vec<Option<String>>)> = slices.collect::<Result<_, Error>>()?;
        let evaluated = EvaluatedRows { table: rows.table.clone(), labels, gold, predictions };

        let bootstrap =
            Bootstrap::try_new(stage.resamples, stage.level, stage.seed).map_err(|e| refused(e.to_string()))?;
        let measured = tokio::task::spawn_blocking(move || {
            let result = measure(&evaluated, &bootstrap, &slices);
            (evaluated, result)
        });
        let (evaluated, measured) =
            measured.await.map_err(|e| Error::Io { context: "measuring".into(), error: std::io::Error::other(e) })?;
        let (evaluation, raw) = measured.map_err(|e| refused(e.to_string()))?;
        let mistakes = misclassified::table(&evaluated, &scorer.model().config)
            .map_err(|e| Error::sql("the table of mistakes", &e.into(), None))?;
        let mut json = self.report(&scorer, task, &evaluated.labels, &evaluation, raw.as_ref(), mistakes.num_rows());
        json["rejected"] = rows.reasons().map(|(reason, rows)| (reason.to_owned(), Value::from(rows))).collect();
        self.publish(&json, &mistakes, &scorer).map_err(|e| self.unwritable(e))?;
        let mut lines = evaluation_lines(&evaluation, evaluated.labels.names());
        let unmeasured = evaluated.labels.without_rows(&evaluated.gold);
        if !unmeasured.is_empty() {
            let labels = unmeasured.iter().map(|label| format!("{label:?}")).collect::<Vec<_>>().join(", ");
            let line = format!("not measured, as no row has them: {labels}");
            tracing::warn!("[{SECTION}]: {line}");
            lines.push(line);
        }
        if let (Some(calibration), Some(raw)) = (&scorer.model().calibration, &raw) {
            lines.push(format!("calibrated: {calibration}; without: {}", raw.metrics));
        }
        lines.extend(rows.reasons().map(|(reason, rows)| format!("{} not measured: {reason}", counted(rows, "row"))));
        let listed = if evaluated.labels.problem() == Problem::Regression { "rows by their error" } else { "mistakes" };
        lines.push(format!("{} {listed} in {}", grouped(mistakes.num_rows() as u64), misclassified::FILE));
        Ok(EvaluationReport { folder: readable(&stage.output.path), lines, elapsed: began.elapsed(), json })
    }

    /// Reads the rows to evaluate on.
    async fn rows(&self, selection: &Selection<'_>) -> Result<Rows, Error> {
        let table = self.read(selection).await?;
        let text = |name: &String| -> Result<TextColumn, Error> {
            let values = table.column_by_name(name).ok_or_else(|| selection.refused(format!("no column `{name}`")))?;
            let values = text_values(values).map_err(|e| selection.refused(format!("column `{name}`: {e}")))?;
            Ok(TextColumn { name: name.clone(), values })
        };
        let names = &self.settings.text;
        let window = Window::new(text(&names[0])?, names.get(1).map(text).transpose()?);
        let reasons: Vec<_> = (0..window.len()).map(|row| window.rejection(row)).collect();
        let mut rows = Rows { table, labelled: Vec::new(), rejected: Default::default() };
        rows.leave_out(&reasons)?;
        rows.check_not_empty(selection, &reasons)?;
        let kept = (1..).zip(&reasons).filter(|(_, reason)| reason.is_none()).map(|(number, _)| number);
        rows.labelled = selection.labelled(&rows.table, &self.columns(), kept)?;
        Ok(rows)
    }

    fn columns(&self) -> Columns<'_> {
        let stage = self.settings;
        Columns { id: stage.id.as_deref().unwrap_or_default(), text: &stage.text, label: &stage.label }
    }

    async fn read(&self, selection: &Selection<'_>) -> Result<RecordBatch, Error> {
        let columns = self.columns();
        let mut names = columns.names();
        names.extend(self.settings.slices.iter().map(String::as_str));
        let batches = selection.read(&self.settings.query, &names).await?;
        let Some(first) = batches.iter().find(|batch| batch.num_rows() > 0) else {
            return Err(selection.refused(format!("the query of [{SECTION}] returns no rows")));
        };
        let schema = first.schema();
        if let Some(taken) = schema.fields().iter().find(|field| misclassified::ADDED.contains(&field.name().as_str()))
        {
            return Err(selection.refused(format!(
                "column `{0}` of the query of [{SECTION}] is a column that couplet adds to {1}; rename it in SQL, for \
                 example `{0} AS source_{0}`",
                taken.name(),
                misclassified::FILE
            )));
        }
        concat_batches(&schema, &batches).map_err(unmeasurable)
    }

    /// Maps the labels of the rows to the model's labels.
    fn gold(&self, model: &Model, rows: &[Row]) -> Result<(Task, Labels, Targets), String> {
        let problem = model.config.problem;
        let task = self.settings.task.unwrap_or(match problem {
            Problem::SingleLabel => Task::Classification,
            Problem::MultiLabel => Task::Multilabel,
            Problem::Regression => Task::Regression,
        });
        if task.problem() != problem {
            return Err(format!("task {task} is a {}, and {} a {problem}", task.problem(), model.folder.display()));
        }
        let labels = Labels::given(task, model.config.labels.clone()).map_err(|e| e.to_string())?;
        let gold: Vec<_> = rows.iter().map(|row| row.label.clone()).collect();
        let gold = labels.targets(&gold).map_err(|e| e.named(|row| rows[row].name()).to_string())?;
        Ok((task, labels, gold))
    }

    async fn score(&self, scorer: &Scorer, rows: &[Row]) -> Result<Vec<Result<Prediction, Rejection>>, Error> {
        let _progress = Progress::start(self.style, scorer, rows.len() as u64);
        let column =
            |name: usize, values: StringViewArray| TextColumn { name: self.settings.text[name].clone(), values };
        let mut predictions = Vec::with_capacity(rows.len());
        for window in rows.chunks(self.pipeline.run.window) {
            let text = window.iter().map(|row| Some(row.text.as_str())).collect();
            let is_pair = self.settings.text.len() > 1;
            let pair = is_pair.then(|| column(1, window.iter().map(|row| row.text_pair.as_deref()).collect()));
            predictions.append(&mut scorer.score(Window::new(column(0, text), pair)).await?);
        }
        Ok(predictions)
    }

    /// Builds `evaluation.json`.
    fn report(
        &self,
        scorer: &Scorer,
        task: Task,
        labels: &Labels,
        evaluation: &Evaluation,
        raw: Option<&Evaluation>,
        mistakes: usize,
    ) -> Value {
        let model = scorer.model();
        let mut json = evaluation.to_json(labels.names());
        json["couplet"] = env!("CARGO_PKG_VERSION").into();
        json["pipeline"] = self.pipeline.name.clone().into();
        json["model"] = json!({
            "uri": readable_place(&self.settings.model.location.place),
            "fingerprint": model.fingerprint.as_str(),
            "revision": scorer.revision(),
            "precision": scorer.precision().to_string(),
            "max_length": scorer.max_length(),
        });
        json["task"] = task.name().into();
        json["labels"] = labels.names().into();
        json["bootstrap"] = json!({ "resamples": self.settings.resamples, "seed": self.settings.seed });
        json["calibration"] = json!(model.calibration);
        json["uncalibrated"] = raw.map(|raw| raw.to_json(labels.names())).into();
        json["mistakes"] = mistakes.into();
        json
    }

    fn publish(&self, json: &Value, mistakes: &RecordBatch, scorer: &Scorer) -> std::io::Result<()> {
        let folder = AtomicFolder::create(&self.settings.output.path, &EVALUATION_FOLDER)?;
        couplet_encoder::model::write_json(&folder.path().join(REPORT), json)?;
        misclassified::write(&folder.path().join(misclassified::FILE), mistakes, scorer.model())
            .map_err(|SinkError { problem, .. }| std::io::Error::other(problem))?;
        folder.publish()
    }

    fn unwritable(&self, error: std::io::Error) -> Error {
        Error::Io { context: format!("cannot write {}", self.settings.output.path.display()), error }
    }
}

fn unmeasurable(error: ArrowError) -> Error {
    Error::sql("the rows to measure on", &error.into(), None)
}

/// Evaluates the predictions, and also the uncalibrated ones if they are calibrated.
fn measure(
    evaluated: &EvaluatedRows,
    bootstrap: &Bootstrap,
    slices: &[(String, Vec<Option<String>>)],
) -> Result<(Evaluation, Option<Evaluation>), MetricError> {
    let slices: Vec<_> = slices
        .iter()
        .map(|(name, values)| (name.as_str(), values.iter().map(Option::as_deref).collect::<Vec<_>>()))
        .collect();
    let evaluation = Evaluation::of(&sample(evaluated, |p| &p.probabilities, true)?, Some(bootstrap), &slices)?;
    // Regression values are not calibrated; their raw output is the logit.
    let is_value = matches!(evaluated.gold, Targets::Values(_));
    if is_value || evaluated.predictions.iter().all(|prediction| prediction.raw.is_empty()) {
        return Ok((evaluation, None));
    }
    Ok((evaluation, Some(Evaluation::of(&sample(evaluated, |p| &p.raw, false)?, None, &[])?)))
}

/// Converts the predictions to a metric sample. `decided` uses the predicted labels rather than the most probable ones.
fn sample(evaluated: &EvaluatedRows, of: fn(&Prediction) -> &[f32], decided: bool) -> Result<Sample, MetricError> {
    let EvaluatedRows { labels, gold, predictions, .. } = evaluated;
    let width = labels.names().len();
    let probabilities = || predictions.iter().flat_map(of).map(|p| f64::from(*p)).collect();
    Ok(match gold {
        Targets::Classes(gold) => {
            let label = |prediction: &Prediction| prediction.label.unwrap_or(0) as u32;
            let predicted = decided.then(|| predictions.iter().map(label).collect());
            let classes = Classes::new(width, gold.clone(), probabilities(), predicted, DEFAULT_BINS)?;
            Sample::Classes(classes.with_positive(labels.positive())?)
        }
        Targets::Sets(gold) => Sample::Sets(Sets::new(width, gold.clone(), &probabilities())?),
        Targets::Values(gold) => Sample::Values(Values::new(
            gold.iter().map(|value| f64::from(*value)).collect(),
            predictions.iter().map(|prediction| f64::from(prediction.score)).collect(),
        )?),
    })
}
