//! The files of a model, each read once into memory, so that the fingerprint always matches the loaded model.
//!
//! A folder can change while it is read: a symbolic link is switched, `[finetune]` replaces the folder, or files are
//! overwritten. Therefore all files are read before any is used, and the folder is checked afterwards. If it has
//! changed, all files are read again. Later changes have no effect on the model in memory.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use couplet_storage::files::{self, MAX_JSON};
use couplet_storage::hub::{Needed, is_weights};

use super::checkpoint::{HEAD_BYTES, check_head};
use super::error::LoadError;

/// The most attempts to read a folder that keeps changing.
const ATTEMPTS: u32 = 15;

/// The wait after the first attempt. It grows linearly with the number of attempts.
const PAUSE: Duration = TICK;

/// The resolution of file times, with a margin: a second change within this time may leave them unchanged.
const TICK: Duration = Duration::from_millis(12);

/// The default name of the configuration file.
pub(super) const CONFIG: &str = "config.json";

/// A consistent snapshot of the files in a model folder.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    folder: PathBuf,
    config: String,
    bytes: BTreeMap<String, Bytes>,
}

impl ModelFiles {
    /// Reads the files that a model is loaded from. Missing files and invalid contents are reported by their users.
    ///
    /// # Errors
    /// Returns an error if the path is not a folder, a file cannot be read, or the folder keeps changing.
    pub fn read(folder: &Path) -> Result<Self, LoadError> {
        let files = Self { folder: folder.to_owned(), config: CONFIG.to_owned(), bytes: BTreeMap::new() };
        files.read_unchanged(|files, observed| {
            if !folder.is_dir() {
                return Err(LoadError::NotAFolder { path: folder.to_owned(), exists: folder.exists() });
            }
            let names: Vec<&str> = Needed::candidates().filter(|name| observed.exists(name)).collect();
            let needed = Needed::among(&names);
            for name in &needed.files {
                files.read_file(name, observed)?;
            }
            let index = needed.index.and_then(|index| files.bytes.get(index)).cloned().unwrap_or_default();
            // An untrusted index must not cause reads outside the folder.
            for shard in Needed::shards(&index).iter().filter(|shard| is_name(shard)) {
                if observed.exists(shard) {
                    files.read_file(shard, observed)?;
                }
            }
            Ok(())
        })
    }

    /// Reads only a configuration: a JSON file with any name, or the `config.json` of a folder.
    ///
    /// # Errors
    /// Returns the errors of [`ModelFiles::read`].
    pub fn read_config(path: &Path) -> Result<Self, LoadError> {
        let (folder, config) = match (path.is_dir(), path.parent(), path.file_name()) {
            (false, Some(folder), Some(name)) => (folder, &*name.to_string_lossy()),
            _ => (path, CONFIG),
        };
        let files = Self { folder: folder.to_owned(), config: config.to_owned(), bytes: BTreeMap::new() };
        files.read_unchanged(
            |files, observed| if observed.exists(config) { files.read_file(config, observed) } else { Ok(()) },
        )
    }

    /// Repeats `read` until the files do not change during it.
    fn read_unchanged(
        mut self,
        read: impl Fn(&mut Self, &mut Observed) -> Result<(), LoadError>,
    ) -> Result<Self, LoadError> {
        for attempt in 1..=ATTEMPTS {
            let mut observed = Observed::new(&self.folder);
            self.bytes.clear();
            let result = read(&mut self, &mut observed);
            if observed.is_unchanged() {
                return result.map(|()| self);
            }
            tracing::debug!("model {} changed while it was read (attempt {attempt})", self.folder.display());
            std::thread::sleep(PAUSE * attempt);
        }
        Err(LoadError::Changing { folder: self.folder, attempts: ATTEMPTS })
    }

    fn read_file(&mut self, name: &str, observed: &mut Observed) -> Result<(), LoadError> {
        let path = self.folder.join(name);
        let unreadable = |source: io::Error| LoadError::File { path: path.clone(), source };
        let file = files::open(&path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        observed.record(&path, &metadata);
        let size = metadata.len();
        let rejected = |problem: String| LoadError::Unreadable { path: path.clone(), problem };
        let mut bytes = Vec::new();
        if self.is_weights(name) {
            (&file).take(HEAD_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
            check_head(&path, &bytes, size).map_err(rejected)?;
        } else if size > MAX_JSON {
            return Err(rejected(format!("it has {size} bytes, and at most {MAX_JSON} are read of such a file")));
        }
        let rest = size.saturating_sub(bytes.len() as u64);
        if !usize::try_from(rest).is_ok_and(|rest| bytes.try_reserve_exact(rest).is_ok()) {
            return Err(rejected(format!("its {size} bytes do not fit into memory")));
        }
        // If the file grows meanwhile, the check afterwards detects it. The additional bytes are not read.
        file.take(rest).read_to_end(&mut bytes).map_err(unreadable)?;
        self.bytes.insert(name.to_owned(), bytes.into());
        Ok(())
    }

    /// Drops the weight files, which need as much memory as the model.
    #[must_use]
    pub fn without_weights(mut self) -> Self {
        let weights: Vec<String> = self.bytes.keys().filter(|name| self.is_weights(name)).cloned().collect();
        self.bytes.retain(|name, _| !weights.contains(name));
        self
    }

    fn is_weights(&self, name: &str) -> bool {
        name != self.config && is_weights(name)
    }

    /// Returns the folder that the files were read from.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the name of the configuration file.
    #[must_use]
    pub fn config(&self) -> &str {
        &self.config
    }

    /// Returns the contents of a file, or `None` if it does not exist.
    pub(crate) fn get(&self, name: &str) -> Option<&Bytes> {
        self.bytes.get(name)
    }

    /// Returns the path of a file, for messages.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Iterates over all files in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.bytes.iter().map(|(name, bytes)| (&**name, bytes))
    }
}

/// Returns true if `name` is a plain file name without a folder.
pub(super) fn is_name(name: &str) -> bool {
    matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)])
}

