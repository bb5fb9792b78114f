//! `couplet plan`: predicts what a run would do, with the run's own code up to the point where it would change
//! anything.
//!
//! ```text
//! tables ─ source ─ rows ─ ids ─ texts without a score ─ a sample ─ lengths ─ batches for two seconds ─ estimate
//!           (the run's code, in a temporary folder)        store: read, not created; no lock is taken
//! ```
//!
//! A plan leaves nothing behind except cached copies of models from buckets and hubs, which cannot be inspected
//! otherwise; the plan lists these caches among the places that are written. While it works, rows are staged in the
//! system's temporary folder, whatever `run.spill` says.

mod cluster;
mod json;
mod planned;
mod scoring;
mod text;
mod training;
mod writes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use couplet_cluster::Address;
use couplet_encoder::model::{Problem, UntrainedModel};
use couplet_encoder::scorer::Scorer;
use couplet_storage::files::{self, MAX_TEXT};
use couplet_storage::place::Place;
use couplet_tables::predict::Models;
use couplet_tables::session;
use couplet_tables::tables::{self, Measured};
use couplet_train::training_loop::peak_memory;
use datafusion::physical_plan::displayable;
use datafusion::prelude::{DataFrame, SessionContext};

use super::{
    Stage, check_cluster, check_stages, check_variables, folder_of, models_of, outputs, pool, resources, scorer_options,
};
use crate::config::{Evaluate, Pipeline, Start};
use crate::error::Error;

pub use cluster::PlannedCluster;
pub use planned::{Column, Lengths, PlannedScoring, Seconds};
pub use training::{PlannedEvaluation, PlannedTraining};
pub use writes::Write;

/// Options of a plan.
#[derive(Debug, Clone)]
pub struct Options {
    /// The stages to plan; all of them if empty.
    pub only: Vec<Stage>,
    /// Plans as if no score were cached.
    pub fresh: bool,
    /// Maximum number of source rows to read.
    pub rows: Option<usize>,
    /// The scheduler of the cluster that would score.
    pub cluster: Option<Address>,
    /// Time limit for trial batches and for trial training steps, each.
    pub budget: Duration,
    /// Includes DataFusion's query plans.
    pub verbose: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            only: Vec::new(),
            fresh: false,
            rows: None,
            cluster: None,
            budget: Duration::from_secs(2),
            verbose: false,
        }
    }
}

/// The result of planning a run.
#[derive(Debug)]
pub struct Plan {
    /// The pipeline's name.
    pub pipeline: String,
    /// The pipeline's file.
    pub file: PathBuf,
    /// The pipeline's tables.
    pub tables: Vec<Measured>,
    /// The pretraining stage.
    pub pretrain: Option<PlannedTraining>,
    /// The fine-tuning stage.
    pub finetune: Option<PlannedTraining>,
    /// The evaluation stage.
    pub evaluate: Option<PlannedEvaluation>,
    /// The scoring stage.
    pub score: Option<PlannedScoring>,
    /// The cluster that would score, if any.
    pub cluster: Option<PlannedCluster>,
    /// Every place that is written to.
    pub writes: Vec<Write>,
    /// Estimated peak memory of the run in bytes, if the system reports current memory.
    pub memory: Option<u64>,
    /// The memory limit in bytes above which joins and sorts of the queries spill.
    pub spills_above: u64,
    /// The spill folder.
    pub spill: PathBuf,
    /// Notes that do not prevent the run.
    pub notes: Vec<String>,
    /// Problems that would make the run fail.
    pub problems: Vec<Error>,
    /// DataFusion's plan of each query, if requested.
    pub explained: Vec<(String, String)>,
    /// Duration of planning, in seconds.
    pub seconds: f64,
}

/// Plans the stages of a pipeline that are in `options.only`, or all of them if it is empty.
///
/// # Errors
/// Anything that would make the run fail before its first row. Later failures are in [`Plan::problems`].
pub async fn plan(pipeline: &Pipeline, variables: &BTreeMap<String, String>, options: &Options) -> Result<Plan, Error> {
    let began = Instant::now();
    check_variables(pipeline, variables)?;
    check_stages(pipeline, &options.only)?;
    check_cluster(pipeline, &options.only, options.cluster.as_ref())?;
    // The spill folder of an untrusted pipeline may not exist, and must not be created.
    let mut own = pipeline.clone();
    own.run.spill = std::env::temp_dir();
    let planner = Planner { pipeline: &own, variables, options };
    let runs = |stage| options.only.is_empty() || options.only.contains(&stage);
    outputs::check(pipeline, runs, true)?;
    let mut plan = Plan {
        pipeline: pipeline.name.clone(),
        file: pipeline.path.clone(),
        tables: Vec::new(),
        pretrain: None,
        finetune: None,
        evaluate: None,
        score: None,
        cluster: None,
        writes: writes::Writes::of(pipeline, variables, runs).await,
        memory: None,
        spills_above: pipeline.run.memory,
        spill: pipeline.run.spill.clone(),
        notes: Vec::new(),
        problems: Vec::new(),
        explained: Vec::new(),
        seconds: 0.0,
    };
    let opened = planner.open().await?;
    for table in &own.tables {
        plan.tables.push(tables::measure(&opened.context, table).await.map_err(|e| Error::Tables(vec![e]))?);
    }
    if let Some(stage) = own.pretrain.as_ref().filter(|_| runs(Stage::Pretrain)) {
        plan.pretrain = Some(planner.pretrain(stage).await?);
    }
    if let Some(stage) = own.finetune.as_ref().filter(|_| runs(Stage::Finetune)) {
        plan.finetune = Some(planner.finetune(stage, &mut plan).await?);
    }
    if let Some(stage) = own.evaluate.as_ref().filter(|_| runs(Stage::Evaluate)) {
        plan.evaluate = Some(planner.evaluate(stage, &opened, &mut plan).await?);
    }
    if let Some(scoring) = own.scoring.as_ref().filter(|_| runs(Stage::Score)) {
        let planned = Box::pin(planner.score(scoring, opened, &mut plan)).await?;
        let joins = planned.joins_bytes.min(super::joins::MEMORY).min(pipeline.run.memory);
        plan.memory = resident_memory().zip(peak_memory()).map(|(now, peak)| peak.max(now + joins));
        if let Some(address) = &options.cluster {
            let tokens = planned.texts_and_tokens().map(|(_, tokens)| tokens);
            match PlannedCluster::look(address, pipeline, scoring, tokens).await {
                Ok(cluster) => {
                    plan.notes.extend(cluster.notes());
                    plan.cluster = Some(cluster);
                }
                Err(problem) => plan.problems.push(problem),
            }
        }
        plan.score = Some(planned);
    } else {
        plan.memory = peak_memory();
    }
    plan.seconds = began.elapsed().as_secs_f64();
    Ok(plan)
}

