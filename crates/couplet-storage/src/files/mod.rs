//! Local files: opens regular files only, reads texts up to a limit, suggests names for files that do not exist, and
//! shortens paths for messages. Submodules replace files and folders atomically.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Component, Path, PathBuf};

use crate::trouble::Explained;
use crate::words::closest;

mod atomic;
mod attributes;
mod folder;
mod unchanged;

pub use atomic::AtomicFile;
pub use atomic::{NOT_DURABLE, NotDurable, TEMPORARY, folder_of, lock_temporary, remove_leftovers};
pub use attributes::follow_links;
pub use folder::{AtomicFolder, FolderKind, irreplaceable, recover};
pub use unchanged::FileVersion;
pub use unchanged::REPLACED;

/// The maximum size of a pipeline or SQL file, in bytes.
pub const MAX_TEXT: u64 = 1 << 20;

/// The maximum size of a JSON file (settings, notes or a report), in bytes. Parsed, it takes many times as much memory.
pub const MAX_JSON: u64 = 64 << 20;

/// Opens a regular file for reading.
///
/// All files are opened by path here or by [`open_with`]. Opening or reading a pipe or a device in place of a file
/// could block forever.
///
/// # Errors
/// An error of the operating system; anything but a regular file.
pub fn open(path: &Path) -> io::Result<File> {
    open_with(File::options().read(true), path)
}

/// Opens a regular file, or creates one if the options say so.
///
/// # Errors
/// As [`open`].
pub fn open_with(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // Merely opening a device can have side effects, such as rewinding a tape.
    match fs::metadata(path) {
        Ok(found) => check_regular(&found)?,
        // The options determine whether a file is created, also for a dangling link.
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    open_now(options, 0, path, check_regular)
}

/// Creates a regular file, or truncates an existing one.
///
/// # Errors
/// As [`open`].
pub fn create(path: &Path) -> io::Result<File> {
    open_with(File::options().write(true).create(true).truncate(true), path)
}

/// Writes a regular file, overwriting an existing one.
///
/// # Errors
/// As [`open`].
pub fn write(path: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    create(path)?.write_all(bytes.as_ref())
}

/// Opens a file or a folder that couplet created, to lock or sync it. Links are not followed, as other users may be
/// able to write to the parent folder.
///
/// # Errors
/// An error of the operating system; anything but a regular file or a folder.
pub fn open_own(path: &Path) -> io::Result<File> {
    let check = |found: &Metadata| if found.is_dir() { Ok(()) } else { check_regular(found) };
    check(&fs::symlink_metadata(path)?)?;
    #[cfg(unix)]
    let flags = libc::O_NOFOLLOW;
    #[cfg(not(unix))]
    let flags = 0;
    open_now(File::options().read(true), flags, path, check)
}

/// Syncs a folder, which makes the names in it durable.
///
/// # Errors
/// An error of the operating system; anything but a folder.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let check = |found: &Metadata| if found.is_dir() { Ok(()) } else { Err(ErrorKind::NotADirectory.into()) };
    open_now(File::options().read(true), 0, path, check)?.sync_all()
}

/// Opens without blocking and checks the type of the opened file, as the path may have been replaced since the last
/// check.
#[expect(clippy::disallowed_methods, reason = "the one place in which files are opened by their names")]
fn open_now(
    options: &mut OpenOptions,
    flags: i32,
    path: &Path,
    check: impl Fn(&Metadata) -> io::Result<()>,
) -> io::Result<File> {
    // The operating system ignores `O_NONBLOCK` for regular files.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(options, flags | libc::O_NONBLOCK);
    #[cfg(not(unix))]
    let _ = flags;
    let file = options.open(path)?;
    check(&file.metadata()?)?;
    Ok(file)
}

fn check_regular(found: &Metadata) -> io::Result<()> {
    if found.is_file() {
        Ok(())
    } else if found.is_dir() {
        Err(io::Error::new(ErrorKind::IsADirectory, "it is a folder, not a file"))
    } else {
        Err(io::Error::new(
            ErrorKind::InvalidInput,
            "it is not a regular file but a pipe, a socket, a device or a link",
        ))
    }
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`open`]; a file that has more bytes, or grows beyond them while it is read.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("it has more than {limit} bytes")));
    }
    Ok(bytes)
}

/// Reads a regular UTF-8 file of at most `limit` bytes.
///
/// # Errors
/// As [`read`]; bytes that are not UTF-8.
pub fn read_string(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read(path, limit)?).map_err(|e| io::Error::new(ErrorKind::InvalidData, e))
}

