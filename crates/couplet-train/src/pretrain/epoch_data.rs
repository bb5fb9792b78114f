//! Masked texts as [`EpochData`].

use couplet_encoder::model::Tokenizer;
use rayon::prelude::*;

use super::{Job, Pretraining, scores};
use crate::masking::{Chunking, Masking, Pieces};
use crate::training_loop::{EpochData, JobError, Score};
use crate::{Example, MaskedWords, Target, Trainer};

/// The epoch number that masks held-out texts. It always masks the same tokens, and training never uses it.
const HELD_OUT: u64 = u64::MAX;

/// Training sequences, and masked held-out examples.
pub struct Texts {
    sequences: Vec<Vec<u32>>,
    /// The masked examples at each mask probability, the job's own first.
    held_out: Vec<(f64, Vec<Example>)>,
    pieces: Pieces,
    masking: Masking,
    scores: Vec<Score>,
}

impl Texts {
    /// Tokenizes the texts of a job in parallel on the rayon pool.
    pub(super) fn new(
        job: &Job,
        tokenizer: &Tokenizer,
        pieces: Pieces,
        chunking: &Chunking,
        masking: Masking,
    ) -> Result<Self, JobError> {
        let Pretraining { texts, hold_out, mask_probability, also_measure, .. } = &job.kind;
        let cut = texts.par_iter().enumerate().map(|(row, text)| {
            let encoding = tokenizer.inner().encode_fast(text.as_str(), false);
            let encoding =
                encoding.map_err(|e| JobError::Text { row: format!("row {}", row + 1), problem: e.to_string() })?;
            let held_out = hold_out.is_some_and(|hold_out| hold_out.holds_out(&[text]));
            Ok((held_out, chunking.split(&pieces, encoding.get_ids())))
        });
        let (mut sequences, mut held_out) = (Vec::new(), Vec::new());
        let cut = cut.collect::<Result<Vec<_>, JobError>>()?;
        let all_held_out = !cut.is_empty() && cut.iter().all(|(is_held_out, _)| *is_held_out);
        for (is_held_out, chunks) in cut {
            if is_held_out { &mut held_out } else { &mut sequences }.extend(chunks);
        }
        if all_held_out {
            return Err(JobError::AllHeldOut { rows: texts.len(), what: "text" });
        }
        if sequences.is_empty() {
            return Err(JobError::NoRows { what: "training" });
        }
        let mut shares = Vec::new();
        if !held_out.is_empty() {
            shares.push(*mask_probability);
            shares.extend(also_measure.iter().filter(|share| share.total_cmp(mask_probability).is_ne()));
        }
        let masked = shares.iter().map(|share| {
            let masking = Masking::try_new(*share, job.hyper.seed)?;
            let example = |(row, ids): (usize, &Vec<u32>)| mask_example(&pieces, &masking, ids, HELD_OUT, row as u64);
            // Short sequences may have no masked token.
            let examples = held_out.par_iter().enumerate().map(example);
            Ok((*share, examples.collect()))
        });
        let held_out = masked.collect::<Result<_, JobError>>()?;
        let data = Self { sequences, held_out, pieces, masking, scores: scores(&shares) };
        data.check_masking(*mask_probability)?;
        Ok(data)
    }

    /// Returns an error if not even one step of the first epoch can be taken.
    fn check_masking(&self, mask_probability: f64) -> Result<(), JobError> {
        let is_masked =
            |(row, ids): (usize, &Vec<u32>)| !self.masking.mask(&self.pieces, ids, 0, row as u64).positions.is_empty();
        if self.sequences.par_iter().enumerate().any(is_masked) {
            return Ok(());
        }
        Err(JobError::NothingMasked { mask_probability, sequences: self.sequences.len() })
    }

    pub(super) fn tokens(&self) -> u64 {
        self.sequences.iter().map(|ids| ids.len() as u64).sum()
    }

    /// Converts the scores of [`EpochData::measure`] to the results at each mask probability.
    pub(super) fn measured(&self, scores: &[Option<f64>]) -> Vec<(f64, MaskedWords)> {
        let number = |value: Option<f64>| value.unwrap_or(f64::NAN);
        let words = |values: &[Option<f64>]| {
            let (accuracy, words) = (number(values[2]), number(values[3]));
            MaskedWords { loss: number(values[0]), correct: (accuracy * words).round() as usize, words: words as usize }
        };
        self.held_out.iter().zip(scores.chunks_exact(4)).map(|((share, _), values)| (*share, words(values))).collect()
    }
}

impl EpochData for Texts {
    fn rows(&self) -> usize {
        self.sequences.len()
    }

    fn examples(&self, epoch: u64, rows: &[u32]) -> Vec<Example> {
        let example = |row: &u32| {
            let ids = &self.sequences[*row as usize];
            mask_example(&self.pieces, &self.masking, ids, epoch, u64::from(*row))
        };
        rows.iter().map(example).collect()
    }

    fn scores(&self) -> &[Score] {
        &self.scores
    }

    fn primary_score(&self) -> usize {
        0
    }

    fn measure(&self, trainer: &Trainer) -> Result<Vec<Option<f64>>, JobError> {
        let mut scores = Vec::new();
        for (_, examples) in &self.held_out {
            let measured = trainer.masked_words(examples)?;
            let loss = (measured.words > 0).then_some(measured.loss);
            scores.extend([loss, measured.perplexity(), measured.accuracy(), Some(measured.words as f64)]);
        }
        Ok(scores)
    }

    fn held_out(&self) -> Vec<&[Example]> {
        self.held_out.iter().map(|(_, examples)| examples.as_slice()).collect()
    }

    fn try_measure(&self, trainer: &Trainer, examples: &[Example]) -> Result<(), JobError> {
        trainer.masked_words(examples)?;
        Ok(())
    }

    fn measures_initial_model(&self) -> bool {
        true
    }
}

/// Masks a sequence.
fn mask_example(pieces: &Pieces, masking: &Masking, ids: &[u32], epoch: u64, row: u64) -> Example {
    let masked = masking.mask(pieces, ids, epoch, row);
    Example {
        token_type_ids: vec![0; ids.len()],
        target: Target::Words(masked.positions.into_iter().zip(masked.labels).collect()),
        input_ids: masked.input_ids,
    }
}

/// The special tokens that masking needs.
pub(super) struct SpecialTokens {
    pub(super) cls: u32,
    pub(super) sep: u32,
    /// The name of the mask token.
    pub(super) mask: String,
}

/// Gets the special tokens that the tokenizer puts around a text, and its mask token.
pub(super) fn special_tokens(tokenizer: &Tokenizer) -> Result<SpecialTokens, JobError> {
    let around =
        tokenizer.encode("", None).map_err(|problem| JobError::Text { row: "an empty row".into(), problem })?;
    let [cls, sep] = around.input_ids[..] else {
        return Err(JobError::Setting {
            setting: "tokenizer",
            expected: "one that puts one token before a text and one after it, as BERT's does".into(),
            found: format!("{} tokens around it", around.input_ids.len()),
        });
    };
    Ok(SpecialTokens { cls, sep, mask: tokenizer.mask_token.clone() })
}
