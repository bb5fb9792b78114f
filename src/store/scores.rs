//! Scores by the key of their texts: a Delta table with a partition for each model.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use chrono::Duration;
use datafusion::common::DataFusionError;
use datafusion::logical_expr::{col, lit};
use datafusion::prelude::{DataFrame, SessionContext};
use deltalake_core::DeltaTable;
use deltalake_core::kernel::transaction::CommitProperties;
use deltalake_core::operations::optimize::OptimizeType;
use deltalake_core::protocol::SaveMode;
use serde_json::json;

use crate::delta::{self, DeltaError};
use crate::error::Error;
use crate::lock::{self, Claim};
use crate::objects::Objects;
use crate::predict::{prediction_fields, predictions_to_array};
use crate::scorer::{Prediction, Rejection, Scorer};
use crate::store::Runs;

/// Files of a model above which they are made into fewer ones.
const FILES_TO_COMPACT: usize = 128;

/// How long files stay that a reader of an older version may still need.
const READERS: Duration = Duration::hours(24);

/// `model, key` and the fields of a prediction, with the tokens that were read.
static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let predicted = prediction_fields();
    let fields = [("model", DataType::Utf8, false), ("key", DataType::Binary, false)]
        .map(|(name, data_type, nullable)| Arc::new(Field::new(name, data_type, nullable)))
        .into_iter()
        .chain(predicted.iter().cloned())
        .chain([Arc::new(Field::new("tokens", DataType::Int32, true))]);
    Arc::new(delta::for_delta(&Schema::new(fields.collect::<Vec<_>>())))
});

/// What makes two scores of one text the same: the model, where it cuts, and in which numbers it multiplies.
#[must_use]
pub fn model_class(scorer: &Scorer) -> String {
    let fingerprint = &scorer.model().fingerprint.as_str()[..32];
    format!("{fingerprint}-{}-{}", scorer.max_length(), scorer.precision())
}

/// The scores of one model.
#[derive(Debug)]
pub struct ScoreStore {
    objects: Objects,
    table: DeltaTable,
    model: String,
    run: String,
    commits: u64,
    waiting: Vec<RecordBatch>,
}

impl ScoreStore {
    /// Opens the scores of a model in a pipeline's store, which is made if there is none.
    ///
    /// # Errors
    /// A place that cannot be read or written.
    pub async fn open(store: &Objects, model: String, run: &str) -> Result<Self, DeltaError> {
        let objects = store.folder("scores");
        let table = delta::open_or_create(&objects, &SCHEMA, &["model"], "score", "couplet: scores by text").await;
        let table = table.map_err(|e| mended(&objects, e))?;
        Ok(Self { objects, table, model, run: run.to_owned(), commits: 0, waiting: Vec::new() })
    }

    /// Looks at the scores of a model without making anything; none if there is no store yet.
    ///
    /// # Errors
    /// A place that cannot be read.
    pub async fn look(store: &Objects, model: String) -> Result<Option<Self>, DeltaError> {
        let objects = store.folder("scores");
        let table = delta::open(&objects, None).await.map_err(|e| mended(&objects, e))?;
        let found = |table| Self { objects, table, model, run: String::new(), commits: 0, waiting: Vec::new() };
        Ok(table.map(found))
    }

