//! What a run says early of itself, so that its report can compare it with what happened.
//!
//! A run must not spend two seconds on a guess, as a plan does. So it tokenizes a few hundred texts, while the first
//! window is on its way, to tell how many tokens there will be; and takes the pace of its own first seconds. The forecast
//! then stays as it is, however the run goes on.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::plan::Forecast;
use crate::report::Predicted;
use crate::scorer::{Scorer, Window};

/// Texts that are tokenized: enough for the mean to be right within some percent, and some hundredths of a second.
pub(super) const SAMPLE: u64 = 512;

/// How long the pace is watched at most.
const WATCHED: Duration = Duration::from_secs(2);

/// The share of the tokens after which a shorter run says something.
const SHARE: f64 = 0.2;

/// Between two looks at the counters.
const LOOK: Duration = Duration::from_millis(20);

/// A forecast in the making.
pub(super) struct Foresight {
    said: Arc<OnceLock<Predicted>>,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Foresight {
    /// Begins to watch a scorer that is about to score so many texts, of which `sample` are some.
    pub(super) fn start(scorer: &Scorer, sample: Window, texts: u64) -> Self {
        let said = Arc::new(OnceLock::new());
        if texts == 0 {
            return Self { said, task: None };
        }
        let (scorer, answer) = (scorer.clone(), Arc::clone(&said));
        let task = tokio::spawn(async move {
            let start = Instant::now();
            // A failure is the run's to report.
            let Ok(sample) = scorer.tokenize(sample).await else { return };
            let mean = sample.tokens() as f64 / sample.lengths.len().max(1) as f64;
            let tokens = (mean * texts as f64).round();
            let mut looks = tokio::time::interval(LOOK);
            loop {
                looks.tick().await;
                let done = scorer.tally().counts().tokens as f64;
                let elapsed = start.elapsed();
                if done > 0.0 && (elapsed >= WATCHED || done >= SHARE * tokens) {
                    let after = elapsed.as_secs_f64();
                    let forecast = Forecast { texts, tokens: tokens as u64, scoring: after * tokens / done, all: None };
                    let _ = answer.set(Predicted { by: "run".into(), after: Some(after), forecast });
                    return;
                }
            }
        });
        Self { said, task: Some(task) }
    }

    /// What was said; none if scoring was over before that.
    pub(super) fn predicted(self) -> Option<Predicted> {
        self.said.get().cloned()
    }
}

impl Drop for Foresight {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}
