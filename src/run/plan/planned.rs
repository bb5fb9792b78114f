//! What is found out of the stage that scores, and what it says of the run.

use arrow::datatypes::DataType;

use crate::scorer::{Pace, Rejection, Tokenized};

/// A column of the source.
#[derive(Debug, Clone)]
pub struct Column {
    /// `id`, `text` or `label`.
    pub role: &'static str,
    /// Its name.
    pub name: String,
    /// Its Arrow type.
    pub data_type: DataType,
}

/// How long texts are, by a sample of them, in tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lengths {
    /// Texts or pairs in the sample.
    pub sampled: usize,
    /// Whether the sample is all of them.
    pub all: bool,
    /// The mean, as they are scored.
    pub mean: f64,
    /// The length that half of them do not exceed, before they are cut.
    pub p50: usize,
    /// The same for nine tenths.
    pub p90: usize,
    /// The same for 99 of 100.
    pub p99: usize,
    /// The longest in the sample.
    pub max: usize,
    /// Where they are cut.
    pub max_length: usize,
    /// How many of the sample are cut.
    pub truncated: usize,
    /// Padding that batches of 32 would add to the sample.
    pub padding: usize,
    /// Tokens of the sample.
    pub tokens: usize,
}

impl Lengths {
    pub(super) fn of(sample: &Tokenized, texts: u64, max_length: usize) -> Self {
        let mut uncut = sample.uncut.clone();
        uncut.sort_unstable();
        let at = |share: f64| {
            let place = (share * uncut.len() as f64).ceil() as usize;
            uncut.get(place.saturating_sub(1)).copied().unwrap_or(0)
        };
        let sampled = uncut.len();
        Self {
            sampled,
            all: (sampled + sample.refused) as u64 >= texts,
            mean: if sampled == 0 { 0.0 } else { sample.tokens() as f64 / sampled as f64 },
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: uncut.last().copied().unwrap_or(0),
            max_length,
            truncated: sample.truncated,
            padding: sample.padding(),
            tokens: sample.tokens(),
        }
    }

    /// Tokens of so many texts.
    #[must_use]
    pub fn tokens_of(&self, texts: u64) -> u64 {
        (self.mean * texts as f64).round() as u64
    }

    /// What a number of the sample is of so many texts.
    #[must_use]
    pub fn scaled(&self, of_sample: usize, texts: u64) -> u64 {
        if self.sampled == 0 { 0 } else { (of_sample as f64 / self.sampled as f64 * texts as f64).round() as u64 }
    }
}

/// How long a run takes, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Seconds {
    /// To open the tables and load the model.
    pub loading: f64,
    /// To read the rows, check their ids and find the texts without a score.
    pub reading: f64,
    /// To tokenize and score these.
    pub scoring: f64,
    /// To write the table.
    pub publishing: f64,
}

impl Seconds {
    /// All of it.
    #[must_use]
    pub fn all(&self) -> f64 {
        self.loading + self.reading + self.scoring + self.publishing
    }
}

/// The stage that scores, planned.
#[derive(Debug, Clone)]
pub struct PlannedScoring {
    /// The columns that mean something.
    pub columns: Vec<Column>,
    /// Columns that are only carried along.
    pub other_columns: Vec<String>,
    /// Whether there may be more rows than were read.
    pub limited: bool,
    /// Rows that the source has, where it is known although only some were read.
    pub all_rows: Option<u64>,
    /// Rows that were read.
    pub rows: u64,
    /// Texts that have no score yet, each once.
    pub texts: u64,
    /// Rows whose score is remembered.
    pub remembered: u64,
    /// Rows whose text comes more than once, but for the first.
    pub repeated: u64,
    /// Rows that cannot be scored, by [`Rejection::KINDS`].
    pub rejected: [u64; Rejection::KINDS.len()],
    /// What the column of labels has, in words.
    pub labels: Option<String>,
    /// How long the texts are that have no score yet; none if all have one.
    pub lengths: Option<Lengths>,
    /// How quickly batches of them ran.
    pub pace: Option<Pace>,
    /// How long a run takes.
    pub seconds: Seconds,
    /// The model as a person would write it.
    pub model: String,
    /// Its fingerprint, or what stands for a model that is still to be trained.
    pub fingerprint: Result<String, String>,
    /// In which numbers it multiplies.
    pub precision: String,
    /// Temporary files of the run, in bytes, without what joins and sorts spill.
    pub temporary_bytes: u64,
    /// What joins with the scores take if they may, in bytes.
    pub joins_bytes: u64,
    /// The size of the output, in bytes.
    pub output_bytes: u64,
}

impl PlannedScoring {
    /// How many times more rows there are than were read.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.all_rows.filter(|_| self.rows > 0).map_or(1.0, |all| all as f64 / self.rows as f64)
    }
}

impl PlannedScoring {
    /// Estimates the texts without a score of all rows, and their tokens, from the rows that were read; none where it is
    /// not known how many rows there are.
    #[must_use]
    pub fn texts_and_tokens(&self) -> Option<(u64, u64)> {
        if self.limited && self.all_rows.is_none() {
            return None;
        }
        let texts = (self.texts as f64 * self.scale()).round() as u64;
        Some((texts, self.lengths.as_ref().map_or(0, |lengths| lengths.tokens_of(texts))))
    }
}

impl PlannedScoring {
    /// Where only some rows were read of a number that is known, times and sizes are of all of them.
    pub(super) fn scale_up(&mut self) {
        let scale = self.scale();
        let bytes = |bytes: u64| (bytes as f64 * scale) as u64;
        self.seconds.reading *= scale;
        self.seconds.scoring *= scale;
        self.seconds.publishing *= scale;
        self.temporary_bytes = bytes(self.temporary_bytes);
        self.joins_bytes = bytes(self.joins_bytes);
        self.output_bytes = bytes(self.output_bytes);
    }
}
