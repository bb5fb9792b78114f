//! Labelled rows: what they are called in messages, on which side of a split each is, and which are on both.

use std::collections::HashMap;

use super::Job;
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

    /// A hash of its texts.
    fn digest(&self) -> u128 {
        let mut hasher = blake3::Hasher::new();
        for text in std::iter::once(&self.text).chain(&self.text_pair) {
            // With its length, so that ("a", "bc") is not ("ab", "c").
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        let mut digest = [0; 16];
        hasher.finalize_xof().fill(&mut digest);
        u128::from_le_bytes(digest)
    }
}

impl Job {
    /// Counts the validation rows whose texts are learned from too: by a hash, so that long texts are not kept twice.
    #[must_use]
    pub fn shared(&self) -> usize {
        let mut held_out: HashMap<u128, usize> = HashMap::new();
        for row in &self.validation {
            *held_out.entry(row.digest()).or_default() += 1;
        }
        if held_out.is_empty() {
            return 0;
        }
        self.training.iter().filter_map(|row| held_out.remove(&row.digest())).sum()
    }
}
