//! The plan node that evaluates calls of `predict`, and its physical plan, DataFusion's `AsyncFuncExec`.
//!
//! ```text
//!   input columns  ──▶  input columns, one column for each distinct call
//! ```
//!
//! No optimizer rule merges or copies an extension node, so a call in this node runs once per row.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::{DataType, Field};
use datafusion::catalog::Session;
use datafusion::common::{DFSchema, DFSchemaRef, Result, internal_err};
use datafusion::execution::context::QueryPlanner;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNode, UserDefinedLogicalNodeCore};
use datafusion::physical_expr::async_scalar_function::AsyncFuncExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::async_func::AsyncFuncExec;
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};

use super::columns::prediction_fields;

/// Evaluates calls of `predict` over its input.
#[derive(Debug, Clone)]
pub(super) struct Predict {
    input: LogicalPlan,
    /// Each call, with the name of its output column.
    calls: Vec<(Expr, String)>,
    schema: DFSchemaRef,
}

impl Predict {
    pub(super) fn try_new(input: LogicalPlan, calls: Vec<(Expr, String)>) -> Result<Self> {
        let mut fields: Vec<_> =
            input.schema().iter().map(|(qualifier, field)| (qualifier.cloned(), Arc::clone(field))).collect();
        fields.extend(
            calls
                .iter()
                .map(|(_, name)| (None, Arc::new(Field::new(name, DataType::Struct(prediction_fields()), true)))),
        );
        let schema = DFSchema::new_with_metadata(fields, input.schema().metadata().clone())?;
        Ok(Self { input, calls, schema: Arc::new(schema) })
    }

    pub(super) fn into_plan(self) -> LogicalPlan {
        LogicalPlan::Extension(Extension { node: Arc::new(self) })
    }
}

// The schema is derived from the other fields.
impl PartialEq for Predict {
    fn eq(&self, other: &Self) -> bool {
        self.calls == other.calls && self.input == other.input
    }
}

impl Eq for Predict {}

impl Hash for Predict {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.calls.hash(state);
        self.input.hash(state);
    }
}

impl PartialOrd for Predict {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.calls.partial_cmp(&other.calls)
    }
}

impl UserDefinedLogicalNodeCore for Predict {
    fn name(&self) -> &'static str {
        "Predict"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        self.calls.iter().map(|(call, _)| call.clone()).collect()
    }

    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        // Filters on other columns are cheaper below: a filtered row need not be scored.
        self.calls.iter().map(|(_, name)| name.clone()).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Predict: ")?;
        for (i, (call, name)) in self.calls.iter().enumerate() {
            let separator = if i > 0 { ", " } else { "" };
            write!(f, "{separator}{call} AS {name}")?;
        }
        Ok(())
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        if inputs.len() != 1 || exprs.len() != self.calls.len() {
            return internal_err!("Predict has one input and {} calls", self.calls.len());
        }
        let names = self.calls.iter().map(|(_, name)| name.clone());
        Self::try_new(inputs.swap_remove(0), exprs.into_iter().zip(names).collect())
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        // DataFusion adds the columns that the calls read.
        let inputs = self.input.schema().fields().len();
        Some(vec![output_columns.iter().copied().filter(|column| *column < inputs).collect()])
    }

    fn supports_limit_pushdown(&self) -> bool {
        // One output row per input row.
        true
    }
}

/// Returns the calls of a `Predict` node with the names of their output columns; none for other nodes.
#[must_use]
pub fn calls_of_node(node: &Extension) -> Option<&[(Expr, String)]> {
    Some(&node.node.as_any().downcast_ref::<Predict>()?.calls)
}

/// Creates a `Predict` node over an input.
///
/// # Errors
/// Calls whose types the input does not give.
pub fn node_of_calls(input: LogicalPlan, calls: Vec<(Expr, String)>) -> Result<Extension> {
    Ok(Extension { node: Arc::new(Predict::try_new(input, calls)?) })
}

/// DataFusion's query planner, extended by the physical plan of [`Predict`].
#[derive(Debug)]
pub(super) struct PredictPlanner;

#[async_trait]
impl QueryPlanner for PredictPlanner {
    async fn create_physical_plan(
        &self,
        logical_plan: &LogicalPlan,
        session_state: &dyn Session,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(Self)])
            .create_physical_plan(logical_plan, session_state)
            .await
    }
}

#[async_trait]
impl ExtensionPlanner for PredictPlanner {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _logical_inputs: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        session_state: &dyn Session,
        planning_ctx: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(predict) = node.as_any().downcast_ref::<Predict>() else { return Ok(None) };
        let [input] = physical_inputs else { return internal_err!("Predict has one input") };
        let calls = predict.calls.iter().map(|(call, name)| {
            let call = planner.create_physical_expr(call, predict.input.schema(), session_state, planning_ctx)?;
            Ok(Arc::new(AsyncFuncExpr::try_new(name, call, &input.schema())?))
        });
        let exec = AsyncFuncExec::try_new(calls.collect::<Result<_>>()?, Arc::clone(input))?;
        Ok(Some(Arc::new(exec)))
    }
}
