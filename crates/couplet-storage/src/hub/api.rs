//! Requests to a hub: resolves a revision to a commit, lists its files and downloads them.

use std::time::Duration;

use chrono::{DateTime, Utc};
use hf_hub::api::tokio::{Api, ApiBuilder, ApiError};
use hf_hub::{Repo, RepoType};
use serde_json::Value;
use url::Url;

use super::cache::repository;
use super::problem;
use super::settings::Settings;
use crate::objects::{ObjectsError, Trouble};
use crate::place::{HubModel, Place};

/// The timeout for a response, and for further bytes, from a hub.
pub(super) const TIMEOUT: Duration = Duration::from_secs(20);

/// The maximum number of attempts for a request if the hub or the network fails.
const ATTEMPTS: u32 = 3;

/// The delay before a retry, multiplied by the number of failed attempts.
pub(super) const RETRY_DELAY: Duration = Duration::from_millis(500);

/// The maximum size of a file listing, in bytes.
const MAX_LISTING: usize = 64 << 20;

/// The longest `Retry-After` that is honoured. If the hub requests a longer delay, the run fails.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(2);

/// A client of a hub for one model.
pub(super) struct Hub<'a> {
    /// The client, with the token if there is one.
    api: Api,
    settings: &'a Settings,
    model: &'a HubModel,
}

/// A response whose body has not been read yet.
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) body: Body,
    /// The range of a partial response: its first byte, and the size of the file if known.
    pub(super) part: Option<(u64, Option<u64>)>,
    /// The `ETag`, without quotes.
    etag: Option<String>,
    /// The length of the body in bytes.
    length: Option<u64>,
    /// True if the hub redirected the request to another host.
    is_redirected: bool,
}

/// A failed request, with the delay that the server requests.
struct Failed {
    error: ObjectsError,
    wait: Option<Duration>,
}

impl From<ObjectsError> for Failed {
    fn from(error: ObjectsError) -> Self {
        Self { error, wait: None }
    }
}

/// The bytes of a response.
pub(super) type Body = std::pin::Pin<Box<dyn futures::Stream<Item = Result<bytes::Bytes, ApiError>> + Send>>;

/// The files of a commit.
pub(super) struct Listing {
    pub(super) commit: String,
    files: Vec<RemoteFile>,
}

/// A file of a commit.
#[derive(Debug, Clone)]
pub(super) struct RemoteFile {
    /// The path from the root of the repository.
    pub(super) path: String,
    /// The size in bytes, if the hub lists it.
    pub(super) size: Option<u64>,
    /// The hash of its content, if the hub lists it: SHA-256, or git's SHA-1 for small files.
    pub(super) etag: Option<String>,
}

impl RemoteFile {
    /// Returns the name without its folders.
    pub(super) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

impl Listing {
    fn parse(text: &[u8]) -> Option<Self> {
        let json: Value = serde_json::from_slice(text).ok()?;
        let commit = json["sha"].as_str().filter(|sha| is_hash(sha))?.to_owned();
        let files = json["siblings"].as_array()?.iter().filter_map(|file| {
            let path = file["rfilename"].as_str()?;
            let lfs = &file["lfs"];
            let etag = lfs["sha256"].as_str().or_else(|| file["blobId"].as_str()).filter(|etag| is_hash(etag));
            let size = lfs["size"].as_u64().or_else(|| file["size"].as_u64());
            // Paths become files of the cache.
            let is_plain = !path.contains(|char: char| char == '\\' || char.is_control())
                && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
            is_plain.then(|| RemoteFile { path: path.to_owned(), size, etag: etag.map(str::to_owned) })
        });
        Some(Self { commit, files: files.collect() })
    }

    /// Returns the files directly in a folder.
    pub(super) fn in_folder(&self, folder: &str) -> Vec<RemoteFile> {
        let files = self.files.iter().filter(|file| folder_of(&file.path) == folder);
        files.cloned().collect()
    }

