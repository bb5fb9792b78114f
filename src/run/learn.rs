//! Training stages: read rows with SQL, run a job on the inference threads, show progress, and report the result.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::Device;
use couplet_encoder::scorer::ScorerError;
use couplet_storage::hub::model_folder;
use couplet_storage::words::{counted, grouped};
use couplet_tables::predict::Models;
use couplet_tables::session::{self, Resources};
use couplet_train::sampling::HoldOut;
use couplet_train::training_loop::{Interval, JobError, JobStatus, Outcome, Watch};
use couplet_train::{AdamW, Hyper, Job, Kind, MaskedWords, Warmup, finetune as tuning, pretrain as pretraining};
use datafusion::prelude::SessionContext;

use super::rows::{Columns, Selection};
use super::{folder_of, pool, readable, resources};
use crate::config::{Finetune, Learning, Pipeline, Pretrain, Query, Start, Validation};
use crate::error::Error;
use crate::progress::{Style, TrainingProgress};
use crate::report::{StageReport, positive_of};

/// Section names for error messages.
pub(super) const FINETUNE: &str = "finetune";
pub(super) const PRETRAIN: &str = "pretrain";

/// Seed of the held-out split. It differs from the training seed, so that models trained with several seeds are
/// evaluated on the same rows.
const SPLIT_SEED: u64 = 42;

/// Inputs of the training stages.
pub(super) struct Training<'a> {
    pub(super) pipeline: &'a Pipeline,
    pub(super) variables: &'a BTreeMap<String, String>,
    pub(super) style: Style,
}

