//! Distributed scoring: runs a pipeline on several machines with [Ballista](https://datafusion.apache.org/ballista/).
//!
//! ```text
//!   couplet run --cluster df://HOST:50050            couplet scheduler              couplet executor, many
//!   ─────────────────────────────────────            ─────────────────              ──────────────────────
//!   source ─ rows ─ texts without a score
//!              split into tasks by tokens ─ a job ──▶ plan and assign, ─ a task ──▶  read texts from the store,
//!              texts ─▶ store/cluster/RUN/*.parquet   reassign lost                  score them with the model
//!   store ◀─ cache ◀───────────────── scores ◀──────  tasks           ◀───────────── that the plan names
//!   sink  ◀─ publish in one commit
//! ```
//!
//! Only scoring happens on the cluster. The client reads, caches and publishes locally, in one commit. So resume,
//! `--fresh` and the record of runs work as on one machine, and readers of the sink never see anything that an executor
//! writes. Ballista does the scheduling, the retries and the recovery from lost executors.
//!
//! The plan of a job carries a [`Contract`]: the model by URI and fingerprint, the truncation and precision, and the
//! version of couplet. An executor that cannot fulfil it refuses the task. Keys and passwords are never sent: each
//! machine reads them from its own environment.
//!
//! Everything but the address needs the feature `cluster`.

#[cfg(feature = "ballista")]
mod ballista;
#[cfg(not(feature = "ballista"))]
mod unavailable;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use arrow::array::ArrayRef;
use couplet_encoder::scorer::{DeviceSetting, Prediction, Rejection};
use couplet_storage::objects::StoreFolder;

#[cfg(feature = "ballista")]
pub use ballista::{Client, Contract, cancel, execute, list_executors, schedule, session_of, starved};
#[cfg(not(feature = "ballista"))]
pub use unavailable::{Client, Contract, cancel, execute, list_executors, schedule, session_of, starved};

/// True if this build has the feature `cluster`.
pub const IS_AVAILABLE: bool = cfg!(feature = "ballista");

/// The default port of a scheduler.
pub const SCHEDULER_PORT: u16 = 50050;

/// The address of a scheduler: `df://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// Returns the host's name or IP address.
    #[must_use]
    pub fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Returns the port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the URL for gRPC and HTTP, which share the port.
    #[must_use]
    pub fn http(&self) -> String {
        format!("http://{}:{}", self.host, self.port)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "df://{}:{}", self.host, self.port)
    }
}

impl FromStr for Address {
    type Err = String;

    /// Parses `df://HOST:PORT`. The scheme defaults to `df://` and the port to [`SCHEDULER_PORT`].
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            |problem: &str| format!("{problem}; expected df://HOST:PORT, such as df://scheduler:{SCHEDULER_PORT}");
        let rest = match text.split_once("://") {
            None => text,
            Some(("df", rest)) => rest,
            Some((scheme, _)) => return Err(wrong(&format!("{scheme}:// is not the scheme of a scheduler"))),
        };
        let url = url::Url::parse(&format!("http://{}", rest.trim_end_matches('/')))
            .map_err(|e| wrong(&format!("not an address: {e}")))?;
        if url.path() != "/" || url.query().is_some() || !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("an address has a host and a port, and nothing else"));
        }
        let host = url.host_str().ok_or_else(|| wrong("no host"))?.to_owned();
        // `url` drops port 80, as it is the default of http.
        let port = if rest.trim_end_matches('/').ends_with(":80") { 80 } else { url.port().unwrap_or(SCHEDULER_PORT) };
        Ok(Self { host, port })
    }
}

/// The scores of a task.
#[derive(Debug)]
pub struct Scored {
    /// The keys of its texts.
    pub keys: ArrayRef,
    /// A prediction or a rejection per text, in the same order.
    pub outcomes: Vec<Result<Prediction, Rejection>>,
    /// The name of the executor that scored them.
    pub executor: String,
    /// The time from sending the task to fetching its result.
    pub took: Duration,
}

