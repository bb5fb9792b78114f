//! Downloads files of a commit into the cache: one at a time under its lock, resuming an earlier attempt. The content
//! is verified against its hash before the file gets that name.

use std::fs::{self, File};
use std::io::{self, Read, Seek as _, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::api::{Hub, RETRY_DELAY, RemoteFile};
use super::cache::Snapshot;
use super::folder::lock;
use crate::files;
use crate::objects::{ObjectsError, Trouble};

/// The maximum number of consecutive connections that bring no new bytes.
const ATTEMPTS: u32 = 5;

/// The interval between two log lines about a download if there is no terminal.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Fetches the files that the snapshot lacks.
pub(super) async fn all(hub: &Hub<'_>, snapshot: &Snapshot, files: &[RemoteFile]) -> Result<(), ObjectsError> {
    let missing: Vec<&RemoteFile> = files.iter().filter(|file| !snapshot.has(&file.path, file.size)).collect();
    let mut contents = Vec::new();
    for file in missing {
        let (etag, size) = match (&file.etag, file.size) {
            (Some(etag), Some(size)) => (etag.clone(), size),
            _ => hub.content(snapshot.commit(), &file.path).await?,
        };
        contents.push(Content { path: file.path.clone(), etag, size });
    }
    let lacking = |content: &&Content| !content.is_at(&snapshot.blob(&content.etag));
    let bytes: u64 = contents.iter().filter(lacking).map(|content| content.size).sum();
    let names: Vec<&str> = contents.iter().filter(lacking).map(|content| content.path.as_str()).collect();
    if !names.is_empty() {
        tracing::info!(
            "downloading {} ({:.1} MB) of {}, commit {}, to {}",
            names.join(", "),
            bytes as f64 / 1e6,
            hub.model(),
            snapshot.commit(),
            hub.settings().cache.path().display()
        );
    }
    let mut progress = Progress::start(hub.settings().bar, bytes);
    for content in &contents {
        let disk = |e: io::Error| disk(hub, &content.path, &e);
        content.fetch(hub, snapshot, &mut progress).await?;
        snapshot.link(&content.path, &content.etag).map_err(disk)?;
    }
    Ok(())
}

fn disk(hub: &Hub<'_>, path: &str, error: &io::Error) -> ObjectsError {
    let cache = hub.settings().cache.path().display();
    let how_to_fix = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space, or set HF_HOME or HF_HUB_CACHE to another place; downloaded bytes are kept"
        }
        _ => "",
    };
    hub.error(Trouble::of(error), format!("downloading {path} to {cache}: {error}{how_to_fix}"))
}

/// A file to fetch.
struct Content {
    path: String,
    etag: String,
    size: u64,
}

impl Content {
    /// Returns true if the blob exists in its full size. A full disk or a user can have truncated it.
    fn is_at(&self, blob: &Path) -> bool {
        blob.metadata().is_ok_and(|found| found.is_file() && found.len() == self.size)
    }

    /// Downloads the content into the cache, unless another process has done so first.
    async fn fetch(&self, hub: &Hub<'_>, snapshot: &Snapshot, progress: &mut Progress) -> Result<(), ObjectsError> {
        let disk = |e: io::Error| disk(hub, &self.path, &e);
        let blob = snapshot.blob(&self.etag);
        if self.is_at(&blob) {
            return Ok(());
        }
        let locked = snapshot.lock_of(&self.etag);
        for file in [&blob, &locked] {
            fs::create_dir_all(file.parent().unwrap_or(file)).map_err(disk)?;
        }
        let _lock = lock(locked).await.map_err(disk)?;
        if self.is_at(&blob) {
            return Ok(());
        }
        let unfinished = PathBuf::from(format!("{}.incomplete", blob.display()));
        let mut file = Unfinished::open(unfinished, &self.etag, self.size).map_err(disk)?;
        let resumed = file.length;
        if resumed > 0 {
            tracing::info!("resuming the download of {} from byte {resumed}", self.path);
        }
        progress.add(resumed);
        self.receive(hub, snapshot, &mut file, progress).await?;
        if resumed > 0 && file.damage().is_some() {
            // The earlier bytes may be from another program.
            tracing::warn!("{} is damaged; downloading all of it again", self.path);
            file.restart().map_err(disk)?;
            self.receive(hub, snapshot, &mut file, progress).await?;
        }
        if let Some(damage) = file.damage() {
            drop(fs::remove_file(&file.path));
            let problem = format!(
                "the download of {} is damaged ({damage}) and is not used; run again, and if that fails too, check \
                 HF_ENDPOINT",
                self.path
            );
            return Err(hub.error(Trouble::Other, problem));
        }
        file.publish(&blob).map_err(disk)
    }

