//! Trial scoring: measures the lengths of texts and the speed of batches on a sample, before the actual scoring.
//!
//! A plan and a run on a cluster tokenize a sample of the texts. A plan then runs some of the sample's batches on all
//! threads for a limited time. Trials do not change the prediction cache or the scorer's counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::{PADDED_BATCH, Prediction, Rejection, Scorer, ScorerError, Window, pack};
use crate::model::Encoding;

/// A tokenized sample of texts.
#[derive(Debug, Default)]
pub struct Tokenized {
    encodings: Vec<Encoding>,
    /// The number of tokens of each text or pair after truncation, in the window's order.
    pub lengths: Vec<usize>,
    /// The number of tokens of each text or pair before truncation, in the window's order.
    pub untruncated: Vec<usize>,
    /// The number of truncated texts or pairs.
    pub truncated: usize,
    /// The number of texts or pairs that the tokenizer rejected.
    pub rejected: usize,
    /// The wall time of the tokenization on all threads, in seconds.
    pub seconds: f64,
}

impl Tokenized {
    /// Returns the number of tokens after truncation in the whole sample.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Returns the number of padding tokens that batches of [`PADDED_BATCH`] rows in input order would add.
    #[must_use]
    pub fn padding(&self) -> usize {
        pack::padding_of_batches(&self.lengths, PADDED_BATCH)
    }
}

/// The measured speed of batches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// The number of batches that ran.
    pub batches: usize,
    /// The number of tokens in those batches.
    pub tokens: usize,
    /// The number of threads that ran at least one batch.
    pub threads: usize,
    /// The time of the busiest thread, in seconds.
    pub seconds: f64,
    /// The throughput of all threads together, in tokens per second.
    pub tokens_per_second: f64,
}

impl Scorer {
    /// Tokenizes the texts of a window on all threads. Rows that cannot be scored are skipped.
    ///
    /// # Errors
    /// Returns [`ScorerError::Stopped`] if the blocking task panics or is cancelled.
    pub async fn tokenize(&self, window: Window) -> Result<Tokenized, ScorerError> {
        let scorer = self.clone();
        blocking(move || scorer.tokenize_blocking(&window)).await
    }

    fn tokenize_blocking(&self, window: &Window) -> Tokenized {
        let (shared, began) = (&self.0, Instant::now());
        let rows: Vec<usize> = (0..window.len()).filter(|&row| window.rejection(row).is_none()).collect();
        let encode = |&row: &usize| {
            let (text, pair) = (window.text(row), window.text_pair(row));
            let encoding = shared.tokenizer.encode(text, pair).ok()?;
            Some((row, encoding))
        };
        let encoded: Vec<Option<(usize, Encoding)>> = shared.pool.install(|| rows.par_iter().map(encode).collect());
        let seconds = began.elapsed().as_secs_f64();
        let rejected = encoded.iter().filter(|encoding| encoding.is_none()).count();
        let mut tokenized = Tokenized { rejected, seconds, ..Tokenized::default() };
        for (row, encoding) in encoded.into_iter().flatten() {
            let length = encoding.input_ids.len();
            let untruncated = if encoding.truncated {
                tokenized.truncated += 1;
                shared.tokenizer.untruncated_length(window.text(row), window.text_pair(row)).unwrap_or(length)
            } else {
                length
            };
            tokenized.lengths.push(length);
            tokenized.untruncated.push(untruncated);
            tokenized.encodings.push(encoding);
        }
        tokenized
    }

    /// Returns predictions with varied but meaningless values, for a trial of the output stage.
    #[must_use]
    pub fn placeholder_predictions(&self, rows: usize) -> Vec<Result<Prediction, Rejection>> {
        let model = &self.0.model;
        let outputs = model.config.labels.len().max(1);
        let logit = |row: usize, output: usize| ((row * outputs + output) as f32 * 0.618_034).fract() * 8.0 - 4.0;
        let predict = |row: usize| {
            let logits: Vec<f32> = (0..outputs).map(|output| logit(row, output)).collect();
            Ok(Prediction::of_logits(&logits, &model.config, model.calibration.as_ref(), 1, false))
        };
        (0..rows).map(predict).collect()
    }

