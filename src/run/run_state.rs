//! State of a whole run from its first stage on, for the run record and the metrics.

use std::time::Instant;

use chrono::{DateTime, Utc};
use couplet_tables::store::{RunRecord, Stages};

use crate::report::StageReport;

/// A run in progress.
#[derive(Debug)]
pub struct RunState {
    began: Instant,
    /// Start time by the clock of this host.
    pub started_at: DateTime<Utc>,
    /// The stages before scoring that have succeeded.
    pub stages: Stages,
    /// True if the fine-tuned model was promoted, false if `promote_if` rejected it.
    pub promoted: Option<bool>,
    /// The run record, if the run reached scoring; also if it failed there.
    pub record: Option<RunRecord>,
}

impl RunState {
    /// Starts the clock of a run.
    #[must_use]
    pub fn begin() -> Self {
        let stages = Stages::default();
        Self { began: Instant::now(), started_at: Utc::now(), stages, promoted: None, record: None }
    }

    /// Seconds since the start, by a monotonic clock.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Records that fine-tuning has ended.
    pub(super) fn finetuned(&mut self, report: &StageReport) {
        self.stages.finetune = Some(report.elapsed.as_secs_f64());
        self.promoted = Some(report.promoted);
    }
}
