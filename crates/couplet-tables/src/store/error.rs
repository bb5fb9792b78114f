//! Errors of a store.

use std::io;

use couplet_storage::lock::LockError;
use couplet_storage::objects::ObjectsError;
use datafusion::common::DataFusionError;
use thiserror::Error;

use crate::delta::DeltaError;
use crate::sql_error;

/// An error of opening, reading or writing a store.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The folder cannot be used as a store.
    #[error("score.store: {place} {problem}")]
    Unsuitable {
        /// The folder.
        place: String,
        /// The problem and how to fix it.
        problem: String,
    },
    /// An object of the store cannot be read or written.
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    /// The table of runs cannot be read or written.
    #[error(transparent)]
    Delta(#[from] DeltaError),
    /// The server does not keep the conditions that a store needs.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The operating system refused an operation.
    #[error("{place}: {error}")]
    Io {
        /// The store.
        place: String,
        /// The refusal.
        error: io::Error,
    },
    /// A table of the store cannot be read.
    #[error("{origin}: {}", sql_error::explain(error, None, None))]
    Sql {
        /// The table.
        origin: String,
        /// The error.
        error: Box<DataFusionError>,
    },
}
