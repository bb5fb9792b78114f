//! Labelled rows: what they are called in messages, and on which side of a split each is.

use crate::train::labels::GoldLabel;

/// A labelled text or pair.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its place in the result of its query, from 1.
    pub number: usize,
    /// The values of the columns that name it; empty if there are none.
    pub id: Vec<String>,
    /// The text.
    pub text: String,
    /// The second text of a pair.
    pub text_pair: Option<String>,
    /// What is right.
    pub label: GoldLabel,
}

impl Row {
    /// What messages call it: by its id, or by its place in the query where nothing else names it.
    #[must_use]
    pub fn name(&self) -> String {
        if self.id.is_empty() {
            format!("row {}", self.number)
        } else {
            format!("row with id {:?}", self.id.join(", "))
        }
    }

    /// What says whether it is held out: its id, or its texts where nothing else names it.
    #[must_use]
    pub fn split_by(&self) -> Vec<&str> {
        if self.id.is_empty() {
            std::iter::once(&self.text).chain(&self.text_pair).map(String::as_str).collect()
        } else {
            self.id.iter().map(String::as_str).collect()
        }
    }
}
