//! The cache that all programs using the hub share: blobs by content hash, snapshots of commits that link to them, the
//! commits of branches and tags, and empty files under `.no_exist` for files that a commit does not have.
//!
//! See <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use hf_hub::{CacheRepo, Repo, RepoType};

use super::CALIBRATION_FILE;
use super::settings::Settings;
use crate::files::{self, MAX_JSON, MAX_TEXT, TEMPORARY};
use crate::hub::{ModelFolder, Needed};
use crate::place::HubModel;

/// The reason why a cached model may be incomplete.
pub(super) enum Gap {
    /// A required file is missing.
    Missing(String),
    /// These files may be missing, because a download ended early.
    Incomplete(Vec<String>),
    /// These files may be missing, because no program has requested them from the hub.
    NotRequested(Vec<String>),
}

/// One commit of a repository in the cache.
pub(super) struct Snapshot {
    repo: CacheRepo,
    /// The repository's folder in the cache.
    root: PathBuf,
    /// The folder of the locks that programs hold while they fetch files.
    locks: PathBuf,
    commit: String,
    /// The model's folder in the repository.
    subfolder: String,
}

impl Snapshot {
    pub(super) fn new(settings: &Settings, model: &HubModel, commit: &str) -> Self {
        let repo = repository(model);
        let name = repo.folder_name();
        Self {
            repo: settings.cache.repo(repo),
            root: settings.cache.path().join(&name),
            locks: settings.cache.path().join(".locks").join(name),
            commit: commit.to_owned(),
            subfolder: model.folder().to_owned(),
        }
    }

    /// Returns the commit of the model's branch or tag when it was last resolved.
    pub(super) fn commit_of(settings: &Settings, model: &HubModel) -> Option<String> {
        let root = settings.cache.path().join(repository(model).folder_name());
        let commit = files::read_string(&root.join("refs").join(model.revision()), MAX_TEXT).ok()?;
        let commit = commit.trim();
        let is_commit = !commit.is_empty() && commit.bytes().all(|byte| byte.is_ascii_alphanumeric());
        is_commit.then(|| commit.to_owned())
    }

    /// Lists the commits that have files in the cache.
    pub(super) fn commits(settings: &Settings, model: &HubModel) -> Vec<String> {
        let root = settings.cache.path().join(repository(model).folder_name());
        let found = root.join("snapshots").read_dir().into_iter().flatten().flatten();
        let mut found: Vec<String> = found.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        found.sort();
        found
    }

    pub(super) fn commit(&self) -> &str {
        &self.commit
    }

    /// Returns the model's folder.
    pub(super) fn folder(&self) -> PathBuf {
        let root = self.repo.pointer_path(&self.commit);
        if self.subfolder.is_empty() { root } else { root.join(&self.subfolder) }
    }

    pub(super) fn into_folder(self) -> ModelFolder {
        ModelFolder { path: self.folder(), revision: Some(self.commit) }
    }

