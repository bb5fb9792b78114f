//! Splits texts into tasks of about the same cost, independent of their files and lengths.
//!
//! The cost of a task is its number of tokens. It is estimated from the bytes of the texts, at the tokens per byte of a
//! sample, as the client cannot tokenize for a hundred machines. Texts come in the order of their first rows, so a task
//! mixes short and long ones. Tasks become smaller towards the end, so that all executors finish at about the same time
//! (guided self-scheduling: Polychronopoulos and Kuck, 1987).

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use couplet_encoder::scorer::Window;

/// The smallest number of tokens per task, unless the configured limit is lower: scheduling fewer costs more than
/// scoring them.
const MIN_TOKENS: f64 = 4096.0;

/// The maximum number of bytes of text per task, even if few tokens of them are used: a client holds twice as many
/// tasks as there are slots.
const MAX_BYTES: usize = 64 << 20;

/// Splits a stream of windows into tasks.
#[derive(Debug)]
pub(super) struct TaskSplitter {
    tokens_per_byte: f64,
    max_length: f64,
    max_tokens: f64,
    /// The estimated number of tokens that are not in a task yet.
    remaining_tokens: f64,
    task: Vec<(ArrayRef, Window)>,
    tokens: f64,
    bytes: usize,
}

/// Texts that are scored together, with their keys.
#[derive(Debug)]
pub(super) struct Task {
    parts: Vec<(ArrayRef, Window)>,
    /// The number of texts.
    pub(super) texts: usize,
}

impl TaskSplitter {
    /// Creates a splitter for texts with `tokens` tokens in total, truncated to `max_length` tokens each. Its tasks
    /// have at most `max_tokens` tokens.
    pub(super) fn new(tokens: u64, tokens_per_byte: f64, max_length: usize, max_tokens: u64) -> Self {
        Self {
            tokens_per_byte,
            max_length: max_length as f64,
            max_tokens: max_tokens as f64,
            remaining_tokens: tokens as f64,
            task: Vec::new(),
            tokens: 0.0,
            bytes: 0,
        }
    }

    /// Adds a window and returns the tasks that it completes. With `shares` shares, each task is at most that fraction
    /// of the remaining tokens.
    pub(super) fn push(&mut self, keys: &ArrayRef, window: &Window, shares: usize) -> Vec<Task> {
        let (mut tasks, mut start) = (Vec::new(), 0);
        let mut limit = self.limit(shares);
        for row in 0..window.len() {
            self.tokens += (window.bytes(row) as f64 * self.tokens_per_byte).clamp(1.0, self.max_length);
            self.bytes += window.bytes(row);
            if self.tokens >= limit || self.bytes >= MAX_BYTES {
                self.task.push(slice(keys, window, start, row + 1 - start));
                tasks.extend(self.finish());
                start = row + 1;
                limit = self.limit(shares);
            }
        }
        if start < window.len() {
            self.task.push(slice(keys, window, start, window.len() - start));
        }
        tasks
    }

    fn limit(&self, shares: usize) -> f64 {
        (self.remaining_tokens / shares.max(1) as f64).max(MIN_TOKENS).min(self.max_tokens)
    }

    /// Returns the last task; none if nothing is left.
    pub(super) fn finish(&mut self) -> Option<Task> {
        self.remaining_tokens -= std::mem::take(&mut self.tokens);
        self.bytes = 0;
        let parts = std::mem::take(&mut self.task);
        let texts = parts.iter().map(|(keys, _)| keys.len()).sum();
        (texts > 0).then_some(Task { parts, texts })
    }
}

fn slice(keys: &ArrayRef, window: &Window, offset: usize, length: usize) -> (ArrayRef, Window) {
    (keys.slice(offset, length), window.slice(offset, length))
}

