//! Places of files: a path of this machine, a key in a bucket, or a model of a hub; by the letter, without looking at
//! any.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use url::Url;

use super::hub::{self, HubModel};
use super::problem::{Problem, closest};

/// Where a file or a folder is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// On the local disk.
    Local(PathBuf),
    /// In a bucket.
    Remote(Remote),
    /// A model of a hub.
    Hub(HubModel),
}

impl Place {
    /// The path, if the place is on the local disk.
    #[must_use]
    pub fn local(&self) -> Option<&Path> {
        match self {
            Self::Local(path) => Some(path),
            Self::Remote(_) | Self::Hub(_) => None,
        }
    }

    /// The bucket and the key, if the place is in a bucket.
    #[must_use]
    pub fn remote(&self) -> Option<&Remote> {
        match self {
            Self::Remote(remote) => Some(remote),
            Self::Local(_) | Self::Hub(_) => None,
        }
    }

    /// The place of that name below this one, taken for a folder.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        match self {
            Self::Local(path) => Self::Local(path.join(name)),
            Self::Remote(remote) => Self::Remote(remote.join(name)),
            Self::Hub(model) => {
                let folder = model.folder();
                let folder = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
                Self::Hub(model.with_folder(&folder))
            }
        }
    }

    /// The last part of the path or key.
    #[must_use]
    pub fn name(&self) -> String {
        self.as_path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The place of that name beside this one.
    #[must_use]
    pub fn with_name(&self, name: &str) -> Self {
        match self {
            Self::Local(path) => Self::Local(path.with_file_name(name)),
            Self::Remote(remote) => {
                let key = Path::new(remote.key()).with_file_name(name);
                Self::Remote(remote.with_key(key.to_string_lossy()))
            }
            Self::Hub(model) => {
                let folder = Path::new(model.folder()).with_file_name(name);
                Self::Hub(model.with_folder(&folder.to_string_lossy()))
            }
        }
    }

    /// Tells whether the place names several files by a pattern.
    #[must_use]
    pub fn is_glob(&self) -> bool {
        is_glob(self.as_path())
    }

    /// Tells whether the place names a folder: by a `/` at its end, or by having no extension.
    #[must_use]
    pub fn is_folder(&self) -> bool {
        let path = self.as_path();
        path.as_os_str().as_encoded_bytes().ends_with(b"/") || path.extension().is_none()
    }

    /// Tells whether reading this place, a file, a folder or a glob, would read the other one, a file.
    #[must_use]
    pub fn covers(&self, file: &Self) -> bool {
        // Of a hub, only models are read.
        if matches!(self, Self::Hub(_)) || matches!(file, Self::Hub(_)) {
            return false;
        }
        if self.remote().map(Remote::root) != file.remote().map(Remote::root) {
            return false;
        }
        let (files, file) = (normal(self.as_path()), normal(file.as_path()));
        if self.is_glob() {
            matches(files.as_os_str().as_encoded_bytes(), file.as_os_str().as_encoded_bytes())
        } else {
            file == files || self.is_folder() && file.starts_with(files)
        }
    }

    /// The extension of the name, without its dot.
    #[must_use]
    pub fn extension(&self) -> Option<&str> {
        self.as_path().extension()?.to_str()
    }

    /// The path, or the key as a path: both have names between slashes, and the last may have an extension.
    pub(super) fn as_path(&self) -> &Path {
        match self {
            Self::Local(path) => path,
            Self::Remote(remote) => Path::new(&remote.key),
            Self::Hub(model) if model.folder().is_empty() => Path::new(model.repository()),
            Self::Hub(model) => Path::new(model.folder()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => path.display().fmt(f),
            Self::Remote(remote) => remote.fmt(f),
            Self::Hub(model) => model.fmt(f),
        }
    }
}

/// The service that a bucket belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// Amazon S3, or a server that speaks its protocol: `s3://`, `s3a://`.
    S3,
    /// Google Cloud Storage: `gs://`.
    Gcs,
    /// Azure Blob Storage: `az://`, `abfs://`, `abfss://`.
    Azure,
}

