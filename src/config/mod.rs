//! Parses and validates pipeline files: turns TOML text into a [`Pipeline`], or into the list of all its problems.
//!
//! ```text
//! text ── toml ──▶ DeTable + syntax errors ── Keys, Item ──▶ Pipeline
//!                         └──────────── Problem ─────────┴──▶ ConfigErrors ──▶ terminal
//! ```
//!
//! This module does no I/O: the caller reads the pipeline file, and later the SQL file that `source.file` may name.

#![expect(clippy::result_large_err, reason = "a file is read once, and an error in it ends the program")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use couplet_storage::place::Problem;
use toml::de::DeTable;

use reader::{Keys, Reader};
use syntax::Syntax;

mod described;
mod evaluating;
mod item;
mod key;
mod learning;
mod pipeline;
mod problem;
mod reader;
mod schema;
mod sections;
mod separate;
mod stages;
mod syntax;
mod tables;
mod variables;

pub use pipeline::*;
pub use problem::ConfigErrors;
pub use schema::{reference, schema};
pub use stages::*;
pub use tables::{GivenTable, table_from_argument, table_from_uri_as};
pub use variables::{UnknownVariable, substitute, variables_in};

/// Parses a duration: `90s`, `5m`, `1h`, `500ms`.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let millis = |unit: &str| match unit {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60 * 1000),
        "h" => Some(3600 * 1000),
        _ => None,
    };
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let millis = number.parse::<u64>().ok()?.checked_mul(millis(unit.trim())?)?;
    (millis > 0).then(|| Duration::from_millis(millis))
}

/// Parses a size in bytes: an integer with a unit, such as `4GiB` or `512 MB`.
#[must_use]
pub fn bytes(text: &str) -> Option<u64> {
    let unit = |unit: &str| match unit {
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        "TiB" => Some(1 << 40),
        "KB" | "kB" => Some(1_000),
        "MB" => Some(1_000_000),
        "GB" => Some(1_000_000_000),
        "TB" => Some(1_000_000_000_000),
        _ => None,
    };
    let (number, suffix) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    number.parse::<u64>().ok()?.checked_mul(unit(suffix.trim())?)
}

const MAX_BYTES: usize = couplet_storage::files::MAX_TEXT as usize;

/// Parses the text of a pipeline file. Relative paths in it start at the folder of `path`.
///
/// # Errors
/// All problems of the text and the variables, in file order.
pub fn parse(path: &Path, text: &str, variables: &BTreeMap<String, String>) -> Result<Pipeline, ConfigErrors> {
    if text.len() > MAX_BYTES {
        let problem = Problem::new(format!("the file has {} bytes, too many for a pipeline file", text.len()), "");
        return Err(ConfigErrors::new(path, "", vec![problem.allowed(format!("at most {MAX_BYTES} bytes"))]));
    }
    let (document, errors) = DeTable::parse_recoverable(text);
    let syntax = Syntax::new(text, document.get_ref(), &errors);
    let reader = Reader::new(path, text, variables, &syntax);
    let pipeline = Keys::read_file(&reader, document.get_ref(), |keys| sections::pipeline(keys, path));
    let problems = reader.into_problems();
    match pipeline {
        Ok(pipeline) if problems.is_empty() => Ok(pipeline),
        _ => Err(ConfigErrors::new(path, text, problems)),
    }
}
