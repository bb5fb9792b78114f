//! A run as a whole, from its first stage on: what its record and its metrics say besides the scoring.

use std::time::Instant;

use chrono::{DateTime, Utc};

use crate::report::StageReport;
use crate::store::{EarlierStages, RunRecord};

/// A run that has begun, and how far it has come.
#[derive(Debug)]
pub struct RunState {
    began: Instant,
    /// When it began, by the clock of this machine.
    pub started_at: DateTime<Utc>,
    /// The stages before the scoring that have ended well.
    pub earlier: EarlierStages,
    /// What was recorded of it, if it came to the scoring; also of one that failed.
    pub record: Option<RunRecord>,
}

impl RunState {
    /// A run that begins now.
    #[must_use]
    pub fn begin() -> Self {
        Self { began: Instant::now(), started_at: Utc::now(), earlier: EarlierStages::default(), record: None }
    }

    /// How long it has taken so far, by a clock that never goes back.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Notes that the stage that learns a task has ended.
    pub(super) fn finetuned(&mut self, report: &StageReport) {
        self.earlier.finetune = Some(report.elapsed.as_secs_f64());
        self.earlier.promoted = Some(report.promoted);
    }
}
