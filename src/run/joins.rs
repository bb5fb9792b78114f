//! The sessions in which the rows of a run are joined and sorted: numbers, keys and scores, never texts.
//!
//! They have a memory pool of their own, whose size does not grow with the rows, and spill what does not fit.

use std::fmt::{self, Display};
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::DataFusionError;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use deltalake_core::delta_datafusion::planner::DeltaPlanner;

use super::staged_rows::column;
use crate::session::{Resources, pool};

/// What remembered scores take in memory when they are looked up by their key, in bytes; rather too much.
///
/// Each has the probabilities of all labels, and those before calibration.
pub(super) fn bytes_of_scores(scores: u64, labels: usize) -> u64 {
    let probabilities = 2 * (size_of::<f32>() as u64) * labels as u64;
    scores.saturating_mul(BYTES_BESIDE_PROBABILITIES.saturating_add(probabilities))
}

/// The key of a score, its label and all else that has one size.
const BYTES_BESIDE_PROBABILITIES: u64 = 184;

/// The memory of joins and sorts over the rows, in bytes. More makes them hardly faster: they pass over their rows once
/// or twice, from the disk or not, while a row costs its forward pass.
pub(super) const MEMORY: u64 = 48 << 20;

/// Rows that go through joins and sorts together: few, as each file of spilled rows has a batch in memory when they are
/// merged.
const BATCH: usize = 1024;

/// Sessions for joins and sorts of numbers, keys and scores, with a memory pool of their own.
pub(super) struct Joins {
    memory: u64,
    /// In one partition, where rows come in the order of their file.
    pub(super) hashing: SessionContext,
    /// With both sides of a join sorted, for more than fits.
    sorting: SessionContext,
}

impl Joins {
    /// Takes `memory` bytes, or those that joins are content with, if these are fewer.
    pub(super) fn new(memory: u64, resources: &Resources) -> Result<Self, DataFusionError> {
        let memory = memory.min(MEMORY);
        let runtime = resources.with_pool(Arc::new(SortsInShares::new(memory)))?;
        let config = config(memory, BATCH);
        let hashing = session(config.clone().with_target_partitions(1), Arc::clone(&runtime));
        Ok(Self { memory, hashing, sorting: session(sorting(config), runtime) })
    }

    /// The session in which a join fits into memory that holds so many bytes.
    pub(super) fn with_room_for(&self, held: u64) -> &SessionContext {
        // A join by hash holds one side in memory, and fails where that does not fit; one by sorting can spill.
        if held < self.memory / 3 { &self.hashing } else { &self.sorting }
    }
}

/// A session for a join of whole rows, of `width` bytes each, that sorts both sides and spills what does not fit into
/// `memory`, in bytes.
pub(super) fn of_rows(memory: u64, width: u64, resources: &Resources) -> Result<SessionContext, DataFusionError> {
    let runtime = resources.with_pool(Arc::new(SortsInShares::new(memory)))?;
    // A sort that merges what it has spilled holds two batches at least, and counts each of them twice.
    let together = usize::try_from(memory / SHARES / 16 / width.max(1)).unwrap_or(usize::MAX);
    Ok(session(sorting(config(memory, together.clamp(1, BATCH))), runtime))
}

/// What all joins have, with so many bytes and so many rows together.
fn config(memory: u64, together: usize) -> SessionConfig {
    let mut config = SessionConfig::new().with_batch_size(together);
    let execution = &mut config.options_mut().execution;
    execution.parquet.schema_force_view_types = false;
    // A sort of so little makes one batch of it, which must fit into its share as well.
    let little = usize::try_from(memory / SHARES / 8).unwrap_or(usize::MAX);
    execution.sort_in_place_threshold_bytes = little;
    execution.sort_spill_reservation_bytes = little;
    config
}

/// Has joins sort both sides.
fn sorting(config: SessionConfig) -> SessionConfig {
    // DataFusion sorts for a join only where there are several partitions.
    let mut config = config.with_target_partitions(2);
    config.options_mut().optimizer.prefer_hash_join = false;
    config
}

/// A pool in which no sort takes more than its share.
///
/// A sort of `DataFusion` that merges what it has spilled takes as many files at once as there is room for, does with less
/// where it must, and gives nothing back while it lasts. The sort behind it begins meanwhile, finds the pool empty, and
/// fails. A join has four sorts below it and two above, one for each partition; those above run while those below merge.
#[derive(Debug)]
struct SortsInShares {
    pool: Arc<dyn MemoryPool>,
    share: usize,
}

/// Of six sorts at a time and what they need to spill, each gets one part of so many.
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
        // A sort calls itself so, and its merges by the same word with another behind it.
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

/// The same columns with bytes and strings in one buffer each, as those that are sorted must have them.
///
/// A view keeps alive the whole buffer that it points into. A sort counts that buffer anew for each of its batches, and
/// so, merging what it has spilled, finds no room in a pool that is far from full.
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

/// A session that can read Delta tables.
pub(super) fn session(config: SessionConfig, runtime: Arc<RuntimeEnv>) -> SessionContext {
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_default_features()
        // Which plans everything else as usual.
        .with_query_planner(DeltaPlanner::new());
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
    fn a_join_with_scores_of_many_labels_is_one_that_can_spill() {
        let folder = tempfile::tempdir().unwrap();
        let resources = Resources::new(1 << 30, folder.path()).unwrap();
        let joins = Joins::new(MEMORY, &resources).unwrap();
        let spills =
            |labels| std::ptr::eq(joins.with_room_for(bytes_of_scores(20_000, labels)), &raw const joins.sorting);
        assert!(!spills(2) && spills(1000));
    }
}
