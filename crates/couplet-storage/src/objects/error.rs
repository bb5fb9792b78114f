//! Explains errors of object stores: the place, the likely cause and the setting that fixes it.
//!
//! Errors of `object_store` contain the URL of the request and the full response of the server. Only the parts known
//! not to hold secrets are passed on: the status, and the code and message that the service's protocol defines.

use object_store::client::{HttpError, HttpErrorKind};
use thiserror::Error;
use url::Url;

use super::credentials::were_accepted;
use crate::backtrace::without_frames;
use crate::place::{Place, Service};
use crate::trouble::{Explained, Trouble, causes};

/// A place that cannot be read or written.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{place}: {problem}")]
pub struct ObjectsError {
    /// The place.
    pub place: String,
    /// The problem and how to fix it.
    pub problem: String,
    /// The kind of the problem.
    #[source]
    pub trouble: Trouble,
}

impl From<ObjectsError> for Explained {
    fn from(error: ObjectsError) -> Self {
        Self { problem: error.problem, trouble: error.trouble }
    }
}

impl ObjectsError {
    /// Creates an error for a place, with the kind of problem and its text.
    pub fn new(place: &Place, trouble: Trouble, problem: impl Into<String>) -> Self {
        Self { place: place.to_string(), problem: problem.into(), trouble }
    }
}

/// Refuses an endpoint without TLS unless it is allowed. `object_store` would report it only at the first request.
pub(super) fn check_endpoint(
    place: &Place,
    endpoint: Option<&str>,
    allow_http: Option<&str>,
    variable: &str,
) -> Result<(), ObjectsError> {
    let Some(endpoint) = endpoint else { return Ok(()) };
    let shown = without_secrets(endpoint);
    let is_url = |url: Url| ["http", "https"].contains(&url.scheme()) && url.has_host();
    // `object_store` takes the value literally: a trailing space or a missing scheme makes it an invalid address.
    if endpoint.contains(char::is_whitespace) || !Url::parse(endpoint).is_ok_and(is_url) {
        let problem = format!("the endpoint {shown} is not a URL such as https://host:port");
        return Err(ObjectsError::new(place, Trouble::Settings, problem));
    }
    if endpoint.starts_with("http://") && allow_http != Some("true") {
        let problem = format!("the endpoint {shown} has no TLS; set {variable}=true to allow unencrypted requests");
        return Err(ObjectsError::new(place, Trouble::Settings, problem));
    }
    Ok(())
}

/// Refuses a value that cannot go into a request header, such as a key with a trailing newline: `object_store` would
/// panic.
pub(super) fn check_value(place: &Place, value: Option<&str>, variable: &str) -> Result<(), ObjectsError> {
    let Some(value) = value else { return Ok(()) };
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    let problem = if value.is_empty() {
        format!("{variable} is set and empty; give it a value, or unset it")
    } else {
        format!("{variable} has a space, the end of a line or another character that no request can hold")
    };
    Err(ObjectsError::new(place, Trouble::Settings, problem))
}

/// Explains an error of a place's store.
pub(super) fn explain(place: &Place, error: &object_store::Error) -> ObjectsError {
    let Place::Remote(remote) = place else {
        let Explained { problem, trouble } = explain_local(error);
        return ObjectsError::new(place, trouble, problem);
    };
    let (trouble, problem) = Response::of(error).explain(remote.service(), remote.bucket(), error);
    ObjectsError::new(place, trouble, problem)
}

/// Explains an error of the local disk.
pub(crate) fn explain_local(error: &object_store::Error) -> Explained {
    let is_missing = matches!(error, object_store::Error::NotFound { .. });
    Explained { problem: innermost(error), trouble: if is_missing { Trouble::Missing } else { Trouble::of(error) } }
}

/// Returns the HTTP status of a server's refusal, if the error is one.
#[must_use]
pub fn status_of(error: &object_store::Error) -> Option<u16> {
    Response::of(error).status?.get(..3)?.parse().ok()
}

