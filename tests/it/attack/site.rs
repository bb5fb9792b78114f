//! A pipeline with its source, store and sink in a separate folder, on local disk or in a bucket.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use futures::TryStreamExt;
use futures::future::join_all;
use object_store::aws::AmazonS3;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::Value;

use super::process::Shim;
use super::sinks::{Sink, pairs};
use crate::seaweed::{Seaweed, block_on, env_of};
use crate::support::write;

/// The bucket of all sites.
pub const BUCKET: &str = "attack";

/// The location of store and sink.
#[derive(Clone, Copy)]
pub enum Place {
    Local,
    Bucket(&'static Seaweed),
}

impl Place {
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Bucket(_) => "bucket",
        }
    }
}

/// A pipeline and its data.
pub struct Site {
    folder: tempfile::TempDir,
    place: Place,
    pub sink: Sink,
    /// The prefix of the keys in the bucket.
    prefix: String,
}

/// The rows of the table and of the rejected rows, as sorted JSON texts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tables {
    pub main: Vec<String>,
    pub rejected: Vec<String>,
}

/// The pipelines of a site. The second has another name and store, and the same sink.
pub const PIPELINES: [(&str, &str); 2] = [("demo", "state"), ("other", "state2")];

impl Site {
    /// Creates a site without any runs.
    pub fn new(place: Place, sink: Sink) -> Self {
        let folder = tempfile::Builder::new().prefix("couplet-attack-").tempdir().unwrap();
        let prefix = folder.path().file_name().unwrap().to_str().unwrap().to_owned();
        let site = Self { folder, place, sink, prefix };
        let at = match place {
            Place::Local => String::new(),
            Place::Bucket(_) => format!("s3://{BUCKET}/{}/", site.prefix),
        };
        for (name, store) in PIPELINES {
            write(&site.path(&format!("{name}.toml")), sink.pipeline(name, &at, store));
        }
        std::fs::create_dir(site.path("tmp")).unwrap();
        std::fs::create_dir(site.path("messages")).unwrap();
        site
    }

    /// Copies this site.
    pub fn copy(&self) -> Self {
        let copy = Self::new(self.place, self.sink);
        for name in ["out", "state", "state2"] {
            copy_folder(&self.path(name), &copy.path(name));
        }
        if let Some(client) = self.client() {
            let (keys, client, to) = (block_on(self.keys(&client)), &client, &copy);
            let copies = keys.iter().map(|key| async move {
                let bytes = client.get(&self.key(key)).await.unwrap().bytes().await.unwrap();
                client.put(&to.key(key), bytes.into()).await.unwrap();
            });
            block_on(join_all(copies));
        }
        copy
    }

    /// Replaces the source.
    pub fn put_source(&self, night: u8) {
        match self.client() {
            Some(client) => {
                block_on(client.put(&self.key("pairs.csv"), pairs(night, self.sink.in_parts).into())).unwrap();
            }
            None => write(&self.path("pairs.csv"), pairs(night, self.sink.in_parts)),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Keeps the folder and returns its path.
    pub fn keep(self) -> PathBuf {
        self.folder.keep()
    }

    fn client(&self) -> Option<AmazonS3> {
        match self.place {
            Place::Local => None,
            Place::Bucket(server) => Some(server.objects(BUCKET)),
        }
    }

    fn key(&self, name: &str) -> Key {
        Key::parse(format!("{}/{name}", self.prefix)).unwrap()
    }

    /// The keys of all objects, without the prefix.
    async fn keys(&self, client: &AmazonS3) -> Vec<String> {
        let objects: Vec<_> = client.list(Some(&Key::from(self.prefix.as_str()))).try_collect().await.unwrap();
        let key = |key: &Key| key.as_ref().strip_prefix(&format!("{}/", self.prefix)).unwrap().to_owned();
        objects.iter().map(|object| key(&object.location)).collect()
    }

    /// Builds the command `couplet ARGUMENTS` at this site, with another endpoint of the server if given.
    pub fn couplet(&self, arguments: &[&str], endpoint: Option<&str>) -> Command {
        let mut command = Command::new(program());
        command.args(arguments).current_dir(self.folder.path()).env_remove("RUST_LOG").env("NO_COLOR", "1");
        command.env("TMPDIR", self.path("tmp"));
        if let Place::Bucket(server) = self.place {
            let endpoint = endpoint.map_or_else(|| format!("http://{}", server.address()), str::to_owned);
            command.envs(env_of(&endpoint)).env("XDG_CACHE_HOME", self.path("tmp"));
        }
        command
    }

    /// A shim configuration that observes the stores and sinks.
    pub fn shim(&self) -> Shim {
        let folder = self.folder.path().canonicalize().unwrap();
        Shim { roots: ["out", "state", "state2"].map(|name| folder.join(name)).to_vec(), ..Shim::default() }
    }

    /// Reads the tables as a reader sees them now.
    pub fn tables(&self) -> Result<Tables, String> {
        let rejected = if self.sink.quarantine { self.rows("rejected")? } else { Vec::new() };
        Ok(Tables { main: self.rows("predictions")?, rejected })
    }

    /// The rows of a table; empty if the table does not exist yet.
    fn rows(&self, table: &str) -> Result<Vec<String>, String> {
        let columns = if self.sink.in_parts { "* EXCEPT (noise), md5(noise) AS noise" } else { "*" };
        let sql = format!("SELECT {columns} FROM {table}");
        let mut query = self.couplet(&["query", "--pipeline", "demo.toml", "--format", "json", &sql], None);
        let output = query.output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return if message.contains("there is no table") {
                Ok(Vec::new())
            } else {
                Err(format!("a reader of `{table}` fails: {message}"))
            };
        }
        let rows: Vec<Value> = serde_json::from_slice(&output.stdout).map_err(|e| format!("{table}: {e}"))?;
        let mut rows: Vec<String> = rows
            .into_iter()
            .map(|mut row| {
                row.as_object_mut().unwrap().remove("tag");
                row.to_string()
            })
            .collect();
        rows.sort();
        Ok(rows)
    }

    /// Makes a stopped run that holds the lock look dead to the next run.
    pub fn lose_the_lock(&self) {
        let Some(client) = self.client() else {
            let _ = std::fs::remove_file(self.path("state/lock.json"));
            return;
        };
        block_on(async {
            let Ok(found) = client.get(&self.key("state/lock.json")).await else { return };
            let mut lock: Value = serde_json::from_slice(&found.bytes().await.unwrap()).unwrap();
            // Records a process that has ended and whose pid was reused.
            lock["holder"]["process"]["started"] = 1.into();
            client.put(&self.key("state/lock.json"), lock.to_string().into()).await.unwrap();
        });
    }

    /// The kinds of files in sink and store: their paths without the parts that differ between runs.
    pub fn kinds_of_files(&self) -> BTreeSet<String> {
        self.files().iter().map(|name| kind_of(name)).collect()
    }

    /// All files of sink and store.
    fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        match self.client() {
            None => ["out", "state", "state2"].iter().for_each(|name| list(&self.path(name), name, &mut files)),
            Some(client) => files.extend(block_on(self.keys(&client)).into_iter().filter(|key| key != "pairs.csv")),
        }
        files
    }

