//! The files of a model, each read once into memory: what is loaded is what the fingerprint is of.
//!
//! A folder may get another model while it is read: a link is switched, `[finetune]` exchanges the folder, files are
//! copied over the old ones. So all files are read before any is used, and the folder is looked at again when they are.
//! Where it is not as it was, they are read again. What comes after a load from memory cannot change it any more.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use couplet_storage::files::{self, MAX_JSON};
use couplet_storage::hub::{Needed, is_weights};

use super::checkpoint::{HEAD, check_head};
use super::error::LoadError;

/// How often a folder is read that changes each time.
const ATTEMPTS: u32 = 15;

/// How long to wait before a folder is read again: longer each time.
const PAUSE: Duration = TICK;

/// Within this time of a change, another one may leave the file's times as they are: they go by the system's tick.
const TICK: Duration = Duration::from_millis(12);

/// `config.json`, unless a file of another name was given for it.
pub(super) const CONFIG: &str = "config.json";

/// The files of a model's folder, as they were together.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    folder: PathBuf,
    config: String,
    bytes: BTreeMap<String, Bytes>,
}

impl ModelFiles {
    /// Reads the files that a model is loaded from; what is missing or wrong with them is for those to say who use them.
    ///
    /// # Errors
    /// A path that is no folder, a file that cannot be read, a folder that does not stop changing.
    pub fn read(folder: &Path) -> Result<Self, LoadError> {
        let files = Self { folder: folder.to_owned(), config: CONFIG.to_owned(), bytes: BTreeMap::new() };
        files.read_unchanged(|files, seen| {
            if !folder.is_dir() {
                return Err(LoadError::NotAFolder { path: folder.to_owned(), exists: folder.exists() });
            }
            let names: Vec<&str> = Needed::candidates().filter(|name| seen.look(name)).collect();
            let needed = Needed::among(&names);
            for name in &needed.files {
                files.read_file(name, seen)?;
            }
            let index = needed.index.and_then(|index| files.bytes.get(index)).cloned().unwrap_or_default();
            // An index from elsewhere must not make us read other folders.
            for shard in Needed::shards(&index).iter().filter(|shard| is_name(shard)) {
                if seen.look(shard) {
                    files.read_file(shard, seen)?;
                }
            }
            Ok(())
        })
    }

    /// Reads nothing but a `config.json`, by whatever name, or that of a folder.
    ///
    /// # Errors
    /// As [`ModelFiles::read`].
    pub fn read_config(path: &Path) -> Result<Self, LoadError> {
        let (folder, config) = match (path.is_dir(), path.parent(), path.file_name()) {
            (false, Some(folder), Some(name)) => (folder, &*name.to_string_lossy()),
            _ => (path, CONFIG),
        };
        let files = Self { folder: folder.to_owned(), config: config.to_owned(), bytes: BTreeMap::new() };
        files.read_unchanged(|files, seen| if seen.look(config) { files.read_file(config, seen) } else { Ok(()) })
    }

    /// Reads until nothing changed meanwhile.
    fn read_unchanged(
        mut self,
        read: impl Fn(&mut Self, &mut Seen) -> Result<(), LoadError>,
    ) -> Result<Self, LoadError> {
        for attempt in 1..=ATTEMPTS {
            let mut seen = Seen::new(&self.folder);
            self.bytes.clear();
            let result = read(&mut self, &mut seen);
            if seen.is_unchanged() {
                return result.map(|()| self);
            }
            tracing::debug!("model {} changed while it was read (attempt {attempt})", self.folder.display());
            std::thread::sleep(PAUSE * attempt);
        }
        Err(LoadError::Changing { folder: self.folder, attempts: ATTEMPTS })
    }

