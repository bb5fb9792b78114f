//! Counters of a scorer's work, for progress and reports.

use std::sync::atomic::{AtomicU64, Ordering};

use super::prediction::Rejection;

/// Sequences of the padded batch that [`Counts::padding_avoided`] compares with.
pub const PADDED_BATCH: usize = 32;

/// Counters that grow while windows are scored; safe to read at any time.
#[derive(Debug, Default)]
pub struct Tally {
    rows: AtomicU64,
    scored: AtomicU64,
    remembered: AtomicU64,
    truncated: AtomicU64,
    rows_planned: AtomicU64,
    tokens_planned: AtomicU64,
    tokens: AtomicU64,
    tokens_in_rows: AtomicU64,
    padding_avoided: AtomicU64,
    rejected: [AtomicU64; Rejection::KINDS.len()],
}

/// What a [`Tally`] said at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows that have a prediction or an error.
    pub rows: u64,
    /// Texts or pairs that went through the encoder.
    pub scored: u64,
    /// Rows whose texts had been scored just before.
    pub remembered: u64,
    /// Rows whose texts were cut to `max_length`.
    pub truncated: u64,
    /// Rows of the windows that have been tokenized.
    pub rows_planned: u64,
    /// Tokens of those windows that the encoder has read or will read.
    pub tokens_planned: u64,
    /// Tokens that the encoder has read.
    pub tokens: u64,
    /// Tokens of all rows, those of remembered rows too.
    pub tokens_in_rows: u64,
    /// Padding tokens that batches of [`PADDED_BATCH`] rows in input order would have added to those.
    pub padding_avoided: u64,
    /// Rows with an error, by [`Rejection::KINDS`].
    pub rejected: [u64; Rejection::KINDS.len()],
}

impl Counts {
    /// Rows with an error.
    #[must_use]
    pub fn rejected_rows(&self) -> u64 {
        self.rejected.iter().sum()
    }
}

impl Tally {
    /// Reads all counters.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            rows: read(&self.rows),
            scored: read(&self.scored),
            remembered: read(&self.remembered),
            truncated: read(&self.truncated),
            rows_planned: read(&self.rows_planned),
            tokens_planned: read(&self.tokens_planned),
            tokens: read(&self.tokens),
            tokens_in_rows: read(&self.tokens_in_rows),
            padding_avoided: read(&self.padding_avoided),
            rejected: self.rejected.each_ref().map(read),
        }
    }

    pub(super) fn planned(&self, rows: usize, tokens: usize) {
        add(&self.rows_planned, rows);
        add(&self.tokens_planned, tokens);
    }

    pub(super) fn batch(&self, sequences: usize, tokens: usize) {
        add(&self.scored, sequences);
        add(&self.tokens, tokens);
    }

    pub(super) fn window(&self, window: &WindowCounts) {
        add(&self.rows, window.rows);
        add(&self.remembered, window.remembered);
        add(&self.truncated, window.truncated);
        add(&self.tokens_in_rows, window.tokens);
        add(&self.padding_avoided, window.padding);
        for (counter, rejected) in self.rejected.iter().zip(window.rejected) {
            add(counter, rejected);
        }
    }
}

/// A finished window's part of the [`Counts`].
#[derive(Debug, Default)]
pub(super) struct WindowCounts {
    pub(super) rows: usize,
    pub(super) remembered: usize,
    pub(super) truncated: usize,
    pub(super) tokens: usize,
    pub(super) padding: usize,
    pub(super) rejected: [usize; Rejection::KINDS.len()],
}

fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}
