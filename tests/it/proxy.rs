//! A proxy in front of the S3 server that makes requests fail as networks and services do, by script.
//!
//! It forwards requests byte for byte, because they are signed, each over a new connection. It identifies S3 requests
//! by their first line and headers alone, and knows nothing about couplet.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The purpose of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Get,
    Head,
    List,
    /// A whole object in one request.
    Put,
    /// A whole object under the condition that none exists, or that a known version exists: how commits are made.
    PutIf,
    Copy,
    Delete,
    /// The requests of a multipart upload: begin, part, complete, abort.
    UploadStart,
    UploadPart,
    UploadComplete,
    UploadAbort,
    Other,
}

impl Kind {
    fn of(method: &str, target: &str, headers: &[(String, String)]) -> Self {
        let query = target.split_once('?').map_or("", |(_, query)| query);
        let asks = |name: &str| query.split('&').any(|part| part.split('=').next() == Some(name));
        let has = |name: &str| headers.iter().any(|(header, _)| header == name);
        match method {
            "GET" if asks("list-type") => Self::List,
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "PUT" if asks("partNumber") => Self::UploadPart,
            "PUT" if has("x-amz-copy-source") => Self::Copy,
            "PUT" if has("if-none-match") || has("if-match") => Self::PutIf,
            "PUT" => Self::Put,
            "DELETE" if asks("uploadId") => Self::UploadAbort,
            "DELETE" => Self::Delete,
            "POST" if asks("uploads") => Self::UploadStart,
            "POST" if asks("uploadId") => Self::UploadComplete,
            "POST" if asks("delete") => Self::Delete,
            _ => Self::Other,
        }
    }
}

/// The way in which a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Not forwarded: answered with this status and its S3 error code.
    Status(u16),
    /// Not forwarded: answered with 200 and an error as the body, as S3 does for long requests that fail halfway.
    ErrorBody,
    /// Not forwarded: the connection is reset.
    Reset,
    /// Forwarded and executed; then the connection is reset before the response.
    DropAnswer,
    /// Forwarded and executed; the response is replaced by this status.
    DoneButStatus(u16),
    /// Forwarded and executed; then silence for this long, and a reset of the connection.
    Stall(Duration),
    /// Forwarded; the response body comes in a hundred pieces with a pause of this length between two of them.
    SlowBody(Duration),
    /// Forwarded; the connection is reset after half of the response body.
    TruncatedBody,
    /// Ignores the condition that no such object exists, as servers without conditional writes do: an existing object
    /// is removed first.
    IgnoreCondition,
}

/// Selects requests and their fault.
#[derive(Debug, Clone)]
pub struct Rule {
    fault: Fault,
    kinds: Vec<Kind>,
    path: String,
    after: usize,
    count: usize,
    rate: f64,
}

impl Rule {
    /// All requests fail.
    pub fn new(fault: Fault) -> Self {
        Self { fault, kinds: Vec::new(), path: String::new(), after: 0, count: usize::MAX, rate: 1.0 }
    }

    /// Limits the rule to requests of these kinds.
    pub fn on(self, kinds: &[Kind]) -> Self {
        Self { kinds: kinds.to_vec(), ..self }
    }

    /// Limits the rule to requests with this text in their path and query.
    pub fn path(self, part: &str) -> Self {
        Self { path: part.into(), ..self }
    }

    /// Skips the first `after` matching requests.
    pub fn after(self, after: usize) -> Self {
        Self { after, ..self }
    }

    /// Limits the rule to this many matching requests.
    pub fn times(self, count: usize) -> Self {
        Self { count, ..self }
    }

    /// Limits the rule to a share of the matching requests, drawn with the proxy's seed.
    pub fn rate(self, rate: f64) -> Self {
        Self { rate, ..self }
    }
}

