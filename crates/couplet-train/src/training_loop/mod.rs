//! The training loop: epochs of steps, evaluated, saved and resumed. An `EpochData` supplies the examples.
//!
//! ```text
//!  EpochData: rows ── order of the epoch ── batch ── Trainer::step ── Progress ──┬─▶ Event
//!                                                        │                    └─▶ <output>.training/  every interval
//!                                            end of the epoch: scores, best weights, early stop
//! ```
//!
//! The row order, the masks and dropout are functions of the seed and of the position in the training. The saved state
//! holds all weights and moments bit for bit. A run that was killed at any moment and then resumed therefore ends with
//! a bit-identical model, on the same kind of processor.

mod error;
mod event;
mod key;
mod progress;
mod publish;
mod state;
mod trial;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use error::JobError;
pub use event::{Event, Watch};
pub(super) use key::Key;
pub use progress::{Epoch, Progress, Score};
pub use publish::peak_memory;
pub(super) use publish::{Publication, REPORT, remove_model, report_of};
use state::{Found, StateFolder, read_tensors};
pub use state::{foreign_state, with_suffix};
pub use trial::{JobStatus, StepPace, Trial};
pub(super) use trial::{discard_state, run_trial, status};

use super::hyper::Hyper;
use super::sampling::epoch_batches;
use super::{Example, TrainError, Trainer};

/// The interval between saves of the state. The state is also saved at the end of every epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Interval {
    /// A number of steps.
    Steps(u64),
    /// A number of seconds.
    Seconds(f64),
}

/// The outcome of a job.
#[derive(Debug)]
pub enum Outcome<R> {
    /// The job is complete.
    Finished(R),
    /// The job was cancelled; running it again resumes from here.
    Interrupted {
        /// The number of completed steps.
        step: u64,
        /// The number of steps of the whole training.
        total_steps: u64,
        /// The state folder.
        state: PathBuf,
    },
}

/// The training examples and the evaluation on held-out rows.
#[expect(clippy::missing_errors_doc, reason = "every error stops the job: see `Job::run`")]
pub trait EpochData {
    /// Returns the number of rows per epoch.
    fn rows(&self) -> usize;
    /// Returns the given rows as training examples for an epoch.
    fn examples(&self, epoch: u64, rows: &[u32]) -> Vec<Example>;
    /// Returns the names of the values of [`EpochData::measure`], in its order; empty if nothing is held out.
    fn scores(&self) -> &[Score];
    /// Returns the index of the score that selects the best epoch.
    fn primary_score(&self) -> usize;
    /// Evaluates the model on the held-out rows.
    fn measure(&self, trainer: &Trainer) -> Result<Vec<Option<f64>>, JobError>;
    /// Returns the held-out examples of each evaluation.
    fn held_out(&self) -> Vec<&[Example]>;
    /// Evaluates the model on some held-out examples, to estimate the duration of [`EpochData::measure`].
    fn try_measure(&self, trainer: &Trainer, examples: &[Example]) -> Result<(), JobError>;
    /// Returns true if the model is to be evaluated before the first step.
    fn measures_initial_model(&self) -> bool;
    /// Returns the number of held-out rows.
    fn held_out_rows(&self) -> usize {
        self.held_out().first().map_or(0, |examples| examples.len())
    }
}

/// The inputs of the loop besides the data and the trainer.
pub(super) struct Plan<'a> {
    pub(super) output: &'a Path,
    /// The hash of everything that the weights depend on.
    pub(super) key: blake3::Hash,
    pub(super) hyper: &'a Hyper,
    pub(super) interval: Interval,
}

/// A model whose training is complete.
pub struct TrainedModel {
    /// The trainer, with the last epoch's weights.
    pub(super) trainer: Trainer,
    pub(super) progress: Progress,
    state: StateFolder,
}