    /// Returns the subfolders that contain a model's `config.json`.
    pub(super) fn model_folders(&self) -> Vec<&str> {
        let configs = self.files.iter().filter(|file| file.name() == "config.json");
        configs.map(|file| folder_of(&file.path)).filter(|folder| !folder.is_empty()).collect()
    }
}

fn api(settings: &Settings, model: &HubModel, token: Option<String>) -> Result<Api, ObjectsError> {
    let api = ApiBuilder::from_cache(settings.cache.clone())
        .with_endpoint(settings.endpoint.clone())
        .with_token(token)
        .with_user_agent("couplet", env!("CARGO_PKG_VERSION"))
        .with_progress(false)
        .build();
    api.map_err(|e| ObjectsError::new(&Place::Hub(model.clone()), Trouble::Settings, e.to_string()))
}

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Returns true if a text looks like a hash of content or of a commit and is safe as a file name.
fn is_hash(text: &str) -> bool {
    (8..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

impl<'a> Hub<'a> {
    pub(super) fn new(settings: &'a Settings, model: &'a HubModel) -> Result<Self, ObjectsError> {
        Ok(Self { api: api(settings, model, settings.token.clone())?, settings, model })
    }

    pub(super) fn model(&self) -> &'a HubModel {
        self.model
    }

    pub(super) fn settings(&self) -> &'a Settings {
        self.settings
    }

    /// Resolves the revision to a commit and lists its files.
    pub(super) async fn listing(&self) -> Result<Listing, ObjectsError> {
        let url = format!("{}/api/{}?blobs=true", self.settings.endpoint, repository(self.model).api_url());
        let mut response = self.get(&url, 0).await?;
        let mut text = Vec::new();
        while let Some(bytes) = self.next(&mut response.body).await? {
            text.extend_from_slice(&bytes);
            if text.len() > MAX_LISTING {
                return Err(self.unsupported("its list of files is too large"));
            }
        }
        Listing::parse(&text).ok_or_else(|| self.unsupported("its list of files has an unknown format"))
    }

    /// Returns the content hash and size of a file that the listing does not give.
    pub(super) async fn content(&self, commit: &str, path: &str) -> Result<(String, u64), ObjectsError> {
        let url = self.url(commit, path);
        // Its body is not read.
        let response = self.get(&url, 0).await?;
        let (etag, size) = if response.is_redirected {
            // The hash is in the hub's redirect, which only `Api::metadata` reads. With a token, that call would
            // forward the token to the other host.
            let anonymous = api(self.settings, self.model, None)?;
            let requested =
                tokio::time::timeout(TIMEOUT, anonymous.metadata(&url)).await.map_err(|_| self.timed_out())?;
            let found = requested.map_err(|_| {
                self.unsupported("it gives the hash of a file neither in its list nor to requests without a token")
            })?;
            (Some(found.etag().to_owned()), Some(found.size() as u64))
        } else {
            (response.etag, response.length)
        };
        match (etag.filter(|etag| is_hash(etag)), size) {
            (Some(etag), Some(size)) => Ok((etag, size)),
            _ => Err(self.unsupported("it does not give the hash or the size of a file")),
        }
    }

    /// Requests a file of a commit, starting at a byte.
    pub(super) async fn open(&self, commit: &str, path: &str, start: u64) -> Result<Response, ObjectsError> {
        self.get(&self.url(commit, path), start).await
    }

    fn url(&self, commit: &str, path: &str) -> String {
        let encoded = path
            .split('/')
            .map(|part| url::form_urlencoded::byte_serialize(part.as_bytes()).collect::<String>().replace('+', "%20"));
        let path = encoded.collect::<Vec<_>>().join("/");
        let repo = Repo::with_revision(self.model.repository().to_owned(), RepoType::Model, commit.to_owned());
        self.api.repo(repo).url(&path)
    }

    /// Sends a request, with retries if the hub or the network fails. Returns an error if the hub refuses it.
    async fn get(&self, url: &str, start: u64) -> Result<Response, ObjectsError> {
        let mut attempt = 1;
        loop {
            let Failed { error, wait } = match self.try_get(url, start).await {
                Ok(response) => return Ok(response),
                Err(failed) => failed,
            };
            let wait = wait.unwrap_or_default();
            if error.trouble != Trouble::Unreachable || attempt == ATTEMPTS || wait > MAX_RETRY_AFTER {
                return Err(error);
            }
            if wait > TIMEOUT {
                tracing::info!("{} asks to retry after {} s", self.settings.shown_endpoint(), wait.as_secs());
            }
            tokio::time::sleep(wait.max(RETRY_DELAY * attempt)).await;
            attempt += 1;
        }
    }

    async fn try_get(&self, url: &str, start: u64) -> Result<Response, Failed> {
        // The bytes of a range are those of the file only if the body is not compressed.
        let mut request = self.api.client().get(url).header("accept-encoding", "identity");
        if start > 0 {
            request = request.header("range", format!("bytes={start}-"));
        }
        // The client removes the token when a request is redirected to another host.
        let sent = tokio::time::timeout(TIMEOUT, request.send()).await.map_err(|_| self.timed_out())?;
        let response = sent.map_err(|e| problem::from_network_error(self, &e.into()))?;
        let status = response.status().as_u16();
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        if !matches!(status, 200 | 206 | 416) {
            let (code, message) = (header("x-error-code"), header("x-error-message"));
            let wait = header("retry-after").and_then(|text| parse_retry_after(&text, Utc::now()));
            let error = problem::from_response(self, status, code.as_deref(), message.as_deref(), wait);
            return Err(Failed { error, wait });
        }
        let requested = Url::parse(url).map(|url| url.origin());
        let is_redirected = requested.is_ok_and(|requested| requested != response.url().origin());
        let etag = header("x-linked-etag").or_else(|| header("etag")).map(|etag| etag.replace('"', ""));
        let part = header("content-range").and_then(|range| parse_content_range(&range)).filter(|_| status == 206);
        let length = response.content_length();
        let body = futures::stream::unfold(Some(response), |response| async {
            let mut response = response?;
            match response.chunk().await {
                Ok(chunk) => chunk.map(|bytes| (Ok(bytes), Some(response))),
                Err(e) => Some((Err(e.into()), None)),
            }
        });
        Ok(Response { status, body: Box::pin(body), part, etag, length, is_redirected })
    }

    /// Returns the next bytes of a body, or `None` at its end.
    pub(super) async fn next(&self, body: &mut Body) -> Result<Option<bytes::Bytes>, ObjectsError> {
        let next = tokio::time::timeout(TIMEOUT, futures::StreamExt::next(body)).await.map_err(|_| self.timed_out())?;
        next.transpose().map_err(|e| problem::from_network_error(self, &e))
    }

    fn timed_out(&self) -> ObjectsError {
        let problem = format!("{} did not answer for {} s", self.settings.shown_endpoint(), TIMEOUT.as_secs());
        self.error(Trouble::Unreachable, problem)
    }

    pub(super) fn unsupported(&self, what: &str) -> ObjectsError {
        let endpoint = self.settings.shown_endpoint();
        self.error(Trouble::Other, format!("{endpoint} is not a hub that couplet supports: {what}; check HF_ENDPOINT"))
    }

    pub(super) fn error(&self, trouble: Trouble, problem: impl Into<String>) -> ObjectsError {
        ObjectsError::new(&Place::Hub(self.model.clone()), trouble, problem)
    }
}

/// Parses the first byte and the size of a range such as `bytes 100-199/200`. A server may not know the size.
fn parse_content_range(range: &str) -> Option<(u64, Option<u64>)> {
    let (bytes, size) = range.strip_prefix("bytes ")?.split_once('/')?;
    Some((bytes.split_once('-')?.0.parse().ok()?, size.parse().ok()))
}

/// Parses the header `Retry-After`: a number of seconds or a date.
fn parse_retry_after(text: &str, now: DateTime<Utc>) -> Option<Duration> {
    match text.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => (DateTime::parse_from_rfc2822(text.trim()).ok()?.to_utc() - now).to_std().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_servers_write_them() {
        assert_eq!(parse_content_range("bytes 100-199/200"), Some((100, Some(200))));
        assert_eq!(parse_content_range("bytes 0-0/*"), Some((0, None)));
        assert_eq!(parse_content_range("bytes */200"), None);
        let now = DateTime::parse_from_rfc3339("2026-11-27T13:00:00Z").unwrap().to_utc();
        assert_eq!(parse_retry_after("7", now), Some(Duration::from_secs(7)));
        assert_eq!(parse_retry_after("Fri, 27 Nov 2026 13:01:30 GMT", now), Some(Duration::from_secs(90)));
        assert_eq!(parse_retry_after("Fri, 27 Nov 2026 12:00:00 GMT", now), None);
        assert_eq!(parse_retry_after("soon", now), None);
    }

    #[test]
    fn a_listing_names_contents_and_no_paths_outside() {
        let sha = "a".repeat(40);
        let text = format!(
            r#"{{"sha": "{sha}", "siblings": [
                {{"rfilename": "config.json", "size": 3, "blobId": "{sha}"}},
                {{"rfilename": "a/model.safetensors", "size": 9, "blobId": "{sha}",
                  "lfs": {{"sha256": "{sha}{sha}", "size": 7}}}},
                {{"rfilename": "a/../../config.json"}}, {{"rfilename": "/etc/config.json"}},
                {{"rfilename": "b/config.json", "blobId": "../../x"}}]}}"#
        );
        let listing = Listing::parse(text.as_bytes()).unwrap();
        let paths: Vec<&str> = listing.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["config.json", "a/model.safetensors", "b/config.json"]);
        assert_eq!((listing.files[1].size, listing.files[1].etag.as_deref()), (Some(7), Some(&*format!("{sha}{sha}"))));
        assert_eq!(listing.files[2].etag, None);
        assert_eq!(listing.model_folders(), ["b"]);
        assert_eq!(listing.in_folder("a").len(), 1);
        assert!(Listing::parse(br#"{"sha": "../x", "siblings": []}"#).is_none());
    }
}
