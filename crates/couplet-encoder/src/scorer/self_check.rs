//! `precision = "auto"`: selects the fastest precision whose results on a few sentences are close to those of f32.

use candle_core::{Device, Result};
use couplet_storage::backtrace::message;

use super::prediction::Prediction;
use crate::model::{LoadError, Model, ModelFiles, PackedBatch, Problem};
use crate::ops::Precision;

/// The largest accepted difference of a probability from its f32 value.
const MAX_PROBABILITY_DIFFERENCE: f32 = 0.01;
/// The largest accepted mean difference of the logits from f32, relative to their root mean square if that is above 1.
const MAX_MEAN_LOGIT_DIFFERENCE: f32 = 0.003;

/// Varied texts: short and long ones, names, numbers and other scripts. As pairs they have about 500 tokens.
const SENTENCES: [&str; 12] = [
    "The committee approved the budget on Tuesday after a debate that lasted four hours.",
    "After four hours of debate, the budget was approved by the committee on Tuesday.",
    "Shares of the company fell 3.7 percent to $41.20 in early trading.",
    "No.",
    "She asked whether the train to Lyon had already left, and nobody on the platform could tell her.",
    "How do I reset the password of my e-mail account?",
    "Zürich, São Paulo and 東京 were named; Кириллица was not.",
    "A man is playing a guitar while a child dances in the kitchen, and the dog, which had been asleep under the \
     table since noon, lifts its head, looks at both of them for a moment and goes back to sleep.",
    "http://example.org/a?b=c&d=%20e returned 404 (not found) 12 times between 09:15 and 09:17 UTC.",
    "The results of the second trial differ from those of the first in one respect: temperature.",
    "good good good good good good good good good good good good",
    "Police said the two men, aged 34 and 51, were arrested without incident near the border.",
];

/// Loads a model in the fastest precision that passes the self-check, and returns the model and that precision.
pub(super) fn load_fastest(files: &ModelFiles, device: &Device) -> std::result::Result<(Model, Precision), LoadError> {
    let model = Model::of_files(files, device)?;
    for precision in [Precision::Int16, Precision::F16] {
        let Some(candidate) = model.classifier_at(files, precision)? else { continue };
        let difference = batch(&model).and_then(|batch| {
            let (exact, other) = rayon::join(|| model.forward(&batch), || candidate.forward(&batch));
            Ok(Difference::between(&model, &exact?.to_vec2()?, &other?.to_vec2()?))
        });
        match difference {
            Ok(difference) if difference.is_small() => {
                tracing::debug!(%precision, ?difference, "the self-check passed");
                return Ok((model.with_classifier(candidate), precision));
            }
            Ok(difference) => tracing::warn!(%precision, ?difference, "the self-check failed: f32 is used"),
            Err(error) => {
                tracing::warn!(%precision, error = message(&error), "the self-check could not run: f32 is used");
            }
        }
    }
    Ok((model, Precision::F32))
}

/// Returns a batch of pairs: each sentence with the next one.
fn batch(model: &Model) -> Result<PackedBatch> {
    let tokenizer = model.tokenizer.with_max_length(model.max_length()).map_err(candle_core::Error::Msg)?;
    let mut batch = PackedBatch::default();
    for (i, text) in SENTENCES.iter().enumerate() {
        let pair = SENTENCES[(i + 1) % SENTENCES.len()];
        let encoding = tokenizer.encode(text, Some(pair)).map_err(candle_core::Error::Msg)?;
        batch.push(&encoding.input_ids, &encoding.token_type_ids);
    }
    Ok(batch)
}

/// The difference between the results of another precision and of f32.
#[derive(Debug)]
struct Difference {
    /// The mean absolute difference of the logits, relative to their root mean square if that is above 1.
    mean_logit: f32,
    /// The largest absolute difference of the probabilities; 0 for a regression.
    probability: f32,
}

impl Difference {
    fn between(model: &Model, exact: &[Vec<f32>], other: &[Vec<f32>]) -> Self {
        let pairs = || exact.iter().flatten().zip(other.iter().flatten());
        let n = pairs().count().max(1) as f32;
        let rms = (pairs().map(|(x, _)| x * x).sum::<f32>() / n).sqrt();
        let mean_logit = pairs().map(|(x, y)| (x - y).abs()).sum::<f32>() / n / rms.max(1.0);
        let calibration = model.calibration.as_ref();
        let probabilities =
            |logits: &[f32]| Prediction::of_logits(logits, &model.config, calibration, 0, false).probabilities;
        let probability = match model.config.problem {
            Problem::Regression => 0.0,
            _ => exact
                .iter()
                .zip(other)
                .flat_map(|(x, y)| probabilities(x).into_iter().zip(probabilities(y)))
                .fold(0.0, |max, (x, y)| f32::max(max, (x - y).abs())),
        };
        Self { mean_logit, probability }
    }

    /// Returns true if both differences are within the limits; false for NaN.
    fn is_small(&self) -> bool {
        self.mean_logit <= MAX_MEAN_LOGIT_DIFFERENCE && self.probability <= MAX_PROBABILITY_DIFFERENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_small_differences_pass() {
        let passes = |mean_logit, probability| Difference { mean_logit, probability }.is_small();
        assert!(passes(0.0029, 0.0099));
        assert!(!passes(0.0031, 0.0));
        assert!(!passes(0.0, 0.011));
        assert!(!passes(f32::NAN, 0.0) && !passes(0.0, f32::NAN));
    }
}