impl TrainedModel {
    /// Loads the best weights into the trainer.
    pub(super) fn load_best(&mut self) -> Result<(), JobError> {
        if let Some(best) = self.progress.best_epoch()
            && best != self.progress.epochs_done
        {
            self.trainer.load_weights(&read_tensors(&self.state.best(best))?)?;
        }
        Ok(())
    }

    /// Returns the epoch of the best weights; the last one if nothing is measured.
    pub(super) fn epoch(&self) -> u64 {
        self.progress.best_epoch().unwrap_or(self.progress.epochs_done)
    }

    /// Returns true if the last weights are not the best ones.
    pub(super) fn last_is_not_best(&self) -> bool {
        self.progress.best_epoch().is_some_and(|best| best != self.progress.epochs_done)
    }

    /// Removes the saved state, after the model is published.
    pub(super) fn discard_state(self) -> Result<(), JobError> {
        self.state.discard()
    }
}

/// Trains to the end, from the last saved state or from the start.
pub(super) fn run(
    plan: &Plan,
    data: &dyn EpochData,
    mut trainer: Trainer,
    watch: &mut Watch,
) -> Result<Outcome<TrainedModel>, JobError> {
    let state = StateFolder::open(plan.output, plan.key)?;
    let total_steps = plan.hyper.total_steps(data.rows());
    let mut progress = Progress::default();
    match state.restore(&mut trainer)? {
        Found::Nothing => {}
        Found::Unusable(problem) => watch.emit(&Event::StateIgnored { folder: state.path(), problem: &problem }),
        Found::State(found) => {
            progress = found;
            progress.resumed += 1;
            watch.emit(&Event::Resumed { step: trainer.steps(), total_steps });
        }
    }
    let mut training =
        TrainingLoop { plan, data, trainer, progress, state, total_steps, clock: Instant::now(), rate: Rate::new() };
    if training.train(watch)? {
        let TrainingLoop { trainer, progress, state, .. } = training;
        return Ok(Outcome::Finished(TrainedModel { trainer, progress, state }));
    }
    training.save(watch)?;
    Ok(Outcome::Interrupted { step: training.trainer.steps(), total_steps, state: training.state.path().to_owned() })
}

struct TrainingLoop<'a> {
    plan: &'a Plan<'a>,
    data: &'a dyn EpochData,
    trainer: Trainer,
    progress: Progress,
    state: StateFolder,
    total_steps: u64,
    /// The start of the time that is not yet added to the progress.
    clock: Instant,
    rate: Rate,
}

