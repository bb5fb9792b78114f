//! Window statistics of a run: the speed of each scored window, and the slowest ones.

use std::time::Duration;

use couplet_encoder::scorer::{Counts, Prediction, Rejection};
use couplet_tables::store::RunRecord;
use serde::Serialize;
use serde_json::{Value, json};

use crate::report::Executor;

/// The number of slowest windows that are recorded.
const SLOWEST: usize = 10;

/// A scored window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Window {
    /// The position of its first text among all texts of the run without a score, from 0.
    first_text: u64,
    texts: usize,
    tokens: usize,
    longest: usize,
    seconds: f64,
}

/// The scored windows of a run, and the executors that scored them.
#[derive(Debug, Default)]
pub(super) struct WindowStats {
    windows: Vec<Window>,
    texts: u64,
    executors: Vec<Executor>,
}

impl WindowStats {
    /// Adds the next window; on a cluster, a window is a task of an executor.
    pub(super) fn add(&mut self, outcomes: &[Result<Prediction, Rejection>], took: Duration, executor: Option<String>) {
        let lengths = || outcomes.iter().flatten().map(|prediction| prediction.tokens);
        let window = Window {
            first_text: self.texts,
            texts: outcomes.len(),
            tokens: lengths().sum(),
            longest: lengths().max().unwrap_or(0),
            seconds: took.as_secs_f64(),
        };
        self.texts += outcomes.len() as u64;
        self.windows.push(window);
        let Some(name) = executor else { return };
        let place = self.executors.iter().position(|executor| executor.name == name).unwrap_or_else(|| {
            self.executors.push(Executor { name, tasks: 0, texts: 0, tokens: 0 });
            self.executors.len() - 1
        });
        let executor = &mut self.executors[place];
        executor.tasks += 1;
        executor.texts += outcomes.len() as u64;
        executor.tokens += window.tokens as u64;
    }

    /// The number of texts of all windows so far.
    pub(super) fn texts(&self) -> u64 {
        self.texts
    }

    /// Writes the statistics to the run record. `took` is the duration of scoring.
    pub(super) fn record(&self, record: &mut RunRecord, counts: &Counts, took: Duration) {
        record.rows_scored = Some(counts.scored);
        record.tokens = Some(counts.tokens);
        record.tokens_in_rows = Some(counts.tokens_in_rows);
        record.padding_avoided = Some(counts.padding_avoided);
        record.stages.score = Some(took.as_secs_f64());
        record.windows = self.to_json();
        record.executors = (!self.executors.is_empty()).then(|| json!(self.executors));
    }

    /// The executors of a cluster, in the order of their first result; empty without a cluster.
    pub(super) fn executors(&self) -> &[Executor] {
        &self.executors
    }

    /// The number of windows, the median duration, and the slowest ones; `None` if there were none.
    fn to_json(&self) -> Option<Value> {
        let mut windows = self.windows.clone();
        windows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let median = windows.get(windows.len() / 2)?.seconds;
        let slowest = &windows[..windows.len().min(SLOWEST)];
        Some(json!({ "count": windows.len(), "median_seconds": median, "slowest": slowest }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_windows_are_kept_with_their_contents() {
        let text = |tokens| {
            Ok(Prediction {
                label: None,
                score: 0.0,
                probabilities: Box::default(),
                raw: Box::default(),
                tokens,
                truncated: false,
            })
        };
        let mut pace = WindowStats::default();
        assert_eq!(pace.to_json(), None);
        for (tokens, millis) in [(vec![3, 5], 10), (vec![128], 300), (vec![7, 8, 9], 20)] {
            pace.add(&tokens.into_iter().map(text).collect::<Vec<_>>(), Duration::from_millis(millis), None);
        }
        let json = pace.to_json().unwrap();
        assert_eq!((&json["count"], &json["median_seconds"]), (&json!(3), &json!(0.02)));
        let expected = json!({ "first_text": 2, "texts": 1, "tokens": 128, "longest": 128, "seconds": 0.3 });
        assert_eq!(json["slowest"][0], expected);
        assert_eq!(json["slowest"][1]["first_text"], 3);
        assert!(pace.executors().is_empty());
        for name in ["a", "b", "a"] {
            pace.add(&[text(4), text(6)], Duration::ZERO, Some(name.into()));
        }
        let done = |name: &str, tasks| Executor { name: name.into(), tasks, texts: 2 * tasks, tokens: 10 * tasks };
        assert_eq!(pace.executors(), [done("a", 2), done("b", 1)]);
    }
}
