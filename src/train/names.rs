//! Names that people write: found whatever their case and dashes, and the nearest one offered where there is none.

use thiserror::Error;

use crate::words::closest;

/// A name that is not among those that are known.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown {what} {written:?}{}; known are {allowed}", .suggestion.as_ref().map(|name| format!(" (did you mean `{name}`?)")).unwrap_or_default())]
pub struct UnknownName {
    /// What is named: a task, a metric.
    pub what: &'static str,
    /// The name as it was written.
    pub written: String,
    /// The known name that is most like it, if one is near.
    pub suggestion: Option<&'static str>,
    /// All that are known.
    pub allowed: String,
}

impl UnknownName {
    pub(super) fn new(what: &'static str, written: &str, known: impl Iterator<Item = &'static str> + Clone) -> Self {
        let allowed = known.clone().collect::<Vec<_>>().join(", ");
        Self { what, written: written.to_owned(), suggestion: closest(written, known), allowed }
    }
}

/// Whether two names are the same but for case, dashes, underscores and spaces.
pub(super) fn same_name(left: &str, right: &str) -> bool {
    bare(left).eq(bare(right))
}

fn bare(name: &str) -> impl Iterator<Item = char> {
    name.chars().filter(|c| !matches!(c, '-' | '_' | ' ')).flat_map(char::to_lowercase)
}
