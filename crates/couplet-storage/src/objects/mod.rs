//! Object stores: opens a place on the local disk or in a bucket as an object store and a path in it.
//!
//! Settings and credentials of services come from the environment, under the names that their own tools use. A process
//! has one client per bucket. Opening a place sends no request. `uploads` cleans up the uploads of killed runs.

mod credentials;
mod download;
mod durable;
mod error;
mod lock_place;
mod store_folder;
mod uploads;

use std::collections::HashMap;
use std::fmt;
use std::path::{Component, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use futures::TryStreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientConfigKey, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig};
use url::Url;

use crate::place::{Place, Remote, Service};

pub use crate::trouble::Trouble;
use credentials::Connector;
pub use download::download;
pub use durable::DurableLocal;
pub(crate) use durable::NoLinks;
pub use durable::unconfirmed_in;
pub(crate) use error::explain_local;
pub use error::{
    ObjectsError, cause_in, cut_responses, explain_without_place, status_of, without_responses, without_secrets,
};
pub use lock_place::{Explain, LockPlace};
pub use store_folder::{Entries, Entry, StoreFolder};
use uploads::Uploads;
pub use uploads::abort_noted_uploads;

/// Returns the retry policy: at most 10 retries within a minute. That outlasts a short outage of the service, and a run
/// that cannot continue still fails soon. The default of `object_store` is three minutes.
fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig { max_backoff: Duration::from_secs(5), ..BackoffConfig::default() },
        max_retries: 10,
        retry_timeout: Duration::from_mins(1),
    }
}

/// The suffix of pending objects, which are not yet in their place: `.NAME.RUN.couplet-pending` beside it.
pub const PENDING: &str = ".couplet-pending";

/// A place, opened as an object store and a path in it.
#[derive(Debug, Clone)]
pub struct Objects {
    /// The store: a bucket, or the local disk from its root.
    pub store: Arc<dyn ObjectStore>,
    /// The path of the place in the store.
    pub root: Path,
    /// The place as a URL: percent-encoded, `file://` for the local disk; ends in `/` if the place does.
    pub url: Url,
    /// The place as written in the configuration, for messages.
    pub place: Place,
    /// The bucket as a store of multipart uploads; none if the service needs no explicit abort.
    uploads: Option<Uploads>,
}

impl Objects {
    /// Opens a place, which need not exist. A relative path is resolved against the current folder.
    ///
    /// # Errors
    /// Settings in the environment that are invalid for the service.
    pub fn open(place: &Place) -> Result<Self, ObjectsError> {
        let wrong = |problem: String| ObjectsError::new(place, Trouble::Settings, problem);
        match place {
            Place::Local(path) => {
                let absolute = without_parents(&std::path::absolute(path).map_err(|e| wrong(e.to_string()))?);
                let root = Path::from_absolute_path(&absolute).map_err(|e| wrong(e.to_string()))?;
                let is_folder = path.as_os_str().as_encoded_bytes().ends_with(b"/");
                let url = if is_folder { Url::from_directory_path(&absolute) } else { Url::from_file_path(&absolute) };
                let url = url.map_err(|()| wrong("this path cannot be written as a URL".into()))?;
                Ok(Self { store: Arc::new(DurableLocal::new()), root, url, place: place.clone(), uploads: None })
            }
            Place::Remote(remote) => {
                let root = Path::parse(remote.key()).map_err(|e| wrong(e.to_string()))?;
                let Client { store, uploads } = client(remote)?;
                Ok(Self { store, root, url: remote.url(), place: place.clone(), uploads })
            }
            Place::Hub(_) => Err(wrong("only models are read from a hub".into())),
        }
    }

