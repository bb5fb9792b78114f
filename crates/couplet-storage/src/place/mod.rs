//! Locations of files: a local path, a key in a bucket, or a model of a hub. Parsing does no I/O; only comparisons of
//! places resolve local links.

#![expect(clippy::result_large_err, reason = "a place is read once, and a mistake in it ends the program")]

use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use crate::files::real_path;
use crate::redact::holds_credentials;
use crate::words::closest;

mod hub;
mod problem;
mod remote;

pub use hub::HubModel;
pub use problem::Problem;
use remote::SCHEMES;
pub use remote::{Remote, Service};

/// The location of a file, a folder or a model.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// On the local disk.
    Local(PathBuf),
    /// In a bucket.
    Remote(Remote),
    /// A model of a hub.
    Hub(HubModel),
}

/// The position of a place relative to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// Both are the same place.
    Same,
    /// It is inside the other one.
    Inside,
    /// It contains the other one.
    Contains,
}

impl Place {
    /// Returns the path, if the place is on the local disk.
    #[must_use]
    pub fn local(&self) -> Option<&Path> {
        match self {
            Self::Local(path) => Some(path),
            Self::Remote(_) | Self::Hub(_) => None,
        }
    }

    /// Returns the bucket and the key, if the place is in a bucket.
    #[must_use]
    pub fn remote(&self) -> Option<&Remote> {
        match self {
            Self::Remote(remote) => Some(remote),
            Self::Local(_) | Self::Hub(_) => None,
        }
    }

    /// Returns the place of that name in this one, which is treated as a folder.
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

    /// Returns the last part of the path or key.
    #[must_use]
    pub fn name(&self) -> String {
        self.as_path().file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Returns the place of that name in the parent folder.
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

    /// Returns true if the place is a glob pattern.
    #[must_use]
    pub fn is_glob(&self) -> bool {
        is_glob(self.as_path())
    }

    /// Returns true if the place is a folder: it ends in `/` or has no extension.
    #[must_use]
    pub fn is_folder(&self) -> bool {
        let path = self.as_path();
        path.as_os_str().as_encoded_bytes().ends_with(b"/") || path.extension().is_none()
    }

    /// Returns true if reading this place (a file, a folder or a glob) would read the given file.
    #[must_use]
    pub fn covers(&self, file: &Self) -> bool {
        // Only models are read from a hub, never tables.
        if matches!(self, Self::Hub(_)) || matches!(file, Self::Hub(_)) {
            return false;
        }
        if self.remote().map(Remote::root) != file.remote().map(Remote::root) {
            return false;
        }
        let (files, file) = (self.real(), file.real());
        // An existing path is taken literally, even if it contains pattern characters.
        let exists = matches!(self, Self::Local(path) if path.exists());
        if self.is_glob() && !exists {
            matches(files.as_os_str().as_encoded_bytes(), file.as_os_str().as_encoded_bytes())
        } else {
            file == files || self.is_folder() && file.starts_with(files)
        }
    }

    /// Returns true if both are the same place, even if they are written differently.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Local(_), Self::Local(_)) => self.real() == other.real(),
            _ => self == other,
        }
    }

    /// Returns the position of this place relative to another one; `None` if they do not overlap.
    #[must_use]
    pub fn overlap(&self, other: &Self) -> Option<Overlap> {
        // Nothing is written to a hub.
        let is_of_hub = |place: &Self| matches!(place, Self::Hub(_));
        let root = |place: &Self| place.remote().map(Remote::root);
        if is_of_hub(self) || is_of_hub(other) || root(self) != root(other) {
            return None;
        }
        let (own, other) = (self.real(), other.real());
        match (own.starts_with(&other), other.starts_with(&own)) {
            (true, true) => Some(Overlap::Same),
            (true, false) => Some(Overlap::Inside),
            (false, true) => Some(Overlap::Contains),
            (false, false) => None,
        }
    }

    /// Returns true if this place is the other one or inside it.
    #[must_use]
    pub fn is_in(&self, other: &Self) -> bool {
        matches!(self.overlap(other), Some(Overlap::Same | Overlap::Inside))
    }

    /// Returns the path with links resolved as far as it exists; for a key, the key without `.` and `..`.
    #[must_use]
    pub fn real(&self) -> PathBuf {
        let Self::Local(path) = self else { return normalized(self.as_path()) };
        real_path(path)
    }

    /// Returns the extension of the name, without its dot.
    #[must_use]
    pub fn extension(&self) -> Option<&str> {
        self.as_path().extension()?.to_str()
    }

    /// Returns the path, or the key as a path. Both are names separated by slashes, and the last may have an extension.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        match self {
            Self::Local(path) => path,
            Self::Remote(remote) => Path::new(remote.key()),
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

