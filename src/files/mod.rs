//! Local files: opens regular files only, reads texts within a limit, tells what was meant by a name that does not exist,
//! and names paths in messages.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Component, Path, PathBuf};

mod atomic;
mod attributes;
mod folder;
mod unchanged;

pub use atomic::AtomicFile;
pub(crate) use atomic::{NOT_DURABLE, NotDurable, TEMPORARY, folder_of, hold, remove_remains};
pub(crate) use attributes::follow_links;
pub use folder::{AtomicFolder, FolderKind, irreplaceable, recover};
pub use unchanged::FileVersion;
pub(crate) use unchanged::REPLACED;

/// The size above which a file is taken for something else than a pipeline or SQL, in bytes.
pub(crate) const MAX_TEXT: u64 = 1 << 20;

/// The size above which a file is taken for something else than settings, notes or a report in JSON, in bytes: read, it
/// takes many times as much memory.
pub(crate) const MAX_JSON: u64 = 64 << 20;

/// Opens a regular file for reading.
///
/// Every file that is opened by its name is opened here or by [`open_with`]. A pipe or a device in the place of a file
/// would make the program wait for ever, when it is opened or when it is read.
///
/// # Errors
/// What the system says; anything but a regular file.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    open_with(File::options().read(true), path)
}

/// Opens a regular file, or makes one where the options say so.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_with(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // Opening a device can already do something, such as rewind a tape.
    match fs::metadata(path) {
        Ok(found) => check_regular(&found)?,
        // It may be made. A link to nothing is for the options to follow.
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    open_now(options, 0, path, check_regular)
}

/// Makes a regular file, or empties the one that is there.
///
/// # Errors
/// As [`open`].
pub(crate) fn create(path: &Path) -> io::Result<File> {
    open_with(File::options().write(true).create(true).truncate(true), path)
}

/// Writes a regular file, over the one that is there.
///
/// # Errors
/// As [`open`].
pub(crate) fn write(path: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    create(path)?.write_all(bytes.as_ref())
}

/// Opens a file or a folder that couplet itself made, for its lock or to make it durable: never through a link, as
/// others may write where it lies.
///
/// # Errors
/// What the system says; anything but a regular file or a folder.
pub(crate) fn open_own(path: &Path) -> io::Result<File> {
    let check = |found: &Metadata| if found.is_dir() { Ok(()) } else { check_regular(found) };
    check(&fs::symlink_metadata(path)?)?;
    #[cfg(unix)]
    let flags = libc::O_NOFOLLOW;
    #[cfg(not(unix))]
    let flags = 0;
    open_now(File::options().read(true), flags, path, check)
}

/// Makes the names in a folder durable.
///
/// # Errors
/// What the system says; anything but a folder.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let check = |found: &Metadata| if found.is_dir() { Ok(()) } else { Err(ErrorKind::NotADirectory.into()) };
    open_now(File::options().read(true), 0, path, check)?.sync_all()
}

/// Opens without waiting, and looks at what was opened: the name may have got something else since it was looked at.
#[expect(clippy::disallowed_methods, reason = "the one place in which files are opened by their names")]
fn open_now(
    options: &mut OpenOptions,
    flags: i32,
    path: &Path,
    check: impl Fn(&Metadata) -> io::Result<()>,
) -> io::Result<File> {
    // The system ignores the flag where it reads and writes regular files.
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
        Err(io::Error::new(ErrorKind::IsADirectory, "it is a folder, where a file is needed"))
    } else {
        Err(io::Error::new(ErrorKind::InvalidInput, "it is no regular file but a pipe, a socket, a device or a link"))
    }
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`open`]; a file that has more bytes, or gets more while it is read.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("it has more than {limit} bytes")));
    }
    Ok(bytes)
}

/// Reads a regular file of at most `limit` bytes, which are text.
///
/// # Errors
/// As [`read`]; bytes that are not UTF-8.
pub(crate) fn read_string(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read(path, limit)?).map_err(|e| io::Error::new(ErrorKind::InvalidData, e))
}

/// Reads a pipeline file or a file of SQL. It may be a descriptor of this process, such as `/dev/stdin`, or what a shell
/// makes of `<(…)`.
///
/// # Errors
/// Why it cannot be read, in a sentence that names it.
pub(crate) fn read_text(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let mut bytes = Vec::new();
    let descriptor = ["/dev/stdin", "/dev/fd", "/proc/self/fd"].iter().any(|place| path.starts_with(place));
    #[expect(clippy::disallowed_methods, reason = "a descriptor is open already")]
    let opened = if descriptor { File::open(path) } else { open(path) };
    // No more than one byte above the limit: a pipe may have no end.
    let read = opened.and_then(|file| file.take(MAX_TEXT + 1).read_to_end(&mut bytes));
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

    /// What gives no answer in this time waits.
    const SOON: std::time::Duration = std::time::Duration::from_secs(10);

    /// The result of what must not wait.
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
