//! Locations in buckets: the service, the bucket and the key of a URI.

use std::fmt;

use url::Url;

use super::problem::Problem;

/// The service that a bucket belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// Amazon S3 or an S3-compatible server: `s3://`, `s3a://`.
    S3,
    /// Google Cloud Storage: `gs://`.
    Gcs,
    /// Azure Blob Storage: `az://`, `abfs://`, `abfss://`.
    Azure,
}

/// The schemes, each with its canonical scheme and its service; `s3a://` is Hadoop's name for `s3://`.
pub(crate) const SCHEMES: [(&str, &str, Service); 6] = [
    ("s3", "s3", Service::S3),
    ("s3a", "s3", Service::S3),
    ("gs", "gs", Service::Gcs),
    ("az", "az", Service::Azure),
    ("abfs", "abfs", Service::Azure),
    ("abfss", "abfss", Service::Azure),
];

/// A key in a bucket, taken literally: it is not percent-decoded.
///
/// A key that ends in `/` is a folder: all keys with this prefix.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Remote {
    service: Service,
    scheme: &'static str,
    /// The bucket; for Azure the container, or `container@account.host`.
    bucket: String,
    /// The key, without a leading `/`.
    key: String,
}

impl Remote {
    /// Returns the service that the bucket belongs to.
    #[must_use]
    pub fn service(&self) -> Service {
        self.service
    }

    /// Returns the bucket; for Azure the container, or `container@account.host`.
    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Returns the bucket as a canonical URI, as in `s3://bucket`.
    #[must_use]
    pub fn root(&self) -> String {
        format!("{}://{}", self.scheme, self.bucket)
    }

    /// Returns the key, without a leading `/`; empty for the whole bucket.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns the same bucket with another key.
    #[must_use]
    pub fn with_key(&self, key: impl Into<String>) -> Self {
        Self { key: key.into(), ..self.clone() }
    }

    /// Returns the key of that name in this folder.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        let folder = self.key.trim_end_matches('/');
        self.with_key(if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") })
    }

    /// Returns the URL, with reserved characters percent-encoded.
    #[must_use]
    pub fn url(&self) -> Url {
        self.url_under(&self.root())
    }

    /// Returns the URL for a DataFusion session. DataFusion distinguishes object stores by host only, so the container
    /// is made a part of the host.
    #[must_use]
    pub fn session_url(&self) -> Url {
        self.url_under(&self.root().replace('@', "."))
    }

    fn url_under(&self, root: &str) -> Url {
        let mut url = Url::parse(root).expect("the characters of a bucket are valid in a host");
        url.path_segments_mut().expect("a URL with a host has a path").pop_if_empty().extend(self.key.split('/'));
        url
    }

    /// Parses the part of a URI after `scheme://`; `None` for an unknown scheme.
    pub(crate) fn parse(scheme: &str, rest: &str) -> Option<Result<Self, Problem>> {
        let scheme = scheme.to_ascii_lowercase();
        let &(_, scheme, service) = SCHEMES.iter().find(|(name, ..)| *name == scheme)?;
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let place = Self { service, scheme, bucket: bucket.to_owned(), key: key.to_owned() };
        Some(place.check_bucket().and_then(|()| place.check_key()).map(|()| place))
    }

    fn check_bucket(&self) -> Result<(), Problem> {
        let (scheme, bucket) = (self.scheme, &self.bucket);
        if bucket.is_empty() {
            let problem = Problem::new(format!("`{scheme}://` has no bucket"), "no bucket");
            return Err(problem.help(format!("write `{scheme}://BUCKET/KEY`")));
        }
        let is_account = self.service == Service::Azure && scheme.starts_with("abfs");
        if bucket.contains(':') || bucket.contains('@') && !is_account {
            // Neither the value nor its line is shown: it may contain a secret key.
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
                    "." | ".." => format!("`{name}` in `{self}` is not allowed in the key of a bucket"),
                    _ => format!("the key of {:?} has a control character", self.to_string()),
                };
                Err(Problem::new(message, "not a key").help("write the full key in the bucket, as the server lists it"))
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
    /// Returns the environment variables of the credentials, for messages.
    #[must_use]
    pub fn credentials(self) -> &'static str {
        match self {
            Self::S3 => "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            Self::Gcs => "GOOGLE_APPLICATION_CREDENTIALS",
            Self::Azure => "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
        }
    }

    /// Returns all environment variables from which a client reads credentials.
    pub(crate) fn variables(self) -> &'static [&'static str] {
        match self {
            Self::S3 => &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"],
            Self::Gcs => &[
                "GOOGLE_APPLICATION_CREDENTIALS",
                "GOOGLE_SERVICE_ACCOUNT",
                "GOOGLE_SERVICE_ACCOUNT_PATH",
                "GOOGLE_SERVICE_ACCOUNT_KEY",
            ],
            Self::Azure => &["AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"],
        }
    }
}
