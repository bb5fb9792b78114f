//! `precision = "auto"`: the quickest numbers that change nothing that matters, by trial on a few sentences.

use candle_core::{Device, Result};
use couplet_storage::backtrace::message;

use super::prediction::Prediction;
use crate::model::{LoadError, Model, ModelFiles, PackedBatch, Problem};
use crate::ops::Precision;

/// The largest difference of a probability to f32 with which another precision is taken.
const MAX_PROBABILITY_DIFFERENCE: f32 = 0.01;
/// The same of the mean difference of the logits, or of a regression's values; in units of their size where that is above 1.
const MAX_MEAN_LOGIT_DIFFERENCE: f32 = 0.003;

/// Texts as they come: short and long, names and numbers, other alphabets; about 500 tokens as pairs.
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

/// Loads a model in the quickest precision of the device that passes, and says which.
pub(super) fn quickest(files: &ModelFiles, device: &Device) -> std::result::Result<(Model, Precision), LoadError> {
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

/// Each sentence with the next.
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

/// How far another precision is from f32.
#[derive(Debug)]
struct Difference {
    /// Mean over all logits, relative to their root mean square where that is above 1.
    mean_logit: f32,
    /// Largest over all probabilities; 0 for a regression.
    probability: f32,
}

impl Difference {
    fn between(model: &Model, exact: &[Vec<f32>], other: &[Vec<f32>]) -> Self {
        let pairs = || exact.iter().flatten().zip(other.iter().flatten());
        let n = pairs().count().max(1) as f32;
        let size = (pairs().map(|(x, _)| x * x).sum::<f32>() / n).sqrt();
        let mean_logit = pairs().map(|(x, y)| (x - y).abs()).sum::<f32>() / n / size.max(1.0);
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

    /// False for NaN too.
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