    /// Returns the path of the blob with that hash.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.repo.blob_path(etag)
    }

    /// Returns the path of the lock of a blob.
    pub(super) fn lock_of(&self, etag: &str) -> PathBuf {
        self.locks.join(format!("{etag}.lock"))
    }

    /// Returns the reason why the cached files may be incomplete, or `None` if the model can be loaded from them.
    ///
    /// Files that a commit does not have are recorded beside its snapshot, so a file that is neither present nor
    /// recorded was not fetched. couplet records or fetches the calibration before all other files. If it is neither
    /// present nor recorded, another program chose which files to fetch.
    pub(super) fn gap(&self) -> Option<Gap> {
        let folder = self.folder();
        // A link to a removed blob does not count as a file.
        let files = folder.read_dir().into_iter().flatten().flatten().filter(|entry| entry.path().is_file());
        let names: Vec<String> = files.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let needed = Needed::among(&names);
        if let Some(missing) = needed.first_missing() {
            return Some(Gap::Missing(missing.to_owned()));
        }
        if let Some(index) = needed.index {
            let shards = Needed::shards(&files::read(&folder.join(index), MAX_JSON).unwrap_or_default());
            if let Some(shard) = shards.into_iter().find(|shard| !names.contains(&shard.as_str())) {
                return Some(Gap::Missing(shard));
            }
        }
        let unknown: Vec<String> =
            needed.alternatives().filter(|name| !self.is_absent(name)).map(str::to_owned).collect();
        match unknown.iter().any(|name| name == CALIBRATION_FILE) {
            _ if unknown.is_empty() => None,
            true => Some(Gap::NotRequested(unknown)),
            false => Some(Gap::Incomplete(unknown)),
        }
    }

    /// Returns the path of the record that the commit has no such file in the model's folder.
    fn absent(&self, name: &str) -> PathBuf {
        self.root.join(".no_exist").join(&self.commit).join(&self.subfolder).join(name)
    }

    /// Returns true if the commit is known not to have that file in the model's folder.
    pub(super) fn is_absent(&self, name: &str) -> bool {
        self.absent(name).is_file()
    }

    /// Records that the commit has no such file in the model's folder, as `huggingface_hub` does.
    pub(super) fn record_absent(&self, name: &str) -> io::Result<()> {
        let path = self.absent(name);
        if path.is_file() {
            return Ok(());
        }
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        files::create(&path).map(drop)
    }

    /// Returns true if the snapshot has the file, with the right size if that is known.
    pub(super) fn has(&self, path: &str, size: Option<u64>) -> bool {
        let file = self.repo.pointer_path(&self.commit).join(path).metadata();
        file.is_ok_and(|file| file.is_file() && size.is_none_or(|size| file.len() == size))
    }

    /// Atomically makes `path` of the snapshot a link to a blob. Temporary files are in a folder in which no program
    /// looks for snapshots or refs.
    pub(super) fn link(&self, path: &str, etag: &str) -> io::Result<()> {
        let link = self.repo.pointer_path(&self.commit).join(path);
        let folder = link.parent().unwrap_or(&link);
        fs::create_dir_all(folder)?;
        // From `snapshots/COMMIT/…` up to the repository's folder.
        let up = "../".repeat(2 + path.matches('/').count());
        let temporary = tempfile::Builder::new().prefix(".couplet-").suffix(TEMPORARY).tempdir_in(&self.root)?;
        let staged = temporary.path().join("link");
        link_to(&Path::new(&up).join("blobs").join(etag), &self.blob(etag), &staged)?;
        fs::rename(&staged, &link)
    }

    /// Atomically records that a branch or tag is this commit.
    pub(super) fn name(&self, revision: &str) -> io::Result<()> {
        let path = self.root.join("refs").join(revision);
        if files::read_string(&path, MAX_TEXT).is_ok_and(|known| known == self.commit) {
            return Ok(());
        }
        let folder = path.parent().unwrap_or(&path);
        fs::create_dir_all(folder)?;
        let mut file = tempfile::Builder::new().prefix(".couplet-").suffix(TEMPORARY).tempfile_in(&self.root)?;
        file.write_all(self.commit.as_bytes())?;
        readable_by_all(file.as_file())?;
        file.persist(&path).map(drop).map_err(|e| e.error)
    }
}

pub(super) fn repository(model: &HubModel) -> Repo {
    Repo::with_revision(model.repository().to_owned(), RepoType::Model, model.revision().to_owned())
}

#[cfg(unix)]
fn link_to(relative: &Path, _: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(relative, link)
}

/// Creates a hard link or a copy, as symbolic links need a privilege on Windows.
#[cfg(not(unix))]
fn link_to(_: &Path, blob: &Path, link: &Path) -> io::Result<()> {
    fs::hard_link(blob, link).or_else(|_| fs::copy(blob, link).map(drop))
}

/// Makes a file readable by all users, as a cache may be shared and temporary files are private.
#[cfg(unix)]
pub(super) fn readable_by_all(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
pub(super) fn readable_by_all(_: &File) -> io::Result<()> {
    Ok(())
}
