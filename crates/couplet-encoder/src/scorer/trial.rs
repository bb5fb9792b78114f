//! Trial scoring: the lengths of texts and the speed of their batches, measured before anything is scored.
//!
//! A plan, and a run on a cluster, tokenize some of the texts. A plan then runs some of the batches that a window of them
//! is cut into, on all threads, for a given time. Nothing is cached, and the scorer's counters do not move.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::{PADDED_BATCH, Prediction, Rejection, Scorer, ScorerError, Window, pack};
use crate::model::Encoding;

/// Texts that were tokenized to learn something about all of them.
#[derive(Debug, Default)]
pub struct Tokenized {
    encodings: Vec<Encoding>,
    /// Tokens of each text or pair as it would be scored, in the window's order.
    pub lengths: Vec<usize>,
    /// The same before anything is cut off.
    pub uncut: Vec<usize>,
    /// How many are cut.
    pub truncated: usize,
    /// How many the tokenizer refuses.
    pub refused: usize,
    /// How long it took on all threads, in seconds.
    pub seconds: f64,
}

impl Tokenized {
    /// Tokens of all of them.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Padding tokens that batches of [`PADDED_BATCH`] in input order would add.
    #[must_use]
    pub fn padding(&self) -> usize {
        pack::padding_of_batches(&self.lengths, PADDED_BATCH)
    }
}

/// How quickly batches ran.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Batches that ran.
    pub batches: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Threads that ran them.
    pub threads: usize,
    /// For how long, in seconds.
    pub seconds: f64,
    /// Tokens a second of all threads together.
    pub tokens_per_second: f64,
}

impl Scorer {
    /// Tokenizes the texts of a window on all threads; those that cannot be scored are left out.
    ///
    /// # Errors
    /// The threads are gone.
    pub async fn tokenize(&self, window: Window) -> Result<Tokenized, ScorerError> {
        let scorer = self.clone();
        blocking(move || scorer.tokenize_here(&window)).await
    }

    fn tokenize_here(&self, window: &Window) -> Tokenized {
        let (shared, began) = (&self.0, Instant::now());
        let rows: Vec<usize> = (0..window.len()).filter(|&row| window.rejection(row).is_none()).collect();
        let encode = |&row: &usize| {
            let (text, pair) = (window.text(row), window.text_pair(row));
            let encoding = shared.tokenizer.encode(text, pair).ok()?;
            Some((row, encoding))
        };
        let encoded: Vec<Option<(usize, Encoding)>> = shared.pool.install(|| rows.par_iter().map(encode).collect());
        let seconds = began.elapsed().as_secs_f64();
        let refused = encoded.iter().filter(|encoding| encoding.is_none()).count();
        let mut tokenized = Tokenized { refused, seconds, ..Tokenized::default() };
        for (row, encoding) in encoded.into_iter().flatten() {
            let length = encoding.input_ids.len();
            let uncut = if encoding.truncated {
                tokenized.truncated += 1;
                shared.tokenizer.uncut_length(window.text(row), window.text_pair(row)).unwrap_or(length)
            } else {
                length
            };
            tokenized.lengths.push(length);
            tokenized.uncut.push(uncut);
            tokenized.encodings.push(encoding);
        }
        tokenized
    }

    /// Predictions of no meaning, each with other numbers: what a trial of writing is made of.
    #[must_use]
    pub fn imagined(&self, rows: usize) -> Vec<Result<Prediction, Rejection>> {
        let model = &self.0.model;
        let outputs = model.config.labels.len().max(1);
        let logit = |row: usize, output: usize| ((row * outputs + output) as f32 * 0.618_034).fract() * 8.0 - 4.0;
        let predict = |row: usize| {
            let logits: Vec<f32> = (0..outputs).map(|output| logit(row, output)).collect();
            Ok(Prediction::of_logits(&logits, &model.config, model.calibration.as_ref(), 1, false))
        };
        (0..rows).map(predict).collect()
    }

    /// Runs batches of these texts, packed as a window of them would be, on all threads until `budget` is over, at least
    /// one a thread, or all have run; none if there are no texts.
    ///
    /// Which batches run is spread over the lengths: a window goes from its longest texts to its shortest, and the first
    /// batches alone would say too little of the others.
    ///
    /// # Errors
    /// A failure of the encoder.
    pub async fn pace(&self, texts: Arc<Tokenized>, budget: Duration) -> Result<Option<Pace>, ScorerError> {
        let scorer = self.clone();
        blocking(move || scorer.pace_here(&texts, budget)).await?
    }

    fn pace_here(&self, texts: &Tokenized, budget: Duration) -> Result<Option<Pace>, ScorerError> {
        let shared = &self.0;
        let batches = pack::plan(&texts.lengths, shared.batch_tokens);
        let Some(last) = batches.last() else { return Ok(None) };
        let run = |batch: &[usize]| {
            let ran = shared.forward(batch.iter().map(|&i| &texts.encodings[i]));
            ran.map(|(_, tokens)| tokens)
        };
        let rayon = shared.pool.rayon();
        // What happens once, such as the first touch of memory, is not paid by every batch.
        for warm in rayon.broadcast(|_| run(&last[..1])) {
            warm?;
        }
        let (order, next, start) = (spread(batches.len()), AtomicUsize::new(0), Instant::now());
        let threads = rayon.broadcast(|_| -> Result<(usize, usize, f64), ScorerError> {
            let (mut ran, mut tokens, mut busy) = (0, 0, 0.0);
            // One batch at least, on however busy a machine: without any there is no pace.
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
        // Threads end at different times; the time in which one has nothing to do any more is nobody's pace.
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

/// All of `0..n`, in steps of about the golden section, so that the first few of them are spread over the whole.
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
    fn the_first_batches_are_spread_over_all_and_each_comes_once() {
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
