//! The sessions in which the rows of a run are joined and sorted: numbers, keys and scores, never texts.
//!
//! They have a memory pool of their own, whose size does not grow with the rows, and spill what does not fit.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::DataFusionError;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use deltalake_core::delta_datafusion::planner::DeltaPlanner;

use super::spool::column;
use crate::session::Resources;

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
const MEMORY: u64 = 96 << 20;

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
        let runtime = resources.with_memory(memory)?;
        let mut config = SessionConfig::new().with_batch_size(BATCH);
        config.options_mut().execution.parquet.schema_force_view_types = false;
        let hashing = config.clone().with_target_partitions(1);
        // DataFusion sorts for a join only where there are several partitions.
        let mut sorting = config.with_target_partitions(2);
        let options = sorting.options_mut();
        options.optimizer.prefer_hash_join = false;
        options.execution.sort_spill_reservation_bytes = usize::try_from(memory / 64).unwrap_or(usize::MAX);
        Ok(Self { memory, hashing: session(hashing, Arc::clone(&runtime)), sorting: session(sorting, runtime) })
    }

    /// The session in which a join fits into memory that holds so many bytes.
    pub(super) fn with_room_for(&self, held: u64) -> &SessionContext {
        // A join by hash holds one side in memory, and fails where that does not fit; one by sorting can spill.
        if held < self.memory / 3 { &self.hashing } else { &self.sorting }
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