/// The texts to score, and the settings for scoring them.
#[derive(Debug)]
pub struct Work {
    /// The model and its settings.
    pub contract: Contract,
    /// The folder for the texts. Executors can read it under the same name.
    pub folder: StoreFolder,
    /// The number of texts.
    pub texts: u64,
    /// The number of their tokens, estimated from a sample.
    pub tokens: u64,
    /// Tokens per byte of text, by the same sample.
    pub tokens_per_byte: f64,
    /// The maximum number of tokens of a text.
    pub max_length: usize,
    /// The maximum number of tokens of a task.
    pub task_tokens: u64,
}

/// The options of a scheduler.
#[derive(Debug, Clone)]
pub struct SchedulerOptions {
    /// The address on which it listens, for clients and executors.
    pub bind: String,
    /// The port.
    pub port: u16,
    /// The seconds without a heartbeat after which an executor counts as lost and its tasks are sent again.
    pub executor_timeout: u64,
}

/// The options of an executor.
#[derive(Debug, Clone)]
pub struct ExecutorOptions {
    /// The address of the scheduler.
    pub scheduler: Address,
    /// The address on which results are served.
    pub bind: String,
    /// The host name for other machines, if it differs.
    pub advertise: Option<String>,
    /// The port on which results are served; 0 for any free port.
    pub port: u16,
    /// The port for health and metrics; none disables that server.
    pub http_port: Option<u16>,
    /// The name of the executor in records and errors.
    pub name: String,
    /// The number of concurrent tasks. They share the inference threads: while one is scored, another reads.
    pub slots: usize,
    /// The number of inference threads.
    pub threads: Option<usize>,
    /// The device of the encoder.
    pub device: DeviceSetting,
    /// The memory limit of joins and sorts, in bytes.
    pub memory: u64,
    /// The folder for results that are not fetched yet. They are in a subfolder that is removed when the executor ends.
    pub work: PathBuf,
}

/// An executor as listed by its scheduler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutorInfo {
    /// The name of the executor.
    pub name: String,
    /// The host that it runs on.
    pub host: String,
    /// The number of tasks that it runs concurrently.
    pub slots: u64,
}

/// An error of a cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// This build does not have the feature `cluster`.
    #[error(
        "{what}: this couplet was built without support for clusters; build it with `cargo build --release --features cluster`"
    )]
    Unavailable {
        /// The command or option that needs it.
        what: &'static str,
    },
    /// The scheduler does not answer.
    #[error("the scheduler at {address} does not answer: {problem}{kept}")]
    Unreachable {
        /// The address of the scheduler.
        address: String,
        /// The error of the connection.
        problem: String,
        /// The state of the work, to be appended to the message.
        kept: &'static str,
    },
    /// The scheduler has had no executor for too long.
    #[error(
        "the scheduler at {address} has had no executor for {seconds} s: start some with `couplet executor --scheduler {address}`"
    )]
    NoExecutor {
        /// The address of the scheduler.
        address: String,
        /// The time without an executor, in seconds.
        seconds: u64,
    },
    /// An executor cannot fulfil the contract, or the work failed on every attempt.
    #[error("the cluster at {address} cannot score: {problem}")]
    Failed {
        /// The address of the scheduler.
        address: String,
        /// The cause.
        problem: String,
    },
    /// The texts of a task cannot be written to the place from which the executors read them.
    #[error("the texts of a task cannot be written to {place}: {problem}")]
    Texts {
        /// The file for the texts.
        place: String,
        /// The cause.
        problem: String,
    },
    /// A scheduler or an executor cannot be started.
    #[error("cannot start {what}: {problem}")]
    Start {
        /// The scheduler or executor.
        what: String,
        /// The cause.
        problem: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for (text, read) in [
            ("df://scheduler:50050", "df://scheduler:50050"),
            ("df://127.0.0.1:7/", "df://127.0.0.1:7"),
            ("scheduler", "df://scheduler:50050"),
            ("df://[::1]:80", "df://[::1]:80"),
        ] {
            assert_eq!(text.parse::<Address>().map(|address| address.to_string()).as_deref(), Ok(read));
        }
        for text in
            ["http://scheduler:50050", "df://", "df://a:b", "df://user@host", "df://host/path", "df://host:99999"]
        {
            let problem = text.parse::<Address>().unwrap_err();
            assert!(problem.contains("expected df://HOST:PORT"), "{text}: {problem}");
        }
        assert_eq!("df://[::1]:5".parse::<Address>().unwrap().host(), "::1");
    }
}
