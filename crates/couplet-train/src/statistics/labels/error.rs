//! Errors of a label column: the wrong rows, the known labels, and how to fix them.

use std::fmt;

use thiserror::Error;

use super::GoldLabel;

/// The maximum number of wrong rows that an error shows.
const MAX_SHOWN: usize = 5;

/// Label values that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LabelError {
    /// Some rows have unusable values.
    #[error(
        "{}{}{}; {help}",
        .rows.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        if *.wrong > .rows.len() { format!(" ({} more rows are wrong)", .wrong - .rows.len()) } else { String::new() },
        if .known.is_empty() { String::new() } else { format!("; known labels: {known}") }
    )]
    Rows {
        /// The first wrong rows.
        rows: Vec<WrongRow>,
        /// The number of wrong rows.
        wrong: usize,
        /// The known labels; empty if any number is allowed.
        known: String,
        /// How to fix the first one.
        help: String,
    },
    /// There are too few different labels to train on.
    #[error(
        "the label column has {}; {}: look at the query that selects the training rows",
        match .found { Some(label) => format!("only the label {label:?}"), None => "no label".to_owned() },
        if *.multi { "a multilabel task needs one label or more" } else { "a classification needs two different labels or more" }
    )]
    TooFew {
        /// The one label, if there is one.
        found: Option<String>,
        /// True if a row may have any number of labels.
        multi: bool,
    },
    /// The given list of labels is invalid.
    #[error("labels = {names:?}: {problem}")]
    Given {
        /// The list.
        names: Vec<String>,
        /// The reason.
        problem: String,
    },
}

impl LabelError {
    /// Replaces the row names. The default names are positions among the values, which are wrong after a split or a
    /// filter.
    #[must_use]
    pub fn named(mut self, name: impl Fn(usize) -> String) -> Self {
        if let Self::Rows { rows, .. } = &mut self {
            for wrong in rows {
                wrong.name = name(wrong.row);
            }
        }
        self
    }
}

/// A row with an unusable label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongRow {
    /// The position among the values, from 0.
    pub row: usize,
    /// The row's name in the message.
    pub name: String,
    /// The value as shown.
    pub value: String,
    /// The reason.
    pub problem: String,
}

impl fmt::Display for WrongRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: label {} {}", self.name, self.value, self.problem)
    }
}

/// The reason why a value cannot be used, and how to fix it.
pub(super) type Wrong = (String, String);

/// The wrong rows: their number, and the first few with the reason.
#[derive(Debug, Default)]
pub(super) struct WrongRows {
    shown: Vec<WrongRow>,
    count: usize,
    help: String,
}

impl WrongRows {
    pub(super) fn push(&mut self, row: usize, value: &GoldLabel, (problem, help): Wrong) {
        if self.count == 0 {
            self.help = help;
        }
        self.count += 1;
        if self.shown.len() < MAX_SHOWN {
            let mut value = value.to_string();
            if let Some((end, _)) = value.char_indices().nth(80) {
                value.truncate(end);
                value.push('…');
            }
            self.shown.push(WrongRow { row, name: format!("row {}", row + 1), value, problem });
        }
    }

    pub(super) fn into_result(self, known: String) -> Result<(), LabelError> {
        if self.count == 0 {
            return Ok(());
        }
        Err(LabelError::Rows { rows: self.shown, wrong: self.count, known, help: self.help })
    }
}
