//! The fingerprint of a model: identifies its weights, tokenizer, configuration and calibration.

use std::fmt;

use sha2::{Digest, Sha256};

use super::files::ModelFiles;

/// The version of couplet's model loader. It must change if couplet computes other scores from the same files, so that
/// old scores are not reused.
const LOADER_VERSION: &[u8] = b"couplet reading 2";

/// The SHA-256 of the names, sizes and contents of all files that a prediction depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// Computes the fingerprint of the files with these names, in this order. Missing files are skipped.
    pub(super) fn of<'n>(files: &ModelFiles, names: impl IntoIterator<Item = &'n str>) -> Self {
        let mut digest = Sha256::new();
        digest.update(LOADER_VERSION);
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

    /// Returns all 64 hexadecimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Formats the first 16 digits: enough to distinguish models, and short enough for a column.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0[..16])
    }
}