/// The schemes, each with the one that is used instead of it, and its service; `s3a://` is Hadoop's word for `s3://`.
const SCHEMES: [(&str, &str, Service); 6] = [
    ("s3", "s3", Service::S3),
    ("s3a", "s3", Service::S3),
    ("gs", "gs", Service::Gcs),
    ("az", "az", Service::Azure),
    ("abfs", "abfs", Service::Azure),
    ("abfss", "abfss", Service::Azure),
];

/// A key in a bucket, to the letter: nothing in it is percent-encoded.
///
/// A key that ends in `/` is a folder, that is, all keys that begin with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Remote {
    service: Service,
    scheme: &'static str,
    /// The bucket; for Azure the container, or `container@account.host`.
    bucket: String,
    /// Without a `/` at its start.
    key: String,
}

impl Remote {
    /// The service that the bucket belongs to.
    #[must_use]
    pub fn service(&self) -> Service {
        self.service
    }

    /// The bucket; for Azure the container, or `container@account.host`.
    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The bucket as a URI, as in `s3://bucket`; one spelling a bucket.
    #[must_use]
    pub fn root(&self) -> String {
        format!("{}://{}", self.scheme, self.bucket)
    }

    /// The key, without a `/` at its start; empty for all of the bucket.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The same bucket with another key.
    #[must_use]
    pub fn with_key(&self, key: impl Into<String>) -> Self {
        Self { key: key.into(), ..self.clone() }
    }

    /// The key of that name below this one.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        let folder = self.key.trim_end_matches('/');
        self.with_key(if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") })
    }

    /// The URL, in which what has a meaning in URLs is percent-encoded.
    #[must_use]
    pub fn url(&self) -> Url {
        self.url_under(&self.root())
    }

    /// The URL for a session of DataFusion, which tells stores apart by the host alone: there, containers of one
    /// account would be one.
    #[must_use]
    pub fn session_url(&self) -> Url {
        self.url_under(&self.root().replace('@', "."))
    }

    fn url_under(&self, root: &str) -> Url {
        let mut url = Url::parse(root).expect("a bucket's characters may stand in a host");
        url.path_segments_mut().expect("a URL with a host has a path").pop_if_empty().extend(self.key.split('/'));
        url
    }

    /// Reads what stands behind `scheme://`; none for an unknown scheme.
    fn parse(scheme: &str, rest: &str) -> Option<Result<Self, Problem>> {
        let scheme = scheme.to_ascii_lowercase();
        let &(_, scheme, service) = SCHEMES.iter().find(|(name, ..)| *name == scheme)?;
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let place = Self { service, scheme, bucket: bucket.to_owned(), key: key.to_owned() };
        Some(place.check_bucket().and_then(|()| place.check_key()).map(|()| place))
    }

    fn check_bucket(&self) -> Result<(), Problem> {
        let (scheme, bucket) = (self.scheme, &self.bucket);
        if bucket.is_empty() {
            let problem = Problem::new(format!("`{scheme}://` is without a bucket"), "no bucket");
            return Err(problem.help(format!("write `{scheme}://BUCKET/KEY`")));
        }
        let is_account = self.service == Service::Azure && scheme.starts_with("abfs");
        if bucket.contains(':') || bucket.contains('@') && !is_account {
            // Neither the value nor its line is shown: what stands there may be a key.
            let problem = Problem::new(format!("a `{scheme}://` URI holds credentials or a port"), "").confidential();
            return Err(problem.help(format!(
                "a URI names a bucket and a key only; credentials are taken from the environment ({})",
                self.service.credentials()
            )));
        }
        let is_allowed = |char: char| char.is_ascii_alphanumeric() || "-._".contains(char);
        if bucket.split('@').count() > 2
            || !bucket.split('@').all(|part| !part.is_empty() && part.chars().all(is_allowed))
        {
            let problem = Problem::new(format!("\"{bucket}\" cannot be the name of a bucket"), "not a bucket");
            return Err(problem.allowed("letters, digits, `-`, `.` and `_`"));
        }
        Ok(())
    }