impl Training<'_> {
    /// Fine-tunes, unless the output is already the result of this stage.
    #[tracing::instrument(skip_all)]
    pub(super) async fn finetune(
        &self,
        stage: &Finetune,
        stop: &mut (impl Future<Output = ()> + Unpin),
    ) -> Result<StageReport, Error> {
        let output = &stage.learning.output;
        let summary = |job: &tuning::Job, report: tuning::Report| {
            let (rows, held_out) = (job.kind.training.len(), job.kind.validation.len());
            let mut lines = vec![if report.trained {
                format!("{rows} rows, {} steps; the model is from epoch {}", report.steps, report.epoch)
            } else {
                "nothing to train: base, rows and settings match the existing model, which is calibrated and evaluated \
                 again"
                    .to_owned()
            }];
            lines.extend(nothing_held_out(stage, rows, held_out));
            if let Some(evaluation) = &report.evaluation {
                let positive = positive_of(evaluation, &report.labels);
                lines.push(format!("{} held-out rows{positive}: {}", evaluation.rows, evaluation.metrics));
            }
            if let (Some(calibration), Some(calibrated)) = (&report.calibration, &report.calibrated) {
                lines.push(format!("calibrated: {}; {}", calibration.applied(), calibrated.metrics));
            }
            if let tuning::Promotion::Rejected { candidate, verdict } = &report.promotion {
                let candidate = readable(candidate).display().to_string();
                let stays = if output.path.exists() { "the old model stays" } else { "there is still no model" };
                lines.push(with_warning(format!("not promoted, as {verdict}: {stays}; the new model is {candidate}")));
            }
            (lines, report.promotion == tuning::Promotion::Published, report.json)
        };
        self.train(&stage.learning, Box::pin(self.finetune_job(stage)), stop, summary).await
    }

    /// Builds the fine-tuning job with its rows.
    pub(super) async fn finetune_job(&self, stage: &Finetune) -> Result<tuning::Job, Error> {
        let Learning { output, checkpoint, .. } = &stage.learning;
        let base = model_folder(&stage.base.place).await.map_err(ScorerError::from)?;
        let mut job = tuning::Job::new(&base.path, &output.path, stage.task);
        job.base_name = base.name_of_copy(&stage.base.place);
        job.hyper = Hyper { patience: stage.patience.map(|n| n as u64), ..hyper(&stage.learning) };
        job.interval = Interval::Seconds(checkpoint.as_secs_f64());
        let kind = &mut job.kind;
        (kind.training, kind.validation) = self.labelled_rows(stage).await?;
        kind.labels.clone_from(&stage.labels);
        kind.label_smoothing = stage.label_smoothing as f32;
        kind.class_weights = stage.class_weights.clone();
        kind.metric = stage.metric;
        kind.promote_if.clone_from(&stage.promote_if);
        kind.calibrate = stage.calibrate;
        Ok(job)
    }

    /// Builds the pretraining job with its texts.
    pub(super) async fn pretrain_job(&self, stage: &Pretrain) -> Result<pretraining::Job, Error> {
        let Learning { output, checkpoint, .. } = &stage.learning;
        let mut base_name = None;
        let start = match &stage.start {
            Start::Model(location) => {
                let base = model_folder(&location.place).await.map_err(ScorerError::from)?;
                base_name = base.name_of_copy(&location.place);
                pretraining::Start::Checkpoint(base.path)
            }
            Start::Random { config, tokenizer } => {
                pretraining::Start::Random { config: config.path.clone(), tokenizer: tokenizer.path.clone() }
            }
        };
        let mut job = pretraining::Job::new(start, &output.path);
        job.base_name = base_name;
        job.hyper = hyper(&stage.learning);
        job.interval = Interval::Seconds(checkpoint.as_secs_f64());
        job.kind.texts = self.plain_texts(stage).await?;
        job.kind.hold_out = Some(self.hold_out(PRETRAIN, stage.validation)?);
        job.kind.mask_probability = stage.mask_probability;
        job.kind.also_measure.clone_from(&stage.measure_at);
        Ok(job)
    }

    /// Pretrains, unless the output is already the result of this stage.
    #[tracing::instrument(skip_all)]
    pub(super) async fn pretrain(
        &self,
        stage: &Pretrain,
        stop: &mut (impl Future<Output = ()> + Unpin),
    ) -> Result<StageReport, Error> {
        let summary = |job: &pretraining::Job, report: pretraining::Report| {
            let (rows, steps) = (job.kind.texts.len(), report.steps);
            let mut lines = vec![format!("{rows} texts, {steps} steps; the model is from epoch {}", report.epoch)];
            if report.skipped > 0 {
                lines.push(skipped(steps, report.skipped));
            }
            for pretraining::Measured { mask_probability, before, after } in &report.measured {
                let words = format!("held-out words, {mask_probability} of them masked");
                lines.push(format!("{words}: {} before, {} after", describe(before), describe(after)));
            }
            (lines, true, report.json)
        };
        self.train(&stage.learning, Box::pin(self.pretrain_job(stage)), stop, summary).await
    }

    /// Builds a job and runs it on the inference threads, unless its model exists already. After `stop`, the job saves
    /// its state and ends. Reports what `summary` returns: lines, true if the model was published, and the details.
    async fn train<K: Kind>(
        &self,
        learning: &Learning,
        job: impl Future<Output = Result<Job<K>, Error>>,
        stop: &mut (impl Future<Output = ()> + Unpin),
        summary: impl FnOnce(&Job<K>, K::Report) -> (Vec<String>, bool, serde_json::Value),
    ) -> Result<StageReport, Error> {
        let began = Instant::now();
        let folder = || readable(&learning.output.path);
        let job = tokio::select! {
            biased;
            () = &mut *stop => return Err(interrupted_before(learning)),
            job = job => Arc::new(job?),
        };
        let known = Arc::clone(&job);
        let unchanged = self.blocking(K::NAME, move || {
            let status = known.status()?.filter(|status| *status != JobStatus::ToCalibrate);
            status.map(|status| known.clean().map(|()| status)).transpose()
        });
        if let Some(status) = unchanged.await? {
            let mut report = StageReport::unchanged(folder(), began.elapsed());
            if status == JobStatus::Rejected {
                let candidate = readable(&job.candidate()).display().to_string();
                let line = format!("not promoted, as before: the model that promote_if rejected is {candidate}");
                report.lines = vec![with_warning(line)];
                report.promoted = false;
            }
            return Ok(report);
        }
        let pool = pool(self.pipeline.run.threads)?;
        let stopped = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stopped);
        let mut progress = TrainingProgress::start(self.style);
        let known = Arc::clone(&job);
        let mut running = std::pin::pin!(self.blocking(K::NAME, move || {
            let cancelled = || flag.load(Ordering::Relaxed);
            let mut watch = Watch { event: &mut |event| progress.show(event), cancelled: &cancelled };
            known.run(&Device::Cpu, pool.rayon(), &mut watch)
        }));
        let outcome = tokio::select! {
            biased;
            outcome = &mut running => outcome?,
            () = &mut *stop => {
                stopped.store(true, Ordering::Relaxed);
                running.await?
            }
        };
        match outcome {
            Outcome::Finished(report) => {
                let (lines, promoted, json) = summary(&job, report);
                Ok(StageReport { folder: folder(), lines, promoted, elapsed: began.elapsed(), json })
            }
            Outcome::Interrupted { step, total_steps, state } => Err(Error::Interrupted {
                after: format!("after step {step} of {total_steps}"),
                kept: format!("its state is in {}. Run the same command again to resume", readable(&state).display()),
            }),
        }
    }

    pub(super) async fn blocking<R: Send + 'static>(
        &self,
        section: &'static str,
        work: impl FnOnce() -> Result<R, JobError> + Send + 'static,
    ) -> Result<R, Error> {
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done.map_err(|error| self.failed(section, error)),
            Err(error) => Err(Error::Io { context: self.context(section), error: std::io::Error::other(error) }),
        }
    }

    pub(super) fn failed(&self, section: &str, error: JobError) -> Error {
        Error::Training { context: self.context(section), error: Box::new(error) }
    }

    /// The start of an error message: the pipeline file and the section.
    fn context(&self, section: &str) -> String {
        format!("{}: [{section}]", self.pipeline.path.display())
    }

    fn hold_out(&self, section: &str, share: f64) -> Result<HoldOut, Error> {
        HoldOut::try_new(share, SPLIT_SEED).map_err(|e| Error::Source {
            pipeline: self.pipeline.path.display().to_string(),
            problem: format!("{section}.validation: {e}"),
        })
    }

    /// Opens a session over the pipeline's tables.
    async fn open(&self) -> Result<(SessionContext, Resources), Error> {
        let models = Models::new(pool(Some(1))?, folder_of(&self.pipeline.path));
        // One partition keeps the rows in file order, on which training depends.
        let run = &self.pipeline.run;
        let resources = resources(run)?;
        let session = session::open(&self.pipeline.tables, Arc::new(models), run.window, 1, &resources);
        Ok((session.await.map_err(Error::Tables)?, resources))
    }

    async fn labelled_rows(&self, stage: &Finetune) -> Result<(Vec<tuning::Row>, Vec<tuning::Row>), Error> {
        let (context, _resources) = self.open().await?;
        let selection = self.selection(&context, FINETUNE);
        let id = stage.id.as_deref().unwrap_or_default();
        let columns = Columns { id, text: &stage.text, label: &stage.label };
        let rows = selection.labelled_rows(&stage.learning.query, &columns).await?;
        match &stage.validation {
            Validation::Sql(sql) => Ok((rows, selection.labelled_rows(&Query::Sql(sql.clone()), &columns).await?)),
            Validation::Share(share) => {
                let hold_out = self.hold_out(FINETUNE, *share)?;
                let (validation, training): (Vec<_>, Vec<_>) =
                    rows.into_iter().partition(|row| hold_out.holds_out(&row.split_key()));
                if training.is_empty() && !validation.is_empty() {
                    let error = JobError::AllHeldOut { rows: validation.len(), what: "row" };
                    return Err(self.failed(FINETUNE, error));
                }
                Ok((training, validation))
            }
        }
    }

    async fn plain_texts(&self, stage: &Pretrain) -> Result<Vec<String>, Error> {
        let (context, _resources) = self.open().await?;
        self.selection(&context, PRETRAIN).plain_texts(&stage.learning.query, &stage.text).await
    }

    fn selection<'a>(&'a self, context: &'a SessionContext, section: &'static str) -> Selection<'a> {
        Selection { pipeline: self.pipeline, context, section, variables: self.variables }
    }
}

