//! Errors of locking: the lock could not be taken, or was lost.

use std::fmt;
use std::io;
use std::time::Duration;

use thiserror::Error;

use super::Holder;
use crate::objects::Trouble;

/// An error of a store, explained for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// The problem and how to fix it.
    pub problem: String,
    /// The kind of the problem.
    pub trouble: Trouble,
}

impl Explained {
    /// Rewords the problem and keeps its kind.
    pub(crate) fn in_words(self, words: impl FnOnce(&str) -> String) -> Self {
        Self { problem: words(&self.problem), ..self }
    }
}

/// Wraps a problem that no server reported.
impl From<String> for Explained {
    fn from(problem: String) -> Self {
        Self { problem, trouble: Trouble::Other }
    }
}

/// Wraps an error of the operating system.
impl From<&io::Error> for Explained {
    fn from(error: &io::Error) -> Self {
        let is_refused = error.kind() == io::ErrorKind::PermissionDenied;
        Self { problem: error.to_string(), trouble: if is_refused { Trouble::Refused } else { Trouble::Other } }
    }
}

/// Wraps a problem that no server reported.
impl From<&str> for Explained {
    fn from(problem: &str) -> Self {
        problem.to_owned().into()
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)
    }
}

/// An error of taking, holding or releasing the lock of a store.
#[derive(Debug, Clone, Error)]
pub enum LockError {
    /// Another run, which is alive, holds the lock.
    #[error("{place} is in use by another run: {}. {}", who(.holder.as_deref()), how_to_fix(*.waited))]
    Busy {
        /// The store.
        place: String,
        /// The holder; none if it cannot be read.
        holder: Option<Box<Holder>>,
        /// The time that this run has waited; none if it was not asked to wait.
        waited: Option<Duration>,
    },
    /// The lock was lost: nothing may be written any more.
    #[error(
        "the lock on {place} is lost: {why}. What was committed before is kept; run the same command again to go on"
    )]
    Lost {
        /// The store.
        place: String,
        /// The cause of the loss.
        why: String,
    },
    /// The store cannot be read or written.
    #[error("cannot lock {place}: {problem}")]
    Store {
        /// The store.
        place: String,
        /// The problem and how to fix it.
        problem: Explained,
    },
    /// The store lacks the guarantees that concurrent writers need.
    #[error("{place} cannot hold a store or a table safely: {problem}")]
    Unsafe {
        /// The store.
        place: String,
        /// The missing guarantee and how to fix it.
        problem: String,
    },
}

impl LockError {
    /// Returns true if the user must fix something first, such as a missing permission. A busy server is no such case.
    #[must_use]
    pub fn is_mistake(&self) -> bool {
        matches!(self, Self::Store { problem, .. } if problem.trouble.is_mistake())
    }
}

/// Names the holder of a lock, if it could be read.
pub(super) fn who(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "its name cannot be read".into(), Holder::to_string)
}

/// Summarizes a failed request of a store in one line. Of a server's response it keeps only what cannot hold a secret.
pub(crate) fn said(error: &object_store::Error) -> String {
    let text = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n");
    let between = |start: &str, end: &str| {
        let (_, rest) = text.split_once(start)?;
        let (found, _) = rest.split_once(end)?;
        Some(found.trim().to_owned()).filter(|found| !found.is_empty() && found.len() < 300)
    };
    let status = between("status code: ", ":");
    let code = between("<Code>", "</Code>");
    let message = between("<Message>", "</Message>").or_else(|| between("\"message\": \"", "\""));
    if status.is_none() && code.is_none() {
        return text.lines().last().unwrap_or_default().to_owned();
    }
    [status, code, message].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn how_to_fix(waited: Option<Duration>) -> String {
    match waited {
        None => "Wait for it with --wait 10m, or look at that process".into(),
        Some(waited) => format!("This run waited {} s for it; wait longer, or look at that process", waited.as_secs()),
    }
}
