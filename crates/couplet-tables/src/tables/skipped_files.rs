//! Files in a table's folder that are not read. They are reported once, so that nobody mistakes a part of the data for
//! all of it.

use std::fmt;
use std::path::Path;

use super::format::format_of_name;

/// The number of file names shown per reason.
const MAX_SHOWN: usize = 3;

/// The files that are not read, by reason.
#[derive(Debug, Default)]
pub(super) struct SkippedFiles {
    hidden: Vec<String>,
    in_folders: Vec<String>,
    others: Vec<String>,
    dangling: Vec<String>,
}

impl SkippedFiles {
    /// Adds a file that is hidden: its name, or that of its folder, begins with `.` or `_`. Spark's marker files and
    /// checksums are not reported.
    pub(super) fn hidden(&mut self, name: &str) {
        if format_of_name(name).is_some() {
            self.hidden.push(name.to_owned());
        }
    }

    /// Adds a file in a folder that is not of the form `key=value`.
    pub(super) fn in_folder(&mut self, name: &str) {
        self.in_folders.push(name.to_owned());
    }

    /// Adds a file with another extension.
    pub(super) fn other(&mut self, name: &str) {
        self.others.push(name.to_owned());
    }

    /// Returns all skipped files except dangling links.
    pub(super) fn others(&self) -> impl Iterator<Item = &str> {
        self.others.iter().chain(&self.in_folders).chain(&self.hidden).map(String::as_str)
    }

    /// Finds dangling symbolic links, which listings omit, in a folder. If `reads_folders` is set, subfolders of the
    /// form `key=value` are searched too.
    pub(super) fn find_dangling_links(&mut self, folder: &Path, reads_folders: bool) {
        let mut folders = vec![folder.to_owned()];
        while let Some(entries) = folders.pop().map(|folder| folder.read_dir()) {
            for entry in entries.into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_symlink() && !path.exists() {
                    let below = path.strip_prefix(folder).unwrap_or(&path);
                    self.dangling.push(below.to_string_lossy().into_owned());
                } else if reads_folders
                    && entry.file_type().is_ok_and(|kind| kind.is_dir())
                    && entry.file_name().as_encoded_bytes().contains(&b'=')
                {
                    folders.push(path);
                }
            }
        }
        self.dangling.sort();
    }
}

impl fmt::Display for SkippedFiles {
    /// Writes `; left out: …`, or nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            (&self.hidden, "hidden, as the name begins with . or _"),
            (&self.in_folders, "in a folder that is not of the form key=value"),
            (&self.others, "with another extension"),
            (&self.dangling, "a broken link"),
        ];
        let mut before = "; left out: ";
        for (names, reason) in kinds.into_iter().filter(|(names, _)| !names.is_empty()) {
            let shown = names.iter().take(MAX_SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
            write!(f, "{before}{shown}")?;
            if names.len() > MAX_SHOWN {
                write!(f, " and {} more", names.len() - MAX_SHOWN)?;
            }
            write!(f, " ({reason})")?;
            before = ", ";
        }
        Ok(())
    }
}
