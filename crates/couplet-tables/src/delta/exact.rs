//! A Delta table provider that uses the log's statistics only where they are exact.
//!
//! delta-rs writes the minimum and maximum of decimals as 64-bit floats and those of timestamps truncated to
//! milliseconds, as Spark does, and skips files by them. So the true maximum of a file may be greater than the one in
//! the log. For floats the statistics ignore NaN, which SQL sorts last. Tables with such statistics, from other writers
//! or earlier versions, are read without them.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::logical_expr::{Expr, LogicalPlan, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};

/// A Delta table that skips no file by statistics that may not be exact.
#[derive(Debug)]
pub(super) struct ExactScan {
    table: Arc<dyn TableProvider>,
    /// Partition columns, whose values are in the log itself.
    partitions: Vec<String>,
    /// True if the files use other names for the columns.
    is_mapped: bool,
}

impl ExactScan {
    pub(super) fn new(table: Arc<dyn TableProvider>, partitions: Vec<String>, is_mapped: bool) -> Self {
        Self { table, partitions, is_mapped }
    }

    fn is_trusted(&self, filter: &Expr) -> bool {
        let schema = self.table.schema();
        filter.column_refs().into_iter().all(|column| {
            self.partitions.contains(&column.name)
                || schema.field_with_name(&column.name).is_ok_and(|field| !is_inexact(field.data_type()))
        })
    }
}

/// Returns the columns of a schema whose minimum and maximum delta-rs does not write exactly.
pub(crate) fn inexact(schema: &Schema) -> impl Iterator<Item = &str> {
    schema.fields().iter().filter(|field| is_inexact(field.data_type())).map(|field| field.name().as_str())
}

/// Returns true if delta-rs does not write the minimum and maximum of this type, or of a type within it, exactly.
fn is_inexact(data_type: &DataType) -> bool {
    match data_type {
        DataType::Struct(fields) => fields.iter().any(|field| is_inexact(field.data_type())),
        DataType::Dictionary(_, values) => is_inexact(values),
        DataType::Timestamp(..) => true,
        other => other.is_decimal() || other.is_floating(),
    }
}

#[async_trait]
impl TableProvider for ExactScan {
    fn schema(&self) -> SchemaRef {
        self.table.schema()
    }

    fn table_type(&self) -> TableType {
        self.table.table_type()
    }

    fn get_logical_plan(&'_ self) -> Option<Cow<'_, LogicalPlan>> {
        self.table.get_logical_plan()
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        filters
            .iter()
            .map(|&filter| {
                if !self.is_trusted(filter) {
                    return Ok(TableProviderFilterPushDown::Unsupported);
                }
                let supported = self.table.supports_filters_pushdown(&[filter])?;
                Ok(supported.into_iter().next().unwrap_or(TableProviderFilterPushDown::Unsupported))
            })
            .collect()
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let trusted: Vec<Expr> = filters.iter().filter(|filter| self.is_trusted(filter)).cloned().collect();
        // delta-rs maps the columns that are read, and fails if there are none, as for count(*).
        if self.is_mapped && projection.is_some_and(Vec::is_empty) {
            let rows = self.table.scan(session, Some(&vec![0]), &trusted, limit).await?;
            return Ok(Arc::new(ProjectionExec::try_new(Vec::<ProjectionExpr>::new(), rows)?));
        }
        self.table.scan(session, projection, &trusted, limit).await
    }
}