/// The state of the folder and its files when they were read.
struct Observed {
    folder: PathBuf,
    began: SystemTime,
    /// The folder, then the files; `None` for a missing file.
    paths: Vec<(PathBuf, Option<Stamp>)>,
}

impl Observed {
    fn new(folder: &Path) -> Self {
        let stamp = Stamp::at(folder).map(Stamp::of_folder);
        Self { folder: folder.to_owned(), began: SystemTime::now(), paths: vec![(folder.to_owned(), stamp)] }
    }

    /// Returns true if the path exists, and records a missing file.
    fn exists(&mut self, name: &str) -> bool {
        let path = self.folder.join(name);
        let exists = !matches!(fs::metadata(&path), Err(e) if e.kind() == io::ErrorKind::NotFound);
        if !exists {
            self.paths.push((path, None));
        }
        exists
    }

    /// Records a file that was opened.
    fn record(&mut self, path: &Path, metadata: &Metadata) {
        self.paths.push((path.to_owned(), Some(Stamp::of(metadata))));
    }

    /// Returns true if all paths still refer to the same files and those are unchanged.
    fn is_unchanged(&self) -> bool {
        self.paths.iter().enumerate().all(|(index, (path, then))| {
            let now = Stamp::at(path);
            let now = if index == 0 { now.map(Stamp::of_folder) } else { now };
            now == *then && then.as_ref().is_none_or(|then| !then.is_recent(self.began))
        })
    }
}

/// The identity and version of a file.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    /// The device and the inode.
    file: (u64, u64),
    /// The size in bytes.
    size: u64,
    modified: Option<SystemTime>,
    /// The ctime: the last change of contents or metadata. Programs cannot set it.
    changed: Option<SystemTime>,
}

impl Stamp {
    fn at(path: &Path) -> Option<Self> {
        Some(Self::of(&fs::metadata(path).ok()?))
    }

    #[cfg(unix)]
    fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        let since = Duration::new(metadata.ctime().max(0).cast_unsigned(), metadata.ctime_nsec() as u32);
        Self {
            file: (metadata.dev(), metadata.ino()),
            size: metadata.len(),
            modified: metadata.modified().ok(),
            changed: SystemTime::UNIX_EPOCH.checked_add(since),
        }
    }

    #[cfg(not(unix))]
    fn of(metadata: &Metadata) -> Self {
        let modified = metadata.modified().ok();
        Self { file: (0, 0), size: metadata.len(), modified, changed: modified }
    }

    /// Keeps only the identity of a folder, because unrelated files may be written into it.
    fn of_folder(self) -> Self {
        Self { file: self.file, size: 0, modified: None, changed: None }
    }

    /// Returns true if the file had changed within [`TICK`] before `at`, so that a later change may be undetected.
    fn is_recent(&self, at: SystemTime) -> bool {
        // A time in the future comes from the clock of another machine.
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
    fn detects_each_change_of_a_folder() {
        let around = tempfile::tempdir().unwrap();
        let (one, other) = (copy(&around.path().join("one")), copy(&around.path().join("other")));
        let link = around.path().join("link");
        let switch = |to: &Path| {
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(to, &link).unwrap();
        };
        // Waits until the files written above are no longer recent.
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
            let mut observed = Observed::new(&link);
            for name in [CONFIG, "calibration.json"] {
                if observed.exists(name) {
                    let path = link.join(name);
                    observed.record(&path, &fs::metadata(&path).unwrap());
                }
            }
            change();
            assert_eq!(observed.is_unchanged(), what == "nothing", "{what}");
            std::thread::sleep(TICK * 2);
        }
    }

    #[test]
    fn reads_a_recently_written_file_again() {
        let around = tempfile::tempdir().unwrap();
        let folder = copy(&around.path().join("new"));
        let mut observed = Observed::new(&folder);
        observed.record(&folder.join(CONFIG), &fs::metadata(folder.join(CONFIG)).unwrap());
        assert!(!observed.is_unchanged());
        assert!(ModelFiles::read(&folder).is_ok());
    }

    #[test]
    fn ignores_other_files_in_the_folder() {
        let around = tempfile::tempdir().unwrap();
        let folder = copy(&around.path().join("model"));
        std::thread::sleep(TICK * 2);
        let mut observed = Observed::new(&folder);
        observed.record(&folder.join(CONFIG), &fs::metadata(folder.join(CONFIG)).unwrap());
        fs::write(folder.join("README.md"), "text").unwrap();
        assert!(observed.is_unchanged());
    }
}
