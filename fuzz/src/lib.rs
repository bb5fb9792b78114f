//! What is done with bytes from elsewhere: whatever they are, each of these functions returns. The fuzz targets call
//! them, and so do the tests (`tests/it/damage.rs`).

#![allow(clippy::missing_panics_doc, clippy::unwrap_used, reason = "a panic is what is looked for")]

mod model;
mod store;

use std::collections::BTreeMap;
use std::path::Path;

pub use model::{ModelFolder, archive, members};
pub use store::{lock, manifest};

/// Reads a pipeline file, and renders what is wrong with it; whether it is right.
pub fn pipeline(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    // A variable that a file does not use is a mistake, and so is one that is not given.
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let braced = lines.flat_map(|line| line.split('{').skip(1)).filter_map(|rest| Some(rest.split_once('}')?.0));
    let is_name = |name: &&str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase());
    let variables: BTreeMap<_, _> = braced.filter(is_name).map(|name| (name.to_owned(), "a".to_owned())).collect();
    match couplet::config::parse(Path::new("pipeline.toml"), text, &variables) {
        Ok(_) => true,
        Err(errors) => {
            assert!(!errors.problems().is_empty());
            assert!(!errors.to_string().is_empty());
            assert!(!errors.render(false, 80).is_empty());
            false
        }
    }
}
