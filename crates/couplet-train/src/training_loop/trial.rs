//! Estimates how long a training takes, by running its first few steps and a part of its evaluation in memory.

use std::path::Path;
use std::time::{Duration, Instant};

use super::state::StateFolder;
use super::{EpochData, JobError};
use crate::hyper::Hyper;
use crate::sampling::epoch_batches;
use crate::{Example, TrainError, Trainer};

/// The number of held-out examples that are evaluated to estimate the time for all.
const MEASURED: usize = 128;

/// The state of a job before a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobStatus {
    /// Nothing is saved: training starts at its first step.
    New,
    /// A state is saved, with this many steps completed.
    Resumes(u64),
    /// The output already holds this job's model.
    Done,
    /// The output already holds this job's weights with another calibration: only calibration is left to do.
    ToCalibrate,
    /// The job's model exists, and `promote_if` rejected it.
    Rejected,
}

/// The size of a training and its estimated duration, before it starts.
#[derive(Debug, Clone)]
pub struct Trial {
    /// The state that an earlier run left.
    pub status: JobStatus,
    /// The number of training rows (fine-tuning) or sequences (pretraining).
    pub rows: usize,
    /// The number of held-out rows.
    pub held_out: usize,
    /// The number of tokens per epoch.
    pub tokens: u64,
    /// The number of truncated rows.
    pub truncated: usize,
    /// The names of the logits; empty if they have none.
    pub labels: Vec<String>,
    /// The number of steps of the whole training.
    pub total_steps: u64,
    /// The number of rows per step.
    pub batch_size: usize,
    /// The speed of the trial's steps; none if no steps are left to train.
    pub pace: Option<StepPace>,
    /// The estimated time of all evaluations, in seconds.
    pub evaluation_seconds: f64,
}

/// The measured speed of training steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepPace {
    /// The number of steps.
    pub steps: u64,
    /// The number of tokens in these steps.
    pub tokens: u64,
    /// The duration of these steps, in seconds.
    pub seconds: f64,
}

impl StepPace {
    /// Returns the number of tokens per second.
    #[must_use]
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }
}

impl Trial {
    /// Returns true if the run trains.
    #[must_use]
    pub fn trains(&self) -> bool {
        matches!(self.status, JobStatus::New | JobStatus::Resumes(_))
    }

    /// Returns true if the run changes the model in the output folder.
    #[must_use]
    pub fn changes_the_model(&self) -> bool {
        self.trains() || self.status == JobStatus::ToCalibrate
    }

    /// Estimates the remaining time in seconds, from the tokens left and the measured speed. Returns none if no speed
    /// was measured.
    #[must_use]
    pub fn seconds(&self) -> Option<f64> {
        let done = match self.status {
            JobStatus::Done | JobStatus::Rejected => return Some(0.0),
            JobStatus::ToCalibrate => return None,
            JobStatus::New => 0,
            JobStatus::Resumes(steps) => steps.min(self.total_steps),
        };
        let left = (self.total_steps - done) as f64;
        let steps_of_epoch = self.rows.div_ceil(self.batch_size.max(1)).max(1) as f64;
        let tokens = self.tokens as f64 * left / steps_of_epoch;
        let share = left / self.total_steps.max(1) as f64;
        Some(tokens / self.pace?.tokens_per_second() + share * self.evaluation_seconds)
    }

    /// Evaluates a part of the examples, and adds the estimated time of evaluating all of them `times` times.
    pub(crate) fn time_measuring(
        &mut self,
        examples: &[Example],
        times: u64,
        measure: impl FnOnce(&[Example]) -> Result<(), JobError>,
    ) -> Result<(), JobError> {
        let part = &examples[..examples.len().min(MEASURED)];
        let tokens = |examples: &[Example]| examples.iter().map(|e| e.input_ids.len()).sum::<usize>() as f64;
        if part.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        measure(part)?;
        self.evaluation_seconds += start.elapsed().as_secs_f64() * tokens(examples) / tokens(part) * times as f64;
        Ok(())
    }
}

/// Returns the saved state of an unfinished job.
pub(crate) fn status(output: &Path, key: blake3::Hash) -> JobStatus {
    StateFolder::steps_done(output, key).map_or(JobStatus::New, JobStatus::Resumes)
}

/// Removes the state folder of a job whose model is already published.
pub(crate) fn discard_state(output: &Path, key: blake3::Hash) -> Result<(), JobError> {
    StateFolder::discard_done(output, key)
}

/// Runs the first steps of a training until `budget` is used up: at least three steps, or all if there are fewer. The
/// weights are discarded.
pub(crate) fn run_trial(
    trainer: &mut Trainer,
    data: &dyn EpochData,
    hyper: &Hyper,
    budget: Duration,
) -> Result<StepPace, JobError> {
    let mut pace = StepPace { steps: 0, tokens: 0, seconds: 0.0 };
    let (start, mut steps) = (Instant::now(), 0);
    for batch in epoch_batches(hyper.seed, 0, data.rows(), hyper.batch_size) {
        let began = Instant::now();
        let step = match trainer.step(&data.examples(0, &batch)) {
            Ok(step) => step,
            // Short texts may have no masked token in this epoch.
            Err(TrainError::NothingToLearn { .. }) => continue,
            Err(e) => return Err(e.into()),
        };
        steps += 1;
        if steps == 2 {
            // The first step includes first-touch memory costs, so it counts only if it is the only step.
            pace = StepPace { steps: 0, tokens: 0, seconds: 0.0 };
        }
        pace.steps += 1;
        pace.tokens += step.tokens as u64;
        pace.seconds += began.elapsed().as_secs_f64();
        if steps >= 3 && start.elapsed() >= budget {
            break;
        }
    }
    Ok(pace)
}