    /// Runs batches of the sample on all threads and returns their speed, or `None` if the sample is empty.
    ///
    /// The texts are packed like a window. Each thread runs at least one batch if there are enough, then continues
    /// until `budget` is used up or all batches have run. A window is sorted from its longest texts to its shortest, so
    /// the batches run in an order that spreads over all lengths.
    ///
    /// # Errors
    /// Returns an error if the encoder fails.
    pub async fn pace(&self, texts: Arc<Tokenized>, budget: Duration) -> Result<Option<Pace>, ScorerError> {
        let scorer = self.clone();
        blocking(move || scorer.pace_blocking(&texts, budget)).await?
    }

    fn pace_blocking(&self, texts: &Tokenized, budget: Duration) -> Result<Option<Pace>, ScorerError> {
        let shared = &self.0;
        let batches = pack::plan(&texts.lengths, shared.batch_tokens);
        let Some(last) = batches.last() else { return Ok(None) };
        let run = |batch: &[usize]| {
            let ran = shared.forward(batch.iter().map(|&i| &texts.encodings[i]));
            ran.map(|(_, tokens)| tokens)
        };
        let rayon = shared.pool.rayon();
        // Warms up each thread: one-time costs, such as page faults, must not count.
        for warm in rayon.broadcast(|_| run(&last[..1])) {
            warm?;
        }
        let (order, next, start) = (spread(batches.len()), AtomicUsize::new(0), Instant::now());
        let threads = rayon.broadcast(|_| -> Result<(usize, usize, f64), ScorerError> {
            let (mut ran, mut tokens, mut busy) = (0, 0, 0.0);
            // At least one batch, even on a busy machine: without one there is no speed.
            while (ran == 0 || start.elapsed() < budget)
                && let Some(&batch) = order.get(next.fetch_add(1, Ordering::Relaxed))
            {
                let began = Instant::now();
                tokens += run(&batches[batch])?;
                busy += began.elapsed().as_secs_f64();
                ran += 1;
            }
            Ok((ran, tokens, busy))
        });
        let threads = threads.into_iter().collect::<Result<Vec<_>, _>>()?;
        // Threads end at different times. The idle time after a thread's last batch does not count.
        let busy = threads.iter().filter(|(_, tokens, busy)| *tokens > 0 && *busy > 0.0);
        Ok(Some(Pace {
            batches: threads.iter().map(|(ran, ..)| ran).sum(),
            tokens: threads.iter().map(|(_, tokens, _)| tokens).sum(),
            threads: busy.clone().count(),
            seconds: threads.iter().map(|(.., busy)| *busy).fold(0.0, f64::max),
            tokens_per_second: busy.map(|(_, tokens, busy)| *tokens as f64 / busy).sum(),
        }))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ScorerError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ScorerError::Stopped)
}

/// Returns a permutation of `0..n` in steps of about the golden ratio, so that every prefix is spread over the range.
fn spread(n: usize) -> Vec<usize> {
    let gcd = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let golden = ((n as f64 * 0.618_033_988_749_895).round() as usize).max(1);
    let step = (1..=n).filter(|step| gcd(*step, n) == 1).min_by_key(|step| step.abs_diff(golden)).unwrap_or(1);
    (0..n).map(|i| i * step % n).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_batch_order_is_a_permutation_whose_start_is_spread_out() {
        for n in 0..200 {
            let mut order = spread(n);
            if n >= 20 {
                let quarters = |part: &[usize]| {
                    let mut seen = [0; 4];
                    for i in part {
                        seen[i * 4 / n] += 1;
                    }
                    seen
                };
                assert!(quarters(&order[..8]).iter().all(|seen| *seen > 0), "{n}: {:?}", &order[..8]);
            }
            order.sort_unstable();
            assert!(order.into_iter().eq(0..n));
        }
    }
}
