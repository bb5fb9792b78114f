//! Errors of locking: the lock could not be taken, or was lost.

use std::time::Duration;

use thiserror::Error;

use super::Holder;
use crate::trouble::Explained;

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
        /// The time that this run has waited; `None` if it was not told to wait.
        waited: Option<Duration>,
    },
    /// The lock was lost: nothing may be written after that.
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
        #[source]
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
    /// Returns true if the user must fix something first, such as a missing permission. A busy server does not count.
    #[must_use]
    pub fn is_mistake(&self) -> bool {
        matches!(self, Self::Store { problem, .. } if problem.trouble.is_mistake())
    }
}

/// Names the holder of a lock, if it could be read.
pub(super) fn who(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "its name cannot be read".into(), Holder::to_string)
}

fn how_to_fix(waited: Option<Duration>) -> String {
    match waited {
        None => "Wait for it with --wait 10m, or look at that process".into(),
        Some(waited) => format!("This run waited {} s for it; wait longer, or look at that process", waited.as_secs()),
    }
}
