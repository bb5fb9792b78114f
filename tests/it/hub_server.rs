//! A test server that answers like the Hugging Face hub: real requests and files, ranges, redirects to another host,
//! tokens. Scripted faults break connections and change bytes.
//!
//! Each request has its own connection. The server knows nothing about couplet.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The access rights of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Everybody,
    /// The file list is public, the files are not.
    Gated,
    Private,
}

/// The response of a server to a range request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ranges {
    #[default]
    Given,
    /// Sends the whole file.
    Ignored,
    /// Sends another range than requested.
    Shifted,
    /// Responds that the range does not exist, with a text body.
    Refused,
}

/// The token that the hub accepts.
pub const TOKEN: &str = "hf_a-secret-of-the-tests";

/// A request: method, path, first byte, and whether it had the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub from: Option<usize>,
    pub authorized: bool,
}

type Files = BTreeMap<String, Vec<u8>>;

struct Repository {
    access: Access,
    commits: BTreeMap<String, Files>,
    /// Branches and tags.
    names: BTreeMap<String, String>,
}

#[derive(Default)]
struct State {
    repositories: BTreeMap<String, Repository>,
    /// Bodies of files whose names contain this text break after this many bytes, this many times.
    cuts: Vec<(String, usize, usize)>,
    /// Files whose names contain this text are sent with one changed byte.
    damaged: Option<String>,
    /// Requests whose paths contain this text get this status, this many times, with `Retry-After` in seconds.
    failures: Vec<(String, u16, usize, Option<u64>)>,
    /// Responses for paths that contain this text break within their headers, this many times.
    hang_ups: Vec<(String, usize)>,
    /// The commit of a repository's `main` after its next request.
    moves: Vec<(String, String)>,
    ranges: Ranges,
    without_hashes: bool,
    pause: Duration,
    log: Vec<Request>,
}

/// A running hub; accepts no more connections once dropped.
pub struct HubServer {
    port: u16,
    state: Arc<Mutex<State>>,
    closed: Arc<AtomicBool>,
}

impl HubServer {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let closed = Arc::new(AtomicBool::new(false));
        let (serving, ending) = (Arc::clone(&state), Arc::clone(&closed));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if ending.load(Ordering::SeqCst) {
                    break;
                }
                let (client, state) = (client.unwrap(), Arc::clone(&serving));
                // A broken connection is intended, or caused by the client.
                std::thread::spawn(move || drop(serve(client, port, &state)));
            }
        });
        Self { port, state, closed }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Commits the files of a folder, plus the given ones, to the branch `main`. Returns the commit.
    pub fn commit(&self, repository: &str, folder: &Path, others: &[(&str, &[u8])]) -> String {
        let mut files: Files = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
            .collect();
        files.extend(others.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())));
        self.commit_files(repository, files)
    }

    pub fn commit_files(&self, repository: &str, files: Files) -> String {
        let mut hash = Sha1::new();
        for (name, bytes) in &files {
            hash.update(name);
            hash.update(git_hash(bytes));
        }
        let commit = hex(&hash.finalize());
        let mut state = self.state.lock().unwrap();
        let repository = state.repositories.entry(repository.into()).or_insert_with(|| Repository {
            access: Access::Everybody,
            commits: BTreeMap::new(),
            names: BTreeMap::new(),
        });
        repository.commits.insert(commit.clone(), files);
        repository.names.insert("main".into(), commit.clone());
        commit
    }

    pub fn name(&self, repository: &str, name: &str, commit: &str) {
        let mut state = self.state.lock().unwrap();
        state.repositories.get_mut(repository).unwrap().names.insert(name.into(), commit.into());
    }

    pub fn set_access(&self, repository: &str, access: Access) {
        self.state.lock().unwrap().repositories.get_mut(repository).unwrap().access = access;
    }

    /// Breaks the bodies of these files after `bytes`, `times` times.
    pub fn cut(&self, file: &str, bytes: usize, times: usize) {
        self.state.lock().unwrap().cuts.push((file.into(), bytes, times));
    }

    pub fn damage(&self, file: Option<&str>) {
        self.state.lock().unwrap().damaged = file.map(str::to_owned);
    }

    pub fn fail(&self, path: &str, status: u16, times: usize) {
        self.state.lock().unwrap().failures.push((path.into(), status, times, None));
    }

    /// Fails with a status and a `Retry-After` in seconds.
    pub fn fail_for(&self, path: &str, status: u16, times: usize, seconds: u64) {
        self.state.lock().unwrap().failures.push((path.into(), status, times, Some(seconds)));
    }

    pub fn hang_up(&self, path: &str, times: usize) {
        self.state.lock().unwrap().hang_ups.push((path.into(), times));
    }

    /// Moves `main` to another commit after the next request.
    pub fn move_main(&self, repository: &str, commit: &str) {
        self.state.lock().unwrap().moves.push((repository.into(), commit.into()));
    }

    pub fn set_ranges(&self, ranges: Ranges) {
        self.state.lock().unwrap().ranges = ranges;
    }

    /// Lists files without hashes and sizes, as some mirrors do.
    pub fn forget_hashes(&self) {
        self.state.lock().unwrap().without_hashes = true;
    }

    /// Waits this long before each body.
    pub fn pause(&self, pause: Duration) {
        self.state.lock().unwrap().pause = pause;
    }

    /// Returns the requests since the last call.
    pub fn take_log(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }

    /// Returns the names of files requested since the last call, in order.
    pub fn take_files(&self) -> Vec<String> {
        let log = self.take_log();
        let files = log.iter().filter_map(|request| request.path.split_once("/resolve/"));
        files.map(|(_, rest)| rest.split_once('/').unwrap().1.to_owned()).collect()
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for connections.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

/// The git blob id of a content.
pub fn git_hash(bytes: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(&hash.finalize())
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Large files are identified by SHA-256 and served from another host.
fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".bin")
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Returns the path of the file, if the request is for one.
    file: Option<String>,
}