    /// Receives the missing bytes, over as many connections as needed.
    async fn receive(
        &self,
        hub: &Hub<'_>,
        snapshot: &Snapshot,
        file: &mut Unfinished,
        progress: &mut Progress,
    ) -> Result<(), ObjectsError> {
        let disk = |e: io::Error| disk(hub, &self.path, &e);
        // Only bytes beyond the furthest position count as progress: a server that always breaks at the same place
        // makes none.
        let (mut failures, mut furthest) = (0, file.length);
        while file.length < self.size {
            let before = file.length;
            let mut response = hub.open(snapshot.commit(), &self.path, before).await?;
            let is_all = response.status == 200;
            let is_rest =
                response.part.is_some_and(|(start, size)| start == before && size.is_none_or(|n| n == self.size));
            if !is_all && !is_rest {
                // The response is not the requested range.
                file.restart().map_err(disk)?;
                failures += 1;
                if failures == ATTEMPTS {
                    let problem = format!(
                        "the server sends other ranges of {} than requested (status {}); run again, and if that fails \
                         too, check HF_ENDPOINT",
                        self.path, response.status
                    );
                    return Err(hub.error(Trouble::Unreachable, problem));
                }
                tokio::time::sleep(RETRY_DELAY * failures).await;
                continue;
            }
            if is_all && before > 0 {
                // The server does not support ranges.
                file.restart().map_err(disk)?;
            }
            let broke = loop {
                match hub.next(&mut response.body).await {
                    Ok(Some(bytes)) if file.length + bytes.len() as u64 > self.size => {
                        file.restart().map_err(disk)?;
                        let problem = format!("{} has more than the {} bytes in the hub's list", self.path, self.size);
                        return Err(hub.error(Trouble::Other, problem));
                    }
                    Ok(Some(bytes)) => {
                        file.write(&bytes).map_err(disk)?;
                        progress.add(bytes.len() as u64);
                    }
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                }
            };
            if file.length == self.size {
                break;
            }
            failures = if file.length > furthest { 1 } else { failures + 1 };
            furthest = furthest.max(file.length);
            if failures == ATTEMPTS {
                let ended = || hub.error(Trouble::Unreachable, format!("{} ends too soon; run again", self.path));
                return Err(broke.unwrap_or_else(ended));
            }
            tokio::time::sleep(RETRY_DELAY * failures).await;
        }
        Ok(())
    }
}

/// A file that is being received, with the expected hash and the hash of the bytes so far.
struct Unfinished {
    path: PathBuf,
    file: File,
    length: u64,
    size: u64,
    etag: String,
    hash: Hash,
}

