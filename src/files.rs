//! Files that people name on the command line or in a pipeline: texts within a limit, what was meant by a name that does
//! not exist, and how messages name them.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

/// The size above which a file is taken for something else than a pipeline or SQL, in bytes.
pub(crate) const MAX_TEXT: u64 = 1 << 20;

/// Reads a pipeline file or a file of SQL.
///
/// # Errors
/// Why it cannot be read, in a sentence that names it.
pub(crate) fn read_text(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let mut bytes = Vec::new();
    // No more than one byte above the limit: a device or a pipe may have no end.
    let read = File::open(path).and_then(|file| file.take(MAX_TEXT + 1).read_to_end(&mut bytes));
    match read {
        Err(e) if e.kind() == ErrorKind::NotFound => Err(format!("{shown} does not exist{}", nearest_file(path))),
        Err(_) if path.is_dir() => {
            let pipeline = path.join("pipeline.toml");
            let meant = pipeline.exists().then(|| format!("; did you mean {}?", pipeline.display()));
            Err(format!("{shown} is a folder; name a file in it{}", meant.unwrap_or_default()))
        }
        Err(e) => Err(format!("cannot read {shown}: {e}")),
        Ok(_) if bytes.len() as u64 > MAX_TEXT => {
            Err(format!("{shown} is too large for a pipeline or SQL: it has more than {MAX_TEXT} bytes (1 MiB)"))
        }
        Ok(_) => String::from_utf8(bytes).map_err(|e| {
            let place = e.utf8_error().valid_up_to();
            let data = if e.as_bytes().starts_with(b"PAR1") {
                format!("; it is data in Parquet, over which `couplet init --from {shown}` writes a pipeline")
            } else {
                String::new()
            };
            format!("{shown} is not text in UTF-8: see its byte {place}{data}")
        }),
    }
}

/// "; did you mean …?" where the folder has something of nearly that name, or which folder is not there.
pub(crate) fn nearest_file(path: &Path) -> String {
    if let Some(hint) = not_replaced(path) {
        return hint;
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return String::new() };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let Ok(entries) = parent.read_dir() else {
        return format!(", nor does its folder {}", parent.display());
    };
    let others: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    nearest_name(&name.to_string_lossy(), others.iter().map(String::as_str))
        .map_or_else(String::new, |other| format!("; did you mean {}?", path.with_file_name(other).display()))
}

/// "; … is replaced by a shell" where a path has in it what only a shell knows, as it does between quotation marks.
pub(crate) fn not_replaced(path: &Path) -> Option<String> {
    let mut parts = path.iter().filter_map(|part| part.to_str());
    let part = parts.find(|part| *part == "~" || part.starts_with('$') && part.len() > 1)?;
    Some(format!("; {part} is replaced by a shell, and not in quotation marks: write the path that it stands for"))
}

/// The name that is most like another one, if any is like it.
pub(crate) fn nearest_name<'a>(name: &str, others: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    others
        .map(|other| (strsim::jaro_winkler(name, other), other))
        .filter(|(similarity, _)| *similarity > 0.85)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, other)| other)
}

/// The path as a person at this folder would write it, whether it is there yet or not.
pub(crate) fn readable(path: &Path) -> PathBuf {
    let real = real_path(path);
    match real.strip_prefix(real_path(Path::new("."))) {
        Ok(here) if here.as_os_str().is_empty() => PathBuf::from("."),
        Ok(below) => below.to_owned(),
        Err(_) => real,
    }
}

/// The path with its links followed, as far as it exists, and without `..`.
pub(crate) fn real_path(path: &Path) -> PathBuf {
    // The empty path, such as the folder of `pipeline.toml`, is the current folder.
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut found = PathBuf::new();
    for part in absolute.components() {
        match part {
            Component::ParentDir => {
                found.pop();
            }
            part => {
                found.push(part);
                found = found.canonicalize().unwrap_or(found);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_named_from_this_folder() {
        let named =
            ["src", "src/../Cargo.toml", "not/../there/yet", ".", "src/.."].map(|path| readable(Path::new(path)));
        assert_eq!(named, ["src", "Cargo.toml", "there/yet", ".", "."].map(PathBuf::from));
        let elsewhere = std::env::temp_dir().canonicalize().unwrap().join("not-there/yet");
        assert_eq!(readable(&elsewhere.join("../yet")), elsewhere);
    }
}
