//! `couplet plan`: what a run would do, found out by the run's own code up to where it would change anything.
//!
//! ```text
//! tables ─ source ─ rows ─ ids ─ texts without a score ─ a sample ─ lengths ─ batches for two seconds ─ forecast
//!           (the run's code, in a temporary folder)        store: read, not made; no lock is taken
//! ```
//!
//! Nothing lasts of a plan but the copies of models that are in buckets and hubs, which cannot be looked at otherwise,
//! in the caches that are among the places that the plan names. Rows are kept in the system's folder for temporary
//! files while it works, whatever `run.spill` says.

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

use datafusion::physical_plan::displayable;
use datafusion::prelude::{DataFrame, SessionContext};

use super::{
    Stage, check_cluster, check_stages, check_variables, folder_of, models_of, outputs, pool, resources, scorer_options,
};
use crate::cluster::Address;
use crate::config::{Evaluate, Pipeline, Start};
use crate::error::Error;
use crate::files::{self, MAX_TEXT};
use crate::model::{Makings, Problem};
use crate::place::Place;
use crate::predict::Models;
use crate::scorer::Scorer;
use crate::session;
use crate::tables::{self, Measured};
use crate::train::training_loop::peak_memory;

pub use cluster::PlannedCluster;
pub use planned::{Column, Lengths, PlannedScoring, Seconds};
pub use training::{PlannedEvaluation, PlannedTraining};
pub use writes::Write;

/// What a plan is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The stages that are planned; all of them if empty.
    pub only: Vec<Stage>,
    /// Plan as if no score were remembered.
    pub fresh: bool,
    /// Read only so many rows of the source.
    pub rows: Option<usize>,
    /// The scheduler of a cluster that is to score.
    pub cluster: Option<Address>,
    /// For how long batches and steps of training are tried out, each.
    pub budget: Duration,
    /// Keep DataFusion's plans of the queries.
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

/// What a run would do.
#[derive(Debug)]
pub struct Plan {
    /// The pipeline's name.
    pub pipeline: String,
    /// Its file.
    pub file: PathBuf,
    /// Its tables.
    pub tables: Vec<Measured>,
    /// The stage that hides words.
    pub pretrain: Option<PlannedTraining>,
    /// The stage that learns a task.
    pub finetune: Option<PlannedTraining>,
    /// The stage that measures.
    pub evaluate: Option<PlannedEvaluation>,
    /// The stage that scores.
    pub score: Option<PlannedScoring>,
    /// The cluster that scores, if one is to.
    pub cluster: Option<PlannedCluster>,
    /// Every place that is written to.
    pub writes: Vec<Write>,
    /// The memory that the run is expected to take at most, in bytes, where the system tells what is taken now.
    pub memory: Option<u64>,
    /// The memory of joins and sorts of the queries above which they spill, in bytes.
    pub spills_above: u64,
    /// Where to.
    pub spill: PathBuf,
    /// What is worth knowing and stops nothing.
    pub notes: Vec<String>,
    /// Why the run would fail.
    pub problems: Vec<Error>,
    /// `DataFusion`'s plans by the query that they are of, if they were asked for.
    pub explained: Vec<(String, String)>,
    /// How long planning took, in seconds.
    pub seconds: f64,
}

/// Plans a pipeline's stages, or those of them that are asked for.
///
/// # Errors
/// Whatever would end the run before its first row; what would end it later is among the plan's problems.
pub async fn plan(pipeline: &Pipeline, variables: &BTreeMap<String, String>, options: &Options) -> Result<Plan, Error> {
    let began = Instant::now();
    check_variables(pipeline, variables)?;
    check_stages(pipeline, &options.only)?;
    check_cluster(pipeline, &options.only, options.cluster.as_ref())?;
    // The folder that a pipeline from somebody else names may not be there, and is not to be made.
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
        plan.pretrain = Some(planner.pretrain(stage, &mut plan).await?);
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

/// What all stages are planned with.
struct Planner<'a> {
    /// With a folder for temporary files that is the plan's own.
    pipeline: &'a Pipeline,
    variables: &'a BTreeMap<String, String>,
    options: &'a Options,
}

/// The pipeline's tables, opened.
struct Opened {
    context: SessionContext,
    models: Arc<Models>,
    resources: session::Resources,
    /// How long that took, in seconds.
    seconds: f64,
}

impl Opened {
    /// The models as `[evaluate]` runs them, on the same threads.
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

    /// What a model is made of that a stage of this plan is still to make.
    fn makings(&self, model: &Place) -> Option<Makings> {
        let path = model.local()?;
        let finetune = self.pipeline.finetune.as_ref().filter(|_| self.plans(Stage::Finetune))?;
        if finetune.learning.output.path != path {
            return None;
        }
        let outputs = match finetune.task.problem() {
            Problem::Regression => 1,
            // How many labels there are makes no difference to the time.
            _ => finetune.labels.as_ref().map_or(finetune.task.labels().len(), Vec::len).max(2),
        };
        let base = finetune.base.local()?;
        if base.exists() {
            return Some(Makings::of_base(base, outputs));
        }
        let pretrain = self.pipeline.pretrain.as_ref().filter(|_| self.plans(Stage::Pretrain))?;
        if pretrain.learning.output.path != base {
            return None;
        }
        Some(match &pretrain.start {
            Start::Model(start) => Makings::of_base(start.local()?, outputs),
            Start::Random { config, tokenizer } => {
                Makings { config: config.path.clone(), tokenizer: tokenizer.path.clone(), weights: None, outputs }
            }
        })
    }

    /// Keeps the plans of a query, if they are asked for.
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

/// A model to plan with: its own, or one that stands for it.
struct Stand {
    scorer: Scorer,
    /// The folder of the encoder that stands for a model that is not there yet.
    for_now: Option<PathBuf>,
    /// How long it took to load, in seconds.
    seconds: f64,
}

/// The memory that this process has now, in bytes.
fn resident_memory() -> Option<u64> {
    let status = files::read_string("/proc/self/status".as_ref(), MAX_TEXT).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