/// Returns a summary line if no rows were held out for evaluation.
pub(super) fn nothing_held_out(stage: &Finetune, rows: usize, held_out: usize) -> Option<String> {
    if held_out > 0 {
        return None;
    }
    let fix = match &stage.validation {
        Validation::Share(share) => {
            format!("{} are too few for validation = {share}; raise it", counted(rows as u64, "row"))
        }
        Validation::Sql(_) => "the query of finetune.validation returns none; change it".into(),
    };
    Some(format!("no row is held out, so the model is not evaluated: {fix}, or use [evaluate]"))
}

fn describe(words: &MaskedWords) -> String {
    match words.perplexity().zip(words.accuracy()) {
        Some((perplexity, share)) => format!("perplexity {perplexity:.2}, {:.1} % correct", 100.0 * share),
        None => "not defined".to_owned(),
    }
}

/// Describes the batches that were skipped because they had no masked word.
fn skipped(steps: u64, skipped: u64) -> String {
    format!(
        "{} of {} batches had no masked word and were skipped; raise mask_probability or batch_size",
        grouped(skipped),
        grouped(steps + skipped)
    )
}

/// Also logs a summary line as a warning: the run may succeed with the old model, and the summary of a nightly run is
/// rarely read.
fn with_warning(line: String) -> String {
    tracing::warn!("{FINETUNE}: {line}");
    line
}

fn interrupted_before(learning: &Learning) -> Error {
    let kept = format!("{} is unchanged", readable(&learning.output.path).display());
    Error::Interrupted { after: "before training began".into(), kept }
}

fn hyper(learning: &Learning) -> Hyper {
    Hyper {
        epochs: learning.epochs as u64,
        batch_size: learning.batch_size,
        learning_rate: learning.learning_rate,
        shape: learning.schedule,
        warmup: Warmup::Share(learning.warmup),
        adamw: AdamW { eps: learning.adam_epsilon, weight_decay: learning.weight_decay, ..AdamW::default() },
        max_grad_norm: Some(learning.max_grad_norm),
        max_length: learning.max_length,
        seed: learning.seed,
        ..Hyper::default()
    }
}