fn refusal(status: u16, code: &str, message: &str) -> Reply {
    let mut headers = vec![("X-Error-Message", message.to_owned())];
    if !code.is_empty() {
        headers.push(("X-Error-Code", code.to_owned()));
    }
    Reply { status, headers, body: message.into(), file: None }
}

fn serve(mut client: TcpStream, port: u16, state: &Mutex<State>) -> io::Result<()> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 1 << 14];
    let (method, target, headers) = loop {
        let n = client.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        bytes.extend_from_slice(&buffer[..n]);
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        if request.parse(&bytes).map_err(io::Error::other)?.is_complete() {
            let headers: BTreeMap<String, String> = request
                .headers
                .iter()
                .map(|h| (h.name.to_ascii_lowercase(), String::from_utf8_lossy(h.value).into_owned()))
                .collect();
            break (request.method.unwrap().to_owned(), request.path.unwrap().to_owned(), headers);
        }
    };
    let path = target.split('?').next().unwrap_or_default().replace("%2F", "/").replace("%20", " ");
    let token = headers.get("authorization").map(|value| value.trim_start_matches("Bearer ").to_owned());
    let range = headers.get("range").and_then(|range| {
        let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()))
    });
    let from = range.map(|(from, _)| from);
    let (reply, cut, hangs_up, pause) = {
        let mut state = state.lock().unwrap();
        let authorized = token.as_deref() == Some(TOKEN);
        state.log.push(Request { method: method.clone(), path: path.clone(), from, authorized });
        let failure = state.failures.iter_mut().find(|(part, _, times, _)| path.contains(part.as_str()) && *times > 0);
        let failure = failure.map(|(_, status, times, wait)| {
            *times -= 1;
            (*status, *wait)
        });
        let mut reply = match failure {
            Some((status, wait)) => {
                let mut refusal = refusal(status, "", "injected");
                refusal.headers.extend(wait.map(|seconds| ("Retry-After", seconds.to_string())));
                refusal
            }
            None => answer(&state, &path, token.as_deref(), port),
        };
        let hangs_up = state.hang_ups.iter_mut().find(|(part, times)| path.contains(part.as_str()) && *times > 0);
        let hangs_up = hangs_up.map(|(_, times)| *times -= 1).is_some();
        let moved = state.moves.iter().position(|(name, _)| path.starts_with(&format!("/api/models/{name}/")));
        if let Some((name, commit)) = moved.map(|at| state.moves.remove(at)) {
            state.repositories.get_mut(&name).unwrap().names.insert("main".into(), commit);
        }
        let mut cut = None;
        if let Some(file) = reply.file.clone() {
            if state.damaged.as_deref().is_some_and(|part| file.contains(part)) {
                let middle = reply.body.len() / 2;
                reply.body[middle] ^= 1;
            }
            let all = reply.body.len();
            match range.filter(|_| state.ranges != Ranges::Ignored) {
                Some(_) if state.ranges == Ranges::Refused => {
                    reply = Reply { status: 416, headers: Vec::new(), body: b"no such part".into(), file: None };
                }
                Some((from, _)) if state.ranges == Ranges::Shifted && from > 0 => {
                    reply.body = reply.body[from - 1..].to_vec();
                    reply.status = 206;
                    reply.headers.push(("Content-Range", format!("bytes {}-{}/{all}", from - 1, all - 1)));
                }
                Some((from, _)) if from >= all && all > 0 => {
                    reply = Reply { status: 416, headers: Vec::new(), body: Vec::new(), file: None };
                }
                Some((from, to)) => {
                    let to = to.unwrap_or(all - 1).min(all - 1);
                    reply.body = reply.body[from..=to].to_vec();
                    reply.status = 206;
                    reply.headers.push(("Content-Range", format!("bytes {from}-{to}/{all}")));
                }
                None => {}
            }
            let found = state.cuts.iter_mut().find(|(part, _, times)| file.contains(part.as_str()) && *times > 0);
            if let Some((_, bytes, times)) = found.filter(|_| method == "GET") {
                *times -= 1;
                cut = Some((*bytes).min(reply.body.len()));
            }
        }
        (reply, cut, hangs_up, state.pause)
    };
    let mut head = format!("HTTP/1.1 {} Reply\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    write!(head, "Content-Length: {}\r\n\r\n", reply.body.len()).unwrap();
    if hangs_up {
        client.write_all(&head.as_bytes()[..head.len() / 2])?;
        std::thread::sleep(Duration::from_millis(50));
        return socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO));
    }
    client.write_all(head.as_bytes())?;
    if method == "HEAD" {
        return client.shutdown(Shutdown::Write);
    }
    std::thread::sleep(pause);
    match cut {
        Some(bytes) => {
            client.write_all(&reply.body[..bytes])?;
            // The written bytes must be read before the connection ends.
            std::thread::sleep(Duration::from_millis(500));
            socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO))
        }
        None => {
            client.write_all(&reply.body)?;
            client.shutdown(Shutdown::Write)
        }
    }
}

