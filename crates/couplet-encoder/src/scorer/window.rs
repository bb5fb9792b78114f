//! A window of rows and the jobs that score it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, StringViewArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use tokio::sync::oneshot;

use super::memo::{Answer, Slot, TextKey, text_key};
use super::prediction::{Prediction, Rejection};
use super::{MAX_TEXT_BYTES, ScorerError, Shared, pack};
use crate::model::{Encoding, Model};

/// The number of rows per tokenization job: a few milliseconds of work.
const TOKENIZE_ROWS: usize = 128;

/// A column of texts with its name, which error messages contain.
#[derive(Debug, Clone)]
pub struct TextColumn {
    /// The column's name.
    pub name: String,
    /// The texts.
    pub values: StringViewArray,
}

/// Rows that are scored together: single texts or pairs.
#[derive(Debug, Clone)]
pub struct Window {
    text: TextColumn,
    text_pair: Option<TextColumn>,
}

impl Window {
    /// Creates a window of one or two columns.
    ///
    /// # Panics
    /// Panics if the columns differ in length.
    #[must_use]
    pub fn new(text: TextColumn, text_pair: Option<TextColumn>) -> Self {
        assert!(text_pair.as_ref().is_none_or(|pair| pair.values.len() == text.values.len()), "columns of one length");
        Self { text, text_pair }
    }

    /// Creates a window of pairs. Errors name their columns `text` and `text_pair`.
    #[must_use]
    pub fn of_pairs<'t>(pairs: impl IntoIterator<Item = (&'t str, &'t str)>) -> Self {
        let (texts, text_pairs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let column = |name: &str, values: Vec<&str>| TextColumn { name: name.into(), values: values.into() };
        Self::new(column("text", texts), Some(column("text_pair", text_pairs)))
    }

    /// Returns the number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.text.values.len()
    }

    /// Returns true if the window has no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the text columns.
    pub fn columns(&self) -> impl Iterator<Item = &TextColumn> {
        std::iter::once(&self.text).chain(&self.text_pair)
    }

    /// Returns the size of a row's texts in bytes.
    #[must_use]
    pub fn bytes(&self, row: usize) -> usize {
        self.columns().map(|column| if column.values.is_null(row) { 0 } else { column.values.value(row).len() }).sum()
    }

    /// Returns the `length` rows that start at `offset`, without copying the texts.
    #[must_use]
    pub fn slice(&self, offset: usize, length: usize) -> Self {
        let slice =
            |column: &TextColumn| TextColumn { name: column.name.clone(), values: column.values.slice(offset, length) };
        Self { text: slice(&self.text), text_pair: self.text_pair.as_ref().map(slice) }
    }

    pub(super) fn text(&self, row: usize) -> &str {
        self.text.values.value(row)
    }

    pub(super) fn text_pair(&self, row: usize) -> Option<&str> {
        self.text_pair.as_ref().map(|pair| pair.values.value(row))
    }

    /// Returns the cache key of a row's texts, or `None` if they cannot be scored.
    #[must_use]
    pub fn key(&self, row: usize) -> Option<TextKey> {
        self.rejection(row).is_none().then(|| text_key(self.text(row), self.text_pair(row)))
    }

    /// Returns true if `keys` are the cache keys of the window's rows. Detects texts that were corrupted in storage or
    /// in transit.
    pub fn has_keys(&self, keys: &ArrayRef) -> bool {
        let Ok(keys) = cast(keys, &DataType::Binary) else { return false };
        let keys = keys.as_binary::<i32>();
        keys.len() == self.len()
            && keys.iter().enumerate().all(|(row, key)| key == self.key(row).as_ref().map(AsRef::as_ref))
    }

    /// Returns the reason why a row cannot be scored, or `None` if its texts are valid. Does not run the tokenizer.
    #[must_use]
    pub fn rejection(&self, row: usize) -> Option<Rejection> {
        for column in self.columns() {
            let name = || column.name.clone();
            if column.values.is_null(row) {
                return Some(Rejection::Null { column: name() });
            }
            let bytes = column.values.value(row).len();
            if bytes > MAX_TEXT_BYTES {
                return Some(Rejection::TooLarge { column: name(), bytes });
            }
        }
        // Models are trained on pairs with an empty second text. An empty first text carries no information.
        self.text(row).trim().is_empty().then(|| Rejection::Empty { column: self.text.name.clone() })
    }
}

/// The state of a window that is being scored, shared by its jobs.
pub(super) struct Work {
    shared: Arc<Shared>,
    window: Arc<Window>,
    /// The rows to score and their slots.
    rows: Vec<(usize, Slot)>,
    /// The number of rows to add to the planned rows once the texts are tokenized.
    rows_to_plan: usize,
    /// The tokenized texts, each with its index in `rows`.
    encodings: Mutex<Vec<(usize, Encoding)>>,
    /// The number of unfinished jobs in the current step.
    jobs: AtomicUsize,
    stopped: AtomicBool,
    done: Mutex<Option<oneshot::Sender<Result<(), ScorerError>>>>,
}

/// A handle to the jobs of a window. Dropping it cancels them.
pub(super) struct WorkHandle {
    work: Arc<Work>,
    done: oneshot::Receiver<Result<(), ScorerError>>,
}

impl WorkHandle {
    /// Waits until every text has an outcome.
    pub(super) async fn wait(mut self) -> Result<(), ScorerError> {
        (&mut self.done).await.unwrap_or(Err(ScorerError::Stopped))
    }
}

