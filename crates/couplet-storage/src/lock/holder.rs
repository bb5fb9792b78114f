//! The content of the lock file: its holder and state, as JSON that people can read too.

use std::fmt;
use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::process::Process;

/// The longest lease that is honoured. A lock that names a longer one is treated as having this one.
const LONGEST_LEASE: Duration = Duration::from_hours(1);

/// A run that holds the lock, or held it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The id of the run.
    pub run_id: String,
    /// The name of its pipeline.
    pub pipeline: String,
    /// The name of the machine that it runs on.
    pub host: String,
    /// Its process on that machine.
    pub process: Process,
    /// The time at which it took the lock, by its own clock, in RFC 3339. For display only: no decision depends on it.
    pub started_at: String,
    /// Distinguishes two attempts of one process.
    token: String,
}

impl Holder {
    pub(super) fn this(run_id: &str, pipeline: &str) -> Self {
        Self {
            run_id: run_id.to_owned(),
            pipeline: pipeline.to_owned(),
            host: super::process::host(),
            process: Process::this(),
            started_at: Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true),
            token: Uuid::new_v4().to_string(),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run_id, pipeline, host, process, started_at, .. } = self;
        write!(f, "pipeline `{pipeline}`, run {run_id}, process {} on {host}, since {started_at}", process.pid)
    }
}

/// The state in which the lock was last written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// A run holds it, or died while holding it.
    Held,
    /// Its holder finished and released it.
    Released,
    /// Its holder gave it up without finishing.
    Abandoned,
}

/// The content of `lock.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Content {
    pub(super) state: State,
    pub(super) holder: Holder,
    /// The lease in seconds: how long a renewal keeps the lock. None in a local folder, where the operating system
    /// tracks the holder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lease_seconds: Option<f64>,
    /// A counter that makes the content of each renewal different: the `ETag` of many servers is a hash of it.
    #[serde(default)]
    pub(super) renewals: u64,
    /// Runs that ended while holding the lock and that no later run has recorded yet.
    #[serde(default)]
    pub(super) left_behind: Vec<Holder>,
}

impl Content {
    /// Returns the content for the next holder, given the content `before` it.
    pub(super) fn after(before: Option<Self>, holder: Holder, lease: Option<Duration>) -> Self {
        let left_behind = before.map(Self::into_left_behind).unwrap_or_default();
        let lease_seconds = lease.map(|lease| lease.as_secs_f64());
        Self { state: State::Held, holder, lease_seconds, renewals: 0, left_behind }
    }

    /// Returns the runs that the next holder must record as killed.
    fn into_left_behind(self) -> Vec<Holder> {
        let mut left = self.left_behind;
        if self.state != State::Released {
            left.push(self.holder);
        }
        left
    }

    pub(super) fn lease(&self) -> Option<Duration> {
        let seconds = self.lease_seconds.filter(|seconds| seconds.is_finite() && *seconds > 0.0)?;
        Some(Duration::from_secs_f64(seconds.min(LONGEST_LEASE.as_secs_f64())))
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("texts and numbers can be written as JSON");
        json.push(b'\n');
        json
    }

    /// Parses the content; none for a truncated file or one that couplet did not write.
    pub(super) fn from_json(json: &[u8]) -> Option<Self> {
        // A kill between writing a shorter text and truncating the file leaves the end of the previous text.
        serde_json::Deserializer::from_slice(json).into_iter().next()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_a_longer_text_is_ignored() {
        let holder = Holder::this("run", "pipeline");
        let short = Content::after(None, holder.clone(), None);
        let shorter = short.to_json();
        let longer = Content::after(Some(short), holder.clone(), None).to_json();
        let left = [&shorter[..], &longer[shorter.len()..]].concat();
        assert_eq!(Content::from_json(&left).unwrap().into_left_behind(), [holder]);
        assert!(Content::from_json(&shorter[..shorter.len() / 2]).is_none());
        assert!(Content::from_json(b"").is_none());
    }
}
