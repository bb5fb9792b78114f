//! Pins the version of every file that a statement reads, even while another program replaces the file.
//!
//! A Parquet reader requests a file several times: its size, its footer, then its pages. If the file is replaced in
//! between, the reader combines parts of two files. Here the first request of a statement pins the version of a file:
//!
//! - A local file is kept open from its listing on, and requests read the open file (Linux only, and up to
//!   `MAX_OPEN_FILES` files).
//! - For any other file, a request that gets another version is an error, and the statement is executed again.
//!
//! A file that is kept open but overwritten in place is detected at the end of the statement.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::path::Path as FilePath;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use couplet_storage::objects::{DurableLocal, status_of};
use datafusion::common::DataFusionError;
use datafusion::execution::object_store::{DefaultObjectStoreRegistry, ObjectStoreRegistry};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::SessionContext;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use url::{Position, Url};

/// The maximum number of attempts to execute a statement or open a table while its files keep being replaced.
pub const ATTEMPTS: usize = 5;

/// The URL of the local disk, without the trailing slash.
const LOCAL: &str = "file://";

/// The maximum number of local files kept open at once.
const MAX_OPEN_FILES: usize = 256;

/// The file versions pinned by the current statement of a session.
#[derive(Debug, Default)]
pub struct Snapshot(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The pinned version of each file, by URL.
    pins: HashMap<String, Pin>,
    held: usize,
    /// A file that was found in another version than the pinned one.
    replaced: Option<String>,
    /// True if a file that was to be read does not exist.
    gone: bool,
}

#[derive(Debug)]
struct Pin {
    meta: ObjectMeta,
    /// True if only a listing, not a read, has returned the version so far.
    is_listed: bool,
    file: Option<Arc<File>>,
}

/// Makes the session read files through a [`Snapshot`].
///
/// # Errors
/// A session without an object store for local files.
#[expect(clippy::missing_panics_doc, reason = "the URL is valid")]
pub fn install(context: SessionContext) -> Result<SessionContext, DataFusionError> {
    let snapshot = Arc::new(Snapshot::default());
    let registry = Registry { inner: DefaultObjectStoreRegistry::new(), snapshot: Arc::clone(&snapshot) };
    let local = Url::parse("file:///").expect("this is a URL");
    registry.register_store(&local, Arc::new(DurableLocal::new()));
    let runtime = RuntimeEnvBuilder::from_runtime_env(&context.runtime_env())
        .with_object_store_registry(Arc::new(registry))
        .build_arc()?;
    let session_id = context.session_id();
    let config = context.copied_config().with_extension(snapshot);
    let builder = context.into_state_builder().with_session_id(session_id).with_config(config);
    Ok(builder.with_runtime_env(runtime).build().into())
}

impl Snapshot {
    /// Returns the snapshot of a session, if it has one.
    #[must_use]
    pub fn of(context: &SessionContext) -> Option<Arc<Self>> {
        context.state_ref().read().config().get_extension()
    }

    /// Drops all pins, so that files are read in their current versions from now on.
    pub fn renew(&self) {
        *self.state() = State::default();
    }

    /// Returns true if a file that was replaced or removed may explain a failure, so that a retry may succeed.
    pub fn explains_failure(&self) -> bool {
        self.find_overwritten();
        let state = self.state();
        state.gone || state.replaced.is_some()
    }

    /// Returns a file of which the statement read, or may have read, more than one version.
    pub fn replaced(&self) -> Option<String> {
        self.find_overwritten();
        self.state().replaced.clone()
    }

    /// Records an open file whose size or modification time differs from the pinned one.
    ///
    /// A file that is overwritten in place cannot be told from one that grows.
    fn find_overwritten(&self) {
        let mut state = self.state();
        let overwritten = state.pins.iter().find(|(_, pin)| {
            let Some(now) = pin.file.as_ref().and_then(|file| file.metadata().ok()) else { return false };
            let modified = now.modified().map_or(pin.meta.last_modified, DateTime::<Utc>::from);
            (now.len(), modified) != (pin.meta.size, pin.meta.last_modified)
        });
        let found = overwritten.map(|(url, _)| shown(url));
        state.replaced = state.replaced.take().or(found);
    }

    /// Returns true if the file has no pin yet and may be kept open.
    fn may_hold(&self, url: &str) -> bool {
        let state = self.state();
        state.held < MAX_OPEN_FILES && !state.pins.contains_key(url)
    }

    /// Returns the open file with the metadata from when it was pinned.
    fn held(&self, url: &str) -> Option<(Arc<File>, ObjectMeta)> {
        let state = self.state();
        let pin = state.pins.get(url)?;
        Some((Arc::clone(pin.file.as_ref()?), pin.meta.clone()))
    }

    /// Rejects a version other than the pinned one, and records the file as replaced.
    fn compare(&self, url: &str, found: &ObjectMeta) -> Result<()> {
        let mut state = self.state();
        if state.pins.get(url).is_none_or(|pin| pin.is(found)) {
            return Ok(());
        }
        state.replaced = Some(shown(url));
        Err(Error::Precondition { path: shown(url), source: "it was replaced while it was read".into() })
    }

