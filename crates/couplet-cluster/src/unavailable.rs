//! The cluster of a couplet that was built without the feature `cluster`: every function refuses.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use arrow::array::ArrayRef;
use couplet_encoder::scorer::{Scorer, Window};
use couplet_storage::place::Place;
use couplet_tables::predict::Models;
use datafusion::prelude::SessionContext;
use futures::Stream;
use futures::stream::Empty;

use super::{Address, ClusterError, ExecutorOptions, SchedulerOptions, Scored, Seen, Work};

/// No client.
#[derive(Debug)]
pub struct Client(Infallible);

#[expect(clippy::unused_async, reason = "as it is with the feature")]
impl Client {
    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub async fn connect(_: &Address, _: usize, _: Arc<Models>) -> Result<Self, ClusterError> {
        Err(ClusterError::Unavailable { what: "--cluster" })
    }

    /// Scores nothing, as there is no client.
    pub fn score<E, W>(self: &Arc<Self>, _: W, _: Work) -> Empty<Result<Scored, E>>
    where
        W: Stream<Item = Result<(ArrayRef, Window), E>>,
    {
        match self.0 {}
    }

    /// Ends nothing.
    pub async fn end(&self) {
        match self.0 {}
    }

    /// Never gave up.
    #[must_use]
    pub fn gave_up(&self) -> bool {
        match self.0 {}
    }
}

/// No contract.
#[derive(Debug)]
pub struct Contract;

impl Contract {
    /// Agrees on nothing.
    #[must_use]
    pub fn of(_: &Scorer, _: &Place, _: Option<usize>, _: &[String]) -> Self {
        Self
    }
}

/// Refuses a session whose queries a cluster would execute.
///
/// # Errors
/// Always.
pub async fn session_of(_: &Address, _: usize, _: Arc<Models>) -> Result<SessionContext, ClusterError> {
    Err(ClusterError::Unavailable { what: "--cluster" })
}

/// Cancels the unfinished jobs of a session. Without the feature `cluster` there are none.
pub fn cancel(_: &SessionContext) -> std::future::Ready<()> {
    std::future::ready(())
}

/// Resolves when a job of the session has waited too long for an executor. Without the feature `cluster` it never does.
pub fn starved(_: &SessionContext) -> std::future::Pending<ClusterError> {
    std::future::pending()
}

/// Refuses to ask a scheduler for its executors.
///
/// # Errors
/// Always.
pub async fn look(_: &Address) -> Result<Vec<Seen>, ClusterError> {
    Err(ClusterError::Unavailable { what: "--cluster" })
}

/// Refuses to run a scheduler.
///
/// # Errors
/// Always.
pub async fn schedule(_: SchedulerOptions) -> Result<(), ClusterError> {
    Err(ClusterError::Unavailable { what: "couplet scheduler" })
}

/// Refuses to run an executor.
///
/// # Errors
/// Always.
pub async fn execute(_: ExecutorOptions, _: impl Future<Output = ()>) -> Result<(), ClusterError> {
    Err(ClusterError::Unavailable { what: "couplet executor" })
}
