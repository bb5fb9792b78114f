//! What object stores complain of, in words that help: the place, the likely cause, the setting that mends it.
//!
//! `object_store` gives the URL of a request and the whole answer of the server. Of these, only what is known not to
//! hold a secret is passed on: the status, and the code and message that the service's protocol defines.

use std::error::Error as _;

use object_store::client::{HttpError, HttpErrorKind};
use thiserror::Error;
use url::Url;

use super::credentials::were_accepted;
use crate::backtrace::without_frames;
use crate::place::{Place, Service};
use crate::trouble::{Explained, Trouble};

/// A place that cannot be read or written.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{place}: {problem}")]
pub struct ObjectsError {
    /// The place.
    pub place: String,
    /// What is wrong, and how to mend it.
    pub problem: String,
    /// What kind of trouble it is.
    pub trouble: Trouble,
}

impl From<ObjectsError> for Explained {
    fn from(error: ObjectsError) -> Self {
        Self { problem: error.problem, trouble: error.trouble }
    }
}

impl ObjectsError {
    pub(crate) fn new(place: &Place, trouble: Trouble, problem: impl Into<String>) -> Self {
        Self { place: place.to_string(), problem: problem.into(), trouble }
    }
}

/// Refuses an endpoint without TLS that nobody has allowed: `object_store` would say so only at the first request.
pub(super) fn check_endpoint(
    place: &Place,
    endpoint: Option<&str>,
    allow_http: Option<&str>,
    variable: &str,
) -> Result<(), ObjectsError> {
    let Some(endpoint) = endpoint else { return Ok(()) };
    let shown = without_secrets(endpoint);
    let is_url = |url: Url| ["http", "https"].contains(&url.scheme()) && url.has_host();
    // `object_store` takes it to the letter: a space at its end, or a host without its scheme, is no address.
    if endpoint.contains(char::is_whitespace) || !Url::parse(endpoint).is_ok_and(is_url) {
        let problem = format!("the endpoint {shown} is not a URL such as https://host:port");
        return Err(ObjectsError::new(place, Trouble::Settings, problem));
    }
    if endpoint.starts_with("http://") && allow_http != Some("true") {
        let problem =
            format!("the endpoint {shown} is without TLS; set {variable}=true if the network may see what is sent");
        return Err(ObjectsError::new(place, Trouble::Settings, problem));
    }
    Ok(())
}

/// Refuses a value that no request can hold, such as a key with the end of its line: `object_store` would panic.
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

/// Says what an error means.
pub(super) fn explain(place: &Place, error: &object_store::Error) -> ObjectsError {
    let Place::Remote(remote) = place else {
        let trouble = match error {
            object_store::Error::NotFound { .. } => Trouble::Missing,
            object_store::Error::PermissionDenied { .. } => Trouble::Refused,
            _ => Trouble::Other,
        };
        return ObjectsError::new(place, trouble, innermost(error));
    };
    let (trouble, problem) = Answer::of(error).explain(remote.service(), remote.bucket(), error);
    ObjectsError::new(place, trouble, problem)
}

/// Says why no client of a bucket can be made of the environment. What a key or its file holds is not passed on.
pub(super) fn unsuited(place: &Place, service: Service, error: &object_store::Error) -> ObjectsError {
    let explained = explain(place, error);
    if explained.trouble != Trouble::Other {
        return explained;
    }
    if service == Service::Azure && Answer::of(error).text.contains("Account must be specified") {
        let problem = format!("the storage account is not known; set {}", service.credentials());
        return ObjectsError::new(place, Trouble::Settings, problem);
    }
    let cause = io_cause(error)
        .map_or_else(|| "they are not in the form that the service gives them".into(), ToString::to_string);
    let named = service.variables().iter().copied().filter(|name| std::env::var_os(name).is_some()).collect::<Vec<_>>();
    let named = if named.is_empty() { service.credentials().to_owned() } else { named.join(", ") };
    let problem = format!("the credentials of the environment cannot be used ({cause}); check {named}");
    ObjectsError::new(place, Trouble::Settings, problem)
}

/// What the operating system refused, behind an error.
fn io_cause<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e std::io::Error> {
    error.downcast_ref().or_else(|| io_cause(error.source()?))
}

/// What services say of credentials, rather than of a right that they lack.
const REFUSED_CREDENTIALS: [&str; 7] = [
    "AuthenticationFailed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "InvalidTokenId",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
];

