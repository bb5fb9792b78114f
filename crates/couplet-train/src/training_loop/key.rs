//! A hash of everything that a job's weights depend on.

use couplet_encoder::model::{CALIBRATION_FILE, ModelFiles, SENTENCE_TRANSFORMERS};

/// The version of the key. Changes whenever the arithmetic, the way a base is read or the saved state changes such that
/// old states cannot be used.
const VERSION: &str = "couplet training 3";

/// Hashes the inputs of a job, in a fixed order.
pub struct Key(blake3::Hasher);

impl Key {
    pub(crate) fn new(kind: &str) -> Self {
        let mut key = Self(blake3::Hasher::new());
        key.text(VERSION);
        key.text(kind);
        key
    }

    /// Hashes a text with its length, so that ("a", "bc") differs from ("ab", "c").
    pub(crate) fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }

    pub(crate) fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    /// Hashes the contents of a model's files, in the order of their names.
    pub(crate) fn files(&mut self, files: &ModelFiles) {
        for (_, bytes) in files.iter().filter(|(name, _)| is_read(name)) {
            self.number(bytes.len() as u64);
            self.0.update(bytes);
        }
    }

    pub(crate) fn finish(self) -> blake3::Hash {
        self.0.finalize()
    }
}

/// Returns true if a model file may affect training: weights, configuration, tokenizer.
fn is_read(name: &str) -> bool {
    name != CALIBRATION_FILE && name != SENTENCE_TRANSFORMERS
}
