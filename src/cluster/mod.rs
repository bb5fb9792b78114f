//! Distributed scoring: runs a pipeline on several machines with [Ballista](https://datafusion.apache.org/ballista/).
//!
//! ```text
//!   couplet run --cluster df://HOST:50050            couplet scheduler              couplet executor, many
//!   ─────────────────────────────────────            ─────────────────              ──────────────────────
//!   source ─ rows ─ texts without a score
//!              cut into tasks by tokens ── a job ──▶  plan, hand out, ── a task ──▶  read texts from the store,
//!              texts ─▶ store/cluster/RUN/*.parquet   hand out again                 score them with the model that
//!   store ◀─ cache ◀───────────────── scores ◀──────  what was lost   ◀───────────── the plan names
//!   sink  ◀─ publish in one step
//! ```
//!
//! Only scoring happens on the cluster. The client reads, caches and publishes locally, in one commit. So resume,
//! `--fresh` and the record of runs work as on one machine, and readers of the sink never see anything that an executor
//! writes. Ballista does the scheduling, the retries and the recovery from lost executors.
//!
//! The plan of a job carries a [`Contract`]: the model by URI and fingerprint, the truncation and precision, and the
//! version of couplet. An executor that cannot fulfil it refuses the task. Keys and passwords are never sent: each
//! machine takes those of its own environment.
//!
//! Everything but the address needs the feature `cluster`.

#[cfg(feature = "cluster")]
mod client;
#[cfg(feature = "cluster")]
mod codec;
#[cfg(feature = "cluster")]
mod contract;
#[cfg(feature = "cluster")]
pub(crate) mod delta;
#[cfg(feature = "cluster")]
mod executor;
#[cfg(feature = "cluster")]
mod function;
#[cfg(feature = "cluster")]
mod listed;
#[cfg(feature = "cluster")]
mod lists;
#[cfg(feature = "cluster")]
mod outcomes;
#[cfg(feature = "cluster")]
mod scheduler;
#[cfg(feature = "cluster")]
mod session;
#[cfg(feature = "cluster")]
mod stores;
#[cfg(feature = "cluster")]
mod tasks;

use std::fmt;
use std::str::FromStr;
#[cfg(not(feature = "cluster"))]
use std::sync::Arc;

#[cfg(not(feature = "cluster"))]
use datafusion::prelude::SessionContext;

use crate::error::Error;
#[cfg(not(feature = "cluster"))]
use crate::predict::Models;

#[cfg(feature = "cluster")]
pub use client::{Client, Scored, Work};
#[cfg(feature = "cluster")]
pub use contract::Contract;
#[cfg(feature = "cluster")]
pub use executor::{ExecutorOptions, execute};
#[cfg(feature = "cluster")]
pub use lists::look;
#[cfg(feature = "cluster")]
pub use scheduler::{SchedulerOptions, schedule};
#[cfg(feature = "cluster")]
pub use session::{cancel, session_of, starved};

/// The separator between the name of an executor and the suffix that makes each of its starts unique.
#[cfg(feature = "cluster")]
const INSTANCE: char = '~';

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
    #[cfg(feature = "cluster")]
    fn http(&self) -> String {
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

/// Returns the error for a command or an option that needs the feature `cluster` in a build without it.
#[must_use]
pub fn built_without(what: &str) -> Error {
    Error::Usage(format!(
        "{what}: this couplet was built without support for clusters; build it with `cargo build --release --features cluster`"
    ))
}

/// Creates a session whose queries a cluster executes. Without the feature `cluster` it always fails.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cluster"))]
#[expect(clippy::unused_async, reason = "as it is with the feature")]
pub async fn session_of(_: &Address, _: usize, _: Arc<Models>) -> Result<SessionContext, Error> {
    Err(built_without("--cluster"))
}

/// Cancels the unfinished jobs of a session. Without the feature `cluster` there are none.
#[cfg(not(feature = "cluster"))]
pub fn cancel(_: &SessionContext) -> std::future::Ready<()> {
    std::future::ready(())
}

/// Resolves when a job of the session has waited too long for an executor. Without the feature `cluster` it never does.
#[cfg(not(feature = "cluster"))]
pub fn starved(_: &SessionContext) -> std::future::Pending<ClusterError> {
    std::future::pending()
}

/// An executor as listed by its scheduler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The name of the executor.
    pub name: String,
    /// The host that it runs on.
    pub host: String,
    /// The number of tasks that it runs concurrently.
    pub slots: u64,
}

/// Lists the executors of a scheduler. Without the feature `cluster` it always fails.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cluster"))]
#[expect(clippy::unused_async, reason = "as it is with the feature")]
pub async fn look(_: &Address) -> Result<Vec<Seen>, Error> {
    Err(built_without("--cluster"))
}

/// An error of a cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
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
    #[error("the texts of a task cannot be put into {place}: {problem}")]
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
