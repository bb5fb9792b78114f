//! Events that a training run emits.

use std::fmt;
use std::path::Path;

use couplet_storage::files::readable;

use super::progress::{Epoch, Score};
use crate::statistics::temperature::Bound;

/// An event of a training run.
#[derive(Debug)]
pub enum Event<'a> {
    /// The texts are tokenized and the base model is loaded.
    Prepared {
        /// The number of rows (fine-tuning) or sequences (pretraining) per epoch.
        rows: usize,
        /// The number of held-out rows.
        held_out: usize,
        /// The number of tokens per epoch.
        tokens: u64,
        /// The number of rows that were truncated.
        truncated: usize,
        /// The number of steps of the whole training.
        total_steps: u64,
    },
    /// Some held-out rows share their texts with training rows, so they do not test generalization.
    SharedTexts {
        /// The number of such rows.
        rows: usize,
        /// The number of held-out rows.
        held_out: usize,
    },
    /// No held-out row has some of the labels, so nothing is measured for them.
    UnmeasuredLabels {
        /// The names of these labels.
        labels: &'a [String],
    },
    /// The best-fitting temperature is outside the allowed range, or the temperature has no effect.
    TemperatureAtBound {
        /// The temperature that is published.
        temperature: f64,
        /// The reason why it is not the optimum.
        bound: Bound,
    },
    /// The saved state of an earlier run cannot be used, so training starts from the beginning.
    StateIgnored {
        /// The state folder.
        folder: &'a Path,
        /// The reason why it cannot be used.
        problem: &'a str,
    },
    /// Training resumes from the saved state of an earlier run.
    Resumed {
        /// The number of completed steps.
        step: u64,
        /// The number of steps of the whole training.
        total_steps: u64,
    },
    /// A step is complete.
    Step {
        /// The number of completed steps.
        step: u64,
        /// The number of planned steps; early stopping may end training before.
        total_steps: u64,
        /// The epoch, from 1.
        epoch: u64,
        /// The number of epochs.
        epochs: u64,
        /// The loss, as an exponential moving average over about the last 20 steps.
        loss: f64,
        /// The learning rate.
        learning_rate: f64,
        /// The norm of the gradient before clipping.
        grad_norm: f64,
        /// The speed over about the last 20 steps.
        examples_per_second: f64,
    },
    /// An epoch is complete and evaluated.
    Measured {
        /// The epoch and its scores.
        epoch: &'a Epoch,
        /// The names of the scores.
        scores: &'a [Score],
        /// True if it is the best epoch so far.
        improved: bool,
    },
    /// The state is saved: a run that is killed now can resume from here.
    Saved {
        /// The number of completed steps.
        step: u64,
        /// The state folder.
        folder: &'a Path,
    },
    /// The checkpoint is published.
    Published {
        /// The folder of the checkpoint.
        folder: &'a Path,
    },
    /// The `promote_if` condition does not hold: the old model stays, if there is one.
    Rejected {
        /// The folder of the new model.
        candidate: &'a Path,
        /// The condition with the measured values.
        verdict: &'a str,
        /// True if there is an old model.
        replaces: bool,
    },
}

impl Event<'_> {
    /// Returns true if the event is a warning, which is shown in quiet mode too.
    #[must_use]
    pub fn is_warning(&self) -> bool {
        matches!(self, Self::SharedTexts { .. } | Self::UnmeasuredLabels { .. } | Self::TemperatureAtBound { .. })
    }
}

/// One line of text per event, steps included.
impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prepared { rows, held_out, tokens, truncated, total_steps } => {
                write!(f, "{rows} rows of {tokens} tokens, {held_out} held out, {total_steps} steps")?;
                if *truncated > 0 { write!(f, "; {truncated} rows are too long and were truncated") } else { Ok(()) }
            }
            Self::SharedTexts { rows, held_out } => write!(
                f,
                "{rows} of {held_out} held-out rows {} texts that are also training texts: their metrics are too \
                 optimistic, and the best epoch, promote_if and calibrate depend on them; select each text once, exclude \
                 such rows from the `validation` query, or remove `id` to keep equal texts on one side of the split",
                if *rows == 1 { "has" } else { "have" }
            ),
            Self::UnmeasuredLabels { labels } => {
                let (noun, pronoun) = if labels.len() == 1 { ("label", "it") } else { ("labels", "them") };
                let labels = labels.iter().map(|label| format!("{label:?}")).collect::<Vec<_>>().join(", ");
                write!(
                    f,
                    "no held-out row has the {noun} {labels}: nothing is measured for {pronoun}, and the best epoch, \
                     promote_if and calibrate do not account for {pronoun}; hold out more rows, or select rows of every \
                     label in the `validation` query"
                )
            }
            Self::TemperatureAtBound { temperature, bound } => {
                let why = match bound {
                    Bound::Lowest => "the lowest allowed, as the labels of all held-out rows are predicted correctly",
                    Bound::Highest => "the highest allowed, as more held-out rows are predicted wrong than correctly",
                    Bound::Flat => "arbitrary, as all logits of each held-out row are equal",
                };
                write!(
                    f,
                    "calibrate: the temperature {temperature} is {why}; the calibrated probabilities are not reliable; \
                     hold out more rows, or remove `calibrate`"
                )
            }
            Self::StateIgnored { folder, problem } => {
                write!(
                    f,
                    "starting from the beginning: the state in {} is not used: {problem}",
                    readable(folder).display()
                )
            }
            Self::Resumed { step, total_steps } => write!(f, "resuming after step {step} of {total_steps}"),
            Self::Step { step, total_steps, epoch, epochs, loss, learning_rate, examples_per_second, .. } => write!(
                f,
                "step {step}/{total_steps}, epoch {epoch}/{epochs}: loss {loss:.4}, learning rate {learning_rate:.2e}, {examples_per_second:.1} examples/s"
            ),
            Self::Measured { epoch, scores, improved } => {
                write!(f, "epoch {}", epoch.epoch)?;
                if let Some(loss) = epoch.training_loss {
                    write!(f, ": training loss {loss:.4}")?;
                }
                for (score, value) in scores.iter().zip(&epoch.scores) {
                    match value {
                        Some(value) => write!(f, " · {} {value:.4}", score.name)?,
                        None => write!(f, " · {} not defined", score.name)?,
                    }
                }
                if *improved { f.write_str(" (best so far)") } else { Ok(()) }
            }
            Self::Saved { step, folder } => write!(f, "saved step {step} in {}", readable(folder).display()),
            Self::Published { folder } => write!(f, "wrote {}", readable(folder).display()),
            Self::Rejected { candidate, verdict, replaces } => {
                let stays = if *replaces { "the old model stays" } else { "there is still no model" };
                write!(f, "{stays}, as {verdict}; the new one is in {}", readable(candidate).display())
            }
        }
    }
}

/// The observer of a training run, which can also cancel it.
pub struct Watch<'a> {
    /// Receives every event, on the training thread: it should return quickly.
    pub event: &'a mut (dyn FnMut(&Event) + Send),
    /// Called before every step; if it returns true, the state is saved and training ends.
    pub cancelled: &'a (dyn Fn() -> bool + Sync),
}

impl Watch<'_> {
    pub(crate) fn emit(&mut self, event: &Event) {
        (self.event)(event);
    }
}

impl fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}
