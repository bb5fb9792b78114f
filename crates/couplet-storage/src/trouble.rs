//! Kinds of errors of disks and servers, with explanations for the user.

use std::fmt;
use std::io;

/// The kind of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// There is no such object, or no such bucket.
    Missing,
    /// The server denies access.
    Refused,
    /// The settings in the environment are invalid.
    Settings,
    /// The server cannot be reached, fails even after retries, or no longer accepts credentials that it accepted before.
    Unreachable,
    /// Anything else.
    Other,
}

impl Trouble {
    /// Returns true if access is refused, by a server or because settings that it requires are missing.
    #[must_use]
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::Refused | Self::Settings)
    }

    /// Returns true if the user can fix it before the next run, rather than wait for the service.
    #[must_use]
    pub fn is_mistake(self) -> bool {
        matches!(self, Self::Missing | Self::Refused | Self::Settings)
    }
}

/// An error of a store, explained for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// The problem, and how to fix it.
    pub problem: String,
    /// The kind of problem.
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