/// A running proxy; accepts no more connections once dropped.
pub struct Proxy {
    address: String,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: String,
    closed: AtomicBool,
    state: Mutex<State>,
    /// Removes an object directly on the server, for [`Fault::IgnoreCondition`].
    remove: Box<dyn Fn(&str) + Send + Sync>,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    random: u64,
    requests: BTreeMap<Kind, usize>,
    faults: BTreeMap<Fault, usize>,
    log: Vec<(Kind, String, Option<Fault>)>,
}

impl Proxy {
    /// Starts a proxy in front of the server at `upstream` (`host:port`). `remove` removes the object at a path such as
    /// `/bucket/key` from that server.
    pub fn start(upstream: &str, seed: u64, remove: impl Fn(&str) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = State { random: seed, ..State::default() };
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            closed: AtomicBool::new(false),
            state: Mutex::new(state),
            remove: Box::new(remove),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if serving.closed.load(Ordering::SeqCst) {
                    break;
                }
                let (client, shared) = (client.unwrap(), Arc::clone(&serving));
                // A broken connection is intended, or caused by the client.
                std::thread::spawn(move || drop(shared.serve(client)));
            }
        });
        Self { address, shared }
    }

    /// The endpoint for clients.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds a rule. The first rule that matches a request decides.
    pub fn fail(&self, rule: Rule) -> &Self {
        self.shared.state.lock().unwrap().rules.push(rule);
        self
    }

    /// Removes all rules.
    pub fn heal(&self) {
        self.shared.state.lock().unwrap().rules.clear();
    }

    /// The number of requests of a kind.
    pub fn requests(&self, kind: Kind) -> usize {
        self.shared.state.lock().unwrap().requests.get(&kind).copied().unwrap_or(0)
    }

    /// The number of times a fault occurred.
    pub fn faults(&self, fault: Fault) -> usize {
        self.shared.state.lock().unwrap().faults.get(&fault).copied().unwrap_or(0)
    }

    /// Every request so far: its kind, path and query, and fault.
    pub fn log(&self) -> Vec<(Kind, String, Option<Fault>)> {
        self.shared.state.lock().unwrap().log.clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for connections.
        drop(TcpStream::connect(&self.address));
    }
}

impl Shared {
    /// Serves one request per connection, which the header `Connection: close` enforces.
    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        let Some(request) = Request::read(&mut client)? else { return Ok(()) };
        match self.choose(&request) {
            None => client.write_all(&self.forward(&request)?)?,
            Some(Fault::Status(status)) => client.write_all(&error_answer(status, status))?,
            Some(Fault::ErrorBody) => client.write_all(&error_answer(200, 500))?,
            Some(Fault::Reset) => return reset(client),
            Some(Fault::DropAnswer) => {
                self.forward(&request)?;
                return reset(client);
            }
            Some(Fault::DoneButStatus(status)) => {
                self.forward(&request)?;
                client.write_all(&error_answer(status, status))?;
            }
            Some(Fault::Stall(time)) => {
                self.forward(&request)?;
                std::thread::sleep(time);
                return reset(client);
            }
            Some(Fault::SlowBody(pause)) => {
                let answer = self.forward(&request)?;
                let (head, body) = answer.split_at(head_of(&answer));
                client.write_all(head)?;
                for piece in body.chunks((body.len() / 100).max(1)) {
                    std::thread::sleep(pause);
                    client.write_all(piece)?;
                }
            }
            Some(Fault::TruncatedBody) => {
                let answer = self.forward(&request)?;
                let head = head_of(&answer);
                client.write_all(&answer[..head + (answer.len() - head) / 2])?;
                // The written bytes must arrive before the connection ends.
                std::thread::sleep(Duration::from_millis(50));
                return reset(client);
            }
            Some(Fault::IgnoreCondition) => {
                (self.remove)(request.target.split('?').next().unwrap_or_default());
                client.write_all(&self.forward(&request)?)?;
            }
        }
        client.shutdown(Shutdown::Write)
    }

    fn choose(&self, request: &Request) -> Option<Fault> {
        let mut state = self.state.lock().unwrap();
        let state = &mut *state;
        *state.requests.entry(request.kind).or_default() += 1;
        let fits = |rule: &&mut Rule| {
            (rule.kinds.is_empty() || rule.kinds.contains(&request.kind)) && request.target.contains(&rule.path)
        };
        let mut fault = None;
        for rule in state.rules.iter_mut().filter(fits) {
            if rule.after > 0 {
                rule.after -= 1;
            } else if rule.count > 0 && random(&mut state.random) < rule.rate {
                rule.count -= 1;
                fault = Some(rule.fault);
                *state.faults.entry(rule.fault).or_default() += 1;
                break;
            }
        }
        state.log.push((request.kind, request.target.clone(), fault));
        fault
    }

    fn forward(&self, request: &Request) -> io::Result<Vec<u8>> {
        let mut server = TcpStream::connect(&self.upstream)?;
        server.write_all(&request.bytes)?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer)?;
        Ok(answer)
    }
}

