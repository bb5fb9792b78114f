//! The analyzer rule that takes every call of `predict` out of the expression it stands in.
//!
//! Left in place, an async function fails in `GROUP BY` and `ORDER BY`, and runs twice when the optimizer
//! merges two projections over it. The rule rewrites each plan node whose expressions call `predict`:
//!
//! ```text
//!   Filter: predict('m', a, b)['score'] > 0.9         Projection: a, b          (the node's own columns)
//!     TableScan: t                               ▶      Filter: p['score'] > 0.9
//!                                                         Predict: predict('m', a, b) AS p
//!                                                           TableScan: t
//! ```

use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, JoinType, Result, not_impl_err, plan_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{Expr, Filter, Join, LogicalPlan, LogicalPlanBuilder};
use datafusion::optimizer::AnalyzerRule;

use super::FUNCTION;
use super::node::Predict;

#[derive(Debug)]
pub(super) struct HoistPredictions;

impl AnalyzerRule for HoistPredictions {
    fn name(&self) -> &'static str {
        "hoist_predictions"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let hoisted = plan.transform_up_with_subqueries(|node| {
            let mut node = Transformed::no(node);
            // The innermost calls first, should one be an argument of another.
            while !innermost_calls(&node.data)?.is_empty() {
                node = Transformed::yes(hoist(node.data)?);
            }
            Ok(node)
        })?;
        Ok(hoisted.data)
    }
}

fn is_call(expr: &Expr) -> bool {
    matches!(expr, Expr::ScalarFunction(call) if call.func.name() == FUNCTION && call.func.as_async().is_some())
}

/// The distinct calls in a node's expressions that have no call among their arguments.
fn innermost_calls(node: &LogicalPlan) -> Result<Vec<Expr>> {
    let mut calls = Vec::new();
    if !matches!(node, LogicalPlan::Extension(extension) if extension.node.name() == "Predict") {
        node.apply_expressions(|expr| collect_innermost(expr, &mut calls))?;
    }
    Ok(calls)
}

fn collect_innermost(expr: &Expr, calls: &mut Vec<Expr>) -> Result<TreeNodeRecursion> {
    expr.apply(|expr| {
        if !is_call(expr) {
            return Ok(TreeNodeRecursion::Continue);
        }
        let mut inner = 0;
        expr.apply_children(|argument| {
            inner += usize::from(argument.exists(|e| Ok(is_call(e)))?);
            Ok(TreeNodeRecursion::Continue)
        })?;
        if inner == 0 && !calls.contains(expr) {
            check_model(expr)?;
            calls.push(expr.clone());
        }
        Ok(TreeNodeRecursion::Continue)
    })
}

/// The model is loaded once for a whole query, so its name cannot depend on the row.
fn check_model(call: &Expr) -> Result<()> {
    match call {
        Expr::ScalarFunction(ScalarFunction { args, .. }) if args.first().is_some_and(Expr::any_column_refs) => {
            plan_err!(
                "the first argument of {FUNCTION} names the model and must be a string such as 'models/mrpc', not {}; the texts come after it",
                args[0]
            )
        }
        _ => Ok(()),
    }
}

/// Gives the node's innermost calls a [`Predict`] below it, and restores the node's columns above it.
fn hoist(node: LogicalPlan) -> Result<LogicalPlan> {
    let columns = output_columns(&node);
    match node {
        LogicalPlan::Join(join) => hoist_join(join),
        node => {
            let inputs = node.inputs();
            let [input] = inputs[..] else {
                return plan_err!(
                    "{FUNCTION} cannot be called in {}; call it in a SELECT below and use its result here",
                    node.display()
                );
            };
            let calls = named(innermost_calls(&node)?, &mut free_names(&[input]));
            let input_columns = input.schema().fields().len();
            let predict = Predict::try_new(input.clone(), calls.clone())?.into_plan();
            let exprs = node.expressions().into_iter().map(|expr| replace(expr, &calls));
            let rewritten = node.with_new_exprs(exprs.collect::<Result<_>>()?, vec![predict])?;
            // Nodes that pass their input on (a filter, a sort, a window) pass the predictions on as well.
            let extra = rewritten.schema().fields().len() - columns.len();
            let kept = (0..columns.len()).map(|i| if extra > 0 && i >= input_columns { i + extra } else { i });
            restore(rewritten, kept, columns)
        }
    }
}