/// Explains why no client can be created from the environment, without repeating the content of a key or its file.
pub(super) fn invalid_settings(place: &Place, service: Service, error: &object_store::Error) -> ObjectsError {
    let explained = explain(place, error);
    if explained.trouble != Trouble::Other {
        return explained;
    }
    // The errors of `object_store`'s builders are private types.
    if service == Service::Azure && error.to_string().contains("Account must be specified") {
        let problem = format!("the storage account is not known; set {}", service.credentials());
        return ObjectsError::new(place, Trouble::Settings, problem);
    }
    let cause = causes(error).find_map(|cause| cause.downcast_ref::<std::io::Error>());
    let cause = cause.map_or_else(|| "they do not have the format of the service".into(), ToString::to_string);
    let named = service.variables().iter().copied().filter(|name| std::env::var_os(name).is_some()).collect::<Vec<_>>();
    let named = if named.is_empty() { service.credentials().to_owned() } else { named.join(", ") };
    let problem = format!("the credentials of the environment cannot be used ({cause}); check {named}");
    ObjectsError::new(place, Trouble::Settings, problem)
}

/// The error codes of services for invalid credentials, as opposed to missing permissions.
const REFUSED_CREDENTIALS: [&str; 7] = [
    "AuthenticationFailed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "InvalidTokenId",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
];

/// A failed request and the response to it, as far as the error tells.
struct Response {
    /// The error and all its causes; never shown to the user.
    text: String,
    /// The method and the URL, which may be `REDACTED`, without the query.
    request: Option<String>,
    /// The status line, such as `503 Service Unavailable`.
    status: Option<String>,
    /// The service's error code, such as `NoSuchBucket`.
    code: Option<String>,
    /// The service's error message.
    message: Option<String>,
    /// The kind of the network error, if there was no response.
    http: Option<HttpErrorKind>,
    /// The number of retries.
    retries: Option<String>,
}

impl Response {
    /// Reads the text of `object_store`'s `RetryError`, which has all of this in fields, but is a private type (0.13):
    /// `Error performing GET http://host/bucket/key?query in 3ms, after 2 retries, … - Server returned non-2xx status
    /// code: 503 Slow Down: BODY`.
    fn of(error: &object_store::Error) -> Self {
        let text = causes(error).map(ToString::to_string).collect::<Vec<_>>().join("\n");
        let between = |start: &str, end: &str| {
            let (_, rest) = text.split_once(start)?;
            let (found, _) = rest.split_once(end)?;
            Some(found.trim().to_owned()).filter(|found| !found.is_empty() && found.len() < 300)
        };
        // Other errors around it begin in the same way, as in "Error performing list request: ".
        let request = text.rsplit_once("Error performing ").and_then(|(_, request)| request.split_once(" in "));
        Self {
            request: request.and_then(|(request, _)| Some(request.split('?').next()?.to_owned())),
            status: between("status code: ", ":"),
            // XML of S3 and Azure, JSON of Google.
            code: between("<Code>", "</Code>").or_else(|| between("\"reason\": \"", "\"")),
            message: between("<Message>", "</Message>").or_else(|| between("\"message\": \"", "\"")),
            http: causes(error).find_map(|cause| cause.downcast_ref::<HttpError>()).map(HttpError::kind),
            retries: between("after ", " retries"),
            text,
        }
    }

