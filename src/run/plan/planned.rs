//! The planned scoring stage: measurements, and estimates for the run.

use couplet_encoder::scorer::{Pace, Rejection, Tokenized};
use serde::Serialize;

/// A column of the source.
#[derive(Debug, Clone, Serialize)]
pub struct Column {
    /// `id`, `text` or `label`.
    pub role: &'static str,
    /// The column name.
    pub name: String,
    /// The Arrow type.
    #[serde(rename = "type")]
    pub data_type: String,
}

/// Text lengths in tokens, measured on a sample.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lengths {
    /// Texts or pairs in the sample.
    pub sampled: usize,
    /// True if the sample has all texts.
    pub all: bool,
    /// Mean length after truncation.
    pub mean: f64,
    /// Median length before truncation.
    pub p50: usize,
    /// 90th percentile before truncation.
    pub p90: usize,
    /// 99th percentile before truncation.
    pub p99: usize,
    /// Maximum in the sample, before truncation.
    pub max: usize,
    /// Maximum length; longer inputs are truncated.
    pub max_length: usize,
    /// The number of truncated texts in the sample.
    pub truncated: usize,
    /// Padding tokens that batches of 32 would add to the sample.
    pub padding: usize,
    /// The number of tokens in the sample.
    pub tokens: usize,
}

impl Lengths {
    pub(super) fn of(sample: &Tokenized, texts: u64, max_length: usize) -> Self {
        let mut uncut = sample.untruncated.clone();
        uncut.sort_unstable();
        let at = |share: f64| {
            let place = (share * uncut.len() as f64).ceil() as usize;
            uncut.get(place.saturating_sub(1)).copied().unwrap_or(0)
        };
        let sampled = uncut.len();
        Self {
            sampled,
            all: (sampled + sample.rejected) as u64 >= texts,
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

    /// Estimates the number of tokens of `texts` texts.
    #[must_use]
    pub fn tokens_of(&self, texts: u64) -> u64 {
        (self.mean * texts as f64).round() as u64
    }

    /// Scales a count in the sample to `texts` texts.
    #[must_use]
    pub fn scaled(&self, of_sample: usize, texts: u64) -> u64 {
        if self.sampled == 0 { 0 } else { (of_sample as f64 / self.sampled as f64 * texts as f64).round() as u64 }
    }
}

/// Estimated duration of a run by phase, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Seconds {
    /// Opening the tables and loading the model.
    pub loading: f64,
    /// Reading the rows, checking their ids and finding the texts without a score.
    pub reading: f64,
    /// Tokenizing and scoring these texts.
    pub scoring: f64,
    /// Writing the table.
    pub publishing: f64,
}

impl Seconds {
    /// The total.
    #[must_use]
    pub fn all(&self) -> f64 {
        self.loading + self.reading + self.scoring + self.publishing
    }
}

/// The planned scoring stage.
#[derive(Debug, Clone)]
pub struct PlannedScoring {
    /// The id, text and label columns.
    pub columns: Vec<Column>,
    /// Other columns, which are passed through.
    pub other_columns: Vec<String>,
    /// True if there may be more rows than were read.
    pub limited: bool,
    /// The number of rows in the source, if it is known that only some were read.
    pub all_rows: Option<u64>,
    /// The number of rows read.
    pub rows: u64,
    /// The number of distinct texts without a score.
    pub texts: u64,
    /// The number of rows with a cached score.
    pub remembered: u64,
    /// The number of duplicate rows: rows that repeat the text of an earlier row without a score.
    pub repeated: u64,
    /// Rows that cannot be scored, by [`Rejection::KINDS`].
    pub rejected: [u64; Rejection::KINDS.len()],
    /// Summary of the label column.
    pub labels: Option<String>,
    /// Lengths of the texts without a score; `None` if all have one.
    pub lengths: Option<Lengths>,
    /// Speed of trial batches of these texts.
    pub pace: Option<Pace>,
    /// Estimated duration of the run.
    pub seconds: Seconds,
    /// The model's place, for display.
    pub model: String,
    /// The model's fingerprint, or the substitute for a model that is still to be trained.
    pub fingerprint: Result<String, String>,
    /// Numeric precision of the encoder.
    pub precision: String,
    /// Size of the run's temporary files in bytes, without spill files of joins and sorts.
    pub temporary_bytes: u64,
    /// Memory for joins with the scores in bytes, if not limited.
    pub joins_bytes: u64,
    /// Estimated output size in bytes.
    pub output_bytes: u64,
}

impl PlannedScoring {
    /// The ratio of all rows to the rows that were read.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.all_rows.filter(|_| self.rows > 0).map_or(1.0, |all| all as f64 / self.rows as f64)
    }

    /// Estimates the number of texts without a score, and their tokens, for all rows. `None` if the number of rows is
    /// unknown.
    #[must_use]
    pub fn texts_and_tokens(&self) -> Option<(u64, u64)> {
        if self.limited && self.all_rows.is_none() {
            return None;
        }
        let texts = (self.texts as f64 * self.scale()).round() as u64;
        Some((texts, self.lengths.as_ref().map_or(0, |lengths| lengths.tokens_of(texts))))
    }

    /// Scales durations and sizes to all rows, if only some were read and the total is known.
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