    fn check_key(&self) -> Result<(), Problem> {
        let folder = self.key.strip_suffix('/').unwrap_or(&self.key);
        let mut names = folder.split('/');
        let wrong =
            names.find(|name| matches!(*name, "" | "." | "..") || name.chars().any(|char| char.is_ascii_control()));
        match wrong {
            Some(_) if self.key.is_empty() => Ok(()),
            None => Ok(()),
            Some(name) => {
                let message = match name {
                    "" => format!("`{self}` has a key with two slashes in a row"),
                    "." | ".." => format!("`{name}` in `{self}` means nothing in a bucket"),
                    _ => format!("the key of {:?} has a control character", self.to_string()),
                };
                Err(Problem::new(message, "not a key").help("write the key from the bucket on, as the server lists it"))
            }
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/{}", self.scheme, self.bucket, self.key)
    }
}

impl Service {
    /// The variables that credentials are taken from.
    #[must_use]
    pub fn credentials(self) -> &'static str {
        match self {
            Self::S3 => "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            Self::Gcs => "GOOGLE_APPLICATION_CREDENTIALS",
            Self::Azure => "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
        }
    }
}

/// Makes a place of a path, glob or URI; a relative path starts at `folder`.
pub(super) fn resolve(folder: &Path, text: &str) -> Result<Place, Problem> {
    match read(folder, text, PLACES)? {
        Place::Hub(_) => {
            let problem = Problem::new(format!("`{text}` is a model; only models are read from a hub"), "not a model");
            Err(problem.allowed(PLACES))
        }
        place => Ok(place),
    }
}

/// The same for a model, which may be one of a hub.
pub(super) fn resolve_model(folder: &Path, text: &str) -> Result<Place, Problem> {
    read(folder, text, &format!("{PLACES}, {}", hub::FORM))
}

fn read(folder: &Path, text: &str, allowed: &str) -> Result<Place, Problem> {
    let Some((scheme, rest)) = scheme_of(text) else { return Ok(Place::Local(folder.join(text))) };
    if scheme.eq_ignore_ascii_case("file") {
        return Ok(Place::Local(folder.join(rest)));
    }
    if scheme.eq_ignore_ascii_case(hub::SCHEME) {
        return HubModel::parse(rest).map(Place::Hub);
    }
    Remote::parse(scheme, rest).map_or_else(
        || {
            let problem = Problem::new(format!("couplet cannot read `{scheme}://`"), "unknown scheme");
            let web = scheme.to_ascii_lowercase().starts_with("http");
            let on_hub = rest.strip_prefix("huggingface.co/").filter(|_| web);
            let problem = match closest(scheme, SCHEMES.iter().map(|&(name, ..)| name)) {
                _ if on_hub.is_some() => problem.help(format!("a model of the hub is written {}", hub::FORM)),
                Some(near) => problem.help(format!("did you mean `{near}://`?")),
                None => problem,
            };
            Err(problem.allowed(allowed))
        },
        |remote| remote.map(Place::Remote),
    )
}

/// What a place may be.
const PLACES: &str = "a local path, s3://BUCKET/KEY, gs://BUCKET/KEY, az://CONTAINER/KEY, \
                      abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/KEY";

/// The place of a model that a text names, a relative path taken as it is.
///
/// # Errors
/// What is wrong with a URI, in one line.
pub fn model_place(text: &str) -> Result<Place, String> {
    resolve_model(Path::new(""), text).map_err(Problem::into_line)
}

/// The place of a table that a text names, a relative path taken as it is.
///
/// # Errors
/// What is wrong with a URI, in one line.
pub fn table_place(text: &str) -> Result<Place, String> {
    resolve(Path::new(""), text).map_err(Problem::into_line)
}

/// Makes a path of a path or `file://` URI; `key` is the key that cannot be anything else.
pub(super) fn resolve_local(folder: &Path, text: &str, key: &str) -> Result<PathBuf, Problem> {
    match scheme_of(text) {
        None => Ok(folder.join(text)),
        Some((scheme, path)) if scheme.eq_ignore_ascii_case("file") => Ok(folder.join(path)),
        Some((scheme, _)) => {
            let problem =
                Problem::new(format!("`{key}` must be on the local disk, not at `{scheme}://`"), "not a local path");
            Err(problem.help("use a local path; a relative one starts at the folder of the pipeline file"))
        }
    }
}

/// Splits a URI; RFC 3986, section 3.1.
fn scheme_of(text: &str) -> Option<(&str, &str)> {
    text.split_once("://").filter(|(scheme, _)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.chars().all(|char| char.is_ascii_alphanumeric() || "+-.".contains(char))
    })
}