fn answer(state: &State, path: &str, token: Option<&str>, port: u16) -> Reply {
    if token.is_some_and(|token| token != TOKEN) {
        return refusal(401, "", "Invalid credentials in Authorization header");
    }
    if let Some(rest) = path.strip_prefix("/cdn/") {
        let (repository, rest) = split_repository(rest);
        let (commit, name) = rest.split_once('/').unwrap();
        let body = state.repositories[repository].commits[commit][name].clone();
        return Reply { status: 200, headers: Vec::new(), body, file: Some(name.to_owned()) };
    }
    let api = path.strip_prefix("/api/models/");
    let (repository_name, rest) = split_repository(api.unwrap_or(&path[1..]));
    let Some(repository) = state.repositories.get(repository_name) else {
        return match token {
            Some(_) => refusal(404, "RepoNotFound", "Repository not found"),
            None => refusal(401, "RepoNotFound", "Invalid username or password."),
        };
    };
    if repository.access == Access::Private && token.is_none() {
        return refusal(401, "RepoNotFound", "Invalid username or password.");
    }
    let rest = rest.strip_prefix(if api.is_some() { "revision/" } else { "resolve/" }).unwrap_or_default();
    // A branch name may contain slashes.
    let known = repository.names.iter().map(|(name, commit)| (name.as_str(), commit.as_str()));
    let known = known.chain(repository.commits.keys().map(|commit| (commit.as_str(), commit.as_str())));
    let found =
        known.filter(|(name, _)| rest.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
    let Some((name, commit)) = found.max_by_key(|(name, _)| name.len()) else {
        return refusal(404, "RevisionNotFound", "Invalid rev id");
    };
    let files = &repository.commits[commit];
    if api.is_some() {
        let siblings = files.iter().map(|(name, bytes)| {
            if state.without_hashes {
                return json!({ "rfilename": name });
            }
            let mut file = json!({ "rfilename": name, "size": bytes.len(), "blobId": git_hash(bytes) });
            if is_large(name) {
                file["blobId"] = git_hash(b"pointer").into();
                file["lfs"] = json!({ "sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134 });
            }
            file
        });
        let siblings: Vec<_> = siblings.collect();
        let body = json!({ "id": repository_name, "sha": commit, "siblings": siblings }).to_string();
        return Reply { status: 200, headers: Vec::new(), body: body.into(), file: None };
    }
    if repository.access == Access::Gated && token.is_none() {
        return refusal(401, "GatedRepo", "Access to this model is restricted.");
    }
    let file = &rest[name.len() + 1..];
    let Some(body) = files.get(file) else { return refusal(404, "EntryNotFound", "Entry not found") };
    let mut headers = vec![("X-Repo-Commit", commit.to_owned())];
    if is_large(file) {
        headers.push(("X-Linked-Etag", format!("\"{}\"", sha256(body))));
        headers.push(("X-Linked-Size", body.len().to_string()));
        // The same server under another host name.
        let location = format!("http://localhost:{port}/cdn/{repository_name}/{commit}/{file}");
        headers.push(("Location", location));
        return Reply { status: 302, headers, body: Vec::new(), file: None };
    }
    headers.push(("ETag", format!("\"{}\"", git_hash(body))));
    Reply { status: 200, headers, body: body.clone(), file: Some(file.to_owned()) }
}

/// Splits `org/name/rest`.
fn split_repository(path: &str) -> (&str, &str) {
    let end = path.match_indices('/').nth(1).map_or(path.len(), |(end, _)| end);
    (&path[..end], path[end..].trim_start_matches('/'))
}
