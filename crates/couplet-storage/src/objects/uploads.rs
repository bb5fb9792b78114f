//! Aborts the multipart uploads that a killed run left open.
//!
//! A bucket keeps the parts of a multipart upload until it is completed or aborted. The parts are invisible, but they
//! are charged for. A process that is killed neither completes nor aborts its uploads. So a run writes a note of each
//! upload to the store of its pipeline before it sends a part, and deletes the note when the upload has ended. The next
//! run aborts the uploads that still have a note. Both hold the lock of that store, so no upload of a live run is
//! aborted. Only uploads to places that the pipeline writes to are aborted; a note of another pipeline of the same
//! store waits for a run of that pipeline.
//!
//! Azure needs no such notes: it has no uploads to abort and drops uncommitted blocks after a week.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
    UploadPart,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Objects, PENDING, StoreFolder};
use crate::crash;

/// The folder of the notes, in the store of a pipeline.
const NOTES: &str = "uploads";

/// The largest size of a note in bytes: two names of at most 1,024 bytes and an id.
const MAX_NOTE_BYTES: u64 = 16 << 10;

/// A bucket whose uploads have ids, so that another process can abort them.
#[derive(Clone)]
pub(super) struct Uploads(pub(super) Arc<dyn MultipartStore>);

impl fmt::Debug for Uploads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Uploads")
    }
}

/// The note of an upload.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// The bucket's URI.
    bucket: String,
    /// The path of the object to be created.
    path: String,
    /// The upload's id.
    upload: MultipartId,
}

impl Objects {
    /// Returns this place with a note in `store` for each multipart upload. The run must hold the lock of `store`.
    #[must_use]
    pub fn with_upload_notes(self, store: &StoreFolder) -> Self {
        let (Some(uploads), Some(remote)) = (&self.uploads, self.place.remote()) else { return self };
        let noted = NotedStore {
            store: Arc::clone(&self.store),
            uploads: uploads.clone(),
            bucket: remote.root(),
            notes: store.folder(NOTES),
        };
        Self { store: Arc::new(noted), ..self }
    }

    /// Returns true if an object of a bucket is at or below this place, or is a pending object for it.
    fn has(&self, bucket: &str, path: &Path) -> bool {
        let is_pending = || {
            let prefix = format!(".{}.", self.place.name());
            let is_beside = path.parent() == self.root.parent();
            is_beside && path.filename().is_some_and(|name| name.starts_with(&prefix) && name.ends_with(PENDING))
        };
        let is_in_bucket = self.place.remote().is_some_and(|remote| remote.root() == bucket);
        is_in_bucket && (path.prefix_matches(&self.root) || is_pending())
    }
}