    /// Rows of this model, by the log.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.files().map(|(rows, _)| rows).sum()
    }

    /// Why a read of the scores failed: the file that is damaged, if one is; what was noticed otherwise.
    pub async fn blame(&self, noticed: Error) -> Error {
        let damaged = delta::data_file(&self.objects, &self.table, &self.partition()).await;
        damaged.map_or(noticed, |error| {
            error
                .mended_by(
                    "run the pipeline with --fresh: it forgets the scores of this model and scores all rows anew, and \
                     nothing else is lost",
                )
                .into()
        })
    }

    /// The folder of this model's files.
    fn partition(&self) -> String {
        format!("model={}/", self.model)
    }

    fn files(&self) -> impl Iterator<Item = (u64, i64)> {
        let files = self.table.snapshot().ok().map(|snapshot| snapshot.log_data());
        let partition = self.partition();
        files
            .into_iter()
            .flatten()
            .filter(move |file| file.path().starts_with(&*partition))
            .map(|file| (file.num_records().unwrap_or_default() as u64, file.size()))
    }

    /// The scores as a table: all of [`prediction_fields`], `key` and `tokens`.
    ///
    /// # Errors
    /// A table that cannot be read.
    pub async fn scores(&self, context: &SessionContext) -> Result<DataFrame, Error> {
        let provider = delta::provider(&self.objects, &self.table, context).await?;
        let frame = context.read_table(provider).and_then(|frame| frame.filter(col("model").eq(lit(&self.model))));
        frame.map_err(|e| self.failed(&e))
    }

    /// Forgets the rows that could not be scored, so that they are tried again.
    ///
    /// # Errors
    /// A table that cannot be written.
    pub async fn forget_errors(&mut self) -> Result<(), Error> {
        self.delete(col("model").eq(lit(&self.model)).and(col("error").is_not_null())).await
    }

    /// Forgets all scores of this model.
    ///
    /// # Errors
    /// A table that cannot be written.
    pub async fn forget(&mut self) -> Result<(), Error> {
        self.delete(col("model").eq(lit(&self.model))).await
    }

    async fn delete(&mut self, which: datafusion::logical_expr::Expr) -> Result<(), Error> {
        let properties = self.properties();
        let deleted = self.table.clone().delete().with_predicate(which).with_commit_properties(properties).await;
        let (table, _) = deleted.map_err(|e| DeltaError::new(&self.objects, &e))?;
        self.table = table;
        Ok(())
    }

    /// Keeps the outcomes of a window in memory until the next [`ScoreStore::commit`]; `keys` are of its rows.
    ///
    /// # Errors
    /// A window and keys of different lengths.
    pub fn remember(
        &mut self,
        keys: &ArrayRef,
        outcomes: &[Result<Prediction, Rejection>],
        scorer: &Scorer,
    ) -> Result<(), Error> {
        let predictions: StructArray = predictions_to_array(outcomes, &scorer.model().config);
        let (_, predicted, _) = predictions.into_parts();
        let tokens = |outcome: &Result<Prediction, Rejection>| i32::try_from(outcome.as_ref().ok()?.tokens).ok();
        let model: ArrayRef = Arc::new(StringArray::from(vec![self.model.as_str(); outcomes.len()]));
        let tokens: ArrayRef = Arc::new(outcomes.iter().map(tokens).collect::<Int32Array>());
        let columns = [model, Arc::clone(keys)].into_iter().chain(predicted).chain([tokens]);
        let columns =
            columns.zip(SCHEMA.fields()).map(|(column, field)| arrow::compute::cast(&column, field.data_type()));
        let batch = columns.collect::<Result<Vec<_>, _>>();
        let batch = batch.and_then(|columns| RecordBatch::try_new(Arc::clone(&SCHEMA), columns));
        self.waiting.push(batch.map_err(|e| self.failed(&e.into()))?);
        Ok(())
    }

    /// Rows that a kill would lose now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.iter().map(RecordBatch::num_rows).sum()
    }

    /// The memory that they take.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.waiting.iter().map(RecordBatch::get_array_memory_size).sum()
    }

    /// Makes what was scored since the last time a part of the table, in one step.
    ///
    /// # Errors
    /// A place that cannot be written; a later run scores those texts again.
    pub async fn commit(&mut self) -> Result<(), Error> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let batches = std::mem::take(&mut self.waiting);
        self.commits += 1;
        let (commit, before) = (format!("{}/{}", self.run, self.commits), self.table.version());
        let properties = CommitProperties::default().with_metadata([(delta::RUN.to_owned(), json!(commit))]);
        // A commit whose answer was lost may be made twice. It names the same files then, and a file counts once.
        let write = self.table.clone().write(batches).with_save_mode(SaveMode::Append);
        self.table = match write.with_commit_properties(properties).await {
            Ok(table) => table,
            Err(error) => match delta::has_committed(&self.objects, &commit, before).await {
                Ok(Some(table)) => table,
                _ => return Err(DeltaError::new(&self.objects, &error).into()),
            },
        };
        Ok(())
    }

    /// Makes many small files into few, once there are very many; what fails here can be done another time.
    pub async fn compact(&mut self) {
        if self.files().filter(|(_, bytes)| *bytes < 64 << 20).count() < FILES_TO_COMPACT {
            return;
        }
        let compacted = self
            .table
            .clone()
            .optimize()
            .with_type(OptimizeType::Compact)
            .with_commit_properties(self.properties())
            .await;
        match compacted {
            Ok((table, _)) => self.table = table,
            Err(error) => {
                tracing::warn!("the score store could not be compacted: {}", DeltaError::new(&self.objects, &error));
            }
        }
    }

    fn properties(&self) -> CommitProperties {
        CommitProperties::default().with_metadata([(delta::RUN.to_owned(), json!(self.run))])
    }

    fn failed(&self, error: &DataFusionError) -> Error {
        Error::sql(format!("the score store {}", self.objects), error, None)
    }
}

/// Says what to do about scores whose log is damaged.
fn mended(objects: &Objects, error: DeltaError) -> DeltaError {
    error.mended_by(&format!(
        "remove {objects} and run the pipeline again: all rows are scored anew, and nothing else is lost"
    ))
}

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

/// Forgets every model's scores but those of `keep`, and removes files that nobody has needed for a day.
///
/// # Errors
/// A place that cannot be read or written.
pub async fn collect_garbage(store: &Objects, keep: &[String], dry_run: bool) -> Result<Garbage, Error> {
    let objects = store.folder("scores");
    let table = delta::open(&objects, None).await.map_err(|e| mended(&objects, e))?;
    let Some(mut table) = table else { return Ok(Garbage::default()) };
    let failed = |e: deltalake_core::DeltaTableError| DeltaError::new(&objects, &e);
    let mut models = std::collections::BTreeMap::<String, u64>::new();
    for file in table.snapshot().map_err(failed)?.log_data() {
        let path = file.path().to_string();
        let model = path.strip_prefix("model=").and_then(|rest| rest.split('/').next()).unwrap_or_default().to_owned();
        if !keep.contains(&model) {
            *models.entry(model).or_default() += file.num_records().unwrap_or_default() as u64;
        }
    }
    let mut garbage = Garbage { models: models.len(), scores: models.values().sum(), files: 0 };
    if dry_run {
        return Ok(garbage);
    }
    // A run that is under way may have written what no commit names yet, and may use a model that is new to the pipelines.
    let claim =
        Claim { run_id: "gc".into(), pipeline: "couplet store gc".into(), wait: None, lease: lock::DEFAULT_LEASE };
    let held = lock::acquire(&store.lock_place(), &claim).await?;
    if !models.is_empty() {
        let forgotten: Vec<_> = models.keys().map(|model| lit(model.as_str())).collect();
        (table, _) = table.delete().with_predicate(col("model").in_list(forgotten, false)).await.map_err(failed)?;
    }
    garbage.files = delta::clean(&objects, table, READERS).await?;
    let runs = Runs::of(store);
    if let Some(table) = runs.open().await? {
        garbage.files += delta::clean(runs.objects(), table, READERS).await?;
    }
    held.release().await?;
    Ok(garbage)
}