/// Calls in a join's condition go below the side that they read; if they read both, an inner join becomes a filter.
fn hoist_join(mut join: Join) -> Result<LogicalPlan> {
    let columns = output_columns(&LogicalPlan::Join(join.clone()));
    let left_width = join.left.schema().fields().len();
    let calls = innermost_calls(&LogicalPlan::Join(join.clone()))?;
    let reads_only =
        |call: &Expr, side: &LogicalPlan| call.column_refs().into_iter().all(|column| side.schema().has_column(column));
    let (left, rest): (Vec<_>, Vec<_>) = calls.into_iter().partition(|call| reads_only(call, &join.left));
    let (right, both): (Vec<_>, Vec<_>) = rest.into_iter().partition(|call| reads_only(call, &join.right));
    if !both.is_empty() {
        return filter_after_join(join, &both);
    }
    let (left, right) = {
        let sides: [&LogicalPlan; 2] = [&join.left, &join.right];
        let mut names = free_names(&sides);
        (named(left, &mut names), named(right, &mut names))
    };
    let calls = [left.clone(), right.clone()].concat();
    for (side, calls) in [(&mut join.left, &left), (&mut join.right, &right)] {
        if !calls.is_empty() {
            *side = Arc::new(Predict::try_new(side.as_ref().clone(), calls.clone())?.into_plan());
        }
    }
    let inputs = vec![join.left.as_ref().clone(), join.right.as_ref().clone()];
    let join = LogicalPlan::Join(join);
    let exprs = join.expressions().into_iter().map(|expr| replace(expr, &calls));
    let rewritten = join.with_new_exprs(exprs.collect::<Result<_>>()?, inputs)?;
    let left_extra = if rewritten.schema().fields().len() > columns.len() { left.len() } else { 0 };
    let kept = (0..columns.len()).map(|i| if i >= left_width { i + left_extra } else { i });
    restore(rewritten, kept, columns)
}

/// Moves the parts of an inner join's condition that call `predict` over both sides to a filter above it.
fn filter_after_join(mut join: Join, calls: &[Expr]) -> Result<LogicalPlan> {
    if join.join_type != JoinType::Inner {
        return not_impl_err!(
            "{FUNCTION} over columns of both sides in the condition of a {} join; call it in a SELECT over the join",
            join.join_type
        );
    }
    let condition = join.filter.take().map(split_conjunction_owned).unwrap_or_default();
    let calls_any = |expr: &Expr| expr.exists(|e| Ok(calls.contains(e)));
    let (mut above, mut within) = (Vec::new(), Vec::new());
    for part in condition {
        if calls_any(&part)? { above.push(part) } else { within.push(part) }
    }
    let mut keys = Vec::new();
    for (left, right) in join.on {
        if calls_any(&left)? || calls_any(&right)? { above.push(left.eq(right)) } else { keys.push((left, right)) }
    }
    (join.on, join.filter) = (keys, conjunction(within));
    let Some(predicate) = conjunction(above) else {
        return not_impl_err!("{FUNCTION} over columns of both sides of this join");
    };
    Ok(LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(LogicalPlan::Join(join)))?))
}

fn named(calls: Vec<Expr>, names: &mut impl Iterator<Item = String>) -> Vec<(Expr, String)> {
    calls.into_iter().zip(names).collect()
}

/// Names for predictions that no column of the inputs has.
fn free_names(inputs: &[&LogicalPlan]) -> impl Iterator<Item = String> {
    (0..)
        .map(|i| format!("__{FUNCTION}_{i}"))
        .filter(|name| !inputs.iter().any(|input| input.schema().has_column_with_unqualified_name(name)))
}

/// Puts a column in the place of each call, under the name that the expression had.
fn replace(expr: Expr, calls: &[(Expr, String)]) -> Result<Expr> {
    let replaced = expr.transform_down(|expr| {
        Ok(match calls.iter().find(|(call, _)| *call == expr) {
            Some((_, name)) => Transformed::yes(Expr::Column(Column::from_name(name))),
            None => Transformed::no(expr),
        })
    })?;
    Ok(replaced.data)
}

fn output_columns(node: &LogicalPlan) -> Vec<Column> {
    node.schema().columns()
}

/// A projection to the kept columns under the names that the node's parents know.
fn restore(node: LogicalPlan, kept: impl Iterator<Item = usize>, columns: Vec<Column>) -> Result<LogicalPlan> {
    let now = node.schema().columns();
    let exprs: Vec<Expr> = kept
        .zip(columns)
        .map(|(i, column)| {
            if now[i] == column {
                Expr::Column(column)
            } else {
                Expr::Column(now[i].clone()).alias_qualified(column.relation, column.name)
            }
        })
        .collect();
    let same = exprs.len() == now.len() && exprs.iter().all(|expr| matches!(expr, Expr::Column(_)));
    if same { Ok(node) } else { LogicalPlanBuilder::from(node).project(exprs)?.build() }
}