/// Inputs for planning the stages.
struct Planner<'a> {
    /// The pipeline, with its spill folder replaced by the system's temporary folder.
    pipeline: &'a Pipeline,
    variables: &'a BTreeMap<String, String>,
    options: &'a Options,
}

/// The pipeline's tables, opened.
struct Opened {
    context: SessionContext,
    models: Arc<Models>,
    resources: session::Resources,
    /// Duration of opening the tables, in seconds.
    seconds: f64,
}

impl Opened {
    /// The models with the options of `[evaluate]`, on the same threads.
    fn evaluating(&self, planner: &Planner, stage: &Evaluate) -> Models {
        let models = Models::new(self.models.pool().clone(), folder_of(&planner.pipeline.path));
        models.with_options(scorer_options(&stage.model, planner.pipeline))
    }
}

impl Planner<'_> {
    async fn open(&self) -> Result<Opened, Error> {
        let (pipeline, began) = (self.pipeline, Instant::now());
        let models = Arc::new(models_of(pipeline, pool(pipeline.run.threads)?, &folder_of(&pipeline.path)));
        let resources = resources(&pipeline.run)?;
        let session = session::open(&pipeline.tables, Arc::clone(&models), pipeline.run.window, 1, &resources);
        let context = session.await.map_err(Error::Tables)?;
        Ok(Opened { context, models, resources, seconds: began.elapsed().as_secs_f64() })
    }

    fn plans(&self, stage: Stage) -> bool {
        self.options.only.is_empty() || self.options.only.contains(&stage)
    }

    /// The inputs of a model that a stage of this plan will train.
    fn untrained_model(&self, model: &Place) -> Option<UntrainedModel> {
        let path = model.local()?;
        let finetune = self.pipeline.finetune.as_ref().filter(|_| self.plans(Stage::Finetune))?;
        if finetune.learning.output.path != path {
            return None;
        }
        let outputs = match finetune.task.problem() {
            Problem::Regression => 1,
            // The number of labels has no effect on the duration.
            _ => finetune.labels.as_ref().map_or(finetune.task.labels().len(), Vec::len).max(2),
        };
        let base = finetune.base.local()?;
        if base.exists() {
            return Some(UntrainedModel::of_base(base, outputs));
        }
        let pretrain = self.pipeline.pretrain.as_ref().filter(|_| self.plans(Stage::Pretrain))?;
        if pretrain.learning.output.path != base {
            return None;
        }
        Some(match &pretrain.start {
            Start::Model(start) => UntrainedModel::of_base(start.local()?, outputs),
            Start::Random { config, tokenizer } => UntrainedModel {
                config: config.path.clone(),
                tokenizer: tokenizer.path.clone(),
                weights: None,
                outputs,
            },
        })
    }

    /// Keeps the logical and physical plan of a query, if requested.
    async fn explain(&self, plan: &mut Plan, query: &str, frame: &DataFrame) {
        if !self.options.verbose {
            return;
        }
        let physical = match frame.clone().create_physical_plan().await {
            Ok(physical) => displayable(physical.as_ref()).indent(false).to_string(),
            Err(e) => e.strip_backtrace(),
        };
        let logical =
            frame.clone().into_optimized_plan().map_or_else(|e| e.to_string(), |p| p.display_indent().to_string());
        plan.explained.push((query.to_owned(), format!("{logical}\n\n{physical}")));
    }
}

/// A model to plan with: the model itself, or its substitute if it does not exist yet.
struct PlanningModel {
    scorer: Scorer,
    /// The folder of the encoder that is used in place of a model that does not exist yet.
    substitute: Option<PathBuf>,
    /// Duration of loading, in seconds.
    seconds: f64,
}

/// The resident memory of this process in bytes.
fn resident_memory() -> Option<u64> {
    let status = files::read_string("/proc/self/status".as_ref(), MAX_TEXT).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
