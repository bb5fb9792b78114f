//! Why the lock is not, or no longer, held.

use std::time::Duration;

use thiserror::Error;

use super::Holder;
use crate::trouble::Explained;

/// Why a run cannot go on alone.
#[derive(Debug, Clone, Error)]
pub enum LockError {
    /// Another run holds the lock, and is alive.
    #[error("{place} is in use by another run: {}. {}", who(.holder.as_deref()), mend(*.waited))]
    Busy {
        /// The store.
        place: String,
        /// Who holds it; none if nothing can be read of it.
        holder: Option<Box<Holder>>,
        /// For how long this run has waited; none if it was not asked to.
        waited: Option<Duration>,
    },
    /// The lock was held and is not held any more: nothing may be written.
    #[error(
        "the lock on {place} is lost: {why}. What was committed before is kept; run the same command again to go on"
    )]
    Lost {
        /// The store.
        place: String,
        /// What happened to it.
        why: String,
    },
    /// The store cannot be read or written.
    #[error("cannot lock {place}: {problem}")]
    Store {
        /// The store.
        place: String,
        /// What went wrong.
        problem: Explained,
    },
    /// The store does not do what several writers need.
    #[error("{place} cannot hold a store or a table safely: {problem}")]
    Unsafe {
        /// The store.
        place: String,
        /// What it does wrong, and how to mend it.
        problem: String,
    },
}

impl LockError {
    /// Whether somebody must mend it before it can go well: a right that is missing, not a server that is busy.
    #[must_use]
    pub fn is_mistake(&self) -> bool {
        matches!(self, Self::Store { problem, .. } if problem.trouble.is_mistake())
    }
}

/// Names who holds a lock, if that could be read.
pub(super) fn who(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "one that has left no name".into(), Holder::to_string)
}

fn mend(waited: Option<Duration>) -> String {
    match waited {
        None => "Wait for it with --wait 10m, or look at that process".into(),
        Some(waited) => format!("This run waited {} s for it; wait longer, or look at that process", waited.as_secs()),
    }
}
