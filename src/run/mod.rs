//! `couplet run`: the stages of a pipeline, from its file to the published table, one call per stage.

mod checked;
mod cluster_scoring;
mod commit_gate;
mod digest;
mod evaluate;
mod joins;
mod learn;
mod misclassified;
mod outputs;
mod pending;
pub mod plan;
mod prepare;
mod publish;
pub(crate) mod quarantine;
mod rejected;
mod rows;
pub(crate) mod run_key;
mod run_lock;
mod run_state;
mod score;
mod sinks;
mod staged_rows;
mod window_stats;
mod writers;
mod zip_by_row;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::{Path, PathBuf};

use couplet_cluster::{self as cluster, Address, ClusterError};
use couplet_encoder::scorer::{Pool, ScorerOptions};
use couplet_storage::files::{self, readable};
use couplet_storage::place::Place;
use couplet_tables::predict::Models;
use couplet_tables::session::Resources;
use couplet_tables::sql_depth;
use couplet_tables::store::ScoreStore;
use couplet_tables::tables;
use couplet_tables::tables::Table;
use couplet_train::finetune;
use datafusion::prelude::SessionContext;

use crate::config::{self, ModelSettings, Pipeline, Query, RunSettings, Scoring};
use crate::error::Error;
use crate::progress::Style;
use crate::report::RunReport;

pub(crate) use rows::gold_labels;
pub use run_state::RunState;
pub use score::RunOptions;

/// A stage of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Stage {
    /// Pretrains with masked-language modelling.
    Pretrain,
    /// Fine-tunes a model for a task.
    Finetune,
    /// Evaluates a model on labelled rows.
    Evaluate,
    /// Scores the source.
    Score,
}

/// Runs the stages of a pipeline that are in `only`, or all of them if it is empty, until done or until `stop`
/// completes. A stage that fails or is stopped leaves the existing output unchanged. `state` receives the progress and
/// the run record, also if the run fails.
///
/// # Errors
/// Any error in the pipeline's tables, queries, models or sink; [`Error::Interrupted`] after `stop`.
#[tracing::instrument(skip_all, fields(pipeline = %pipeline.name))]
pub async fn run(
    pipeline: &Pipeline,
    variables: &BTreeMap<String, String>,
    only: &[Stage],
    options: RunOptions,
    style: Style,
    stop: impl Future<Output = ()>,
    state: &mut RunState,
) -> Result<RunReport, Error> {
    check_variables(pipeline, variables)?;
    check_stages(pipeline, only)?;
    check_cluster(pipeline, only, options.cluster.as_ref())?;
    run_key::check(pipeline, only, &options)?;
    let wanted = |stage| only.is_empty() || only.contains(&stage);
    let pretrain = pipeline.pretrain.as_ref().filter(|_| wanted(Stage::Pretrain));
    let finetune = pipeline.finetune.as_ref().filter(|_| wanted(Stage::Finetune));
    let evaluate = pipeline.evaluate.as_ref().filter(|_| wanted(Stage::Evaluate));
    // If scoring is the first stage, it checks the sinks itself and writes the result to the run record.
    let scores_later = pretrain.is_some() || finetune.is_some() || evaluate.is_some();
    outputs::check(pipeline, wanted, scores_later)?;
    // Stays completed: if a stage succeeds although `stop` fired, the next stage sees it.
    let mut stop = std::pin::pin!(futures::future::maybe_done(stop));
    let training = learn::Training { pipeline, variables, style };
    let mut report = RunReport { pipeline: pipeline.name.clone(), ..RunReport::default() };
    if let Some(stage) = pretrain {
        let done = training.pretrain(stage, &mut stop).await?;
        state.stages.pretrain = Some(done.elapsed.as_secs_f64());
        report.pretrain = Some(done);
    }
    if let Some(stage) = finetune {
        let done = training.finetune(stage, &mut stop).await?;
        state.finetuned(&done);
        report.finetune = Some(done);
    }
    if let Some(stage) = evaluate {
        let done = evaluate::evaluate(pipeline, stage, variables, style, &mut stop).await?;
        state.stages.evaluate = Some(done.elapsed.as_secs_f64());
        report.evaluate = Some(done);
    }
    if let Some(scoring) = pipeline.scoring.as_ref().filter(|_| wanted(Stage::Score)) {
        let scored = Box::pin(score::score(pipeline, scoring, variables, options, style, &mut stop, state));
        match scored.await? {
            score::Done::Published(done) => report.score = Some(*done),
            score::Done::Appended(done) => report.appended = Some(done),
        }
    }
    Ok(report)
}

