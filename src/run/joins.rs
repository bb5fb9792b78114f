//! Sessions for joining and sorting the rows of a run: numbers, keys and scores, but no texts.
//!
//! They share a separate memory pool, whose size does not grow with the rows, and spill what does not fit.

use std::fmt::{self, Display};
use std::sync::Arc;

use arrow::datatypes::DataType;
use couplet_tables::delta::query_planner;
use couplet_tables::session::{Resources, pool};
use datafusion::common::DataFusionError;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};

use super::staged_rows::column;

/// Estimates the memory in bytes of cached scores in a join by key, on the high side.
///
/// Each score has the probabilities of all labels, calibrated and uncalibrated.
pub(super) fn bytes_of_scores(scores: u64, labels: usize) -> u64 {
    let probabilities = 2 * (size_of::<f32>() as u64) * labels as u64;
    scores.saturating_mul(FIXED_BYTES_PER_SCORE.saturating_add(probabilities))
}

/// Bytes of a score's key, label and other fields of fixed size.
const FIXED_BYTES_PER_SCORE: u64 = 184;

/// The memory limit of joins and sorts over the rows, in bytes. More memory makes them hardly faster: they pass over
/// their rows once or twice, from disk or not, while each row costs a forward pass.
pub(super) const MEMORY: u64 = 48 << 20;

/// Batch size of joins and sorts in rows. It is small, as a merge holds one batch of each spill file in memory.
const BATCH: usize = 1024;

/// Sessions for joins and sorts of numbers, keys and scores, with a separate memory pool.
pub(super) struct Joins {
    memory: u64,
    /// Hash joins in one partition, which keeps rows in file order.
    pub(super) hashing: SessionContext,
    /// Sort-merge joins, for rows that do not fit in memory.
    sorting: SessionContext,
}

impl Joins {
    /// Creates the sessions with `memory` bytes, but at most [`MEMORY`].
    pub(super) fn new(memory: u64, resources: &Resources) -> Result<Self, DataFusionError> {
        let memory = memory.min(MEMORY);
        let runtime = resources.with_pool(Arc::new(SortsInShares::new(memory)))?;
        let config = config(memory, BATCH);
        let hashing = session(config.clone().with_target_partitions(1), Arc::clone(&runtime));
        Ok(Self { memory, hashing, sorting: session(sorting(config), runtime) })
    }

    /// Returns the session for a join that holds `held` bytes.
    pub(super) fn session_for(&self, held: u64) -> &SessionContext {
        // A hash join holds one side in memory, and fails if it does not fit; a sort-merge join can spill.
        if held < self.memory / 3 { &self.hashing } else { &self.sorting }
    }
}

/// Creates a session for joining complete rows of `width` bytes each. It sorts both sides, and spills what does not fit
/// into `memory` bytes.
pub(super) fn of_rows(memory: u64, width: u64, resources: &Resources) -> Result<SessionContext, DataFusionError> {
    let runtime = resources.with_pool(Arc::new(SortsInShares::new(memory)))?;
    // A sort that merges spill files holds at least two batches, and counts each twice.
    let batch_rows = usize::try_from(memory / SHARES / 16 / width.max(1)).unwrap_or(usize::MAX);
    Ok(session(sorting(config(memory, batch_rows.clamp(1, BATCH))), runtime))
}

/// Returns the common configuration of joins, for a memory limit in bytes and a batch size in rows.
fn config(memory: u64, batch_rows: usize) -> SessionConfig {
    let mut config = SessionConfig::new().with_batch_size(batch_rows);
    let execution = &mut config.options_mut().execution;
    execution.parquet.schema_force_view_types = false;
    // A sort below this threshold produces a single batch, which must fit into its share too.
    let threshold = usize::try_from(memory / SHARES / 8).unwrap_or(usize::MAX);
    execution.sort_in_place_threshold_bytes = threshold;
    execution.sort_spill_reservation_bytes = threshold;
    config
}

/// Enables sort-merge joins.
fn sorting(config: SessionConfig) -> SessionConfig {
    // DataFusion uses a sort-merge join only with several partitions.
    let mut config = config.with_target_partitions(2);
    config.options_mut().optimizer.prefer_hash_join = false;
    config
}

/// A memory pool in which each sort is limited to its share.
///
/// A `DataFusion` sort that merges spill files takes as many files at once as fit, could do with fewer, and releases
/// nothing until it ends. The next sort in the plan starts meanwhile, finds the pool exhausted, and fails. A join has
/// four sorts below it and two above, one per partition; those above run while those below merge.
#[derive(Debug)]
struct SortsInShares {
    pool: Arc<dyn MemoryPool>,
    share: usize,
}

/// The number of shares: up to six sorts at a time, and what they need to spill.
const SHARES: u64 = 8;

impl SortsInShares {
    fn new(memory: u64) -> Self {
        Self { pool: pool(memory), share: usize::try_from(memory / SHARES).unwrap_or(usize::MAX) }
    }
}

impl Display for SortsInShares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pool.fmt(f)
    }
}

impl MemoryPool for SortsInShares {
    fn name(&self) -> &'static str {
        "sorts in shares"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.pool.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.pool.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.pool.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.pool.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<(), DataFusionError> {
        let name = reservation.consumer().name();
        // The consumer name of a sort; merges append a suffix.
        if name.starts_with("ExternalSorter") && reservation.size().saturating_add(additional) > self.share {
            let problem = format!(
                "{name} has {} bytes, and {additional} more are above its share of {}",
                reservation.size(),
                self.share
            );
            return Err(DataFusionError::ResourcesExhausted(problem));
        }
        self.pool.try_grow(reservation, additional)
    }

    fn reserved(&self) -> usize {
        self.pool.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.pool.memory_limit()
    }
}

/// Casts view columns to plain strings and binary, as sorts need them.
///
/// A view keeps its whole underlying buffer alive. A sort counts that buffer again for each of its batches. So a sort
/// that merges spill files finds the pool exhausted when it is far from full.
pub(super) fn without_views(frame: DataFrame) -> Result<DataFrame, DataFusionError> {
    let columns = frame.schema().fields().iter().map(|field| {
        let plain = match field.data_type() {
            DataType::BinaryView => DataType::Binary,
            DataType::Utf8View => DataType::Utf8,
            _ => return column(field.name()),
        };
        datafusion::logical_expr::cast(column(field.name()), plain).alias(field.name())
    });
    let columns = columns.collect::<Vec<_>>();
    frame.select(columns)
}

/// Creates a session that can read Delta tables.
pub(super) fn session(config: SessionConfig, runtime: Arc<RuntimeEnv>) -> SessionContext {
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_default_features()
        // The planner of Delta tables plans other nodes as usual.
        .with_query_planner(query_planner());
    SessionContext::new_with_state(state.build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_of_more_labels_take_more_memory() {
        assert_eq!(bytes_of_scores(1000, 2), 200_000);
        // Two lists of 32-bit floats.
        assert_eq!(bytes_of_scores(1000, 5000) - bytes_of_scores(1000, 0), 1000 * 2 * 4 * 5000);
        assert_eq!(bytes_of_scores(u64::MAX, 2), u64::MAX);
    }

    #[test]
    fn joins_with_scores_of_many_labels_can_spill() {
        let folder = tempfile::tempdir().unwrap();
        let resources = Resources::new(1 << 30, folder.path()).unwrap();
        let joins = Joins::new(MEMORY, &resources).unwrap();
        let spills =
            |labels| std::ptr::eq(joins.session_for(bytes_of_scores(20_000, labels)), &raw const joins.sorting);
        assert!(!spills(2) && spills(1000));
    }
}
