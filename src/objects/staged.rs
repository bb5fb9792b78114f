//! Files of a folder that were being written when their writer was killed.

use std::fs;
use std::io;
use std::path::Path;

/// Removes them from the folder and those in it, and returns how many there were; nobody may write there meanwhile.
///
/// A local store writes `name#123`, and renames it when it is complete. It lists no such files either, so that nothing
/// else would ever remove them.
///
/// # Errors
/// A folder that cannot be read, a file that cannot be removed.
pub fn remove_staged(folder: &Path) -> io::Result<u64> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry?;
        // What a link points to is not the store's.
        let kind = entry.file_type()?;
        if kind.is_dir() {
            removed += remove_staged(&entry.path())?;
        } else if kind.is_file() && is_staged(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn is_staged(name: &str) -> bool {
    let digits = |number: &str| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    name.split_once('#').is_some_and(|(name, number)| !name.is_empty() && digits(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_not_complete_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("model=1#2")).unwrap();
        let stay = ["a.parquet", "a#b", "a#", "#1", "model=1#2/b.parquet"];
        let go = ["a.parquet#1", "model=1#2/b.parquet#17046467313378935449"];
        for name in stay.iter().chain(&go) {
            fs::write(path(name), "x").unwrap();
        }
        assert_eq!(remove_staged(folder.path()).unwrap(), 2);
        assert!(stay.iter().all(|name| path(name).exists()) && !go.iter().any(|name| path(name).exists()));
        assert_eq!(remove_staged(&path("nothing")).unwrap(), 0);
    }
}
