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

/// Stands between the name of an executor and what sets its life apart from others of that name.
#[cfg(feature = "cluster")]
const INSTANCE: char = '~';

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

/// What a couplet without the feature says of a command or an option.
#[must_use]
pub fn built_without(what: &str) -> Error {
    Error::Usage(format!(
        "{what}: this couplet was built without support for clusters; build it with `cargo build --release --features cluster`"
    ))
}

/// A session whose queries a cluster executes: without the feature, there is none.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cluster"))]
#[expect(clippy::unused_async, reason = "as it is with the feature")]
pub async fn session_of(_: &Address, _: usize, _: Arc<Models>) -> Result<SessionContext, Error> {
    Err(built_without("--cluster"))
}

/// Cancels the jobs of a session that are not done: without the feature, there are none.
#[cfg(not(feature = "cluster"))]
pub fn cancel(_: &SessionContext) -> std::future::Ready<()> {
    std::future::ready(())
}

/// Ends when a job of the session has waited for an executor for too long: without the feature, there are none.
#[cfg(not(feature = "cluster"))]
pub fn starved(_: &SessionContext) -> std::future::Pending<ClusterError> {
    std::future::pending()
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

/// Asks a scheduler for its executors: without the feature, there is none.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cluster"))]
#[expect(clippy::unused_async, reason = "as it is with the feature")]
pub async fn look(_: &Address) -> Result<Vec<Seen>, Error> {
    Err(built_without("--cluster"))
}

/// Why a cluster could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
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
