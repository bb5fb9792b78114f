//! Upload of a file to an object store. It is invisible until it is complete. An aborted upload leaves nothing that
//! takes space or is charged for.

use bytes::Bytes;
use couplet_storage::files::REPLACED;
use couplet_storage::lock::put_if;
use couplet_storage::objects::without_responses;
use object_store::path::Path;
use object_store::{
    Error as StoreError, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload, Result,
    UpdateVersion,
};
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// Size of a part in bytes. All parts but the last have this size, as some servers require; 10,000 parts, the maximum,
/// make 80 GB.
const PART: usize = 8 << 20;

/// Parts uploaded concurrently.
const PARTS_IN_FLIGHT: usize = 4;

/// Condition under which a complete file replaces an existing object.
#[derive(Debug)]
pub enum PutCondition {
    /// No condition: the name belongs to the run.
    Always,
    /// The object must still be the one that the run saw, if any.
    IfUnchanged(Option<ObjectMeta>),
}

/// An upload in progress.
#[derive(Debug)]
pub(super) struct Upload {
    store: Arc<dyn ObjectStore>,
    path: Path,
    condition: PutCondition,
    buffer: Vec<Bytes>,
    buffered: usize,
    /// Bytes written so far.
    bytes: u64,
    /// Started with the first full part; a smaller file is written in one request.
    multipart: Option<Box<dyn MultipartUpload>>,
    /// The object under the name when the upload began.
    before: Option<ObjectMeta>,
    parts: JoinSet<Result<()>>,
}

/// Metadata of a complete file.
#[derive(Debug, Clone, Default)]
pub(super) struct Uploaded {
    pub(super) bytes: u64,
    pub(super) etag: Option<String>,
}

impl Upload {
    pub(super) fn begin(store: Arc<dyn ObjectStore>, path: Path, condition: PutCondition) -> Self {
        let (buffer, parts) = (Vec::new(), JoinSet::new());
        Self { store, path, condition, buffer, buffered: 0, bytes: 0, multipart: None, before: None, parts }
    }

    /// Buffers bytes, and uploads full parts; waits while too many parts are in flight.
    pub(super) async fn write(&mut self, mut bytes: Bytes) -> Result<()> {
        self.bytes += bytes.len() as u64;
        while self.buffered + bytes.len() >= PART {
            let rest = bytes.split_off(PART - self.buffered);
            self.push(bytes);
            self.send().await?;
            bytes = rest;
        }
        self.push(bytes);
        Ok(())
    }

    fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.buffered += bytes.len();
            self.buffer.push(bytes);
        }
    }

    async fn send(&mut self) -> Result<()> {
        let part = self.take();
        let upload = match &mut self.multipart {
            Some(upload) => upload,
            upload @ None => {
                self.before = self.store.head(&self.path).await.ok();
                upload.insert(self.store.put_multipart(&self.path).await?)
            }
        };
        while self.parts.len() >= PARTS_IN_FLIGHT
            && let Some(part) = self.parts.join_next().await
        {
            part??;
        }
        self.parts.spawn(upload.put_part(part));
        Ok(())
    }

    fn take(&mut self) -> PutPayload {
        self.buffered = 0;
        std::mem::take(&mut self.buffer).into_iter().collect()
    }

    /// Uploads the rest of a multipart file, and waits for all parts.
    pub(super) async fn flush(&mut self) -> Result<()> {
        if self.multipart.is_some() && self.buffered > 0 {
            self.send().await?;
        }
        while let Some(part) = self.parts.join_next().await {
            part??;
        }
        Ok(())
    }

    /// Completes the file, and checks that the server has all of it.
    pub(super) async fn finish(&mut self) -> Result<Uploaded> {
        self.flush().await?;
        if self.multipart.is_none() {
            let payload = self.take();
            self.put(payload).await?;
            return self.verify().await;
        }
        // object_store has no conditional completion, though some servers do. A run that has lost the lock fails
        // anyway: the next run aborts its upload.
        if let PutCondition::IfUnchanged(expected) = &self.condition
            && !is_same(expected.as_ref(), self.current().await?.as_ref())
        {
            return Err(replaced(&self.path));
        }
        let Some(upload) = &mut self.multipart else { return self.verify().await };
        if let Err(error) = upload.complete().await {
            // The upload no longer exists if it was completed and the response was lost: then the file exists.
            let current = self.store.head(&self.path).await.ok();
            let is_new = current != self.before;
            let Some(uploaded) = self.verify().await.ok().filter(|_| is_new) else { return Err(error) };
            self.multipart = None;
            return Ok(uploaded);
        }
        self.multipart = None;
        self.verify().await
    }

    /// Writes the whole file in one conditional request.
    async fn put(&self, payload: PutPayload) -> Result<()> {
        let PutCondition::IfUnchanged(expected) = &self.condition else {
            return self.store.put(&self.path, payload).await.map(drop);
        };
        let mode = expected.clone().map_or(PutMode::Create, |expected| {
            PutMode::Update(UpdateVersion { e_tag: expected.e_tag, version: expected.version })
        });
        match put_if(self.store.as_ref(), &self.path, payload.clone(), mode).await {
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. } | StoreError::NotFound { .. }) => {
                // It may be an earlier attempt of this write, whose response was lost.
                let current = match self.store.get(&self.path).await {
                    Err(StoreError::NotFound { .. }) => return Err(replaced(&self.path)),
                    found => found?.bytes().await?,
                };
                let own: Vec<u8> = payload.iter().flat_map(|part| part.iter().copied()).collect();
                if current == own { Ok(()) } else { Err(replaced(&self.path)) }
            }
            written => written.map(drop),
        }
    }

    async fn current(&self) -> Result<Option<ObjectMeta>> {
        match self.store.head(&self.path).await {
            Err(StoreError::NotFound { .. }) => Ok(None),
            found => found.map(Some),
        }
    }

    async fn verify(&mut self) -> Result<Uploaded> {
        let meta = self.store.head(&self.path).await?;
        if meta.size != self.bytes {
            let problem = format!("{} bytes were sent and the server has {}", self.bytes, meta.size);
            return Err(StoreError::Generic { store: "upload", source: problem.into() });
        }
        Ok(Uploaded { bytes: self.bytes, etag: meta.e_tag })
    }

    /// Aborts the upload.
    pub(super) async fn abort(&mut self) {
        self.parts.shutdown().await;
        if let Some(upload) = self.multipart.take() {
            abort_upload(upload, self.path.clone()).await;
        }
    }
}

fn is_same(one: Option<&ObjectMeta>, other: Option<&ObjectMeta>) -> bool {
    let version = |object: &ObjectMeta| (object.e_tag.clone(), object.version.clone(), object.size);
    one.map(version) == other.map(version)
}

fn replaced(path: &Path) -> StoreError {
    StoreError::Precondition { path: path.to_string(), source: REPLACED.into() }
}

impl Drop for Upload {
    /// Best effort: if the runtime shuts down at once, or the process is killed, the parts stay.
    fn drop(&mut self) {
        if let Some(upload) = self.multipart.take()
            && let Ok(runtime) = Handle::try_current()
        {
            self.parts.abort_all();
            let (mut parts, path) = (std::mem::take(&mut self.parts), self.path.clone());
            runtime.spawn(async move {
                parts.shutdown().await;
                abort_upload(upload, path).await;
            });
        }
    }
}

async fn abort_upload(mut upload: Box<dyn MultipartUpload>, path: Path) {
    if let Err(error) = upload.abort().await {
        tracing::warn!(
            "an unfinished upload to {path} may be left, and charged for until a lifecycle rule removes it: {}",
            without_responses(&error)
        );
    }
}