    /// Pins the version that was found. Fails if another version is pinned.
    fn pin(&self, url: &str, found: &GetResult, may_hold: bool) -> Result<()> {
        self.compare(url, &found.meta)?;
        let mut state = self.state();
        if state.pins.get(url).is_some_and(|pin| !pin.is_listed) {
            return Ok(());
        }
        let file = match &found.payload {
            GetResultPayload::File(file, _) if may_hold && state.held < MAX_OPEN_FILES => {
                file.try_clone().ok().map(Arc::new)
            }
            _ => None,
        };
        let file =
            file.filter(|file| path_of(file).is_some_and(|path| FilePath::new("/").join(path.as_ref()).exists()));
        state.held += usize::from(file.is_some());
        state.pins.insert(url.to_owned(), Pin { meta: found.meta.clone(), is_listed: false, file });
        Ok(())
    }

    /// Returns the metadata of the pinned version. If there is none, pins that of the listing.
    fn listed(&self, url: &str, meta: ObjectMeta) -> ObjectMeta {
        let mut state = self.state();
        let pin = state.pins.entry(url.to_owned()).or_insert(Pin { meta, is_listed: true, file: None });
        pin.meta.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pin {
    fn is(&self, other: &ObjectMeta) -> bool {
        let by_tag = self.meta.e_tag.as_deref().zip(other.e_tag.as_deref());
        let is_same = by_tag.map(|(pinned, found)| pinned.trim_matches('"') == found.trim_matches('"'));
        let is_alike = || {
            let second = |meta: &ObjectMeta| meta.last_modified.timestamp();
            self.meta.size == other.size && second(&self.meta) == second(other)
        };
        match is_same {
            // Some servers return different ETags for a file in a listing and in a response.
            Some(is_same) => is_same || self.is_listed && is_alike(),
            None => is_alike(),
        }
    }
}

/// Returns a path that opens an open file again with its own position, even if the file has been renamed or removed.
#[cfg(target_os = "linux")]
#[expect(clippy::unnecessary_wraps, reason = "other systems have no such path")]
fn path_of(file: &File) -> Option<Path> {
    use std::os::fd::AsRawFd;
    Some(Path::from(format!("proc/self/fd/{}", file.as_raw_fd())))
}

#[cfg(not(target_os = "linux"))]
fn path_of(_: &File) -> Option<Path> {
    None
}

/// Returns the file as messages name it.
fn shown(url: &str) -> String {
    url.strip_prefix(LOCAL).unwrap_or(url).to_owned()
}

/// Wraps each store that is registered in the session in a [`PinnedStore`].
#[derive(Debug)]
struct Registry {
    inner: DefaultObjectStoreRegistry,
    snapshot: Arc<Snapshot>,
}

impl ObjectStoreRegistry for Registry {
    fn register_store(&self, url: &Url, store: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        let (root, snapshot) = (url[..Position::BeforePath].to_owned(), Arc::clone(&self.snapshot));
        self.inner.register_store(url, Arc::new(PinnedStore { root, store, snapshot }))
    }

    fn deregister_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>, DataFusionError> {
        self.inner.deregister_store(url)
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>, DataFusionError> {
        self.inner.get_store(url)
    }
}

/// An object store that shows a statement each file in one version only.
#[derive(Debug, Clone)]
struct PinnedStore {
    root: String,
    store: Arc<dyn ObjectStore>,
    snapshot: Arc<Snapshot>,
}

impl PinnedStore {
    fn url(&self, path: &Path) -> String {
        format!("{}/{path}", self.root)
    }

    /// Returns the metadata of a listed file in its pinned version. A local file is kept open from here on, because it
    /// may be replaced before it is opened.
    async fn listed(&self, meta: ObjectMeta) -> Result<ObjectMeta> {
        let url = self.url(&meta.location);
        if self.root == LOCAL && self.snapshot.may_hold(&url) {
            let head = GetOptions { head: true, ..GetOptions::default() };
            if let Ok(found) = self.get_opts(&meta.location, head).await {
                return Ok(found.meta);
            }
        }
        Ok(self.snapshot.listed(&url, meta))
    }
}

impl fmt::Display for PinnedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for PinnedStore {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let url = self.url(location);
        // Writes to the open file are detected later. The handle keeps the file open while its descriptor path is
        // opened.
        if let Some((file, meta)) = self.snapshot.held(&url)
            && let Some(path) = path_of(&file)
        {
            let found = self.store.get_opts(&path, options).await?;
            return Ok(GetResult { meta, ..found });
        }
        let found = match self.store.get_opts(location, options).await {
            Ok(found) => found,
            Err(error) => {
                self.snapshot.state().gone |= matches!(error, Error::NotFound { .. });
                // A shorter new version lacks the requested bytes.
                if status_of(&error) == Some(416)
                    && let Ok(now) = self.store.head(location).await
                {
                    self.snapshot.compare(&url, &now)?;
                }
                return Err(error);
            }
        };
        // Only the root store of the local disk has absolute paths; other local stores are relative to a folder.
        self.snapshot.pin(&url, &found, self.root == LOCAL)?;
        Ok(found)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let this = self.clone();
        let listed = move |meta| {
            let this = this.clone();
            async move { this.listed(meta).await }
        };
        self.store.list(prefix).and_then(listed).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let mut listed = self.store.list_with_delimiter(prefix).await?;
        for meta in &mut listed.objects {
            *meta = self.listed(meta.clone()).await?;
        }
        Ok(listed)
    }

    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.store.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(locations)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}