/// Checks that `--cluster` is supported by this build and that the run has a stage that uses it.
fn check_cluster(pipeline: &Pipeline, only: &[Stage], cluster: Option<&Address>) -> Result<(), Error> {
    let Some(address) = cluster else { return Ok(()) };
    if !cluster::IS_AVAILABLE {
        return Err(ClusterError::Unavailable { what: "--cluster" }.into());
    }
    let stages = if only.is_empty() { "the pipeline" } else { "--only" };
    if pipeline.scoring.is_none() || !(only.is_empty() || only.contains(&Stage::Score)) {
        return Err(Error::Usage(format!(
            "--cluster {address}: {stages} has no scoring stage, and only scoring runs on a cluster; omit --cluster"
        )));
    }
    Ok(())
}

/// The state of an output that did not exist before the run.
const NOTHING_WRITTEN: &str = "nothing was written";

/// Replaces the error with the broken file that made a query fail, if one is found.
pub async fn blame(context: &SessionContext, tables: &[Table], error: Error, kept: &'static str) -> Error {
    match &error {
        Error::Sql { mistake: false, .. } => match tables::first_broken(context, tables).await {
            Some(broken) => Error::BrokenFile { broken, kept: Some(kept) },
            None => error,
        },
        Error::BrokenFile { broken, kept: None } => Error::BrokenFile { broken: broken.clone(), kept: Some(kept) },
        _ => error,
    }
}

/// Returns the SQL of a stage's query with variables replaced, at its position in its file. `key` is the pipeline key
/// that names a SQL file.
///
/// # Errors
/// A SQL file that cannot be read; variables that are not given; SQL that is nested too deeply.
fn query_text(
    pipeline: &Pipeline,
    query: &Query,
    key: &str,
    variables: &BTreeMap<String, String>,
) -> Result<String, Error> {
    let (sql, _) = substituted(pipeline, query, key, variables)?;
    match sql_depth::problem(&sql) {
        None => Ok(sql),
        Some(problem) => {
            let section = key.trim_end_matches(".file");
            Err(Error::Usage(format!("{}: the query of {section}: {problem}", pipeline.path.display())))
        }
    }
}

/// Returns the SQL of a query, and the names of the variables that were replaced in a SQL file.
fn substituted(
    pipeline: &Pipeline,
    query: &Query,
    key: &str,
    variables: &BTreeMap<String, String>,
) -> Result<(String, BTreeSet<String>), Error> {
    let path = match query {
        Query::Sql(sql) => return Ok((sql.placed(), BTreeSet::new())),
        Query::File(location) => &location.path,
    };
    let named = |problem: &str| format!("{}: {key}: {problem}", pipeline.path.display());
    let text = files::read_text(path).map_err(|problem| Error::Unusable(problem.in_words(named)))?;
    let (sql, used) =
        config::substitute(&text, variables).map_err(|e| Error::Usage(format!("{}: {e}", path.display())))?;
    Ok((sql, used.into_iter().map(str::to_owned).collect()))
}

/// Rejects `only` if it names a stage that the pipeline does not have.
fn check_stages(pipeline: &Pipeline, only: &[Stage]) -> Result<(), Error> {
    let there = [
        (Stage::Pretrain, "pretrain", "[pretrain]", pipeline.pretrain.is_some()),
        (Stage::Finetune, "finetune", "[finetune]", pipeline.finetune.is_some()),
        (Stage::Evaluate, "evaluate", "[evaluate]", pipeline.evaluate.is_some()),
        (Stage::Score, "score", "[source], [model] and [sink]", pipeline.scoring.is_some()),
    ];
    match there.iter().find(|(stage, _, _, is_there)| only.contains(stage) && !is_there) {
        None => Ok(()),
        Some((_, name, sections, _)) => {
            let has: Vec<&str> = there.iter().filter(|(.., is_there)| *is_there).map(|(_, name, ..)| *name).collect();
            Err(Error::Usage(format!(
                "--only {name}: {} has no {sections}; its stages are {}",
                pipeline.path.display(),
                has.join(", ")
            )))
        }
    }
}

