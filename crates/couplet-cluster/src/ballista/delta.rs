//! Delta tables on a cluster: scans their files, because deltalake's own scan cannot be serialized.
//!
//! deltalake 1.1 has no codec for its scan (`delta_datafusion/mod.rs`: "until a `DeltaScanExec` codec"). The client reads
//! the log, so all executors see one version. Partition values, which are not in the files, become constant columns.
//! Deletion vectors and column mapping are refused.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use couplet_storage::objects::Objects;
use couplet_tables::delta;
use couplet_tables::tables::FileTable;
use couplet_tables::tables::{Location, Table, TableFormat};
use datafusion::catalog::TableProvider;
use datafusion::common::{DFSchema, DataFusionError, Result, plan_err};
use datafusion::logical_expr::{EmptyRelation, LogicalPlan, cast};
use datafusion::prelude::{DataFrame, SessionContext, col, lit};
use datafusion::scalar::ScalarValue;
use deltalake_core::DeltaTable;
use object_store::path::Path;

use super::Address;

/// Marks a session whose plans a cluster executes.
#[derive(Debug)]
pub(crate) struct RemoteSession {
    /// The address of the scheduler.
    pub(super) address: Address,
    /// The name of the session's jobs at the scheduler.
    pub(super) name: String,
}

/// Returns the table as a view of the files of its version; none if the session executes its plans locally.
pub(crate) fn provider(
    objects: &Objects,
    table: &DeltaTable,
    context: &SessionContext,
) -> Result<Arc<dyn TableProvider>> {
    let snapshot = table.snapshot().map_err(|e| DataFusionError::External(Box::new(e)))?;
    if delta::has_mapped_columns(snapshot) {
        return plan_err!(
            "its columns have other names in its files (delta.columnMapping.mode), which a cluster cannot read yet; query it \
             without --cluster"
        );
    }
    let partitions = snapshot.metadata().partition_columns();
    let schema = snapshot.snapshot().arrow_schema();
    let mut files: BTreeMap<Vec<Option<String>>, Vec<Path>> = BTreeMap::new();
    for file in snapshot.log_data() {
        if file.deletion_vector_descriptor().is_some() {
            return plan_err!(
                "its version {} has rows that were deleted without a new file, which a cluster cannot read yet; query it \
                 without --cluster",
                table.version().unwrap_or_default()
            );
        }
        let values: HashMap<String, Option<String>> = file.partition_values_map();
        let values = partitions.iter().map(|name| values.get(name).cloned().flatten()).collect();
        let path = objects.path(file.object_store_path().as_ref());
        files.entry(values).or_default().push(path);
    }
    let mut combined: Option<DataFrame> = None;
    let location = Location { written: objects.to_string(), place: objects.place.clone() };
    let named = Table { name: objects.to_string(), location, format: TableFormat::Parquet, partitions: Vec::new() };
    for (values, paths) in files {
        let part = part(context, &schema, &named, paths, &partitions.iter().map(String::as_str).zip(values).collect())?;
        combined = Some(match combined {
            None => part,
            Some(combined) => combined.union(part)?,
        });
    }
    let combined = if let Some(combined) = combined {
        combined
    } else {
        let schema = Arc::new(DFSchema::try_from(Schema::clone(&schema))?);
        let empty = LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, schema });
        DataFrame::new(context.state(), empty)
    };
    Ok(combined.into_view())
}

/// Scans the files of a partition and adds its values as columns.
fn part(
    context: &SessionContext,
    schema: &SchemaRef,
    table: &Table,
    paths: Vec<Path>,
    values: &HashMap<&str, Option<String>>,
) -> Result<DataFrame> {
    let fields = schema.fields().iter().filter(|field| !values.contains_key(field.name().as_str())).cloned();
    let table = FileTable::of_named(table, paths, &Arc::new(Schema::new(fields.collect::<Vec<_>>())));
    let columns = schema.fields().iter().map(|field| match values.get(field.name().as_str()) {
        None => col(datafusion::common::Column::from_name(field.name())),
        Some(value) => cast(lit(ScalarValue::Utf8(value.clone())), field.data_type().clone()).alias(field.name()),
    });
    context.read_table(Arc::new(table))?.select(columns.collect::<Vec<_>>())
}