    fn read_file(&mut self, name: &str, seen: &mut Seen) -> Result<(), LoadError> {
        let path = self.folder.join(name);
        let unreadable = |source: io::Error| LoadError::File { path: path.clone(), source };
        let file = files::open(&path).map_err(unreadable)?;
        let found = file.metadata().map_err(unreadable)?;
        seen.opened(&path, &found);
        let size = found.len();
        let refused = |problem: String| LoadError::Unreadable { path: path.clone(), problem };
        let mut bytes = Vec::new();
        if self.is_weights(name) {
            (&file).take(HEAD).read_to_end(&mut bytes).map_err(unreadable)?;
            check_head(&path, &bytes, size).map_err(refused)?;
        } else if size > MAX_JSON {
            return Err(refused(format!("it has {size} bytes, and at most {MAX_JSON} are read of such a file")));
        }
        let rest = size.saturating_sub(bytes.len() as u64);
        if !usize::try_from(rest).is_ok_and(|rest| bytes.try_reserve_exact(rest).is_ok()) {
            return Err(refused(format!("its {size} bytes do not fit into memory")));
        }
        // A file that grows has changed: what is beyond its size is not read.
        file.take(rest).read_to_end(&mut bytes).map_err(unreadable)?;
        self.bytes.insert(name.to_owned(), bytes.into());
        Ok(())
    }

    /// Forgets the weights, which take as much memory as the model.
    #[must_use]
    pub fn without_weights(mut self) -> Self {
        let weights: Vec<String> = self.bytes.keys().filter(|name| self.is_weights(name)).cloned().collect();
        self.bytes.retain(|name, _| !weights.contains(name));
        self
    }

    fn is_weights(&self, name: &str) -> bool {
        name != self.config && is_weights(name)
    }

    /// The folder that they were read from.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The name of the `config.json`.
    #[must_use]
    pub fn config(&self) -> &str {
        &self.config
    }

    /// The bytes of a file; none if there is no such file.
    pub(crate) fn get(&self, name: &str) -> Option<&Bytes> {
        self.bytes.get(name)
    }

    /// The path of a file, for messages.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// All files in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.bytes.iter().map(|(name, bytes)| (&**name, bytes))
    }
}

/// Whether it is the name of a file rather than a path to one.
pub(super) fn is_name(name: &str) -> bool {
    matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)])
}

/// What was where when the files were read.
struct Seen {
    folder: PathBuf,
    began: SystemTime,
    paths: Vec<(PathBuf, Option<Stamp>)>,
}

impl Seen {
    fn new(folder: &Path) -> Self {
        let stamp = Stamp::at(folder).map(Stamp::of_folder);
        Self { folder: folder.to_owned(), began: SystemTime::now(), paths: vec![(folder.to_owned(), stamp)] }
    }

    /// Whether there is such a file, or something else that then cannot be read.
    fn look(&mut self, name: &str) -> bool {
        let path = self.folder.join(name);
        let is_there = !matches!(fs::metadata(&path), Err(e) if e.kind() == io::ErrorKind::NotFound);
        if !is_there {
            self.paths.push((path, None));
        }
        is_there
    }

    fn opened(&mut self, path: &Path, found: &Metadata) {
        self.paths.push((path.to_owned(), Some(Stamp::of(found))));
    }

    /// Whether all paths lead to what they led to, and that is as it was.
    fn is_unchanged(&self) -> bool {
        self.paths.iter().enumerate().all(|(place, (path, then))| {
            let now = Stamp::at(path);
            let now = if place == 0 { now.map(Stamp::of_folder) } else { now };
            now == *then && then.as_ref().is_none_or(|then| !then.is_recent(self.began))
        })
    }
}

/// What tells a file from another one, and from itself after a change.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: Option<SystemTime>,
    /// The time of the last change of contents or of anything else, which no program can set.
    changed: Option<SystemTime>,
}

impl Stamp {
    fn at(path: &Path) -> Option<Self> {
        Some(Self::of(&fs::metadata(path).ok()?))
    }

