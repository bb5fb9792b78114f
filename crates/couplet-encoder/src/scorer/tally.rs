//! Counters of a scorer's work, for progress and reports.

use std::sync::atomic::{AtomicU64, Ordering};

use super::prediction::Rejection;

/// The number of sequences per padded batch that [`Counts::padding_avoided`] assumes.
pub const PADDED_BATCH: usize = 32;

/// Counters that increase while windows are scored. They can be read at any time.
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

/// A snapshot of a [`Tally`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// The number of rows with a prediction or a rejection.
    pub rows: u64,
    /// The number of texts or pairs that the encoder scored.
    pub scored: u64,
    /// The number of rows whose prediction came from the in-memory cache.
    pub remembered: u64,
    /// The number of rows whose sequence was truncated to `max_length`.
    pub truncated: u64,
    /// The number of rows in the windows that are tokenized.
    pub rows_planned: u64,
    /// The number of tokens of those windows that the encoder has processed or will process.
    pub tokens_planned: u64,
    /// The number of tokens that the encoder has processed.
    pub tokens: u64,
    /// The number of tokens in all rows, rows from the cache included.
    pub tokens_in_rows: u64,
    /// The number of padding tokens that batches of [`PADDED_BATCH`] rows in input order would have added.
    pub padding_avoided: u64,
    /// The number of rejected rows of each kind in [`Rejection::KINDS`].
    pub rejected: [u64; Rejection::KINDS.len()],
}

impl Counts {
    /// Returns the number of rejected rows.
    #[must_use]
    pub fn rejected_rows(&self) -> u64 {
        self.rejected.iter().sum()
    }
}

impl Tally {
    /// Returns a snapshot of all counters.
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

    /// Adds a tokenized window: its rows, and the tokens that the encoder will process.
    pub(super) fn add_planned(&self, rows: usize, tokens: usize) {
        add(&self.rows_planned, rows);
        add(&self.tokens_planned, tokens);
    }

    /// Adds a batch that the encoder processed.
    pub(super) fn add_batch(&self, sequences: usize, tokens: usize) {
        add(&self.scored, sequences);
        add(&self.tokens, tokens);
    }

    /// Adds a finished window.
    pub(super) fn add_window(&self, window: &WindowCounts) {
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

/// The counts of one finished window.
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
