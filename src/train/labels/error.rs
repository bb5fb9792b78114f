//! What is wrong with a label column: which rows, what is known, and how to mend it.

use std::fmt;

use thiserror::Error;

use super::GoldLabel;

/// How many of the rows that are wrong an error shows.
const MOST_SHOWN: usize = 5;

/// Label values that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LabelError {
    /// Values of rows.
    #[error(
        "{}{}{}; {help}",
        .rows.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        if *.wrong > .rows.len() { format!(" ({} more rows are wrong)", .wrong - .rows.len()) } else { String::new() },
        if .known.is_empty() { String::new() } else { format!("; known labels: {known}") }
    )]
    Rows {
        /// The first rows that are wrong.
        rows: Vec<WrongRow>,
        /// How many are.
        wrong: usize,
        /// The labels that are known; empty where any number would do.
        known: String,
        /// How to mend the first.
        help: String,
    },
    /// There are too few different labels to learn anything.
    #[error(
        "the label column has {}; {}: look at the query that selects the training rows",
        match .found { Some(label) => format!("only the label {label:?}"), None => "no label".to_owned() },
        if *.multi { "a multilabel task needs one label or more" } else { "a classification needs two different labels or more" }
    )]
    TooFew {
        /// The one label, if there is one.
        found: Option<String>,
        /// Whether a row may have any number of labels.
        multi: bool,
    },
    /// A list of labels that was given is wrong.
    #[error("labels = {names:?}: {problem}")]
    Given {
        /// The list.
        names: Vec<String>,
        /// What is wrong with it.
        problem: String,
    },
}

impl LabelError {
    /// Calls the rows by names of their own rather than by their places among the values, of which a query that was
    /// split or filtered has others.
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

/// A row whose label is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongRow {
    /// Its place among the values, from 0.
    pub row: usize,
    /// What the message calls it.
    pub name: String,
    /// The value, as it is shown.
    pub value: String,
    /// What is wrong with it.
    pub problem: String,
}

impl fmt::Display for WrongRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: label {} {}", self.name, self.value, self.problem)
    }
}

/// What is wrong with one value, and how to mend it.
pub(super) type Wrong = (String, String);

/// The rows that are wrong, the first few of them with the reason.
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
        if self.shown.len() < MOST_SHOWN {
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