/// Serializes a place as an absolute path or a URI, so that another process opens the same files.
impl Serialize for Place {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Local(path) => {
                let absolute = std::path::absolute(path).map_err(ser::Error::custom)?;
                let is_folder = path.as_os_str().as_encoded_bytes().ends_with(b"/");
                let text = absolute.to_str().ok_or_else(|| ser::Error::custom(format!("{self} is not UTF-8")))?;
                let end = if is_folder && !text.ends_with('/') { "/" } else { "" };
                serializer.collect_str(&format_args!("{text}{end}"))
            }
            _ => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        table_place(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// Parses a path, glob or URI of a table. A relative path is resolved against `folder`.
///
/// # Errors
/// A text that names no such place.
pub fn resolve(folder: &Path, text: &str) -> Result<Place, Problem> {
    match read(folder, text, PLACES)? {
        Place::Hub(_) => {
            let problem = Problem::new(format!("`{text}` is a model; only models are read from a hub"), "not a model");
            Err(problem.allowed(PLACES))
        }
        place => Ok(place),
    }
}

/// Parses the place of a model, which may be on a hub. A relative path is resolved against `folder`.
///
/// # Errors
/// A text that names no such place.
pub fn resolve_model(folder: &Path, text: &str) -> Result<Place, Problem> {
    read(folder, text, &format!("{PLACES}, {}", hub::FORM))
}

fn read(folder: &Path, text: &str, allowed: &str) -> Result<Place, Problem> {
    let Some((scheme, rest)) = scheme_of(text) else { return Ok(Place::Local(folder.join(text))) };
    // Errors about bucket URIs name the variables that credentials are read from.
    let is_bucket = SCHEMES.iter().any(|(name, ..)| scheme.eq_ignore_ascii_case(name));
    if !is_bucket && holds_credentials(text) {
        let problem = Problem::new(format!("a `{scheme}://` URI holds credentials"), "").confidential();
        return Err(problem.allowed(allowed));
    }
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

/// The allowed forms of a place, for messages.
const PLACES: &str = "a local path, s3://BUCKET/KEY, gs://BUCKET/KEY, az://CONTAINER/KEY, \
                      abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/KEY";

/// Parses the place of a model; a relative path is kept as it is.
///
/// # Errors
/// A one-line message about an invalid URI.
pub fn model_place(text: &str) -> Result<Place, String> {
    resolve_model(Path::new(""), text).map_err(Problem::into_line)
}

/// Parses the place of a table; a relative path is kept as it is.
///
/// # Errors
/// A one-line message about an invalid URI.
pub fn table_place(text: &str) -> Result<Place, String> {
    resolve(Path::new(""), text).map_err(Problem::into_line)
}

/// Parses a path or `file://` URI. `key` is the configuration key that the error about other URIs names.
///
/// # Errors
/// A text that names no such place.
pub fn resolve_local(folder: &Path, text: &str, key: &str) -> Result<PathBuf, Problem> {
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

/// Splits a URI into scheme and rest; RFC 3986, section 3.1.
fn scheme_of(text: &str) -> Option<(&str, &str)> {
    text.split_once("://").filter(|(scheme, _)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.chars().all(|char| char.is_ascii_alphanumeric() || "+-.".contains(char))
    })
}

/// Returns true if a path contains pattern characters.
#[must_use]
pub fn is_glob(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().iter().any(|byte| b"*?[".contains(byte))
}

/// Removes `.` and `..` lexically. The result is for comparisons only: with links it may name another file.
fn normalized(path: &Path) -> PathBuf {
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

/// Matches a glob: `*` is any text (slashes included, as in `DataFusion`), `?` any one byte; `[…]` is literal.
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
    fn places_are_apart_or_one_is_in_the_other() {
        let overlap = |one: &str, other: &str| place(one).overlap(&place(other));
        assert_eq!(overlap("a/./c/../b", "a/b/"), Some(Overlap::Same));
        assert_eq!(overlap("a/b/c.parquet", "a/b"), Some(Overlap::Inside));
        assert_eq!(overlap("a", "../a/../a/b"), None);
        assert_eq!(overlap("a", "a/b"), Some(Overlap::Contains));
        assert_eq!(overlap("a", "ab"), None);
        assert_eq!(overlap("s3://b", "s3a://b/a"), Some(Overlap::Contains));
        assert_eq!(overlap("s3://b/a/", "s3://b/a"), Some(Overlap::Same));
        assert_eq!(overlap("s3://b/a", "gs://b/a"), None);
        let hub = resolve_model(Path::new(""), "hf://org/name").unwrap();
        assert_eq!(hub.overlap(&hub), None);
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
        assert_eq!(refused("s3:///key"), "`s3://` has no bucket");
        assert_eq!(refused("s3://b!/key"), "\"b!\" cannot be the name of a bucket");
        assert_eq!(refused("s3://b/a//b"), "`s3://b/a//b` has a key with two slashes in a row");
        assert_eq!(refused("s3://b/a/../b"), "`..` in `s3://b/a/../b` is not allowed in the key of a bucket");
        assert_eq!(refused("s3://AKIA:secret@b/key"), "a `s3://` URI holds credentials or a port");
        assert_eq!(refused("hf://org/name"), "`hf://org/name` is a model; only models are read from a hub");
        assert_eq!(refused("ftp://org/name"), "couplet cannot read `ftp://`");
    }
}
