//! A short name for exactly these weights, tokenizer, configuration and calibration.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::LoadError;

/// Changes when couplet reads the same files otherwise, so that scores of the old reading are not taken for the new one's.
const READING: &[u8] = b"couplet reading 2";

/// SHA-256 over the names, sizes and contents of the files that a prediction depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// Reads the files of a checkpoint, in the order given.
    pub(super) fn of_files(files: &[PathBuf]) -> Result<Self, LoadError> {
        let mut digest = Sha256::new();
        digest.update(READING);
        let mut buffer = vec![0; 1 << 20];
        for path in files {
            let unreadable = |e: std::io::Error| LoadError::Unreadable { path: path.clone(), problem: e.to_string() };
            let mut file = File::open(path).map_err(unreadable)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            digest.update(name.as_bytes());
            digest.update([0]);
            digest.update(file.metadata().map_err(unreadable)?.len().to_le_bytes());
            loop {
                match file.read(&mut buffer).map_err(unreadable)? {
                    0 => break,
                    n => digest.update(&buffer[..n]),
                }
            }
        }
        let digest = digest.finalize();
        let digit = |half: u8| char::from_digit(half.into(), 16).expect("half a byte is one digit");
        Ok(Self(digest.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()))
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