/// Tells whether a path has a pattern in it.
pub(super) fn is_glob(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().iter().any(|byte| b"*?[".contains(byte))
}

/// Removes `.` and `..` by the letter: good enough to compare, not to open where links are about.
fn normal(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if matches!(parts.components().next_back(), Some(Component::Normal(_))) => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts
}

/// Matches a glob: `*` is any text, slashes included as for `DataFusion`, `?` any one byte; `[…]` only itself.
fn matches(glob: &[u8], text: &[u8]) -> bool {
    match (glob, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=text.len()).any(|skipped| matches(rest, &text[skipped..])),
        ([b'?', rest @ ..], [_, text @ ..]) => matches(rest, text),
        ([literal, rest @ ..], [first, text @ ..]) => literal == first && matches(rest, text),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Place {
        resolve(Path::new(""), text).unwrap()
    }

    #[test]
    fn a_table_covers_the_files_that_reading_it_reads() {
        let covers = |table: &str, file: &str| place(table).covers(&place(file));
        assert!(covers("a/b.parquet", "a/./c/../b.parquet"));
        assert!(covers("a", "a/b/c.parquet"));
        assert!(covers("a.d/", "a.d/c.parquet"));
        assert!(covers("a/*.parquet", "a/c.parquet"));
        assert!(covers("a/dt=*/?.parquet", "a/dt=1/c.parquet"));
        assert!(covers("../a/**/c.parquet", "../a/b/c.parquet"));
        assert!(covers("s3://b/a/*.parquet", "s3a://b/a/c.parquet"));
        assert!(covers("s3://b", "s3://b/a/c.parquet"));
        assert!(!covers("a/b.parquet", "a/c.parquet"));
        assert!(!covers("a", "ab/c.parquet"));
        assert!(!covers("a/*.parquet", "b/c.parquet"));
        assert!(!covers("../a.parquet", "a.parquet"));
        assert!(!covers("s3://b/a", "s3://c/a/c.parquet"));
        assert!(!covers("s3://b/a", "gs://b/a/c.parquet"));
        assert!(!covers("b/a", "s3://b/a/c.parquet"));
    }

    #[test]
    fn a_key_is_taken_to_the_letter() {
        let Place::Remote(remote) = place("S3A://bucket/a b/dt=1%2F2/?#é/*.parquet") else { panic!("not remote") };
        assert_eq!((remote.root().as_str(), remote.key()), ("s3://bucket", "a b/dt=1%2F2/?#é/*.parquet"));
        assert_eq!(remote.to_string(), "s3://bucket/a b/dt=1%2F2/?#é/*.parquet");
        assert_eq!(remote.url().as_str(), "s3://bucket/a%20b/dt=1%252F2/%3F%23%C3%A9/*.parquet");
        assert_eq!(remote.with_key("a/").url().as_str(), "s3://bucket/a/");
        assert_eq!(remote.with_key("").url().as_str(), "s3://bucket/");
        assert_eq!(remote.with_key("a/").join("b").key(), "a/b");
        assert_eq!(remote.with_key("").join("b").key(), "b");
        let url = "abfss://container@account.dfs.core.windows.net/a/b";
        assert_eq!(place(url).remote().map(|remote| remote.url().to_string()).as_deref(), Some(url));
    }

    #[test]
    fn what_is_no_bucket_or_key_is_refused() {
        let refused = |text: &str| resolve(Path::new(""), text).unwrap_err().message;
        assert_eq!(refused("s3:///key"), "`s3://` is without a bucket");
        assert_eq!(refused("s3://b!/key"), "\"b!\" cannot be the name of a bucket");
        assert_eq!(refused("s3://b/a//b"), "`s3://b/a//b` has a key with two slashes in a row");
        assert_eq!(refused("s3://b/a/../b"), "`..` in `s3://b/a/../b` means nothing in a bucket");
        assert_eq!(refused("s3://AKIA:secret@b/key"), "a `s3://` URI holds credentials or a port");
        assert_eq!(refused("hf://org/name"), "`hf://org/name` is a model; only models are read from a hub");
        assert_eq!(refused("ftp://org/name"), "couplet cannot read `ftp://`");
    }
}