/// Reads a pipeline file or a SQL file. The path may be a descriptor of this process, such as `/dev/stdin` or the
/// result of a shell's `<(…)`.
///
/// # Errors
/// The reason why the file cannot be read, as a sentence that names the file.
pub fn read_text(path: &Path) -> Result<String, Explained> {
    let shown = path.display();
    let mut bytes = Vec::new();
    let descriptor = ["/dev/stdin", "/dev/fd", "/proc/self/fd"].iter().any(|place| path.starts_with(place));
    #[expect(clippy::disallowed_methods, reason = "a descriptor is open already")]
    let opened = if descriptor { File::open(path) } else { open(path) };
    // Read at most one byte above the limit, as a pipe may have no end.
    let read = opened.and_then(|file| file.take(MAX_TEXT + 1).read_to_end(&mut bytes));
    match read {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            Err(format!("{shown} does not exist{}", nearest_file(path)).into())
        }
        Err(_) if path.is_dir() => {
            let pipeline = path.join("pipeline.toml");
            let meant = pipeline.exists().then(|| format!("; did you mean {}?", pipeline.display()));
            Err(format!("{shown} is a folder; name a file in it{}", meant.unwrap_or_default()).into())
        }
        Err(e) => Err(Explained::of(&e).in_words(|e| format!("cannot read {shown}: {e}"))),
        Ok(_) if bytes.len() as u64 > MAX_TEXT => {
            Err(format!("{shown} is too large for a pipeline or SQL: it has more than {MAX_TEXT} bytes (1 MiB)").into())
        }
        Ok(_) => String::from_utf8(bytes).map_err(|e| {
            let place = e.utf8_error().valid_up_to();
            let data = if e.as_bytes().starts_with(b"PAR1") {
                format!("; it is data in Parquet, over which `couplet init --from {shown}` writes a pipeline")
            } else {
                String::new()
            };
            format!("{shown} is not text in UTF-8: see its byte {place}{data}").into()
        }),
    }
}

/// Returns "; did you mean …?" if the folder has an entry of a similar name, or names a folder that does not exist.
pub fn nearest_file(path: &Path) -> String {
    if let Some(hint) = not_replaced(path) {
        return hint;
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return String::new() };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let Ok(entries) = parent.read_dir() else {
        return format!(", nor does its folder {}", parent.display());
    };
    let others: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    closest(&name.to_string_lossy(), others.iter().map(String::as_str))
        .map_or_else(String::new, |other| format!("; did you mean {}?", path.with_file_name(other).display()))
}

/// Returns "; only a shell expands …" if a path contains a `~` or `$NAME` that a shell would have expanded without
/// quotation marks.
#[must_use]
pub fn not_replaced(path: &Path) -> Option<String> {
    let mut parts = path.iter().filter_map(|part| part.to_str());
    let part = parts.find(|part| *part == "~" || part.starts_with('$') && part.len() > 1)?;
    Some(format!("; only a shell expands {part}, and not within quotation marks: write the full path"))
}

/// Returns the path relative to the current folder if it is below it, otherwise the absolute path. It need not exist.
#[must_use]
pub fn readable(path: &Path) -> PathBuf {
    let real = real_path(path);
    match real.strip_prefix(real_path(Path::new("."))) {
        Ok(here) if here.as_os_str().is_empty() => PathBuf::from("."),
        Ok(below) => below.to_owned(),
        Err(_) => real,
    }
}

/// Resolves the links of a path, as far as it exists, and removes `..`.
#[must_use]
pub fn real_path(path: &Path) -> PathBuf {
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

    /// The time after which a call counts as blocked.
    const SOON: std::time::Duration = std::time::Duration::from_secs(10);

    /// Returns the result of a call that must not block.
    fn soon<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(work()));
        receiver.recv_timeout(SOON).expect("it waits")
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn nothing_but_regular_files_is_opened() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        mknodat(CWD, path("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        std::os::unix::fs::symlink(path("pipe"), path("link to a pipe")).unwrap();
        for wrong in [path("pipe"), path("socket"), path("link to a pipe"), "/dev/zero".into(), folder.path().into()] {
            let shown = wrong.display().to_string();
            let (one, other) = (wrong.clone(), wrong.clone());
            let kinds = [ErrorKind::InvalidInput, ErrorKind::IsADirectory];
            let refused = |opened: io::Result<File>| opened.is_err_and(|e| kinds.contains(&e.kind()));
            assert!(refused(soon(move || open(&one))), "{shown}");
            let made = soon(move || open_with(File::options().create(true).read(true).write(true), &other));
            assert!(refused(made), "{shown}");
            assert!(soon(move || read(&wrong, 10)).is_err(), "{shown}");
        }
        assert!(
            soon({
                let pipe = path("pipe");
                move || open_own(&pipe)
            })
            .is_err()
        );
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_to_files_but_not_to_own_ones() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "text").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(read_string(&link, 4).unwrap(), "text");
        assert_eq!(read(&link, 3).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert!(open_own(&file).is_ok() && open_own(folder.path()).is_ok() && open_own(&link).is_err());
        assert_eq!(open(&folder.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
        let made = folder.path().join("made");
        open_with(File::options().create(true).write(true).truncate(false), &made).unwrap();
        assert!(made.is_file());
    }

    #[test]
    fn paths_are_named_from_this_folder() {
        let named =
            ["src", "src/../Cargo.toml", "not/../there/yet", ".", "src/.."].map(|path| readable(Path::new(path)));
        assert_eq!(named, ["src", "Cargo.toml", "there/yet", ".", "."].map(PathBuf::from));
        let elsewhere = std::env::temp_dir().canonicalize().unwrap().join("not-there/yet");
        assert_eq!(readable(&elsewhere.join("../yet")), elsewhere);
    }
}