/// A request as received, plus a header that closes the connection after the response.
struct Request {
    kind: Kind,
    /// Path and query.
    target: String,
    bytes: Vec<u8>,
}

impl Request {
    /// Reads a request; `None` if the client closed the connection before it.
    fn read(client: &mut TcpStream) -> io::Result<Option<Self>> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 1 << 16];
        let (kind, target, head, length) = loop {
            let n = client.read(&mut buffer)?;
            if n == 0 {
                return Ok(None);
            }
            bytes.extend_from_slice(&buffer[..n]);
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut request = httparse::Request::new(&mut headers);
            if let httparse::Status::Complete(head) = request.parse(&bytes).map_err(io::Error::other)? {
                let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
                let headers: Vec<(String, String)> =
                    request.headers.iter().map(|h| (h.name.to_ascii_lowercase(), text(h.value))).collect();
                let header = |name: &str| headers.iter().find(|(header, _)| header == name).map(|(_, value)| value);
                assert!(header("transfer-encoding").is_none(), "a request with a length was expected: {headers:?}");
                let length = header("content-length").map_or(0, |length| length.parse().unwrap());
                let target = request.path.unwrap().to_owned();
                break (Kind::of(request.method.unwrap(), &target, &headers), target, head, length);
            }
        };
        while bytes.len() < head + length {
            let n = client.read(&mut buffer)?;
            if n == 0 {
                return Ok(None);
            }
            bytes.extend_from_slice(&buffer[..n]);
        }
        // Signatures cover the headers that they name, and this one is not among them.
        let end_of_headers = head - b"\r\n".len();
        bytes.splice(end_of_headers..end_of_headers, *b"connection: close\r\n");
        Ok(Some(Self { kind, target, bytes }))
    }
}

/// The position at which the body of a response begins.
fn head_of(answer: &[u8]) -> usize {
    answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(answer.len(), |end| end + 4)
}

/// Ends a connection in the middle: the other side gets "connection reset".
fn reset(client: TcpStream) -> io::Result<()> {
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO))
}

/// The token that signed the request. Every error response of the proxy contains it, as some of S3's do.
pub const ECHO: &str = "session-token-of-the-couplet-tests";

/// The S3 error response of a status, optionally sent with another status.
fn error_answer(status: u16, error: u16) -> Vec<u8> {
    let (code, message) = match error {
        400 => ("ExpiredToken", "The provided token has expired."),
        403 => ("AccessDenied", "Access Denied."),
        429 => ("TooManyRequests", "Please reduce your request rate."),
        501 => ("NotImplemented", "A header you provided implies functionality that is not implemented."),
        503 => ("SlowDown", "Please reduce your request rate."),
        _ => ("InternalError", "We encountered an internal error. Please try again."),
    };
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message>\
         <Token-0>{ECHO}</Token-0></Error>"
    );
    format!(
        "HTTP/1.1 {status} Injected\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// SplitMix64 as a number from 0 to 1.
fn random(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z ^ (z >> 31)) as f64 / u64::MAX as f64
}