    #[cfg(unix)]
    fn of(found: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        let since = Duration::new(found.ctime().max(0).cast_unsigned(), found.ctime_nsec() as u32);
        Self {
            file: (found.dev(), found.ino()),
            size: found.len(),
            modified: found.modified().ok(),
            changed: SystemTime::UNIX_EPOCH.checked_add(since),
        }
    }

    #[cfg(not(unix))]
    fn of(found: &Metadata) -> Self {
        let modified = found.modified().ok();
        Self { file: (0, 0), size: found.len(), modified, changed: modified }
    }

    /// Which folder it is: others may write files into it that are not the model's.
    fn of_folder(self) -> Self {
        Self { file: self.file, size: 0, modified: None, changed: None }
    }

    /// Whether it had just been changed at that time, so that a change after it may have gone unnoticed.
    fn is_recent(&self, at: SystemTime) -> bool {
        // A time that is still to come is another machine's.
        let age = self.changed.and_then(|changed| at.duration_since(changed).ok());
        age.is_some_and(|age| age < TICK)
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/it/goldens").join(name)
    }

    #[expect(clippy::unwrap_used, reason = "it is part of the tests")]
    fn copy(to: &Path) -> PathBuf {
        fs::create_dir(to).unwrap();
        for entry in golden("tiny-bert").read_dir().unwrap().flatten() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
        to.to_owned()
    }

    #[test]
    fn each_change_of_a_folder_is_noticed() {
        let around = tempfile::tempdir().unwrap();
        let (one, other) = (copy(&around.path().join("one")), copy(&around.path().join("other")));
        let link = around.path().join("link");
        let switch = |to: &Path| {
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(to, &link).unwrap();
        };
        // Past the tick of what was written above.
        std::thread::sleep(TICK * 2);
        let config = one.join(CONFIG);
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let changes: [(&str, &dyn Fn()); 6] = [
            ("nothing", &|| {}),
            ("a link that is switched", &|| switch(&other)),
            ("a file that is written over", &|| {
                let text = fs::read(&config).unwrap();
                fs::write(&config, text).unwrap();
            }),
            ("the same with its time set back", &|| {
                let file = fs::File::options().write(true).open(&config).unwrap();
                file.set_modified(long_ago).unwrap();
            }),
            ("a file that is replaced", &|| {
                fs::copy(&config, one.join("new")).unwrap();
                fs::rename(one.join("new"), &config).unwrap();
            }),
            ("a file that was not there", &|| fs::write(one.join("calibration.json"), "{}").unwrap()),
        ];
        for (what, change) in changes {
            switch(&one);
            let mut seen = Seen::new(&link);
            for name in [CONFIG, "calibration.json"] {
                if seen.look(name) {
                    let path = link.join(name);
                    seen.opened(&path, &fs::metadata(&path).unwrap());
                }
            }
            change();
            assert_eq!(seen.is_unchanged(), what == "nothing", "{what}");
            std::thread::sleep(TICK * 2);
        }
    }

    #[test]
    fn a_file_that_was_just_written_is_read_again() {
        let around = tempfile::tempdir().unwrap();
        let folder = copy(&around.path().join("new"));
        let mut seen = Seen::new(&folder);
        seen.opened(&folder.join(CONFIG), &fs::metadata(folder.join(CONFIG)).unwrap());
        assert!(!seen.is_unchanged());
        assert!(ModelFiles::read(&folder).is_ok());
    }

    #[test]
    fn other_files_in_the_folder_are_not_looked_at() {
        let around = tempfile::tempdir().unwrap();
        let folder = copy(&around.path().join("model"));
        std::thread::sleep(TICK * 2);
        let mut seen = Seen::new(&folder);
        seen.opened(&folder.join(CONFIG), &fs::metadata(folder.join(CONFIG)).unwrap());
        fs::write(folder.join("README.md"), "text").unwrap();
        assert!(seen.is_unchanged());
    }
}
