//! How long a training will take, tried out in memory: a few of its very first steps, and a part of what it measures.

use std::path::Path;
use std::time::{Duration, Instant};

use super::state::StateFolder;
use super::{EpochData, JobError};
use crate::train::hyper::Hyper;
use crate::train::sampling::epoch_batches;
use crate::train::{Example, TrainError, Trainer};

/// Held-out examples that are measured to tell how long all take.
const MEASURED: usize = 128;

/// What an earlier run has left of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing: it begins at its first step.
    New,
    /// A saved state, with so many steps done.
    Resumes(u64),
    /// The model that this job leaves.
    Done,
    /// That model, calibrated otherwise: only that is done.
    ToCalibrate,
    /// The model that `promote_if` refused.
    Rejected,
}

/// What is known of a training before it begins.
#[derive(Debug, Clone)]
pub struct Trial {
    /// What an earlier run has left.
    pub standing: Standing,
    /// Rows, or sequences, to learn from.
    pub rows: usize,
    /// Those that are held out to measure on.
    pub held_out: usize,
    /// Tokens of an epoch.
    pub tokens: u64,
    /// Rows that are cut.
    pub truncated: usize,
    /// The names of the logits; empty if they have none.
    pub labels: Vec<String>,
    /// Steps of the whole training.
    pub total_steps: u64,
    /// Rows of a step.
    pub batch_size: usize,
    /// How quickly steps went; none where nothing is to be learned.
    pub pace: Option<StepPace>,
    /// What measuring will take in all, in seconds.
    pub measuring: f64,
}

/// How quickly steps of training went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepPace {
    /// Steps that were taken.
    pub steps: u64,
    /// Their tokens.
    pub tokens: u64,
    /// How long they took, in seconds.
    pub seconds: f64,
}

impl StepPace {
    /// Tokens a second.
    #[must_use]
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }
}

impl Trial {
    pub(in crate::train) fn new(standing: Standing, hyper: &Hyper, data: &dyn EpochData) -> Self {
        Self {
            standing,
            rows: data.rows(),
            held_out: 0,
            tokens: 0,
            truncated: 0,
            labels: Vec::new(),
            total_steps: hyper.total_steps(data.rows()),
            batch_size: hyper.batch_size,
            pace: None,
            measuring: 0.0,
        }
    }

    /// Whether the run takes steps.
    #[must_use]
    pub fn trains(&self) -> bool {
        matches!(self.standing, Standing::New | Standing::Resumes(_))
    }

    /// Whether the run leaves another model than the one that is there.
    #[must_use]
    pub fn changes_the_model(&self) -> bool {
        self.trains() || self.standing == Standing::ToCalibrate
    }

    /// What is left to do, in seconds: all tokens at the pace of those that were tried; none where that was not tried.
    #[must_use]
    pub fn seconds(&self) -> Option<f64> {
        let done = match self.standing {
            Standing::Done | Standing::Rejected => return Some(0.0),
            Standing::ToCalibrate => return None,
            Standing::New => 0,
            Standing::Resumes(steps) => steps.min(self.total_steps),
        };
        let left = (self.total_steps - done) as f64;
        let steps_of_epoch = self.rows.div_ceil(self.batch_size.max(1)).max(1) as f64;
        let tokens = self.tokens as f64 * left / steps_of_epoch;
        let share = left / self.total_steps.max(1) as f64;
        Some(tokens / self.pace?.tokens_per_second() + share * self.measuring)
    }

    /// Measures some examples to tell how long all of them take, `times` over.
    pub(in crate::train) fn time_measuring(
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
        self.measuring += start.elapsed().as_secs_f64() * tokens(examples) / tokens(part) * times as f64;
        Ok(())
    }
}

/// What an earlier run has saved of a job that is not done.
pub(in crate::train) fn standing(output: &Path, key: blake3::Hash) -> Standing {
    StateFolder::steps_done(output, key).map_or(Standing::New, Standing::Resumes)
}

/// Removes what is left of a job whose model is where it belongs.
pub(in crate::train) fn discard_state(output: &Path, key: blake3::Hash) -> Result<(), JobError> {
    StateFolder::discard_done(output, key)
}

/// Takes the first steps of a training, at least three of them where there are so many, until `budget` is over; what the trainer has learned is
/// not kept.
pub(in crate::train) fn run_trial(
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
            // Short texts may have no word hidden this time.
            Err(TrainError::NothingToLearn { .. }) => continue,
            Err(e) => return Err(e.into()),
        };
        steps += 1;
        if steps == 2 {
            // The first step also touched all memory for the first time, and counts only if there is no other.
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
