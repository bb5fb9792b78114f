//! A window of rows, and the jobs that score it.

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

/// Rows that one job tokenizes: a few milliseconds of work.
const TOKENIZE_ROWS: usize = 128;

/// A column of texts with the name that errors call it by.
#[derive(Debug, Clone)]
pub struct TextColumn {
    /// The column's name.
    pub name: String,
    /// Its values.
    pub values: StringViewArray,
}

/// Rows that are scored together: single texts, or pairs.
#[derive(Debug, Clone)]
pub struct Window {
    text: TextColumn,
    text_pair: Option<TextColumn>,
}

impl Window {
    /// Makes a window of one or two columns.
    ///
    /// # Panics
    /// If the columns differ in length.
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

    /// Rows of the window.
    #[must_use]
    pub fn len(&self) -> usize {
        self.text.values.len()
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its columns.
    pub fn columns(&self) -> impl Iterator<Item = &TextColumn> {
        std::iter::once(&self.text).chain(&self.text_pair)
    }

    /// The bytes of a row's texts.
    #[must_use]
    pub fn bytes(&self, row: usize) -> usize {
        self.columns().map(|column| if column.values.is_null(row) { 0 } else { column.values.value(row).len() }).sum()
    }

    /// Some of its rows.
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

    /// What a row's texts are remembered by; none if they cannot be scored.
    #[must_use]
    pub fn key(&self, row: usize) -> Option<TextKey> {
        self.rejection(row).is_none().then(|| text_key(self.text(row), self.text_pair(row)))
    }

    /// Whether these are the keys of its rows: a text that is not as it was written has another one.
    pub fn has_keys(&self, keys: &ArrayRef) -> bool {
        let Ok(keys) = cast(keys, &DataType::Binary) else { return false };
        let keys = keys.as_binary::<i32>();
        keys.len() == self.len()
            && keys.iter().enumerate().all(|(row, key)| key == self.key(row).as_ref().map(AsRef::as_ref))
    }

    /// Why a row cannot be scored, as far as its texts alone tell.
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
        // An empty second text is a pair that models are trained on; an empty first one says nothing.
        self.text(row).trim().is_empty().then(|| Rejection::Empty { column: self.text.name.clone() })
    }
}

/// The texts of a window that are being scored, shared by the jobs that do it.
pub(super) struct Work {
    shared: Arc<Shared>,
    window: Arc<Window>,
    rows: Vec<(usize, Slot)>,
    /// Rows of the window that count as planned once these texts are tokenized.
    rows_to_plan: usize,
    encodings: Mutex<Vec<(usize, Encoding)>>,
    /// Jobs of the present step that have not ended.
    jobs: AtomicUsize,
    stopped: AtomicBool,
    done: Mutex<Option<oneshot::Sender<Result<(), ScorerError>>>>,
}

/// The end of some work; dropping it stops the work.
pub(super) struct Finished {
    work: Arc<Work>,
    done: oneshot::Receiver<Result<(), ScorerError>>,
}

impl Finished {
    /// Waits until every text has its answer.
    pub(super) async fn finished(mut self) -> Result<(), ScorerError> {
        (&mut self.done).await.unwrap_or(Err(ScorerError::Stopped))
    }
}

impl Drop for Finished {
    fn drop(&mut self) {
        self.work.stopped.store(true, Ordering::Relaxed);
    }
}

impl Work {
    /// Queues the tokenization of the given rows, after which the rest follows by itself.
    pub(super) fn start(
        shared: &Arc<Shared>,
        window: &Arc<Window>,
        rows: Vec<(usize, Slot)>,
        rows_to_plan: usize,
    ) -> Finished {
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
        Finished { work, done }
    }

    /// Queues a job of the present step; the last one to end goes on to what comes `then`.
    fn spawn(
        self: &Arc<Self>,
        job: impl FnOnce(&Self) -> Result<(), ScorerError> + Send + 'static,
        then: fn(&Arc<Self>),
    ) {
        let work = Arc::clone(self);
        self.shared.pool.spawn(move || {
            if !work.stopped.load(Ordering::Relaxed) {
                // A panic in a job is a bug; it must fail this window, not hang or abort the process.
                match catch_unwind(AssertUnwindSafe(|| job(&work))) {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => work.end(Err(error)),
                    Err(_) => work.end(Err(ScorerError::Stopped)),
                }
            }
            if work.jobs.fetch_sub(1, Ordering::AcqRel) == 1 {
                then(&work);
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
        // Jobs end in any order; the plan shall not depend on it.
        encodings.sort_by_key(|(i, _)| *i);
        let lengths: Vec<usize> = encodings.iter().map(|(_, encoding)| encoding.input_ids.len()).collect();
        self.shared.tally.planned(self.rows_to_plan, lengths.iter().sum());
        let batches = pack::plan(&lengths, self.shared.batch_tokens);
        if batches.is_empty() || self.stopped.load(Ordering::Relaxed) {
            return self.end(Ok(()));
        }
        self.jobs.store(batches.len(), Ordering::Release);
        let mut encodings: Vec<Option<(usize, Encoding)>> = encodings.into_iter().map(Some).collect();
        for batch in batches {
            let sequences: Vec<(usize, Encoding)> = batch.into_iter().filter_map(|i| encodings[i].take()).collect();
            self.spawn(move |work| work.forward(&sequences), |work| work.end(Ok(())));
        }
    }

    fn forward(&self, sequences: &[(usize, Encoding)]) -> Result<(), ScorerError> {
        let (logits, tokens) = self.shared.forward(sequences.iter().map(|(_, encoding)| encoding))?;
        let broken = logits.iter().filter(|logits| !logits.iter().all(|logit| logit.is_finite())).count();
        if broken > 0 {
            return Err(ScorerError::Forward {
                sequences: sequences.len(),
                tokens,
                problem: format!(
                    "the model computes no finite logits for {broken} of them: its weights hold NaN or infinity, or numbers \
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
        self.shared.tally.batch(sequences.len(), tokens);
        Ok(())
    }

    /// Ends the work, once: slots still empty are given up, and all who wait are told.
    fn end(&self, result: Result<(), ScorerError>) {
        let Some(done) = self.done.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        self.stopped.store(true, Ordering::Relaxed);
        for (_, slot) in &self.rows {
            slot.get_or_init(|| Answer::Abandoned);
        }
        self.shared.memo.announce();
        // Nobody may be waiting any more.
        let _ = done.send(result);
    }
}