    /// Returns the folder of that name below this place.
    #[must_use]
    pub fn folder(&self, name: &str) -> Self {
        let mut url = self.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend([name, ""]);
        }
        Self { root: self.root.clone().join(name), url, place: self.place.join(name), ..self.clone() }
    }

    /// Returns this place as the location of a lock.
    #[must_use]
    pub fn lock_place(&self) -> LockPlace {
        match &self.place {
            Place::Local(path) => LockPlace::Folder(path.clone()),
            Place::Remote(_) | Place::Hub(_) => {
                let objects = self.clone();
                LockPlace::Objects {
                    store: Arc::clone(&self.store),
                    root: self.root.clone(),
                    name: self.place.to_string(),
                    explain: Explain::new(move |error| objects.error(error).into()),
                }
            }
        }
    }

    /// Returns the path of an object below this place; `name` may contain slashes.
    #[must_use]
    pub fn path(&self, name: &str) -> Path {
        name.split('/').filter(|part| !part.is_empty()).fold(self.root.clone(), Path::join)
    }

    /// Explains an error of the store for this place.
    #[must_use]
    pub fn error(&self, error: &object_store::Error) -> ObjectsError {
        error::explain(&self.place, error)
    }

    /// Explains an error of the store for one of its objects.
    #[must_use]
    pub fn error_at(&self, path: &Path, error: &object_store::Error) -> ObjectsError {
        error::explain(&self.place_of(path), error)
    }

    /// Returns the place of an object of this store.
    #[must_use]
    pub fn place_of(&self, path: &Path) -> Place {
        match &self.place {
            Place::Local(_) => Place::Local(format!("/{path}").into()),
            Place::Remote(remote) => Place::Remote(remote.with_key(path.as_ref())),
            Place::Hub(_) => unreachable!("no object store is a hub"),
        }
    }

    /// Returns the metadata of the object at this place; none if there is no such object.
    ///
    /// # Errors
    /// A server that cannot be reached or refuses.
    pub async fn head(&self) -> Result<Option<ObjectMeta>, ObjectsError> {
        // An empty path is the bucket itself.
        if self.root.as_ref().is_empty() {
            return Ok(None);
        }
        match self.store.head(&self.root).await {
            Ok(found) => Ok(Some(found)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.error(&e)),
        }
    }

    /// Returns true if there is an object below this place, treated as a folder.
    ///
    /// # Errors
    /// A server that cannot be reached or refuses.
    pub async fn has_children(&self) -> Result<bool, ObjectsError> {
        let first = self.store.list(Some(&self.root)).try_next().await;
        Ok(first.map_err(|e| self.error(&e))?.is_some())
    }

    /// Returns true if there is a file or a folder at this place.
    ///
    /// # Errors
    /// A server that cannot be reached or refuses.
    pub async fn exists(&self) -> Result<bool, ObjectsError> {
        match &self.place {
            Place::Local(path) => Ok(path.exists()),
            Place::Remote(_) | Place::Hub(_) => Ok(self.head().await?.is_some() || self.has_children().await?),
        }
    }
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(f)
    }
}

