//! Places on the local disk: how a text becomes a path, and whether two of them meet.

use std::path::{Component, Path, PathBuf};

use super::problem::Problem;

/// Resolves a path, glob or `file://` URI against a folder; refuses every other scheme.
pub(super) fn resolve(folder: &Path, text: &str) -> Result<PathBuf, Problem> {
    match text.split_once("://") {
        Some(("file", path)) => Ok(folder.join(path)),
        Some((scheme, _)) if is_scheme(scheme) => {
            let message = format!("`{scheme}://` is not supported yet in this version of couplet");
            Err(Problem::new(message, "not a local path")
                .help("use a local path; a relative one starts at the folder of the pipeline file"))
        }
        _ => Ok(folder.join(text)),
    }
}

/// RFC 3986, section 3.1.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|char| char.is_ascii_alphanumeric() || "+-.".contains(char))
}

/// Tells whether a path names several files by a pattern.
pub(super) fn is_glob(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().iter().any(|byte| b"*?[".contains(byte))
}

/// Tells whether a path names a folder: by a `/` at its end, or by having no extension.
pub(super) fn is_folder(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/") || path.extension().is_none()
}

/// Tells whether reading `table`, a file, a folder or a glob, would read the file.
pub(super) fn covers(table: &Path, file: &Path) -> bool {
    let (files, file) = (normal(table), normal(file));
    if is_glob(table) {
        matches(files.as_os_str().as_encoded_bytes(), file.as_os_str().as_encoded_bytes())
    } else {
        file == files || is_folder(table) && file.starts_with(files)
    }
}

/// Removes `.` and `..` by the letter: good enough to compare, not to open where links are about.
fn normal(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if matches!(parts.components().next_back(), Some(Component::Normal(_))) => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts
}

/// Matches a glob: `*` is any text, slashes included as for `DataFusion`, `?` any one byte; `[…]` only itself.
fn matches(glob: &[u8], text: &[u8]) -> bool {
    match (glob, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=text.len()).any(|skipped| matches(rest, &text[skipped..])),
        ([b'?', rest @ ..], [_, text @ ..]) => matches(rest, text),
        ([literal, rest @ ..], [first, text @ ..]) => literal == first && matches(rest, text),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_covers_the_files_that_reading_it_reads() {
        let covers = |table: &str, file: &str| covers(Path::new(table), Path::new(file));
        assert!(covers("a/b.parquet", "a/./c/../b.parquet"));
        assert!(covers("a", "a/b/c.parquet"));
        assert!(covers("a.d/", "a.d/c.parquet"));
        assert!(covers("a/*.parquet", "a/c.parquet"));
        assert!(covers("a/dt=*/?.parquet", "a/dt=1/c.parquet"));
        assert!(covers("../a/**/c.parquet", "../a/b/c.parquet"));
        assert!(!covers("a/b.parquet", "a/c.parquet"));
        assert!(!covers("a", "ab/c.parquet"));
        assert!(!covers("a/*.parquet", "b/c.parquet"));
        assert!(!covers("../a.parquet", "a.parquet"));
    }
}