/// Aborts the uploads to these places that earlier runs have noted in a store and never ended. Returns their number.
///
/// If a bucket cannot be reached, its notes stay and a warning is logged.
///
/// # Errors
/// A store that cannot be read or written.
pub async fn abort_noted_uploads(store: &StoreFolder, places: &[Objects]) -> Result<usize> {
    let notes = store.folder(NOTES);
    let Objects { store: objects, .. } = &notes.objects;
    let mut aborted = 0;
    let listed = notes.files().await.map_err(|e| StoreError::Generic { store: NOTES, source: e.into() })?;
    #[expect(clippy::case_sensitive_file_extension_comparisons, reason = "couplet itself gave the names")]
    let is_note = |name: &str| name.ends_with(".json");
    for file in listed.into_iter().filter(|file| is_note(&file.name) && file.bytes <= MAX_NOTE_BYTES) {
        let json = match objects.get(&file.path).await {
            Err(StoreError::NotFound { .. }) => continue,
            found => found?.bytes().await?,
        };
        // If a note is truncated, no part was sent after it.
        if let Ok(note) = serde_json::from_slice::<Note>(&json) {
            let Ok(path) = Path::parse(&note.path) else { continue };
            let Some(place) = places.iter().find(|place| place.has(&note.bucket, &path)) else { continue };
            if let Err(problem) = abort(place, &path, &note).await {
                tracing::warn!("an unfinished upload to {}/{path} may have stayed: {problem}", note.bucket);
                continue;
            }
            aborted += 1;
        }
        match objects.delete(&file.path).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(aborted)
}

async fn abort(place: &Objects, path: &Path, note: &Note) -> std::result::Result<(), String> {
    let Some(Uploads(uploads)) = &place.uploads else { return Ok(()) };
    match uploads.abort_multipart(path, &note.upload).await {
        // The upload had ended already, and only the note was left.
        Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
        Err(error) => Err(place.error_at(path, &error).problem),
    }
}

/// A bucket that writes a note of each multipart upload.
#[derive(Debug)]
struct NotedStore {
    store: Arc<dyn ObjectStore>,
    uploads: Uploads,
    bucket: String,
    notes: StoreFolder,
}

impl fmt::Display for NotedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

impl NotedStore {
    async fn begin(&self, path: &Path) -> Result<Box<dyn MultipartUpload>> {
        let Uploads(uploads) = &self.uploads;
        let id = uploads.create_multipart(path).await?;
        let note = Note { bucket: self.bucket.clone(), path: path.to_string(), upload: id.clone() };
        let upload = NotedUpload {
            to: Arc::new(Destination { uploads: Arc::clone(uploads), path: path.clone(), id }),
            started: 0,
            sent: Arc::default(),
            notes: Arc::clone(&self.notes.objects.store),
            note: self.notes.path(&format!("{}.json", Uuid::new_v4())),
        };
        let json = serde_json::to_vec(&note).map_err(|e| StoreError::Generic { store: NOTES, source: e.into() })?;
        if let Err(error) = upload.notes.put(&upload.note, json.into()).await {
            // Without a note the upload must not continue. If it cannot be aborted either, a warning is logged.
            if let Err(problem) = uploads.abort_multipart(path, &upload.to.id).await {
                tracing::warn!("an unfinished upload to {}/{path} may have stayed: {problem}", self.bucket);
            }
            return Err(error);
        }
        Ok(Box::new(upload))
    }
}

#[async_trait]
impl ObjectStore for NotedStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.store.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        // Uploads by id support no tags and attributes, which nothing here sets.
        if !options.attributes.is_empty() || !options.tags.encoded().is_empty() {
            return self.store.put_multipart_opts(location, options).await;
        }
        self.begin(location).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.store.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.store.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.store.rename_opts(from, to, options).await
    }
}

/// The destination of an upload: the bucket, the object and the upload's id.
struct Destination {
    uploads: Arc<dyn MultipartStore>,
    path: Path,
    id: MultipartId,
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.id, self.path)
    }
}

/// An upload that has a note.
#[derive(Debug)]
struct NotedUpload {
    to: Arc<Destination>,
    /// The number of parts started.
    started: usize,
    /// The parts that the bucket has received, with their positions.
    sent: Arc<Mutex<Vec<(usize, PartId)>>>,
    notes: Arc<dyn ObjectStore>,
    note: Path,
}

impl NotedUpload {
    async fn delete_note(&self) {
        // If the delete fails, the next run finds that the upload has ended.
        if let Err(error) = self.notes.delete(&self.note).await {
            tracing::debug!("{}: {error}", self.note);
        }
    }
}

#[async_trait]
impl MultipartUpload for NotedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (place, to, sent) = (self.started, Arc::clone(&self.to), Arc::clone(&self.sent));
        self.started += 1;
        Box::pin(async move {
            let part = to.uploads.put_part(&to.path, &to.id, place, data).await?;
            sent.lock().unwrap_or_else(PoisonError::into_inner).push((place, part));
            crash::point("upload.part");
            Ok(())
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let mut parts = self.sent.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if parts.len() != self.started {
            let problem = format!("{} of {} parts were sent", parts.len(), self.started);
            return Err(StoreError::Generic { store: NOTES, source: problem.into() });
        }
        parts.sort_by_key(|(place, _)| *place);
        let parts = parts.into_iter().map(|(_, part)| part).collect();
        // If this fails, it is unknown whether the upload has ended, so the note stays.
        let done = self.to.uploads.complete_multipart(&self.to.path, &self.to.id, parts).await?;
        self.delete_note().await;
        Ok(done)
    }

    async fn abort(&mut self) -> Result<()> {
        self.to.uploads.abort_multipart(&self.to.path, &self.to.id).await?;
        self.delete_note().await;
        Ok(())
    }
}