/// Removes `..` from a path, as stores do not support it. The parent of a link is the parent of its target.
fn without_parents(path: &std::path::Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path.components() {
        if part == Component::ParentDir {
            parts = parts.canonicalize().unwrap_or(parts);
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts
}

/// A client for one bucket.
#[derive(Debug, Clone)]
struct Client {
    store: Arc<dyn ObjectStore>,
    uploads: Option<Uploads>,
}

impl Client {
    /// Wraps the client of a service that keeps multipart uploads until they are completed or aborted.
    fn with_uploads(store: impl ObjectStore + MultipartStore) -> Self {
        let store = Arc::new(store);
        Self { store: Arc::clone(&store) as _, uploads: Some(Uploads(store)) }
    }
}

/// The clients of this process, by bucket URI. Each keeps its connections and credentials.
static CLIENTS: LazyLock<Mutex<HashMap<String, Client>>> = LazyLock::new(Mutex::default);

fn client(remote: &Remote) -> Result<Client, ObjectsError> {
    let mut clients = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(client) = clients.get(&remote.root()) {
        return Ok(client.clone());
    }
    let client = connect(remote)?;
    clients.insert(remote.root(), client.clone());
    Ok(client)
}

/// Creates a client from the settings in the environment. It sends no request.
fn connect(remote: &Remote) -> Result<Client, ObjectsError> {
    let place = Place::Remote(remote.clone());
    let invalid_settings = |e: object_store::Error| error::invalid_settings(&place, remote.service(), &e);
    Ok(match remote.service() {
        Service::S3 => {
            let builder = AmazonS3Builder::from_env().with_bucket_name(remote.bucket()).with_retry(retries());
            // Without a checksum, SeaweedFS 4.48 stores an empty object if a request breaks off after its headers.
            let builder = builder.with_checksum_algorithm(Checksum::SHA256);
            let setting = |key| builder.get_config_value(&key);
            let endpoint = setting(AmazonS3ConfigKey::S3Endpoint).or_else(|| setting(AmazonS3ConfigKey::Endpoint));
            let allow_http = setting(AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp));
            error::check_endpoint(&place, endpoint.as_deref(), allow_http.as_deref(), "AWS_ALLOW_HTTP")?;
            for (key, variable) in [
                (AmazonS3ConfigKey::AccessKeyId, "AWS_ACCESS_KEY_ID"),
                (AmazonS3ConfigKey::SecretAccessKey, "AWS_SECRET_ACCESS_KEY"),
                (AmazonS3ConfigKey::Token, "AWS_SESSION_TOKEN"),
                (AmazonS3ConfigKey::Region, "AWS_REGION"),
            ] {
                error::check_value(&place, setting(key).as_deref(), variable)?;
            }
            let has = |key| setting(key).is_some();
            if has(AmazonS3ConfigKey::AccessKeyId) != has(AmazonS3ConfigKey::SecretAccessKey) {
                let has_key = has(AmazonS3ConfigKey::AccessKeyId);
                let variable = if has_key { "AWS_SECRET_ACCESS_KEY" } else { "AWS_ACCESS_KEY_ID" };
                let problem = format!("{variable} is not set; set both {}", remote.service().credentials());
                return Err(ObjectsError::new(&place, Trouble::Settings, problem));
            }
            Client::with_uploads(builder.with_http_connector(Connector::default()).build().map_err(invalid_settings)?)
        }
        Service::Gcs => {
            let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(remote.bucket());
            let builder = builder.with_retry(retries()).with_http_connector(Connector::default());
            Client::with_uploads(builder.build().map_err(invalid_settings)?)
        }
        Service::Azure => {
            let builder = MicrosoftAzureBuilder::from_env().with_url(remote.root()).with_retry(retries());
            let builder = builder.with_http_connector(Connector::default());
            let setting = |key| builder.get_config_value(&key);
            let endpoint = setting(AzureConfigKey::Endpoint);
            let allow_http = setting(AzureConfigKey::Client(ClientConfigKey::AllowHttp));
            error::check_endpoint(&place, endpoint.as_deref(), allow_http.as_deref(), "AZURE_ALLOW_HTTP")?;
            Client { store: Arc::new(builder.build().map_err(invalid_settings)?), uploads: None }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_local_place_is_found_in_its_store_whatever_its_name() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().canonicalize().unwrap();
        std::fs::create_dir(folder.join("a b")).unwrap();
        for name in ["x.txt", "100% é #?.txt", "a*[b].txt"] {
            std::fs::write(folder.join(name), name).unwrap();
            let place = Place::Local(folder.join("a b").join("..").join(name));
            let objects = Objects::open(&place).unwrap();
            assert_eq!(objects.head().await.unwrap().map(|found| found.size), Some(name.len() as u64), "{name}");
            assert!(objects.exists().await.unwrap());
            assert_eq!(objects.place_of(&objects.root), Place::Local(folder.join(name)));
            assert_eq!(objects.url.to_file_path().unwrap(), folder.join(name));
        }
        let objects = Objects::open(&Place::Local(folder.join("none"))).unwrap();
        assert!(!objects.exists().await.unwrap() && !objects.has_children().await.unwrap());
    }
}
