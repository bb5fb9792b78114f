//! A short name for exactly these weights, tokenizer, configuration and calibration.

use std::fmt;

use sha2::{Digest, Sha256};

use super::files::ModelFiles;

/// Changes when couplet reads the same files otherwise, so that scores of the old reading are not taken for the new one's.
const READING: &[u8] = b"couplet reading 2";

/// SHA-256 over the names, sizes and contents of the files that a prediction depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// Of the files of these names, in this order; of one that is not there, nothing.
    pub(super) fn of<'n>(files: &ModelFiles, names: impl IntoIterator<Item = &'n str>) -> Self {
        let mut digest = Sha256::new();
        digest.update(READING);
        for (name, bytes) in names.into_iter().filter_map(|name| Some((name, files.get(name)?))) {
            digest.update(name.as_bytes());
            digest.update([0]);
            digest.update((bytes.len() as u64).to_le_bytes());
            digest.update(bytes);
        }
        let digest = digest.finalize();
        let digit = |half: u8| char::from_digit(half.into(), 16).expect("half a byte is one digit");
        Self(digest.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect())
    }

    /// All 64 hexadecimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The first 16 digits: enough to tell models apart, short enough for a column.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0[..16])
    }
}