    /// Files that should not be left: kinds that undisturbed runs do not leave, temporary files, and parts of multipart
    /// uploads.
    pub fn leftovers(&self, known: &BTreeSet<String>) -> Vec<String> {
        let files = self.files();
        // In a Delta table, files of a killed writer cannot be told from those that another writer is about to commit.
        let is_uncommitted = |name: &str| {
            self.sink.is_delta() && name.starts_with("out/") && (name.ends_with(".parquet") || name.contains('#'))
        };
        let unknown = files.iter().filter(|name| !known.contains(&kind_of(name)) && !is_uncommitted(name)).cloned();
        let mut left: Vec<String> = unknown.collect();
        let temporary = self.path("tmp").read_dir().unwrap().map(|entry| entry.unwrap().file_name());
        left.extend(temporary.map(|name| format!("tmp/{}", name.display())).filter(|name| name != "tmp/couplet"));
        if let Place::Bucket(server) = self.place {
            let open = server.open_uploads(BUCKET);
            left.extend(
                open.into_iter().filter(|key| key.contains(&self.prefix)).map(|key| format!("upload of {key}")),
            );
        }
        left
    }

    /// Returns true if the source is unchanged.
    pub fn source_is(&self, night: u8) -> bool {
        match self.client() {
            None => std::fs::read_to_string(self.path("pairs.csv"))
                .is_ok_and(|text| text == pairs(night, self.sink.in_parts)),
            Some(client) => block_on(async {
                let found = client.get(&self.key("pairs.csv")).await.unwrap();
                found.bytes().await.unwrap() == pairs(night, self.sink.in_parts).as_bytes()
            }),
        }
    }
}

/// The program under test: the one built for these tests, or another build, such as a release build.
fn program() -> String {
    std::env::var("COUPLET_ATTACK_PROGRAM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_couplet").to_owned())
}

/// A path with its numbers, and its hexadecimal ids of four or more digits, replaced by `#`.
fn kind_of(path: &str) -> String {
    let mut kind = String::new();
    for (n, word) in path.split_inclusive(['/', '-', '.', '=', '_']).enumerate() {
        let (text, end) = match word.char_indices().next_back() {
            Some((at, end)) if "/-.=_".contains(end) => (&word[..at], &word[at..]),
            _ => (word, ""),
        };
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let is_id = is_number || text.len() > 3 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        // The parts of a UUID count as one id.
        let again = is_id && n > 0 && kind.ends_with("#-");
        kind.push_str(if again {
            ""
        } else if is_id {
            "#"
        } else {
            text
        });
        if again {
            kind.pop();
        }
        kind.push_str(end);
    }
    kind
}

fn list(folder: &Path, name: &str, files: &mut Vec<String>) {
    let Ok(entries) = folder.read_dir() else { return };
    for entry in entries {
        let entry = entry.unwrap();
        let name = format!("{name}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            list(&entry.path(), &name, files);
        } else {
            files.push(name);
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    let Ok(entries) = from.read_dir() else { return };
    std::fs::create_dir_all(to).unwrap();
    for entry in entries {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
