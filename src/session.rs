//! The DataFusion session: settings, tables, functions.

use std::sync::Arc;

use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::config::Table;
use crate::predict::{self, Models};
use crate::tables::{self, TableError};

/// Opens a session in which SQL sees the tables and can call `predict`.
///
/// `window` is the number of rows of a record batch, and so of what `predict` scores together. `partitions`
/// is how many parts of a plan run at once: with one, rows keep the order of the files.
///
/// # Errors
/// A table whose files are missing or unreadable: all of them, not the first.
pub async fn open(
    listed: &[Table],
    models: Arc<Models>,
    window: usize,
    partitions: usize,
) -> Result<SessionContext, Vec<TableError>> {
    let config =
        SessionConfig::new().with_batch_size(window).with_target_partitions(partitions).with_information_schema(true);
    let builder = SessionStateBuilder::new().with_config(config).with_default_features();
    let context = SessionContext::new_with_state(predict::install(builder, models).build());
    let mut errors = Vec::new();
    for table in listed {
        errors.extend(tables::register(&context, table).await.err());
    }
    if errors.is_empty() { Ok(context) } else { Err(errors) }
}
