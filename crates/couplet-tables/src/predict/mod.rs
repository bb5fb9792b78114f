//! `predict(model, text [, text_pair])`: a model as a SQL function.
//!
//! ```text
//! SELECT predict('m', a, b)['label'] FROM t WHERE predict('m', a, b)['score'] > 0.9
//!
//!   Projection: p['label']                      DataFusion plans an async function in place and copies
//!     Filter: p['score'] > 0.9         ◀─────   it wherever an optimizer rule merges projections.
//!       Predict: predict('m', a, b) AS p        [`hoist`] gives each call a single node, below all nodes
//!         TableScan: t                          that read its result.
//! ```
//!
//! [`install`] adds the function, the analyzer rule and the planner of the node to any DataFusion session.

mod columns;
mod function;
mod hoist;
mod models;
mod named;
mod node;

use std::sync::Arc;

use datafusion::execution::SessionStateBuilder;
use datafusion::logical_expr::ScalarUDF;

pub use columns::{prediction_fields, predictions_to_array};
pub use function::text_values;
pub use models::{ModelOptions, Models};
pub use named::named_models;
pub use node::{calls_of_node, node_of_calls};

/// The name of the function in SQL.
pub const FUNCTION: &str = "predict";

/// Adds `predict`, its analyzer rule and its planner to a session that is being built.
///
/// ```no_run
/// use std::sync::Arc;
/// use couplet_encoder::scorer::Pool;
/// use couplet_tables::predict::{self, Models};
/// use datafusion::execution::SessionStateBuilder;
/// use datafusion::prelude::SessionContext;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let models = Arc::new(Models::new(Pool::new(None)?, std::env::current_dir()?));
/// let builder = SessionStateBuilder::new().with_default_features();
/// let context = SessionContext::new_with_state(predict::install(builder, models).build());
/// context.register_parquet("pairs", "pairs.parquet", Default::default()).await?;
/// context
///     .sql("SELECT predict('models/mrpc', sentence1, sentence2)['label'] AS label, count(*) FROM pairs GROUP BY label")
///     .await?
///     .show()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn install(builder: SessionStateBuilder, models: Arc<Models>) -> SessionStateBuilder {
    let mut builder = builder
        .with_analyzer_rule(Arc::new(hoist::HoistPredictions))
        .with_query_planner(Arc::new(node::PredictPlanner));
    // DataFusion's rule that pushes field accesses towards the scan fails if a struct has two names, as in
    // `SELECT o['label'], n['label'] FROM (SELECT p AS o, p AS n …)`: "duplicate unqualified field name".
    let config = builder.config().get_or_insert_default();
    config.options_mut().optimizer.enable_leaf_expression_pushdown = false;
    builder.scalar_functions().get_or_insert_default().push(Arc::new(function(models)));
    builder
}

/// Returns the function alone, for processes that execute plans made by [`install`] in another process.
#[must_use]
pub fn function(models: Arc<Models>) -> ScalarUDF {
    function::predict(models)
}