/// What is known of a failed request.
struct Answer {
    /// The error and all its causes; not for people.
    text: String,
    /// Status line, as in `503 Service Unavailable`.
    status: Option<String>,
    /// The service's word for the error, as in `NoSuchBucket`.
    code: Option<String>,
    /// Its message.
    message: Option<String>,
    /// Where there was no answer: why.
    http: Option<HttpErrorKind>,
    /// How often it was tried again.
    retries: Option<String>,
}

impl Answer {
    fn of(error: &object_store::Error) -> Self {
        let mut text = error.to_string();
        let mut http = None;
        let mut cause = error.source();
        while let Some(e) = cause {
            text = format!("{text}\n{e}");
            http = http.or_else(|| e.downcast_ref::<HttpError>().map(HttpError::kind));
            cause = e.source();
        }
        let between = |start: &str, end: &str| {
            let (_, rest) = text.split_once(start)?;
            let (found, _) = rest.split_once(end)?;
            Some(found.trim().to_owned()).filter(|found| !found.is_empty() && found.len() < 300)
        };
        Self {
            status: between("status code: ", ":"),
            // XML of S3 and Azure, JSON of Google.
            code: between("<Code>", "</Code>").or_else(|| between("\"reason\": \"", "\"")),
            message: between("<Message>", "</Message>").or_else(|| between("\"message\": \"", "\"")),
            http,
            retries: between("after ", " retries"),
            text,
        }
    }

    fn explain(&self, service: Service, bucket: &str, error: &object_store::Error) -> (Trouble, String) {
        let said = self.said();
        let code = self.code.as_deref().unwrap_or_default();
        let has = |texts: &[&str]| texts.iter().any(|text| self.text.contains(text));
        if has(&["169.254.169.254", "169.254.170.2", "/latest/api/token", "computeMetadata", "/metadata/identity"]) {
            return (Trouble::Refused, no_credentials(service));
        }
        for (missing, variable) in [("SecretAccessKey", "AWS_SECRET_ACCESS_KEY"), ("AccessKeyId", "AWS_ACCESS_KEY_ID")]
        {
            if has(&[&format!("Missing {missing}")]) {
                return (Trouble::Settings, format!("{variable} is not set; {} go together", service.credentials()));
            }
        }
        let is_refused = REFUSED_CREDENTIALS.contains(&code) || self.is("401");
        if is_refused && were_accepted() {
            let problem = format!(
                "the server no longer accepts the credentials ({said}), which it accepted before: they have expired, or were \
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
                let problem = format!("the upload was ended by somebody else ({said}); run the same command again");
                return (Trouble::Other, problem);
            }
            "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "AuthenticationFailed" => {
                let problem =
                    format!("the server does not accept the credentials ({said}); check {}", service.credentials());
                return (Trouble::Refused, problem);
            }
            "ExpiredToken" | "TokenRefreshRequired" => {
                return (Trouble::Refused, format!("the session has expired ({said}); get a new AWS_SESSION_TOKEN"));
            }
            "RequestTimeTooSkewed" => {
                return (Trouble::Refused, format!("this machine's clock is wrong ({said})"));
            }
            "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" => {
                return (Trouble::Settings, other_region(&said));
            }
            _ => {}
        }
        if has(&["redirect without LOCATION"]) || self.is("301") || self.is("307") {
            return (Trouble::Settings, other_region(&said));
        }
        match error {
            object_store::Error::NotFound { .. } => (Trouble::Missing, "does not exist".into()),
            _ if self.refuses(error) => {
                let problem = format!(
                    "the server refuses access ({said}): {} are wrong, or they do not allow this",
                    service.credentials()
                );
                (Trouble::Refused, problem)
            }
            object_store::Error::Unauthenticated { .. } => (Trouble::Refused, no_credentials(service)),
            _ if self.is("401") => (Trouble::Refused, no_credentials(service)),
            _ => self.explain_failure(error),
        }
    }

    /// Whether the server knows who asks, and refuses; `object_store` gives such an error of its own for single objects,
    /// and not where many are listed.
    fn refuses(&self, error: &object_store::Error) -> bool {
        // Google's says so, too, of one who asks too often.
        let asks_too_often = self.code.as_deref().is_some_and(|code| code.to_lowercase().contains("ratelimit"));
        (matches!(error, object_store::Error::PermissionDenied { .. }) || self.is("403")) && !asks_too_often
    }

    /// The server was not reached, or failed.
    fn explain_failure(&self, error: &object_store::Error) -> (Trouble, String) {
        let said = self.said();
        let tried = match self.retries.as_deref() {
            Some("1") => ", also when asked again".to_owned(),
            Some(n) => format!(", also when asked {n} times again"),
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
                (Trouble::Unreachable, format!("the server{endpoint} failed{tried} ({said})"))
            }
            None => (Trouble::Other, innermost(error)),
        }
    }

    fn is(&self, status: &str) -> bool {
        self.status.as_deref().is_some_and(|found| found.starts_with(status))
    }

    /// What the server said, in short: `403 Forbidden, AccessDenied: Access Denied.`
    fn said(&self) -> String {
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

fn other_region(said: &str) -> String {
    format!("the bucket is in another region than the one asked ({said}); set AWS_REGION to the bucket's")
}

/// The endpoint that the environment names, without what may be secret in it.
fn endpoint() -> Option<String> {
    let named =
        ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"].iter().find_map(|name| std::env::var(name).ok());
    named.map(|endpoint| without_secrets(&endpoint))
}

/// Scheme, host and port of an endpoint: before the host there may be a password, behind it a token.
pub(crate) fn without_secrets(endpoint: &str) -> String {
    match Url::parse(endpoint) {
        Ok(url) if url.has_host() => {
            let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
            format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default())
        }
        _ => "in the environment".into(),
    }
}