    fn explain(&self, service: Service, bucket: &str, error: &object_store::Error) -> (Trouble, String) {
        let summary = self.summary();
        let code = self.code.as_deref().unwrap_or_default();
        let has = |texts: &[&str]| texts.iter().any(|text| self.text.contains(text));
        if has(&["169.254.169.254", "169.254.170.2", "/latest/api/token", "computeMetadata", "/metadata/identity"]) {
            return (Trouble::Refused, no_credentials(service));
        }
        let is_refused = REFUSED_CREDENTIALS.contains(&code) || self.is("401");
        if is_refused && were_accepted() {
            let problem = format!(
                "the server no longer accepts the credentials ({summary}), which it accepted before: they have expired, or were \
                 changed; set {} anew and run the same command again",
                service.credentials()
            );
            return (Trouble::Unreachable, problem);
        }
        match code {
            "NoSuchBucket" | "ContainerNotFound" => {
                return (Trouble::Missing, format!("there is no bucket `{bucket}`"));
            }
            "NoSuchUpload" => {
                let problem = format!("another process has ended the upload ({summary}); run the same command again");
                return (Trouble::Other, problem);
            }
            "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "AuthenticationFailed" => {
                let problem =
                    format!("the server does not accept the credentials ({summary}); check {}", service.credentials());
                return (Trouble::Refused, problem);
            }
            "ExpiredToken" | "TokenRefreshRequired" => {
                return (Trouble::Refused, format!("the session has expired ({summary}); get a new AWS_SESSION_TOKEN"));
            }
            "RequestTimeTooSkewed" => {
                return (Trouble::Refused, format!("this machine's clock is wrong ({summary})"));
            }
            "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" => {
                return (Trouble::Settings, other_region(&summary));
            }
            _ => {}
        }
        if has(&["redirect without LOCATION"]) || self.is("301") || self.is("307") {
            return (Trouble::Settings, other_region(&summary));
        }
        match error {
            object_store::Error::NotFound { .. } => (Trouble::Missing, "does not exist".into()),
            _ if self.refuses(error) => {
                let problem = format!(
                    "the server refuses access ({summary}): {} are wrong, or they do not allow this",
                    service.credentials()
                );
                (Trouble::Refused, problem)
            }
            object_store::Error::Unauthenticated { .. } => (Trouble::Refused, no_credentials(service)),
            _ if self.is("401") => (Trouble::Refused, no_credentials(service)),
            _ => self.explain_failure(error),
        }
    }

    /// Returns true if the server refuses access. `object_store` has a distinct error for this for single objects, but
    /// not for listings.
    fn refuses(&self, error: &object_store::Error) -> bool {
        // Google's service also answers with this status if it gets too many requests.
        let is_rate_limited = self.code.as_deref().is_some_and(|code| code.to_lowercase().contains("ratelimit"));
        (matches!(error, object_store::Error::PermissionDenied { .. }) || self.is("403")) && !is_rate_limited
    }

    /// Explains that the server could not be reached, or failed.
    fn explain_failure(&self, error: &object_store::Error) -> (Trouble, String) {
        let summary = self.summary();
        let tried = match self.retries.as_deref() {
            Some("1") => ", even after a retry".to_owned(),
            Some(n) => format!(", even after {n} retries"),
            None => String::new(),
        };
        let endpoint = endpoint().map_or_else(String::new, |endpoint| format!(" at {endpoint}"));
        match self.http {
            Some(HttpErrorKind::Connect) => {
                let cause = innermost(error);
                let problem = format!(
                    "the server{endpoint} cannot be reached{tried} ({cause}); check the network and the endpoint"
                );
                (Trouble::Unreachable, problem)
            }
            Some(HttpErrorKind::Timeout) => {
                (Trouble::Unreachable, format!("the server{endpoint} did not answer in time{tried}"))
            }
            Some(_) => {
                let cause = innermost(error);
                (Trouble::Unreachable, format!("the connection to the server{endpoint} broke{tried} ({cause})"))
            }
            None if self.status.is_some() || self.code.is_some() => {
                (Trouble::Unreachable, format!("the server{endpoint} failed{tried} ({summary})"))
            }
            None => (Trouble::Other, innermost(error)),
        }
    }

    fn is(&self, status: &str) -> bool {
        self.status.as_deref().is_some_and(|found| found.starts_with(status))
    }

    /// Summarizes the response: `403 Forbidden, AccessDenied: Access Denied`.
    fn summary(&self) -> String {
        let code = match (&self.code, &self.message) {
            (Some(code), Some(message)) => Some(format!("{code}: {}", message.trim_end_matches('.'))),
            (code, message) => code.clone().or(message.clone()),
        };
        let parts: Vec<String> = self.status.clone().into_iter().chain(code).collect();
        if parts.is_empty() { "without a reason".into() } else { parts.join(", ") }
    }
}

fn no_credentials(service: Service) -> String {
    let more = match service {
        Service::S3 => {
            ", and AWS_SESSION_TOKEN for a session; profiles in ~/.aws are not read: \
             `eval \"$(aws configure export-credentials --format env)\"` sets the variables"
        }
        Service::Gcs | Service::Azure => "",
    };
    format!("no credentials were found; set {}{more}", service.credentials())
}

fn other_region(summary: &str) -> String {
    format!("the bucket is in another region than the one in the settings ({summary}); set AWS_REGION to the bucket's")
}

/// Returns the endpoint that the environment names, without secrets.
fn endpoint() -> Option<String> {
    let named =
        ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"].iter().find_map(|name| std::env::var(name).ok());
    named.map(|endpoint| without_secrets(&endpoint))
}

