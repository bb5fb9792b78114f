//! The hyperparameters of both kinds of training jobs.

use couplet_encoder::ops::Rates;
use serde::Serialize;
use serde_json::{Value, json};

use super::optimizer::AdamW;
use super::options::Options;
use super::schedule::{Schedule, Shape};
use super::training_loop::JobError;

/// The maximum number of epochs. Even with the maximum number of rows, step counts are still exact in a float.
pub const MAX_EPOCHS: u64 = 1_000_000;

/// The length of the learning-rate warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Warmup {
    /// A share of all steps, rounded up as in transformers.
    Share(f64),
    /// A number of steps.
    Steps(u64),
}

/// The hyperparameters of a training job. The trained weights depend on all of them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hyper {
    /// The number of epochs.
    pub epochs: u64,
    /// The maximum number of steps, if the epochs take more.
    pub max_steps: Option<u64>,
    /// The number of rows per step.
    pub batch_size: usize,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// The learning-rate schedule after warm-up.
    #[serde(rename = "schedule")]
    pub shape: Shape,
    /// The length of the warm-up.
    pub warmup: Warmup,
    /// The optimizer.
    #[serde(skip)]
    pub adamw: AdamW,
    /// The largest norm of the gradient; a longer one is scaled down.
    pub max_grad_norm: Option<f64>,
    /// The maximum number of tokens in a sequence, special tokens included.
    pub max_length: usize,
    /// The dropout rates; none for those in the base's `config.json`.
    #[serde(skip)]
    pub dropout: Option<Rates>,
    /// The number of epochs without improvement after which training stops early; none to train to the end.
    pub patience: Option<u64>,
    /// The random seed of new weights, dropout, the order of rows, and masks.
    pub seed: u64,
    /// The approximate maximum number of tokens in a micro-batch; see [`Options::micro_batch_tokens`].
    pub micro_batch_tokens: usize,
    /// The number of micro-batches that can be computed at a time; see [`Options::lanes`].
    pub lanes: usize,
}

impl Default for Hyper {
    /// Returns the defaults of transformers' `Trainer` and `run_glue`: 3 epochs, batches of 32 rows, a learning rate of
    /// 5e-5 with linear decay to 0, sequences of 128 tokens.
    fn default() -> Self {
        let options = Options::default();
        Self {
            epochs: 3,
            max_steps: None,
            batch_size: 32,
            learning_rate: 5e-5,
            shape: Shape::Linear,
            warmup: Warmup::Steps(0),
            adamw: options.adamw,
            max_grad_norm: options.max_grad_norm,
            max_length: 128,
            dropout: None,
            patience: None,
            seed: options.seed,
            micro_batch_tokens: options.micro_batch_tokens,
            lanes: options.lanes,
        }
    }
}

impl Hyper {
    /// Returns the number of steps of the whole training on the given number of rows. Batches without anything to learn
    /// count too.
    #[must_use]
    pub fn total_steps(&self, rows: usize) -> u64 {
        let steps = self.epochs.saturating_mul(rows.div_ceil(self.batch_size.max(1)) as u64);
        self.max_steps.map_or(steps, |most| steps.min(most))
    }

    /// Returns the trainer's options for the given number of rows.
    #[must_use]
    pub fn options(&self, rows: usize) -> Options {
        let total_steps = self.total_steps(rows);
        let warmup_steps = match self.warmup {
            Warmup::Share(share) => (share * total_steps as f64).ceil() as u64,
            Warmup::Steps(steps) => steps,
        };
        Options {
            seed: self.seed,
            dropout: self.dropout,
            adamw: self.adamw,
            schedule: Schedule { peak: self.learning_rate, warmup_steps, total_steps, shape: self.shape },
            max_grad_norm: self.max_grad_norm,
            micro_batch_tokens: self.micro_batch_tokens,
            lanes: self.lanes,
        }
    }

    /// Checks the settings that the trainer does not check.
    pub(super) fn check(&self, max_positions: usize) -> Result<(), JobError> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let share = |x: f64| (0.0..1.0).contains(&x);
        let AdamW { beta1, beta2, eps, weight_decay } = self.adamw;
        let warmup = match self.warmup {
            Warmup::Share(x) => share(x),
            Warmup::Steps(_) => true,
        };
        let checks: [(&'static str, bool, String, String); 12] = [
            ("epochs", (1..=MAX_EPOCHS).contains(&self.epochs), format!("1 to {MAX_EPOCHS}"), self.epochs.to_string()),
            ("max_steps", self.max_steps != Some(0), "1 or more".into(), "0".into()),
            ("batch_size", self.batch_size > 0, "1 or more".into(), "0".into()),
            ("learning_rate", positive(self.learning_rate), "a number above 0".into(), self.learning_rate.to_string()),
            ("warmup", warmup, "a share from 0 to below 1, or a number of steps".into(), format!("{:?}", self.warmup)),
            ("beta1", share(beta1), "0 to below 1".into(), beta1.to_string()),
            ("beta2", share(beta2), "0 to below 1".into(), beta2.to_string()),
            ("eps", positive(eps), "a number above 0".into(), eps.to_string()),
            (
                "weight_decay",
                weight_decay.is_finite() && weight_decay >= 0.0,
                "0 or more".into(),
                weight_decay.to_string(),
            ),
            (
                "max_grad_norm",
                self.max_grad_norm.is_none_or(positive),
                "a number above 0".into(),
                format!("{:?}", self.max_grad_norm),
            ),
            (
                "max_length",
                (3..=max_positions).contains(&self.max_length),
                format!("3 to {max_positions}, the positions that the encoder has"),
                self.max_length.to_string(),
            ),
            ("patience", self.patience != Some(0), "1 or more".into(), "0".into()),
        ];
        match checks.into_iter().find(|(_, good, ..)| !good) {
            Some((setting, _, expected, found)) => Err(JobError::Setting { setting, expected, found }),
            None => Ok(()),
        }
    }

    /// Returns the settings as JSON, with the dropout rates that were used.
    #[must_use]
    pub fn to_json(&self, dropout: Rates) -> Value {
        let AdamW { beta1, beta2, eps, weight_decay } = self.adamw;
        let mut json = json!(self);
        json["betas"] = json!([beta1, beta2]);
        json["eps"] = eps.into();
        json["weight_decay"] = weight_decay.into();
        json["dropout"] = json!({
            "embeddings": dropout.embeddings,
            "attention": dropout.attention,
            "attention_output": dropout.attention_output,
            "feed_forward": dropout.feed_forward,
            "head": dropout.head,
        });
        json
    }
}
