//! Lookup of names: ignores case and dashes, and suggests the closest name for an unknown one.

use couplet_storage::words::closest;
use thiserror::Error;

/// An unknown name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown {what} {written:?}{}; known are {allowed}", .suggestion.as_ref().map(|name| format!(" (did you mean `{name}`?)")).unwrap_or_default())]
pub struct UnknownName {
    /// The kind of name: a task, a metric.
    pub what: &'static str,
    /// The name as written.
    pub written: String,
    /// The closest known name, if one is close enough.
    pub suggestion: Option<&'static str>,
    /// All known names.
    pub allowed: String,
}

impl UnknownName {
    pub(super) fn new(what: &'static str, written: &str, known: impl Iterator<Item = &'static str> + Clone) -> Self {
        let allowed = known.clone().collect::<Vec<_>>().join(", ");
        Self { what, written: written.to_owned(), suggestion: closest(written, known), allowed }
    }
}

/// Returns true if two names differ only in case, dashes, underscores and spaces.
pub(super) fn same_name(left: &str, right: &str) -> bool {
    bare(left).eq(bare(right))
}

fn bare(name: &str) -> impl Iterator<Item = char> {
    name.chars().filter(|c| !matches!(c, '-' | '_' | ' ')).flat_map(char::to_lowercase)
}