/// The error of an object store that is behind another one.
pub(crate) fn cause_in<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e object_store::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An I/O error passes over what it holds.
        let held = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = held.map(|held| held as &(dyn std::error::Error + 'static)).or_else(|| error.source());
    }
    None
}

/// What a library says of its trouble, without what a server answered it: some answers hold what they were asked with.
pub(crate) fn without_answers(error: &(dyn std::error::Error + 'static)) -> String {
    match cause_in(error).and_then(explain_unplaced) {
        Some(explained) => explained.to_string(),
        None => cut_answers(without_frames(&error.to_string())),
    }
}

/// The same where only words are left of the error.
pub(crate) fn cut_answers(text: &str) -> String {
    let starts = ["Error performing ", "<?xml", "<Error", "{\"error\""];
    let Some(start) = starts.iter().filter_map(|start| text.find(start)).min() else { return text.to_owned() };
    let (before, answer) = text.split_at(start);
    let status = answer.split_once("status code: ").and_then(|(_, rest)| rest.split([':', '<', '\n']).next());
    let status = status.map_or_else(String::new, |status| format!(" ({})", status.trim()));
    format!("{before}the server did not do what it was asked{status}")
}

/// Says what an error means that a bucket gave, where only the error is known; none for the local disk.
pub(crate) fn explain_unplaced(error: &object_store::Error) -> Option<ObjectsError> {
    let answer = Answer::of(error);
    // "Error performing GET http://host/bucket/key?query in 3ms …", or "… REDACTED in …".
    let (_, request) = answer.text.split_once("Error performing ")?;
    let (request, _) = request.split_once(" in ")?;
    let request = request.split('?').next().unwrap_or(request);
    let url = request.split_once(' ').map_or(request, |(_, url)| url);
    let bucket = Url::parse(url).ok().and_then(|url| Some(url.path_segments()?.next()?.to_owned()));
    let (trouble, problem) = answer.explain(Service::S3, &bucket.unwrap_or_default(), error);
    Some(ObjectsError { place: request.to_owned(), problem, trouble })
}

/// The cause behind all others, in one line.
fn innermost(error: &object_store::Error) -> String {
    let mut last: &dyn std::error::Error = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string().lines().next().unwrap_or_default().to_owned()
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

    /// What lists objects has one kind of error for all answers.
    fn listed(error: &Error) -> Error {
        Error::Generic { store: "S3", source: error.to_string().into() }
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
                let explained = explain_unplaced(&error).unwrap();
                assert_eq!(explained.trouble, trouble, "{status} {code}: {explained}");
            }
        }
    }

    #[test]
    fn the_frames_of_a_stack_are_no_part_of_what_a_library_says() {
        let error = std::io::Error::other("no such type\n   0: one\n   1: other\n");
        assert_eq!(without_answers(&error), "no such type");
    }
}