impl TrainingLoop<'_> {
    /// Trains to the end; returns false if it was cancelled before.
    fn train(&mut self, watch: &mut Watch) -> Result<bool, JobError> {
        if self.data.measures_initial_model() && self.progress.epochs().is_empty() && self.trainer.steps() == 0 {
            self.measure(watch)?;
        }
        let mut saved = (self.trainer.steps(), Instant::now());
        while self.progress.epochs_done < self.plan.hyper.epochs && !self.is_complete() {
            let epoch = self.progress.epochs_done;
            let batches = epoch_batches(self.plan.hyper.seed, epoch, self.data.rows(), self.plan.hyper.batch_size);
            while let Some(batch) = batches.get(self.progress.batches_done as usize)
                && self.batches() < self.total_steps
            {
                if (watch.cancelled)() {
                    return Ok(false);
                }
                self.step(epoch, batch, watch)?;
                let due = match self.plan.interval {
                    Interval::Steps(steps) => self.trainer.steps() >= saved.0 + steps.max(1),
                    Interval::Seconds(seconds) => saved.1.elapsed().as_secs_f64() >= seconds,
                };
                if due {
                    self.save(watch)?;
                    saved = (self.trainer.steps(), Instant::now());
                }
            }
            self.progress.epochs_done += 1;
            self.progress.batches_done = 0;
            self.measure(watch)?;
            self.save(watch)?;
            saved = (self.trainer.steps(), Instant::now());
        }
        Ok(true)
    }

    /// Returns true if training ends before its last epoch: all steps are done, or early stopping applies.
    fn is_complete(&self) -> bool {
        let started = self.progress.epochs_done > 0;
        let stale = self.plan.hyper.patience.is_some_and(|patience| self.progress.epochs_since_best() >= patience);
        started && (stale || self.batches() >= self.total_steps)
    }

    /// Returns the number of completed batches of all epochs, which is the position in the schedule. Batches without
    /// anything to learn count too.
    fn batches(&self) -> u64 {
        self.trainer.steps() + self.progress.skipped
    }

    fn step(&mut self, epoch: u64, batch: &[u32], watch: &mut Watch) -> Result<(), JobError> {
        let start = Instant::now();
        let examples = self.data.examples(epoch, batch);
        self.progress.batches_done += 1;
        let step = match self.trainer.step_at(self.batches(), &examples) {
            Ok(step) => step,
            // Short texts may have no masked token in this epoch.
            Err(TrainError::NothingToLearn { .. }) => {
                self.progress.skipped += 1;
                return Ok(());
            }
            Err(e) => return Err(e.into()),
        };
        self.progress.record(&step, examples.len(), self.total_steps);
        self.progress.step_seconds += start.elapsed().as_secs_f64();
        self.rate.record(start.elapsed(), examples.len(), step.loss);
        watch.emit(&Event::Step {
            step: step.step + 1,
            total_steps: self.total_steps,
            epoch: epoch + 1,
            epochs: self.plan.hyper.epochs,
            loss: self.rate.loss(),
            learning_rate: step.learning_rate,
            grad_norm: step.grad_norm,
            examples_per_second: self.rate.examples_per_second(),
        });
        Ok(())
    }

    /// Evaluates the model, and saves the weights if they are the best so far.
    fn measure(&mut self, watch: &mut Watch) -> Result<(), JobError> {
        let primary_score = self.data.scores().get(self.data.primary_score()).map(|score| score.better);
        let primary_score = primary_score.map(|better| (self.data.primary_score(), better));
        let scores = if primary_score.is_some() { self.data.measure(&self.trainer)? } else { Vec::new() };
        self.count_seconds();
        let improved = self.progress.record_scores(self.trainer.steps(), scores, primary_score);
        if improved {
            self.state.save_best(&self.trainer, self.progress.epochs_done)?;
        }
        if let Some(epoch) = self.progress.epochs().last() {
            watch.emit(&Event::Measured { epoch, scores: self.data.scores(), improved });
        }
        Ok(())
    }

    fn save(&mut self, watch: &mut Watch) -> Result<(), JobError> {
        self.count_seconds();
        self.state.save(&self.trainer, &self.progress)?;
        watch.emit(&Event::Saved { step: self.trainer.steps(), folder: self.state.path() });
        Ok(())
    }

    fn count_seconds(&mut self) {
        self.progress.seconds += self.clock.elapsed().as_secs_f64();
        self.clock = Instant::now();
    }
}

/// Exponential moving averages over the latest steps, for display.
struct Rate {
    seconds: f64,
    examples: f64,
    loss: f64,
    weight: f64,
}

impl Rate {
    /// The decay per step: about the last 20 steps count.
    const KEEP: f64 = 0.95;

    fn new() -> Self {
        Self { seconds: 0.0, examples: 0.0, loss: 0.0, weight: 0.0 }
    }

    fn record(&mut self, time: Duration, examples: usize, loss: f64) {
        let keep = |old: f64, new: f64| Self::KEEP * old + new;
        self.seconds = keep(self.seconds, time.as_secs_f64());
        self.examples = keep(self.examples, examples as f64);
        self.loss = keep(self.loss, loss);
        self.weight = keep(self.weight, 1.0);
    }

    fn loss(&self) -> f64 {
        self.loss / self.weight
    }

    fn examples_per_second(&self) -> f64 {
        self.examples / self.seconds
    }
}
