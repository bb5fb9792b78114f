//! Planned training and evaluation stages: rows, remaining work, and estimated duration.

use std::sync::Arc;

use candle_core::Device;
use couplet_encoder::scorer::Pace;
use couplet_train::training_loop::{Event, Trial};
use couplet_train::{Job, Kind};

use super::super::evaluate::rows_of;
use super::super::learn::{FINETUNE, Training, nothing_held_out};
use super::super::{pool, readable, readable_place};
use super::planned::Lengths;
use super::scoring::{SAMPLE, window_of};
use super::{Opened, Plan, Planner};
use crate::config::{Evaluate, Finetune, Learning, Pretrain};
use crate::error::Error;
use crate::progress::Style;

/// A planned training stage.
#[derive(Debug, Clone)]
pub struct PlannedTraining {
    /// The folder of the model.
    pub output: String,
    /// The number of rows or texts that the query returns.
    pub rows: usize,
    /// The number of held-out rows whose texts are also in the training rows.
    pub shared: usize,
    /// The result of trial steps; `None` if the base model does not exist yet.
    pub trial: Option<Trial>,
    /// The number of epochs.
    pub epochs: usize,
    /// True if the stage trains on plain texts (pretraining), false for labelled rows.
    pub texts: bool,
}

impl PlannedTraining {
    /// Returns true if the stage replaces the existing model.
    #[must_use]
    pub fn changes_the_model(&self) -> bool {
        self.trial.as_ref().is_none_or(Trial::changes_the_model)
    }

    /// Estimated duration in seconds, if there was a trial.
    #[must_use]
    pub fn seconds(&self) -> Option<f64> {
        self.trial.as_ref()?.seconds()
    }
}

/// A planned evaluation stage.
#[derive(Debug, Clone)]
pub struct PlannedEvaluation {
    /// The folder of the report.
    pub output: String,
    /// The number of rows to evaluate on.
    pub rows: usize,
    /// Lengths of their texts.
    pub lengths: Lengths,
    /// Speed of trial batches.
    pub pace: Option<Pace>,
    /// Estimated duration of scoring them, in seconds.
    pub seconds: f64,
    /// The model.
    pub model: String,
}

impl Planner<'_> {
    fn training(&self) -> Training<'_> {
        Training { pipeline: self.pipeline, variables: self.variables, style: Style::Quiet }
    }

    pub(super) async fn pretrain(&self, stage: &Pretrain) -> Result<PlannedTraining, Error> {
        let job = self.training().pretrain_job(stage).await?;
        let rows = job.kind.texts.len();
        Ok(planned(&stage.learning, rows, true, Some(self.run_trial(job).await?)))
    }

    pub(super) async fn finetune(&self, stage: &Finetune, plan: &mut Plan) -> Result<PlannedTraining, Error> {
        let training = self.training();
        let job = training.finetune_job(stage).await?;
        let (trained, held_out) = (job.kind.training.len(), job.kind.validation.len());
        let unmeasured = nothing_held_out(stage, trained, held_out);
        plan.notes.extend(unmeasured.map(|note| format!("[{FINETUNE}]: {note}")));
        let shared = job.overlapping_rows();
        if shared > 0 {
            plan.notes.push(format!("[{FINETUNE}]: {}", Event::SharedTexts { rows: shared, held_out }));
        }
        let labels = job.unmeasured_labels().map_err(|error| training.failed(FINETUNE, error))?;
        if !labels.is_empty() {
            plan.notes.push(format!("[{FINETUNE}]: {}", Event::UnmeasuredLabels { labels: &labels }));
        }
        let trial = if self.is_base_final(stage, plan) { Some(self.run_trial(job).await?) } else { None };
        Ok(PlannedTraining { shared, ..planned(&stage.learning, trained + held_out, false, trial) })
    }

    async fn run_trial<K: Kind>(&self, job: Job<K>) -> Result<Trial, Error> {
        let (threads, budget) = (pool(self.pipeline.run.threads)?, self.options.budget);
        let run_trial = move || job.run_trial(&Device::Cpu, threads.rayon(), budget);
        self.training().blocking(K::NAME, run_trial).await
    }

    /// Returns true if the base model of fine-tuning is final. If pretraining will replace it, adds a note and returns
    /// false.
    fn is_base_final(&self, stage: &Finetune, plan: &mut Plan) -> bool {
        let pretrained = self.pipeline.pretrain.as_ref().map(|stage| stage.learning.output.path.as_path());
        let Some(base) = stage.base.local().filter(|base| Some(*base) == pretrained) else { return true };
        let Some(before) = &plan.pretrain else { return true };
        if !before.changes_the_model() {
            return true;
        }
        plan.notes.push(format!(
            "[{FINETUNE}] starts from {}, which [pretrain] will write: its duration can be estimated once that model \
             exists",
            readable(base).display()
        ));
        false
    }

    pub(super) async fn evaluate(
        &self,
        stage: &Evaluate,
        opened: &Opened,
        plan: &mut Plan,
    ) -> Result<PlannedEvaluation, Error> {
        let loaded = self.model(&stage.model, &opened.evaluating(self, stage)).await?;
        let model = loaded.substitute.is_none().then(|| loaded.scorer.model());
        let rows = rows_of(self.pipeline, stage, self.variables, &opened.context, model).await?;
        if let Some(path) = &loaded.substitute {
            plan.notes.push(format!(
                "[evaluate]: {} does not exist yet: sizes and times are those of {}",
                readable_place(&stage.model.location.place),
                readable(path).display()
            ));
        }
        let every = rows.len().div_ceil(SAMPLE as usize).max(1);
        let sample: Vec<_> = rows.iter().step_by(every).collect();
        let text = sample.iter().map(|row| row.text.as_str()).collect();
        let pair = (stage.text.len() > 1)
            .then(|| sample.iter().map(|row| row.text_pair.as_deref().unwrap_or_default()).collect());
        let sample = Arc::new(loaded.scorer.tokenize(window_of(text, pair)).await?);
        let lengths = Lengths::of(&sample, rows.len() as u64, loaded.scorer.max_length());
        let per_text = sample.seconds / sample.lengths.len().max(1) as f64;
        let pace = loaded.scorer.pace(sample, self.options.budget).await?;
        let tokens = lengths.tokens_of(rows.len() as u64) as f64;
        let seconds = pace.map_or(0.0, |pace| tokens / pace.tokens_per_second) + per_text * rows.len() as f64;
        Ok(PlannedEvaluation {
            output: readable(&stage.output.path).display().to_string(),
            rows: rows.len(),
            lengths,
            pace,
            seconds,
            model: readable_place(&stage.model.location.place),
        })
    }
}

fn planned(learning: &Learning, rows: usize, texts: bool, trial: Option<Trial>) -> PlannedTraining {
    PlannedTraining {
        output: readable(&learning.output.path).display().to_string(),
        rows,
        shared: 0,
        trial,
        epochs: learning.epochs,
        texts,
    }
}
