//! A file on an object store in the making: nothing is to be seen of it until it is complete, and nothing of it stays,
//! nor is paid for, if it is given up.

use bytes::Bytes;
use object_store::path::Path;
use object_store::{
    Error as StoreError, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload, Result,
    UpdateVersion,
};
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::files::REPLACED;
use crate::lock::put_if;
use crate::objects::without_answers;

/// Bytes of a part. All parts but the last have this size, as some servers ask; at most 10,000 parts give 80 GB.
const PART: usize = 8 << 20;

/// Parts that are under way at once.
const PARTS_UNDER_WAY: usize = 4;

/// What a file may take the place of when it is complete.
#[derive(Debug)]
pub(crate) enum Over {
    /// Whatever there is: the name is the run's own.
    Anything,
    /// What the run saw there, if anything.
    Seen(Option<ObjectMeta>),
}

/// A file on an object store in the making.
#[derive(Debug)]
pub(super) struct Upload {
    store: Arc<dyn ObjectStore>,
    path: Path,
    over: Over,
    buffer: Vec<Bytes>,
    buffered: usize,
    /// Bytes so far.
    bytes: u64,
    /// Begun with the first full part; a smaller file is written in one request.
    multipart: Option<Box<dyn MultipartUpload>>,
    /// What was there under the name when it was begun.
    before: Option<ObjectMeta>,
    parts: JoinSet<Result<()>>,
}

/// What has become of a file.
#[derive(Debug, Clone, Default)]
pub(super) struct Uploaded {
    pub(super) bytes: u64,
    pub(super) etag: Option<String>,
}

impl Upload {
    pub(super) fn begin(store: Arc<dyn ObjectStore>, path: Path, over: Over) -> Self {
        let (buffer, parts) = (Vec::new(), JoinSet::new());
        Self { store, path, over, buffer, buffered: 0, bytes: 0, multipart: None, before: None, parts }
    }

    /// Takes bytes, and sends what makes a full part; waits where too many are under way.
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
        while self.parts.len() >= PARTS_UNDER_WAY
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

    /// Sends all that is left of a file in parts, and waits for them.
    pub(super) async fn flush(&mut self) -> Result<()> {
        if self.multipart.is_some() && self.buffered > 0 {
            self.send().await?;
        }
        while let Some(part) = self.parts.join_next().await {
            part??;
        }
        Ok(())
    }

    /// Ends the file and makes sure that the server has all of it.
    pub(super) async fn finish(&mut self) -> Result<Uploaded> {
        self.flush().await?;
        if self.multipart.is_none() {
            let payload = self.take();
            self.put(payload).await?;
            return self.verify().await;
        }
        // object_store has no condition for this, though some servers have one. A run that has lost the lock fails all the
        // same: the next one aborts its upload.
        if let Over::Seen(seen) = &self.over
            && !is_same(seen.as_ref(), self.there().await?.as_ref())
        {
            return Err(replaced(&self.path));
        }
        let Some(upload) = &mut self.multipart else { return self.verify().await };
        if let Err(error) = upload.complete().await {
            // The upload is gone if it was completed and the answer was lost: then the file is there.
            let there = self.store.head(&self.path).await.ok();
            let is_new = there != self.before;
            let Some(uploaded) = self.verify().await.ok().filter(|_| is_new) else { return Err(error) };
            self.multipart = None;
            return Ok(uploaded);
        }
        self.multipart = None;
        self.verify().await
    }

    /// Writes the whole file in one request, on the condition that what it takes the place of is there.
    async fn put(&self, payload: PutPayload) -> Result<()> {
        let Over::Seen(seen) = &self.over else { return self.store.put(&self.path, payload).await.map(drop) };
        let mode = seen.clone().map_or(PutMode::Create, |seen| {
            PutMode::Update(UpdateVersion { e_tag: seen.e_tag, version: seen.version })
        });
        match put_if(self.store.as_ref(), &self.path, payload.clone(), mode).await {
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. } | StoreError::NotFound { .. }) => {
                // It may be this very write, made before and not answered.
                let there = match self.store.get(&self.path).await {
                    Err(StoreError::NotFound { .. }) => return Err(replaced(&self.path)),
                    found => found?.bytes().await?,
                };
                let own: Vec<u8> = payload.iter().flat_map(|part| part.iter().copied()).collect();
                if there == own { Ok(()) } else { Err(replaced(&self.path)) }
            }
            written => written.map(drop),
        }
    }

    async fn there(&self) -> Result<Option<ObjectMeta>> {
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

    /// Gives the file up.
    pub(super) async fn abort(&mut self) {
        self.parts.shutdown().await;
        if let Some(upload) = self.multipart.take() {
            end(upload, self.path.clone()).await;
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
    /// Best effort: a runtime that is shut down at once, or a kill, leaves the parts.
    fn drop(&mut self) {
        if let Some(upload) = self.multipart.take()
            && let Ok(runtime) = Handle::try_current()
        {
            self.parts.abort_all();
            let (mut parts, path) = (std::mem::take(&mut self.parts), self.path.clone());
            runtime.spawn(async move {
                parts.shutdown().await;
                end(upload, path).await;
            });
        }
    }
}

async fn end(mut upload: Box<dyn MultipartUpload>, path: Path) {
    if let Err(error) = upload.abort().await {
        tracing::warn!(
            "an unfinished upload to {path} may have stayed, and may be paid for until a rule of the bucket removes it: {}",
            without_answers(&error)
        );
    }
}
