//! Joins that give the processor back now and then, so that a statement can be interrupted.
//!
//! `DataFusion` makes the leaves of a plan pause. A join without a condition turns one batch of a leaf into millions,
//! for hours, and what is above it sees no pause.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coop::CooperativeExec;

/// Puts a pause above each join whose output may be far larger than its input.
#[derive(Debug)]
pub(crate) struct YieldingJoins;

impl PhysicalOptimizerRule for YieldingJoins {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let paused = plan.transform_up(|plan| {
            // Joins with conditions keep their plans as they are.
            if !matches!(plan.name(), "CrossJoinExec" | "NestedLoopJoinExec") {
                return Ok(Transformed::no(plan));
            }
            Ok(Transformed::yes(Arc::new(CooperativeExec::new(plan)) as Arc<dyn ExecutionPlan>))
        });
        paused.map(|paused| paused.data)
    }

    fn name(&self) -> &'static str {
        "yielding_joins"
    }

    fn schema_check(&self) -> bool {
        true
    }
}
