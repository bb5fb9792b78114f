//! Why the lock is not, or no longer, held.

use std::fmt;
use std::io;
use std::time::Duration;

use thiserror::Error;

use super::Holder;
use crate::objects::Trouble;

/// What an error of a store means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// What went wrong, and how to mend it.
    pub problem: String,
    /// What kind of trouble it is.
    pub trouble: Trouble,
}

impl Explained {
    /// The same with more words around it.
    pub(crate) fn in_words(self, words: impl FnOnce(&str) -> String) -> Self {
        Self { problem: words(&self.problem), ..self }
    }
}

/// Something that no server said.
impl From<String> for Explained {
    fn from(problem: String) -> Self {
        Self { problem, trouble: Trouble::Other }
    }
}

/// What the system said.
impl From<&io::Error> for Explained {
    fn from(error: &io::Error) -> Self {
        let is_refused = error.kind() == io::ErrorKind::PermissionDenied;
        Self { problem: error.to_string(), trouble: if is_refused { Trouble::Refused } else { Trouble::Other } }
    }
}

/// Something that no server said.
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

/// What a store says of a request that failed, in one line: of a server's answer only what is known to be harmless.
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

fn mend(waited: Option<Duration>) -> String {
    match waited {
        None => "Wait for it with --wait 10m, or look at that process".into(),
        Some(waited) => format!("This run waited {} s for it; wait longer, or look at that process", waited.as_secs()),
    }
}