impl Unfinished {
    /// Opens the file of an earlier attempt, or a new one.
    fn open(path: PathBuf, etag: &str, size: u64) -> io::Result<Self> {
        let file = files::open_with(File::options().read(true).write(true).create(true).truncate(false), &path)?;
        let mut unfinished = Self { path, file, length: 0, size, etag: etag.to_owned(), hash: Hash::new(etag, size) };
        // A file that is too long has other content, and one without a known hash cannot be verified.
        if unfinished.file.metadata()?.len() > size || matches!(unfinished.hash, Hash::Unknown) {
            unfinished.restart()?;
            return Ok(unfinished);
        }
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = unfinished.file.read(&mut buffer)?;
            if n == 0 {
                return Ok(unfinished);
            }
            unfinished.hash.update(&buffer[..n]);
            unfinished.length += n as u64;
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Discards all bytes and starts again.
    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.length = 0;
        self.hash = Hash::new(&self.etag, self.size);
        Ok(())
    }

    /// Describes the mismatch of the content's hash; none if it matches or cannot be checked.
    fn damage(&self) -> Option<String> {
        let (kind, found) = self.hash.finish()?;
        (found != self.etag).then(|| format!("{kind} {found} instead of {}", self.etag))
    }

    /// Syncs the file and gives it its name.
    fn publish(self, blob: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        // If locks do not work, as on some network disks, another process may have truncated it.
        if self.file.metadata()?.len() != self.size {
            return Err(io::Error::other("another process wrote to the same file; run again"));
        }
        fs::rename(&self.path, blob)
    }
}

/// A content hash: SHA-256 for large files, git's SHA-1 for others, unknown on some mirrors.
enum Hash {
    Sha256(Box<Sha256>),
    Git(Box<Sha1>),
    Unknown,
}

impl Hash {
    fn new(etag: &str, size: u64) -> Self {
        let is_hex = etag.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match etag.len() {
            64 if is_hex => Self::Sha256(Box::default()),
            40 if is_hex => {
                let mut hash = Sha1::new();
                hash.update(format!("blob {size}\0"));
                Self::Git(Box::new(hash))
            }
            _ => Self::Unknown,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Git(hash) => hash.update(bytes),
            Self::Unknown => {}
        }
    }

    /// Returns the name of the hash and its hexadecimal digits.
    fn finish(&self) -> Option<(&'static str, String)> {
        let hex = |bytes: &[u8]| bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        match self {
            Self::Sha256(hash) => Some(("SHA-256", hex(&hash.as_ref().clone().finalize()))),
            Self::Git(hash) => Some(("git's SHA-1", hex(&hash.as_ref().clone().finalize()))),
            Self::Unknown => None,
        }
    }
}

/// The progress of a download: a bar on a terminal, otherwise a log line at intervals.
struct Progress {
    bar: Option<ProgressBar>,
    done: u64,
    all: u64,
    last_line: std::time::Instant,
}

impl Progress {
    fn start(bar: bool, all: u64) -> Self {
        let bar = (bar && all > 0).then(|| {
            let bar = ProgressBar::with_draw_target(Some(all), ProgressDrawTarget::stderr());
            let template = "{bar:32} {percent:>3}%  {bytes}/{total_bytes} · {bytes_per_sec} · {eta} left";
            match ProgressStyle::with_template(template) {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        Self { bar, done: 0, all, last_line: std::time::Instant::now() }
    }

    fn add(&mut self, bytes: u64) {
        self.done += bytes;
        match &self.bar {
            Some(bar) => bar.set_position(self.done.min(self.all)),
            None if self.last_line.elapsed() >= LOG_INTERVAL => {
                self.last_line = std::time::Instant::now();
                tracing::info!("{:.1} of {:.1} MB downloaded", self.done as f64 / 1e6, self.all as f64 / 1e6);
            }
            None => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_named_as_git_and_the_hub_name_them() {
        // `printf hello | git hash-object --stdin`, `printf hello | sha256sum`
        let git = "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0";
        let sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        for etag in [git, sha256] {
            let mut hash = Hash::new(etag, 5);
            hash.update(b"hel");
            hash.update(b"lo");
            assert_eq!(hash.finish().map(|(_, digits)| digits).as_deref(), Some(etag));
        }
        assert!(Hash::new("d41d8cd98f00b204e9800998ecf8427e-5", 5).finish().is_none());
    }
}
