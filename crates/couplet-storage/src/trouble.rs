//! Kinds of errors of disks and servers, with explanations for the user.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use thiserror::Error;

/// The kind of an error. Where the cause of an error is kept as text, the kind is its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// There is no such object, or no such bucket.
    Missing,
    /// The server denies access.
    Refused,
    /// The settings in the environment are invalid.
    Settings,
    /// A table cannot satisfy the request.
    Mistake,
    /// A file of a table is damaged.
    Damaged,
    /// The server cannot be reached, fails even after retries, or no longer accepts credentials that it accepted before.
    Unreachable,
    /// The operating system reported the error of this number.
    System(i32),
    /// Anything else.
    Other,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl StdError for Trouble {}

impl Trouble {
    /// Returns the kind of an error that no server reported.
    #[must_use]
    pub fn of(error: &(dyn StdError + 'static)) -> Self {
        let is_refused = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        match system_error(error) {
            Some(number) => Self::System(number),
            None if causes(error).filter_map(|cause| cause.downcast_ref::<io::Error>()).any(is_refused) => {
                Self::Refused
            }
            None => Self::Other,
        }
    }

    /// Returns true if access is refused, by a server, by the operating system, or because settings that a server
    /// requires are missing.
    #[must_use]
    pub fn is_refusal(self) -> bool {
        match self {
            Self::Refused | Self::Settings => true,
            Self::System(number) => io::Error::from_raw_os_error(number).kind() == io::ErrorKind::PermissionDenied,
            _ => false,
        }
    }

    /// Returns true if the user can fix it before the next run, rather than wait for the service.
    #[must_use]
    pub fn is_mistake(self) -> bool {
        matches!(self, Self::Missing | Self::Mistake | Self::Damaged) || self.is_refusal()
    }
}

/// Returns an error and its causes, outermost first. The source of an I/O error skips the error that it wraps; this does
/// not.
pub fn causes<'e>(error: &'e (dyn StdError + 'static)) -> impl Iterator<Item = &'e (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        held.map(|held| held as &(dyn StdError + 'static)).or_else(|| error.source())
    })
}

/// Returns the number of the operating system's error among the causes of an error.
#[must_use]
pub fn system_error(error: &(dyn StdError + 'static)) -> Option<i32> {
    causes(error).find_map(|cause| match cause.downcast_ref::<Trouble>() {
        Some(Trouble::System(number)) => Some(*number),
        _ => cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error),
    })
}

/// An error of a store, explained for the user.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{problem}")]
pub struct Explained {
    /// The problem, and how to fix it.
    pub problem: String,
    /// The kind of problem.
    #[source]
    pub trouble: Trouble,
}

impl Explained {
    /// Keeps the text of an error that no server reported, and its kind.
    #[must_use]
    pub fn of(error: &(dyn StdError + 'static)) -> Self {
        Self { problem: error.to_string(), trouble: Trouble::of(error) }
    }

    /// Rewords the problem and keeps its kind.
    #[must_use]
    pub fn in_words(self, words: impl FnOnce(&str) -> String) -> Self {
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
        Self::of(error)
    }
}

/// Wraps a problem that no server reported.
impl From<&str> for Explained {
    fn from(problem: &str) -> Self {
        problem.to_owned().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_error_is_found_behind_other_errors() {
        let full = || io::Error::from_raw_os_error(28);
        assert_eq!(system_error(&io::Error::other(full())), Some(28));
        let explained = Explained::of(&full()).in_words(|problem| format!("a: {problem}"));
        assert_eq!((system_error(&explained), explained.trouble.is_mistake()), (Some(28), false));
        assert!(Trouble::of(&io::Error::from(io::ErrorKind::PermissionDenied)).is_refusal());
        assert_eq!(Trouble::of(&io::Error::other("(os error 28)")), Trouble::Other);
    }
}
