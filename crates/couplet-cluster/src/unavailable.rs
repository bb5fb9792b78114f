//! Replaces the cluster in builds without the feature `cluster`: every operation returns an error.

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

use super::{Address, ClusterError, ExecutorInfo, ExecutorOptions, SchedulerOptions, Scored, Work};

/// A client, which cannot be created in this build.
#[derive(Debug)]
pub struct Client(Infallible);

#[expect(clippy::unused_async, reason = "as it is with the feature")]
impl Client {
    /// Returns an error.
    ///
    /// # Errors
    /// Always.
    pub async fn connect(_: &Address, _: usize, _: Arc<Models>) -> Result<Self, ClusterError> {
        Err(ClusterError::Unavailable { what: "--cluster" })
    }

    /// Cannot be called, because there is no client.
    pub fn score<E, W>(self: &Arc<Self>, _: W, _: Work) -> Empty<Result<Scored, E>>
    where
        W: Stream<Item = Result<(ArrayRef, Window), E>>,
    {
        match self.0 {}
    }

    /// Cannot be called, because there is no client.
    pub async fn end(&self) {
        match self.0 {}
    }

    /// Cannot be called, because there is no client.
    #[must_use]
    pub fn gave_up(&self) -> bool {
        match self.0 {}
    }
}

/// An empty contract.
#[derive(Debug)]
pub struct Contract;

impl Contract {
    /// Creates an empty contract.
    #[must_use]
    pub fn of(_: &Scorer, _: &Place, _: Option<usize>, _: &[String]) -> Self {
        Self
    }
}

/// Returns an error: this build cannot run queries on a cluster.
///
/// # Errors
/// Always.
pub async fn session_of(_: &Address, _: usize, _: Arc<Models>) -> Result<SessionContext, ClusterError> {
    Err(ClusterError::Unavailable { what: "--cluster" })
}

/// Does nothing: this build starts no jobs.
pub fn cancel(_: &SessionContext) -> std::future::Ready<()> {
    std::future::ready(())
}

/// Never resolves: this build starts no jobs.
pub fn starved(_: &SessionContext) -> std::future::Pending<ClusterError> {
    std::future::pending()
}

/// Returns an error: this build cannot query a scheduler.
///
/// # Errors
/// Always.
pub async fn list_executors(_: &Address) -> Result<Vec<ExecutorInfo>, ClusterError> {
    Err(ClusterError::Unavailable { what: "--cluster" })
}

/// Returns an error: this build has no scheduler.
///
/// # Errors
/// Always.
pub async fn schedule(_: SchedulerOptions) -> Result<(), ClusterError> {
    Err(ClusterError::Unavailable { what: "couplet scheduler" })
}

/// Returns an error: this build has no executor.
///
/// # Errors
/// Always.
pub async fn execute(_: ExecutorOptions, _: impl Future<Output = ()>) -> Result<(), ClusterError> {
    Err(ClusterError::Unavailable { what: "couplet executor" })
}
