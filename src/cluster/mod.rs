//! More than one machine: the same pipeline with [Ballista](https://datafusion.apache.org/ballista/).
//!
//! ```text
//!   couplet run --cluster df://HOST:50050            couplet scheduler              couplet executor, many
//!   ─────────────────────────────────────            ─────────────────              ──────────────────────
//!   source ─ rows ─ texts without a score
//!              cut into tasks by tokens ── a job ──▶  plan, hand out, ── a task ──▶  read texts from the store,
//!              texts ─▶ store/cluster/RUN/*.parquet   hand out again                 score them with the model that
//!   store ◀─ remember ◀────────────── scores ◀──────  what was lost   ◀───────────── the plan names
//!   sink  ◀─ publish in one step
//! ```
//!
//! A run on a cluster is a run: only the step from texts to scores happens elsewhere. Reading, remembering and the one
//! commit stay with the client, so resume, `--fresh` and the record of runs are those of one machine, and nothing that an
//! executor writes can be seen by a reader. Scheduling, retries and lost executors are Ballista's.
//!
//! The plan is the job. It carries a [`Contract`]: which model, by URI and fingerprint, cut and computed how, for which
//! version of couplet. An executor that cannot keep it refuses. Keys and passwords never travel: each machine takes those
//! of its own environment.
//!
//! All but the address needs the feature `cluster`.

#[cfg(feature = "cluster")]
mod ballista;
#[cfg(not(feature = "cluster"))]
mod unavailable;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use arrow::array::ArrayRef;

use crate::objects::StoreFolder;
use crate::scorer::{DeviceSetting, Prediction, Rejection};

#[cfg(feature = "cluster")]
pub use ballista::{Client, Contract, cancel, execute, look, schedule, session_of, starved};
#[cfg(not(feature = "cluster"))]
pub use unavailable::{Client, Contract, cancel, execute, look, schedule, session_of, starved};

/// Whether this couplet was built with support for clusters.
pub const IS_AVAILABLE: bool = cfg!(feature = "cluster");

/// The port of a scheduler where no other is named.
pub const SCHEDULER_PORT: u16 = 50050;

/// Where a scheduler listens: `df://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// The host's name or address.
    #[must_use]
    pub fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address for gRPC and HTTP, which share the port.
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

    /// Reads `df://HOST:PORT`; without the scheme or the port, those are `df://` and [`SCHEDULER_PORT`].
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            |problem: &str| format!("{problem}; expected df://HOST:PORT, such as df://scheduler:{SCHEDULER_PORT}");
        let rest = match text.split_once("://") {
            None => text,
            Some(("df", rest)) => rest,
            Some((scheme, _)) => return Err(wrong(&format!("{scheme}:// is no address of a scheduler"))),
        };
        let url = url::Url::parse(&format!("http://{}", rest.trim_end_matches('/')))
            .map_err(|e| wrong(&format!("no address: {e}")))?;
        if url.path() != "/" || url.query().is_some() || !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("an address has a host and a port, and nothing else"));
        }
        let host = url.host_str().ok_or_else(|| wrong("no host"))?.to_owned();
        // 80 is what a URL leaves out, not what is meant.
        let port = if rest.trim_end_matches('/').ends_with(":80") { 80 } else { url.port().unwrap_or(SCHEDULER_PORT) };
        Ok(Self { host, port })
    }
}

/// The scores of a task.
#[derive(Debug)]
pub struct Scored {
    /// The keys of its texts.
    pub keys: ArrayRef,
    /// What became of them, in the same order.
    pub outcomes: Vec<Result<Prediction, Rejection>>,
    /// Who scored them.
    pub executor: String,
    /// How long it took, from being sent to being fetched.
    pub took: Duration,
}

/// What a client is to have scored.
#[derive(Debug)]
pub struct Work {
    /// With what.
    pub contract: Contract,
    /// The folder for the texts, which executors reach under the same name.
    pub folder: StoreFolder,
    /// How many texts there are.
    pub texts: u64,
    /// How many tokens they have, as far as a sample tells.
    pub tokens: u64,
    /// Tokens to a byte of text, by the same sample.
    pub tokens_per_byte: f64,
    /// Tokens of a text at most.
    pub max_length: usize,
    /// Tokens of a task at most.
    pub task_tokens: u64,
}

/// How a scheduler is run.
#[derive(Debug, Clone)]
pub struct SchedulerOptions {
    /// The address on which it listens, for clients and executors.
    pub bind: String,
    /// The port.
    pub port: u16,
    /// After how many seconds without a word an executor is taken for dead, and its tasks are handed out again.
    pub executor_timeout: u64,
}

/// How an executor is run.
#[derive(Debug, Clone)]
pub struct ExecutorOptions {
    /// Where the scheduler is.
    pub scheduler: Address,
    /// The address on which results are given out.
    pub bind: String,
    /// The host that others reach it by, where that is another one.
    pub advertise: Option<String>,
    /// The port on which results are given out; 0 for one that is free.
    pub port: u16,
    /// The port for health and metrics; none for no such server.
    pub http_port: Option<u16>,
    /// What the executor is called in records and errors.
    pub name: String,
    /// Tasks at once. They share the inference threads; a second one reads while the first is scored.
    pub slots: usize,
    /// Inference threads.
    pub threads: Option<usize>,
    /// Where the encoder runs.
    pub device: DeviceSetting,
    /// The memory of joins and sorts of queries, in bytes.
    pub memory: u64,
    /// Where results are kept until they are fetched, in a folder that goes with the executor.
    pub work: PathBuf,
}

/// An executor, as its scheduler knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What it is called.
    pub name: String,
    /// The host that it is on.
    pub host: String,
    /// Tasks that it takes at once.
    pub slots: u64,
}

/// Why a cluster could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// This couplet was built without the feature `cluster`.
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
        /// Where it should be.
        address: String,
        /// What the connection said.
        problem: String,
        /// What there is of the work.
        kept: &'static str,
    },
    /// No executor came.
    #[error(
        "the scheduler at {address} has had no executor for {seconds} s: start some with `couplet executor --scheduler {address}`"
    )]
    NoExecutor {
        /// Where the scheduler is.
        address: String,
        /// For how long.
        seconds: u64,
    },
    /// An executor cannot keep the contract, or the work failed wherever it was tried.
    #[error("the cluster at {address} cannot score: {problem}")]
    Failed {
        /// Where the scheduler is.
        address: String,
        /// What was said.
        problem: String,
    },
    /// The texts of a task cannot be put where the executors read them.
    #[error("the texts of a task cannot be put into {place}: {problem}")]
    Texts {
        /// Where.
        place: String,
        /// Why not.
        problem: String,
    },
    /// A scheduler or an executor cannot be started.
    #[error("cannot start {what}: {problem}")]
    Start {
        /// Which.
        what: String,
        /// Why not.
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
