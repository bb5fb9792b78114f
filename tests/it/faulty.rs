//! An object store wrapper whose responses are lost, refused or delayed by script, with a log of requests.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

/// A fault of a write.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// The write succeeds, and the client repeats it because the response was lost.
    Repeated,
    /// The write succeeds, and an error is returned.
    AnswerLost,
    /// The write fails.
    Refused,
    /// The write succeeds, and the response never arrives.
    Stalls,
}

/// A store with faults.
#[derive(Debug, Clone)]
pub struct Faulty {
    inner: Arc<dyn ObjectStore>,
    /// Faults of the next writes; the first entry applies to the next write.
    script: Arc<Mutex<Vec<Option<Fault>>>>,
    /// While set, all requests fail.
    pub down: Arc<AtomicBool>,
    /// Writes and deletes so far, with their purpose.
    pub log: Arc<Mutex<Vec<String>>>,
    /// Multipart uploads that were begun, minus those completed or aborted.
    pub open_uploads: Arc<AtomicUsize>,
    /// The number of writes and deletes that still succeed.
    writes_left: Arc<AtomicUsize>,
    /// Ignores conditions, as simple servers do.
    pub ignores_conditions: bool,
}

impl Faulty {
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self {
            inner,
            script: Arc::default(),
            down: Arc::default(),
            log: Arc::default(),
            open_uploads: Arc::default(),
            writes_left: Arc::new(AtomicUsize::new(usize::MAX)),
            ignores_conditions: false,
        }
    }

    /// Sets the faults of the next writes.
    pub fn script(&self, faults: &[Option<Fault>]) {
        *self.script.lock().unwrap() = faults.to_vec();
    }

    /// Lets this many more writes and deletes succeed, then fails all: the client is dead.
    pub fn fail_after(&self, writes: usize) {
        self.writes_left.store(writes, Ordering::SeqCst);
    }

    /// Counts a write; returns an error if it must not succeed.
    fn write(&self) -> Result<()> {
        self.up()?;
        let left = self.writes_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.map(|_| ()).map_err(|_| {
            self.note("killed".into());
            error("killed")
        })
    }

    fn next(&self) -> Option<Fault> {
        let mut script = self.script.lock().unwrap();
        match script.is_empty() {
            true => None,
            false => script.remove(0),
        }
    }

    fn up(&self) -> Result<()> {
        match self.down.load(Ordering::Relaxed) {
            true => Err(error("the server cannot be reached")),
            false => Ok(()),
        }
    }

    fn note(&self, what: String) {
        self.log.lock().unwrap().push(what);
    }
}

fn error(text: &str) -> Error {
    Error::Generic { store: "Faulty", source: text.to_owned().into() }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, mut opts: PutOptions) -> Result<PutResult> {
        self.write()?;
        self.note(format!("put {location}"));
        if self.ignores_conditions {
            opts.mode = PutMode::Overwrite;
        }
        match self.next() {
            None => self.inner.put_opts(location, payload, opts).await,
            Some(Fault::Refused) => Err(error("500 Internal Server Error")),
            Some(fault) => {
                let first = self.inner.put_opts(location, payload.clone(), opts.clone()).await;
                match fault {
                    Fault::Repeated => self.inner.put_opts(location, payload, opts).await,
                    Fault::Stalls => {
                        tokio::time::sleep(Duration::from_secs(3600)).await;
                        first
                    }
                    _ => first.and_then(|_| Err(error("connection reset before the answer"))),
                }
            }
        }
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.write()?;
        self.note(format!("upload {location}"));
        let inner = self.inner.put_multipart_opts(location, opts).await?;
        self.open_uploads.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(FaultyUpload { inner, store: self.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.up()?;
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.up()?;
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let locations = locations.map(move |location| {
            this.write()?;
            if let Ok(location) = &location {
                this.note(format!("delete {location}"));
            }
            location
        });
        self.inner.delete_stream(locations.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.up()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    store: Faulty,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        match self.store.up().and_then(|()| match self.store.next() {
            Some(_) => Err(error("500 Internal Server Error")),
            None => Ok(()),
        }) {
            Ok(()) => self.inner.put_part(data),
            Err(e) => Box::pin(std::future::ready(Err(e))),
        }
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.store.up()?;
        let result = self.inner.complete().await;
        self.store.open_uploads.fetch_sub(usize::from(result.is_ok()), Ordering::SeqCst);
        result
    }

    async fn abort(&mut self) -> Result<()> {
        let result = self.inner.abort().await;
        self.store.open_uploads.fetch_sub(1, Ordering::SeqCst);
        result
    }
}