/// Rejects variables that neither the pipeline file nor its SQL files use.
fn check_variables(pipeline: &Pipeline, variables: &BTreeMap<String, String>) -> Result<(), Error> {
    let mut unused = pipeline.unused_variables.clone();
    let mut files = Vec::new();
    for (key, query) in pipeline.queries() {
        if let Query::File(location) = query {
            let (_, used) = substituted(pipeline, query, key, variables)?;
            unused.retain(|name| !used.contains(name));
            files.push(location.path.display().to_string());
        }
    }
    match unused.first() {
        Some(unused) if !files.is_empty() => Err(Error::Usage(format!(
            "--var {unused}=… is used neither in {} nor in {}",
            pipeline.path.display(),
            files.join(", ")
        ))),
        _ => Ok(()),
    }
}

/// Memory limit and spill folder for the pipeline's queries.
///
/// # Errors
/// A spill folder that cannot be created.
pub fn resources(run: &RunSettings) -> Result<Resources, Error> {
    Resources::new(run.memory, &run.spill).map_err(|e| outputs::unspillable(run, &e))
}

/// Starts the inference threads.
///
/// # Errors
/// The operating system refused a thread.
pub fn pool(threads: Option<usize>) -> Result<Pool, Error> {
    Pool::new(threads).map_err(|error| Error::Io { context: "starting the inference threads".into(), error })
}

/// Creates a set of models in which the pipeline's model runs with the pipeline's options.
#[must_use]
pub fn models_of(pipeline: &Pipeline, pool: Pool, base: &Path) -> Models {
    let models = Models::new(pool, base.to_owned());
    let Some(settings) = pipeline.scoring.as_ref().map(|scoring| &scoring.model) else { return models };
    models.with_model_options(&model_name(settings), scorer_options(settings, pipeline))
}

/// Returns the pipeline's options for running a model.
fn scorer_options(settings: &ModelSettings, pipeline: &Pipeline) -> ScorerOptions {
    ScorerOptions {
        max_length: Some(settings.max_length),
        batch_tokens: pipeline.run.batch_tokens,
        precision: settings.precision,
        device: settings.device,
    }
}

/// Returns an error if the model does not exist because `promote_if` rejected the first trained one.
fn missing_model(model: &ModelSettings) -> Option<Error> {
    let path = model.location.local()?;
    if path.exists() {
        return None;
    }
    let (candidate, reason) = finetune::rejected_candidate(path)?;
    Some(Error::NotPromoted { model: readable(path), candidate: readable(&candidate), reason })
}

/// Formats a place as a path relative to the current folder where possible.
pub(crate) fn readable_place(place: &Place) -> String {
    place.local().map_or_else(|| place.to_string(), |path| readable(path).display().to_string())
}

/// The name under which the pipeline's model is looked up. Local paths are absolute, so that the base folder does not
/// matter.
pub(crate) fn model_name(model: &ModelSettings) -> String {
    match &model.location.place {
        Place::Local(path) => std::path::absolute(path).unwrap_or_else(|_| path.clone()).to_string_lossy().into_owned(),
        place => place.to_string(),
    }
}

pub(crate) fn folder_of(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_owned()
}

/// Builds the error for an interrupted run, which says what is kept: the previous output, and the cached scores.
fn interrupted(scoring: &Scoring, after: &str, scores: Option<&ScoreStore>) -> Error {
    let output = readable_place(&scoring.sink.location.place);
    let kept = match (scores, scoring.sink.location.local()) {
        (None, Some(path)) if !path.exists() => NOTHING_WRITTEN.to_owned(),
        (None, _) => format!("{output} is unchanged"),
        (Some(_), _) => {
            let store = readable_place(&scoring.score.store.place);
            format!("the new scores are cached in {store}, and {output} is unchanged")
        }
    };
    Error::Interrupted { after: after.to_owned(), kept: format!("{kept}. Run the same command again to resume") }
}
