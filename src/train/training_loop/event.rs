//! What a training says while it goes on.

use std::fmt;
use std::path::Path;

use super::progress::{Epoch, Score};
use crate::files::readable;
use crate::train::temperature::Bound;

/// Something that happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// Texts are tokenized, and the base model is loaded.
    Prepared {
        /// Rows, or sequences, of an epoch.
        rows: usize,
        /// Those that are held out.
        held_out: usize,
        /// Tokens of an epoch.
        tokens: u64,
        /// Rows that were too long and were cut.
        truncated: usize,
        /// Steps of the whole training.
        total_steps: u64,
    },
    /// Some held-out rows are no test of what was learned: their texts are learned from too.
    SharedTexts {
        /// How many.
        rows: usize,
        /// Of how many that are held out.
        held_out: usize,
    },
    /// No held-out row has some of the labels, so that nothing is measured of them.
    UnmeasuredLabels {
        /// Their names.
        labels: &'a [String],
    },
    /// The temperature that fits best is beyond those that are allowed, or none makes a difference.
    TemperatureAtBound {
        /// The temperature that is published.
        temperature: f64,
        /// Why it is not the best of all.
        bound: Bound,
    },
    /// There is a state of an earlier run that cannot be gone on from; the training starts from the beginning.
    StateIgnored {
        /// Where it is.
        folder: &'a Path,
        /// Why it is of no use.
        problem: &'a str,
    },
    /// The training goes on from the state of an earlier run.
    Resumed {
        /// Steps that are done.
        step: u64,
        /// Steps of the whole training.
        total_steps: u64,
    },
    /// A step is done.
    Step {
        /// How many are done.
        step: u64,
        /// How many there will be, unless training ends early.
        total_steps: u64,
        /// The epoch, from 1.
        epoch: u64,
        /// How many epochs there are.
        epochs: u64,
        /// The loss, a mean in which about the last 20 steps count.
        loss: f64,
        /// The learning rate.
        learning_rate: f64,
        /// The norm of the gradient before it was clipped.
        grad_norm: f64,
        /// The speed of about the last 20 steps.
        examples_per_second: f64,
    },
    /// An epoch is done and measured.
    Measured {
        /// The epoch, and what was measured.
        epoch: &'a Epoch,
        /// The names of what was measured.
        scores: &'a [Score],
        /// Whether it is the best so far.
        improved: bool,
    },
    /// The state is saved: a run that is killed now goes on from here.
    Saved {
        /// Steps that are done.
        step: u64,
        /// Where it is.
        folder: &'a Path,
    },
    /// The checkpoint is in its place.
    Published {
        /// Where it is.
        folder: &'a Path,
    },
    /// The condition for promotion does not hold: the old model stays, if there is one.
    Rejected {
        /// Where the new model is instead.
        candidate: &'a Path,
        /// The condition, with what was measured.
        verdict: &'a str,
        /// Whether there is an old model.
        replaces: bool,
    },
}

impl Event<'_> {
    /// Whether it is said even where little is.
    #[must_use]
    pub fn is_warning(&self) -> bool {
        matches!(self, Self::SharedTexts { .. } | Self::UnmeasuredLabels { .. } | Self::TemperatureAtBound { .. })
    }
}

/// A line for people; a step gets one too.
impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prepared { rows, held_out, tokens, truncated, total_steps } => {
                write!(f, "{rows} rows of {tokens} tokens, {held_out} held out, {total_steps} steps")?;
                if *truncated > 0 { write!(f, "; {truncated} rows are too long and were cut") } else { Ok(()) }
            }
            Self::SharedTexts { rows, held_out } => write!(
                f,
                "{rows} of {held_out} held-out rows {} texts that are learned from too: they measure the model better \
                 than it is, and the best epoch, promote_if and calibrate go by them; select each text once, leave such \
                 rows out of the `validation` query, or remove `id`, without which equal texts are on one side",
                if *rows == 1 { "has" } else { "have" }
            ),
            Self::UnmeasuredLabels { labels } => {
                let (noun, pronoun) = if labels.len() == 1 { ("label", "it") } else { ("labels", "they") };
                let labels = labels.iter().map(|label| format!("{label:?}")).collect::<Vec<_>>().join(", ");
                let verb = if pronoun == "it" { "is" } else { "are" };
                write!(
                    f,
                    "no held-out row has the {noun} {labels}: how well {pronoun} {verb} recognised is not measured, and \
                     the best epoch, promote_if and calibrate do not account for it; hold out more rows, or select rows \
                     of every label in the `validation` query"
                )
            }
            Self::TemperatureAtBound { temperature, bound } => {
                let why = match bound {
                    Bound::Lowest => {
                        "lowest that is allowed, as the labels of the held-out rows are all predicted right"
                    }
                    Bound::Highest => "highest that is allowed, as more held-out rows are predicted wrong than right",
                    Bound::Flat => "one that changes nothing, as all logits of each held-out row are equal",
                };
                write!(
                    f,
                    "the temperature {temperature} of calibrate is the {why}: the calibrated probabilities are not \
                     reliable; hold out more rows, or remove `calibrate`"
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

/// Who watches a training, and can end it.
pub struct Watch<'a> {
    /// Gets every event, in the thread that trains: it should not take long.
    pub event: &'a mut (dyn FnMut(&Event) + Send),
    /// Asked before every step; where it says true, the state is saved and the training ends.
    pub cancelled: &'a (dyn Fn() -> bool + Sync),
}

impl Watch<'_> {
    pub(in crate::train) fn emit(&mut self, event: &Event) {
        (self.event)(event);
    }
}

impl fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}
