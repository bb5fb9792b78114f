//! The local disk as an object store whose writes survive a power failure.
//!
//! The local store of `object_store` renames files into place without an fsync. After a power failure the name can then
//! exist without the contents: an empty commit whose name cannot be written again. Here the contents are synced before
//! the file gets its name, and the name is synced before the write returns.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};
use thiserror::Error as ThisError;
use uuid::Uuid;

use super::cause_in;
use crate::files::{self, NOT_DURABLE};

/// The error of a disk that cannot create a file only if it does not exist.
#[derive(Debug, ThisError)]
#[error("its file system has no hard links ({0})")]
pub(crate) struct NoLinks(io::Error);

/// The error of syncing the name of a file: the file exists, but its name may not survive a power failure.
#[derive(Debug, ThisError)]
#[error("{NOT_DURABLE} ({0})")]
struct Unconfirmed(io::Error);

/// Returns the I/O error behind an error, if it was caused by a failed sync of a file's name.
pub fn unconfirmed_in<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e io::Error> {
    match cause_in(error)? {
        Error::Generic { source, .. } => source.downcast_ref::<Unconfirmed>().map(|unconfirmed| &unconfirmed.0),
        _ => None,
    }
}

/// The local disk, from its root.
#[derive(Debug)]
pub struct DurableLocal(LocalFileSystem);

impl DurableLocal {
    /// Returns the local disk.
    #[must_use]
    pub fn new() -> Self {
        Self(LocalFileSystem::new())
    }
}

impl Default for DurableLocal {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Display for DurableLocal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for DurableLocal {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        // The inner store refuses updates conditional on a version.
        if matches!(options.mode, PutMode::Update(_)) || !options.attributes.is_empty() {
            return self.0.put_opts(location, payload, options).await;
        }
        let path = self.0.path_to_filesystem(location)?;
        let create = matches!(options.mode, PutMode::Create);
        let written = tokio::task::spawn_blocking(move || put(&path, &payload, create)).await;
        written.unwrap_or_else(|e| Err(Error::Generic { store: "LocalFileSystem", source: e.into() }))
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let path = self.0.path_to_filesystem(location)?;
        let upload = self.0.put_multipart_opts(location, options).await?;
        Ok(Box::new(DurableUpload { upload, path }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.check_regular(location).await?;
        self.0.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.check_regular(location).await?;
        self.0.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await?;
        self.make_durable(to).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.0.rename_opts(from, to, options).await?;
        self.make_durable(to).await
    }
}

impl DurableLocal {
    /// Refuses anything but a regular file, as `object_store` would block on a pipe. It reports missing files itself.
    async fn check_regular(&self, location: &Path) -> Result<()> {
        let path = self.0.path_to_filesystem(location)?;
        let checked = tokio::task::spawn_blocking(move || match files::open(&path) {
            Err(e) if e.kind() == ErrorKind::InvalidInput => Err(failed(e, &path)),
            _ => Ok(()),
        });
        checked.await.unwrap_or(Ok(()))
    }

    async fn make_durable(&self, location: &Path) -> Result<()> {
        let path = self.0.path_to_filesystem(location)?;
        make_durable(path).await
    }
}

/// An upload in parts whose file is durable once the upload completes.
#[derive(Debug)]
struct DurableUpload {
    upload: Box<dyn MultipartUpload>,
    path: PathBuf,
}

#[async_trait]
impl MultipartUpload for DurableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.upload.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let done = self.upload.complete().await?;
        // Here the name is written before the sync. This is safe: such files count only once a commit names them.
        make_durable(self.path.clone()).await?;
        Ok(done)
    }

    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}

async fn make_durable(path: PathBuf) -> Result<()> {
    let synced = tokio::task::spawn_blocking(move || {
        files::open(&path)?.sync_all()?;
        sync_folder(&path)
    });
    let synced = synced.await.unwrap_or_else(|e| Err(io::Error::other(e)));
    synced.map_err(|e| failed(e, FilePath::new("")))
}

/// The maximum number of attempts per write. A retry is needed if another process mistook the temporary file for that
/// of a killed run and removed it.
const ATTEMPTS: usize = 5;

/// Writes a temporary file beside its destination, syncs it and moves it into place.
fn put(path: &FilePath, payload: &PutPayload, create: bool) -> Result<PutResult> {
    if let Some(parent) = path.parent() {
        make_folders(parent).map_err(|e| failed(e, path))?;
    }
    let mut placed = place(path, payload, create);
    for _ in 1..ATTEMPTS {
        match &placed {
            Err(e) if e.kind() == ErrorKind::NotFound => placed = place(path, payload, create),
            _ => break,
        }
    }
    placed.map_err(|e| failed(e, path))?;
    sync_folder(path).map_err(|e| Error::Generic { store: "LocalFileSystem", source: Unconfirmed(e).into() })?;
    Ok(PutResult { e_tag: None, version: None })
}

fn place(path: &FilePath, payload: &PutPayload, create: bool) -> io::Result<()> {
    // Listings skip names that end in `#` and digits. A process id would not be unique on a disk that machines share.
    let (unique, _) = Uuid::new_v4().as_u64_pair();
    let staged = PathBuf::from(format!("{}#{unique}", path.display()));
    let placed = (|| -> io::Result<()> {
        let mut file = File::create_new(&staged)?;
        payload.iter().try_for_each(|bytes| file.write_all(bytes))?;
        file.sync_all()?;
        if create {
            // Unlike a rename, a hard link fails if the destination exists.
            fs::hard_link(&staged, path).map_err(|e| match e.kind() {
                ErrorKind::AlreadyExists | ErrorKind::NotFound => e,
                kind => io::Error::new(kind, NoLinks(e)),
            })?;
        } else {
            fs::rename(&staged, path)?;
        }
        Ok(())
    })();
    if create || placed.is_err() {
        let _ = fs::remove_file(&staged);
    }
    placed
}

/// Creates folders and syncs their names.
fn make_folders(folder: &FilePath) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        make_folders(parent)?;
    }
    match fs::create_dir(folder) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(e),
        _ => sync_folder(folder),
    }
}

/// Makes the name of a file or folder durable by syncing its parent folder.
fn sync_folder(path: &FilePath) -> io::Result<()> {
    match path.parent() {
        Some(parent) if cfg!(unix) => files::sync_folder(parent),
        _ => Ok(()),
    }
}

fn failed(error: io::Error, path: &FilePath) -> Error {
    let (path, kind, source) = (path.display().to_string(), error.kind(), error.into());
    match kind {
        ErrorKind::AlreadyExists => Error::AlreadyExists { path, source },
        ErrorKind::NotFound => Error::NotFound { path, source },
        ErrorKind::PermissionDenied => Error::PermissionDenied { path, source },
        _ => Error::Generic { store: "LocalFileSystem", source },
    }
}

#[cfg(all(test, unix))]
mod tests {
    use object_store::ObjectStoreExt;

    use super::*;

    #[tokio::test]
    async fn a_pipe_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().canonicalize().unwrap().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let path = Path::from_absolute_path(&pipe).unwrap();
        let disk = DurableLocal::new();
        for error in [disk.get(&path).await.map(drop), disk.head(&path).await.map(drop)] {
            let error = error.unwrap_err().to_string();
            assert!(error.contains("it is not a regular file"), "{error}");
        }
    }
}