impl Task {
    /// Returns the schema of the task's file: `key`, `text`, and `text_pair` for pairs.
    pub(super) fn schema(&self) -> SchemaRef {
        let (keys, window) = &self.parts[0];
        let mut fields = vec![Field::new("key", keys.data_type().clone(), false)];
        let names = ["text", "text_pair"].into_iter();
        // A string view would keep its whole buffer alive.
        fields.extend(names.zip(window.columns()).map(|(name, _)| Field::new(name, DataType::Utf8, true)));
        Arc::new(Schema::new(fields))
    }

    /// Returns the rows of the task's file.
    pub(super) fn batches(&self) -> impl Iterator<Item = Result<RecordBatch, ArrowError>> {
        let schema = self.schema();
        self.parts.iter().map(move |(keys, window)| {
            let texts = window.columns().map(|column| cast(&column.values, &DataType::Utf8));
            let columns = std::iter::once(Ok(Arc::clone(keys))).chain(texts).collect::<Result<_, _>>()?;
            RecordBatch::try_new(Arc::clone(&schema), columns)
        })
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int32Array, StringViewArray};

    use super::*;
    use couplet_encoder::scorer::TextColumn;

    fn window(texts: &[&str]) -> (ArrayRef, Window) {
        let keys = Int32Array::from_iter_values((0_i32..).take(texts.len()));
        let column = |name: &str| TextColumn { name: name.into(), values: StringViewArray::from(texts.to_vec()) };
        (Arc::new(keys), Window::new(column("a"), Some(column("b"))))
    }

    #[test]
    fn tasks_are_cut_by_tokens_across_windows_and_lose_no_row() {
        let long = "x".repeat(1000);
        // 10 bytes per pair are 5 tokens; the long one is truncated to 16.
        let (keys, texts) = window(&["12345", "12345", "12345", &long, "12345", "12345"]);
        let mut splitter = TaskSplitter::new(1_000_000, 0.5, 16, 20);
        let mut tasks = splitter.push(&keys, &texts, 4);
        tasks.extend(splitter.push(&keys, &texts, 4));
        tasks.extend(splitter.finish());
        assert_eq!(tasks.iter().map(|task| task.texts).collect::<Vec<_>>(), [4, 4, 2, 2]);
        let rows = |task: &Task| -> Vec<i32> {
            let batches = task.batches().map(Result::unwrap);
            batches
                .flat_map(|batch| {
                    use arrow::array::AsArray;
                    batch.column(0).as_primitive::<arrow::datatypes::Int32Type>().values().to_vec()
                })
                .collect()
        };
        assert_eq!(tasks.iter().flat_map(rows).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]);
        assert_eq!(tasks[0].schema().fields().len(), 3);
        assert!(splitter.finish().is_none());
    }

    #[test]
    fn a_task_is_full_of_bytes_before_it_is_of_tokens() {
        let text = "x".repeat(1 << 20);
        let (keys, texts) = window(&vec![text.as_str(); 100]);
        // Each pair is 2 MiB, of which 8 tokens are used.
        let mut splitter = TaskSplitter::new(1_000_000, 0.25, 8, 500_000);
        let mut tasks = splitter.push(&keys, &texts, 1);
        tasks.extend(splitter.finish());
        assert_eq!(tasks.iter().map(|task| task.texts).collect::<Vec<_>>(), [32, 32, 32, 4]);
    }

    #[test]
    fn tasks_become_smaller_towards_the_end() {
        let text = "x".repeat(1000);
        let (keys, texts) = window(&vec![text.as_str(); 100]);
        // 2,000 bytes per pair are 1,000 tokens.
        let mut splitter = TaskSplitter::new(100_000, 0.5, 5000, 20_000);
        let mut tasks = splitter.push(&keys, &texts, 4);
        tasks.extend(splitter.finish());
        let sizes: Vec<usize> = tasks.iter().map(|task| task.texts).collect();
        assert_eq!(sizes.iter().sum::<usize>(), 100);
        assert!(sizes[0] == 20 && sizes.is_sorted_by(|a, b| a >= b) && sizes.contains(&5), "{sizes:?}");
    }
}
