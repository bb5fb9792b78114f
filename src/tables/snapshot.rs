//! Reads every file of a statement in one version, even while another program replaces the file.
//!
//! A reader of Parquet requests a file several times: its size, its footer, then its pages. If the file is replaced in
//! between, it combines parts of two files. Here the first request of a statement pins the version of a file:
//!
//! - A local file is held open from its listing on, and requests read what is held (Linux only, and up to [`MOST_HELD`]
//!   files).
//! - Anywhere else, a request that gets another version is an error, on which the statement is executed again.
//!
//! A held file that is overwritten in place is noticed at the end of the statement.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::path::Path as FilePath;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
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

use crate::objects::DurableLocal;

/// How often a statement is executed, or a table opened, before a file that is replaced again and again is an error.
pub(crate) const ATTEMPTS: usize = 5;

/// The URL of the local disk, without its slash at the end.
const LOCAL: &str = "file://";

/// Local files that are held open at once.
const MOST_HELD: usize = 256;

/// The version of each file that the current statement of a session reads.
#[derive(Debug, Default)]
pub(crate) struct Snapshot(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By URL.
    pins: HashMap<String, Pin>,
    held: usize,
    /// A file of which another version was found.
    replaced: Option<String>,
    /// Whether a file that was to be read is not there.
    gone: bool,
}

#[derive(Debug)]
struct Pin {
    meta: ObjectMeta,
    /// Whether all that is known of the file comes from a listing.
    is_listed: bool,
    file: Option<Arc<File>>,
}

/// Makes the session read files through a [`Snapshot`].
pub(crate) fn install(context: SessionContext) -> Result<SessionContext, DataFusionError> {
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
    /// The snapshot of a session that has one.
    pub(crate) fn of(context: &SessionContext) -> Option<Arc<Self>> {
        context.state_ref().read().config().get_extension()
    }

    /// Forgets all versions: files are read as they are from now on.
    pub(crate) fn renew(&self) {
        *self.state() = State::default();
    }

    /// Whether a failure may be due to a file that was replaced or removed, so that another attempt may succeed.
    pub(crate) fn explains_failure(&self) -> bool {
        self.find_overwritten();
        let state = self.state();
        state.gone || state.replaced.is_some()
    }

    /// A file of which the statement read, or may have read, more than one version.
    pub(crate) fn replaced(&self) -> Option<String> {
        self.find_overwritten();
        self.state().replaced.clone()
    }

    /// Notes a held file whose size and time are no longer those that were pinned.
    ///
    /// A file that is written anew in place cannot be told from one that grows.
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

    /// Whether a file is new here, and may be held open.
    fn may_hold(&self, url: &str) -> bool {
        let state = self.state();
        state.held < MOST_HELD && !state.pins.contains_key(url)
    }

    /// The file that is held open, as it was when it was pinned.
    fn held(&self, url: &str) -> Option<(Arc<File>, ObjectMeta)> {
        let state = self.state();
        let pin = state.pins.get(url)?;
        Some((Arc::clone(pin.file.as_ref()?), pin.meta.clone()))
    }

    /// Refuses another version than the one that is pinned, and notes it.
    fn compare(&self, url: &str, found: &ObjectMeta) -> Result<()> {
        let mut state = self.state();
        if state.pins.get(url).is_none_or(|pin| pin.is(found)) {
            return Ok(());
        }
        state.replaced = Some(shown(url));
        Err(Error::Precondition { path: shown(url), source: "it was replaced while it was read".into() })
    }

    /// Pins the version that was found, unless another one is pinned.
    fn pin(&self, url: &str, found: &GetResult, may_hold: bool) -> Result<()> {
        self.compare(url, &found.meta)?;
        let mut state = self.state();
        if state.pins.get(url).is_some_and(|pin| !pin.is_listed) {
            return Ok(());
        }
        let file = match &found.payload {
            GetResultPayload::File(file, _) if may_hold && state.held < MOST_HELD => {
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

    /// The entry of a listing, or that of the version which is pinned.
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
            // Some servers have one tag for a file in a listing and another in an answer.
            Some(is_same) => is_same || self.is_listed && is_alike(),
            None => is_alike(),
        }
    }
}

/// A path by which an open file can be opened once more, with a position of its own, whatever its name is by now.
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

/// The file as messages name it.
fn shown(url: &str) -> String {
    url.strip_prefix(LOCAL).unwrap_or(url).to_owned()
}

/// Wraps each store that a session is given.
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

/// A store of which a statement sees each file in one version.
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

    /// The entry of a listing, in the version that is read. A local file is held from here on, as it may be replaced
    /// before it is opened.
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
        // What is written to it meanwhile is looked for afterwards. It stays open while it is opened by its number.
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
                // A new version that is shorter does not have the bytes that were asked for. object_store has no type for
                // that answer.
                if error.to_string().contains("status code: 416")
                    && let Ok(now) = self.store.head(location).await
                {
                    self.snapshot.compare(&url, &now)?;
                }
                return Err(error);
            }
        };
        // The paths of other local stores are relative to a folder.
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
