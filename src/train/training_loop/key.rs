//! A hash of everything that the weights of a job depend on.

use crate::model::{CALIBRATION_FILE, ModelFiles, SENTENCE_TRANSFORMERS};

/// Changes when the arithmetic, the reading of a base or the saved state changes in a way that makes old states useless.
const VERSION: &str = "couplet training 3";

/// Takes in what a job depends on, in a fixed order.
pub(in crate::train) struct Key(blake3::Hasher);

impl Key {
    pub(in crate::train) fn new(kind: &str) -> Self {
        let mut key = Self(blake3::Hasher::new());
        key.text(VERSION);
        key.text(kind);
        key
    }

    /// Takes in a text, with its length, so that ("a", "bc") is not ("ab", "c").
    pub(in crate::train) fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }

    pub(in crate::train) fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    /// Takes in the files of a model with their contents, in the order of their names.
    pub(in crate::train) fn files(&mut self, files: &ModelFiles) {
        for (_, bytes) in files.iter().filter(|(name, _)| is_read(name)) {
            self.number(bytes.len() as u64);
            self.0.update(bytes);
        }
    }

    pub(in crate::train) fn finish(self) -> blake3::Hash {
        self.0.finalize()
    }
}

/// Whether a file of a model may matter to a training: weights, configuration, tokenizer.
fn is_read(name: &str) -> bool {
    name != CALIBRATION_FILE && name != SENTENCE_TRANSFORMERS
}