/// Returns the scheme, host and port of an endpoint. A password can precede the host, and a token can follow it.
pub fn without_secrets(endpoint: &str) -> String {
    match Url::parse(endpoint) {
        Ok(url) if url.has_host() => {
            let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
            format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default())
        }
        _ => "in the environment".into(),
    }
}

/// Finds the object store's error among the causes of another error.
pub fn cause_in<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e object_store::Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// Returns a library's error message without the response of a server: some responses repeat parts of the request.
pub fn without_responses(error: &(dyn std::error::Error + 'static)) -> String {
    match cause_in(error).and_then(explain_without_place) {
        Some(explained) => explained.to_string(),
        None => cut_responses(without_frames(&error.to_string())),
    }
}

/// Removes the response of a server from an error message.
pub fn cut_responses(text: &str) -> String {
    let starts = ["Error performing ", "<?xml", "<Error", "{\"error\""];
    let Some(start) = starts.iter().filter_map(|start| text.find(start)).min() else { return text.to_owned() };
    let (before, response) = text.split_at(start);
    let status = response.split_once("status code: ").and_then(|(_, rest)| rest.split([':', '<', '\n']).next());
    let status = status.map_or_else(String::new, |status| format!(" ({})", status.trim()));
    format!("{before}the request failed{status}")
}

/// Explains an error of a bucket from the error alone; none for the local disk.
#[must_use]
pub fn explain_without_place(error: &object_store::Error) -> Option<ObjectsError> {
    let response = Response::of(error);
    let request = response.request.clone()?;
    let url = request.split_once(' ').map_or(&*request, |(_, url)| url);
    let bucket = Url::parse(url).ok().and_then(|url| Some(url.path_segments()?.next()?.to_owned()));
    let (trouble, problem) = response.explain(Service::S3, &bucket.unwrap_or_default(), error);
    Some(ObjectsError { place: request, problem, trouble })
}

/// Returns the first line of the innermost cause.
fn innermost(error: &object_store::Error) -> String {
    let text = causes(error).last().map(ToString::to_string).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use object_store::Error;

    use super::*;

    fn answered(status: &str, code: &str) -> Error {
        let source = format!(
            "Error performing PUT http://host:1/bucket/key in 1ms - Server returned non-2xx status code: {status}: \
             <Error><Code>{code}</Code></Error>"
        );
        match status.split(' ').next() {
            Some("403") => Error::PermissionDenied { path: "key".into(), source: source.into() },
            Some("404") => Error::NotFound { path: "key".into(), source: source.into() },
            _ => Error::Generic { store: "S3", source: source.into() },
        }
    }

    /// Returns the error as a listing gives it: one kind for all responses.
    fn listed(error: &Error) -> Error {
        Error::Generic { store: "S3", source: format!("Error performing list request: {error}").into() }
    }

    #[test]
    fn what_somebody_must_mend_is_told_from_what_passes() {
        for (status, code, trouble) in [
            ("403 Forbidden", "AccessDenied", Trouble::Refused),
            ("403 Forbidden", "rateLimitExceeded", Trouble::Unreachable),
            ("401 Unauthorized", "Unauthorized", Trouble::Refused),
            ("404 Not Found", "NoSuchBucket", Trouble::Missing),
            ("404 Not Found", "NoSuchUpload", Trouble::Other),
            ("429 Too Many Requests", "TooManyRequests", Trouble::Unreachable),
            ("500 Internal Server Error", "InternalError", Trouble::Unreachable),
            ("503 Slow Down", "SlowDown", Trouble::Unreachable),
        ] {
            for error in [answered(status, code), listed(&answered(status, code))] {
                let explained = explain_without_place(&error).unwrap();
                assert_eq!(explained.trouble, trouble, "{status} {code}: {explained}");
                assert_eq!(explained.place, "PUT http://host:1/bucket/key");
                assert_eq!(status_of(&error), status[..3].parse().ok());
            }
        }
    }

    #[test]
    fn the_frames_of_a_stack_are_no_part_of_what_a_library_says() {
        let error = std::io::Error::other("no such type\n   0: one\n   1: other\n");
        assert_eq!(without_responses(&error), "no such type");
    }
}