impl Drop for WorkHandle {
    fn drop(&mut self) {
        self.work.stopped.store(true, Ordering::Relaxed);
    }
}

impl Work {
    /// Queues the tokenization jobs of the given rows. The last of them queues the forward jobs.
    pub(super) fn start(
        shared: &Arc<Shared>,
        window: &Arc<Window>,
        rows: Vec<(usize, Slot)>,
        rows_to_plan: usize,
    ) -> WorkHandle {
        let (sender, done) = oneshot::channel();
        let jobs = rows.len().div_ceil(TOKENIZE_ROWS);
        let work = Arc::new(Self {
            shared: Arc::clone(shared),
            window: Arc::clone(window),
            encodings: Mutex::new(Vec::with_capacity(rows.len())),
            rows,
            rows_to_plan,
            jobs: AtomicUsize::new(jobs),
            stopped: AtomicBool::new(false),
            done: Mutex::new(Some(sender)),
        });
        if jobs == 0 {
            work.forward_all();
        }
        for job in 0..jobs {
            work.spawn(
                move |work| {
                    work.tokenize(job * TOKENIZE_ROWS);
                    Ok(())
                },
                Self::forward_all,
            );
        }
        WorkHandle { work, done }
    }

    /// Queues a job of the current step. The last job of the step to end calls `next_step`.
    fn spawn(
        self: &Arc<Self>,
        job: impl FnOnce(&Self) -> Result<(), ScorerError> + Send + 'static,
        next_step: fn(&Arc<Self>),
    ) {
        let work = Arc::clone(self);
        self.shared.pool.spawn(move || {
            if !work.stopped.load(Ordering::Relaxed) {
                // A panic in a job is a bug. It must fail this window without hanging or aborting the process.
                match catch_unwind(AssertUnwindSafe(|| job(&work))) {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => work.finish(Err(error)),
                    Err(_) => work.finish(Err(ScorerError::Stopped)),
                }
            }
            if work.jobs.fetch_sub(1, Ordering::AcqRel) == 1 {
                next_step(&work);
            }
        });
    }

    fn tokenize(&self, start: usize) {
        let rows = &self.rows[start..self.rows.len().min(start + TOKENIZE_ROWS)];
        let mut encodings = Vec::with_capacity(rows.len());
        for (i, (row, slot)) in rows.iter().enumerate() {
            match self.shared.tokenizer.encode(self.window.text(*row), self.window.text_pair(*row)) {
                Ok(encoding) => encodings.push((start + i, encoding)),
                Err(problem) => {
                    slot.get_or_init(|| Answer::Rejected(Rejection::Untokenizable { problem }));
                }
            }
        }
        self.encodings.lock().unwrap_or_else(PoisonError::into_inner).append(&mut encodings);
    }

    fn forward_all(self: &Arc<Self>) {
        let mut encodings = std::mem::take(&mut *self.encodings.lock().unwrap_or_else(PoisonError::into_inner));
        // Jobs end in any order. The batches must not depend on that order.
        encodings.sort_by_key(|(i, _)| *i);
        let lengths: Vec<usize> = encodings.iter().map(|(_, encoding)| encoding.input_ids.len()).collect();
        self.shared.tally.add_planned(self.rows_to_plan, lengths.iter().sum());
        let batches = pack::plan(&lengths, self.shared.batch_tokens);
        if batches.is_empty() || self.stopped.load(Ordering::Relaxed) {
            return self.finish(Ok(()));
        }
        self.jobs.store(batches.len(), Ordering::Release);
        let mut encodings: Vec<Option<(usize, Encoding)>> = encodings.into_iter().map(Some).collect();
        for batch in batches {
            let sequences: Vec<(usize, Encoding)> = batch.into_iter().filter_map(|i| encodings[i].take()).collect();
            self.spawn(move |work| work.forward(&sequences), |work| work.finish(Ok(())));
        }
    }

    fn forward(&self, sequences: &[(usize, Encoding)]) -> Result<(), ScorerError> {
        let (logits, tokens) = self.shared.forward(sequences.iter().map(|(_, encoding)| encoding))?;
        let non_finite = logits.iter().filter(|logits| !logits.iter().all(|logit| logit.is_finite())).count();
        if non_finite > 0 {
            return Err(ScorerError::Forward {
                sequences: sequences.len(),
                tokens,
                problem: format!(
                    "the model computes no finite logits for {non_finite} of them: its weights hold NaN or infinity, or numbers \
                     too large for {}",
                    self.shared.precision
                ),
            });
        }
        let Model { config, calibration, .. } = &self.shared.model;
        for ((i, encoding), logits) in sequences.iter().zip(logits) {
            let Encoding { input_ids, truncated, .. } = encoding;
            let prediction = Prediction::of_logits(&logits, config, calibration.as_ref(), input_ids.len(), *truncated);
            self.rows[*i].1.get_or_init(|| Answer::Scored(prediction));
        }
        self.shared.tally.add_batch(sequences.len(), tokens);
        Ok(())
    }

    /// Ends the work. Marks empty slots as abandoned and wakes all waiting tasks. Only the first call has an effect.
    fn finish(&self, result: Result<(), ScorerError>) {
        let Some(done) = self.done.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        self.stopped.store(true, Ordering::Relaxed);
        for (_, slot) in &self.rows {
            slot.get_or_init(|| Answer::Abandoned);
        }
        self.shared.memo.notify_waiters();
        // The receiver may have been dropped.
        let _ = done.send(result);
    }
}
