//! Labelled rows as [`EpochData`].

use couplet_encoder::model::{Calibration, Problem, Tokenizer};
use rayon::prelude::*;

use super::Row;
use crate::statistics::labels::{Labels, Targets};
use crate::statistics::metrics::{Classes, DEFAULT_BINS, Metric, MetricError, Sample, Sets, Values, measured};
use crate::training_loop::{EpochData, JobError, Score};
use crate::{Example, Target, Trainer};

/// Encoded training and validation rows.
pub struct Labelled {
    training: Vec<Example>,
    pub(super) validation: Vec<Example>,
    pub(super) labels: Labels,
    /// The gold labels of the validation rows.
    pub(super) gold: Targets,
    scores: Vec<Score>,
    /// The index of the score that selects the best epoch.
    primary_score: usize,
}

impl Labelled {
    pub(super) fn new(
        training: Vec<Example>,
        validation: Vec<Example>,
        labels: Labels,
        gold: Targets,
        metric: Metric,
    ) -> Self {
        let metrics =
            if validation.is_empty() { Vec::new() } else { measured(labels.problem(), Some(labels.names().len())) };
        let scores = metrics.iter().map(|metric| Score { name: metric.name().into(), better: metric.better() });
        let primary_score = metrics.iter().position(|measured| *measured == metric).unwrap_or(0);
        Self { scores: scores.collect(), training, validation, labels, gold, primary_score }
    }

    /// Returns the name of the metric that selects the best epoch; none if nothing is measured.
    pub(super) fn metric(&self) -> Option<&str> {
        self.scores.get(self.primary_score).map(|score| &*score.name)
    }
}

impl EpochData for Labelled {
    fn rows(&self) -> usize {
        self.training.len()
    }

    fn examples(&self, _: u64, rows: &[u32]) -> Vec<Example> {
        rows.iter().map(|row| self.training[*row as usize].clone()).collect()
    }

    fn scores(&self) -> &[Score] {
        &self.scores
    }

    fn primary_score(&self) -> usize {
        self.primary_score
    }

    fn measure(&self, trainer: &Trainer) -> Result<Vec<Option<f64>>, JobError> {
        let logits = trainer.logits(&self.validation)?.concat();
        Ok(sample(&self.labels, &self.gold, &logits, None)?.metrics().iter().map(|(_, value)| value).collect())
    }

    fn held_out(&self) -> Vec<&[Example]> {
        vec![self.validation.as_slice()]
    }

    fn try_measure(&self, trainer: &Trainer, examples: &[Example]) -> Result<(), JobError> {
        trainer.logits(examples)?;
        Ok(())
    }

    fn measures_initial_model(&self) -> bool {
        // The head starts with random weights, so an evaluation would be meaningless.
        false
    }
}

/// Encoded rows.
pub(super) struct Encoded {
    pub(super) examples: Vec<Example>,
    pub(super) tokens: u64,
    pub(super) truncated: usize,
}

/// Tokenizes rows in parallel on the rayon pool.
pub(super) fn encode(tokenizer: &Tokenizer, rows: &[Row], targets: &Targets) -> Result<Encoded, JobError> {
    let encodings = rows.par_iter().map(|row| {
        let encoding = tokenizer.encode(&row.text, row.text_pair.as_deref());
        encoding.map_err(|problem| JobError::Text { row: row.name(), problem })
    });
    let encodings: Vec<_> = encodings.collect::<Result<_, _>>()?;
    let truncated = encodings.iter().filter(|encoding| encoding.truncated).count();
    let tokens = encodings.iter().map(|encoding| encoding.input_ids.len() as u64).sum();
    let examples = encodings.into_iter().enumerate().map(|(row, encoding)| Example {
        input_ids: encoding.input_ids,
        token_type_ids: encoding.token_type_ids,
        target: target(targets, row, rows.len()),
    });
    Ok(Encoded { examples: examples.collect(), tokens, truncated })
}

fn target(targets: &Targets, row: usize, rows: usize) -> Target {
    match targets {
        Targets::Classes(classes) => Target::Label(classes[row] as usize),
        Targets::Values(values) => Target::Value(values[row]),
        Targets::Sets(sets) => {
            let width = sets.len() / rows;
            Target::Labels(sets[row * width..][..width].iter().map(|has| f32::from(u8::from(*has))).collect())
        }
    }
}

/// Builds the sample of the validation rows from the model's logits, row by row, and its calibration if it has one.
pub(super) fn sample(
    labels: &Labels,
    gold: &Targets,
    logits: &[f32],
    calibration: Option<&Calibration>,
) -> Result<Sample, MetricError> {
    let (problem, width) = (labels.problem(), labels.names().len().max(1));
    let rows = || logits.chunks_exact(width);
    let probabilities = || match calibration {
        None => probabilities(problem, width, logits),
        Some(calibration) => rows().flat_map(|row| calibration.probabilities(problem, row)).map(f64::from).collect(),
    };
    Ok(match gold {
        Targets::Classes(gold) => {
            let decided = calibration.map(|calibration| {
                let decide = |row| {
                    let label = calibration.decide(&calibration.probabilities(problem, row));
                    // A temperature changes no label.
                    label.map_or_else(|| most_probable(row), |label| label as u32)
                };
                rows().map(decide).collect()
            });
            let classes = Classes::new(width, gold.clone(), probabilities(), decided, DEFAULT_BINS)?;
            Sample::Classes(classes.with_positive(labels.positive())?)
        }
        Targets::Sets(gold) => Sample::Sets(Sets::new(width, gold.clone(), &probabilities())?),
        Targets::Values(gold) => {
            let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect();
            Sample::Values(Values::new(wide(gold), wide(logits))?)
        }
    })
}

/// Returns the index of the highest logit, the first of equals.
fn most_probable(logits: &[f32]) -> u32 {
    (0..logits.len()).reduce(|best, i| if logits[i] > logits[best] { i } else { best }).unwrap_or(0) as u32
}

/// Converts logits to probabilities, `width` per row.
fn probabilities(problem: Problem, width: usize, logits: &[f32]) -> Vec<f64> {
    if problem == Problem::MultiLabel {
        return logits.iter().map(|x| 1.0 / (1.0 + f64::from(-x).exp())).collect();
    }
    let mut all = Vec::with_capacity(logits.len());
    for row in logits.chunks_exact(width) {
        let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exps = row.iter().map(|x| f64::from(x - highest).exp());
        let sum: f64 = exps.clone().sum();
        all.extend(exps.map(|x| x / sum));
    }
    all
}
