//! Labelled rows: their names in messages, their split keys, and texts that are on both sides of the split.

use std::collections::HashMap;

use super::Job;
use crate::statistics::labels::GoldLabel;

/// A labelled text or text pair.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The position in the query result, from 1.
    pub number: usize,
    /// The values of the `id` columns; empty if there are none.
    pub id: Vec<String>,
    /// The text.
    pub text: String,
    /// The second text of a pair.
    pub text_pair: Option<String>,
    /// The gold label.
    pub label: GoldLabel,
}

impl Row {
    /// Returns the row's name in messages: its id, or its position in the query if it has no id.
    #[must_use]
    pub fn name(&self) -> String {
        if self.id.is_empty() {
            format!("row {}", self.number)
        } else {
            format!("row with id {:?}", self.id.join(", "))
        }
    }

    /// Returns the key of the train/validation split: the id, or the texts if the row has no id.
    #[must_use]
    pub fn split_key(&self) -> Vec<&str> {
        if self.id.is_empty() {
            std::iter::once(&self.text).chain(&self.text_pair).map(String::as_str).collect()
        } else {
            self.id.iter().map(String::as_str).collect()
        }
    }

    /// Hashes the texts of the row.
    fn digest(&self) -> u128 {
        let mut hasher = blake3::Hasher::new();
        for text in std::iter::once(&self.text).chain(&self.text_pair) {
            // Hashed with its length, so that ("a", "bc") differs from ("ab", "c").
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        let mut digest = [0; 16];
        hasher.finalize_xof().fill(&mut digest);
        u128::from_le_bytes(digest)
    }
}

impl Job {
    /// Counts the validation rows whose texts are also training texts. Compares hashes, so that long texts are not
    /// stored twice.
    #[must_use]
    pub fn overlapping_rows(&self) -> usize {
        let mut held_out: HashMap<u128, usize> = HashMap::new();
        for row in &self.kind.validation {
            *held_out.entry(row.digest()).or_default() += 1;
        }
        if held_out.is_empty() {
            return 0;
        }
        self.kind.training.iter().filter_map(|row| held_out.remove(&row.digest())).sum()
    }
}
