//! The analyzer rule that moves every call of `predict` out of its expression into a plan node of its own.
//!
//! Otherwise an async function fails in `GROUP BY` and `ORDER BY`, and runs twice if the optimizer merges two
//! projections over it. The rule rewrites each plan node whose expressions call `predict`:
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
use datafusion::logical_expr::{Distinct, DistinctOn, Expr, Filter, Join, LogicalPlan, LogicalPlanBuilder};
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
            Ok(if calls_any(&node)? { Transformed::yes(hoist(node)?) } else { Transformed::no(node) })
        })?;
        Ok(hoisted.data)
    }
}

fn is_call(expr: &Expr) -> bool {
    matches!(expr, Expr::ScalarFunction(call) if call.func.name() == FUNCTION && call.func.as_async().is_some())
}

/// Returns true if a node's expressions call `predict` and the node is not itself a [`Predict`] node.
fn calls_any(node: &LogicalPlan) -> Result<bool> {
    let mut any = false;
    if !matches!(node, LogicalPlan::Extension(extension) if extension.node.name() == "Predict") {
        node.apply_expressions(|expr| {
            any |= expr.exists(|e| Ok(is_call(e)))?;
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    Ok(any)
}

/// Returns the distinct calls that have no call among their arguments.
fn innermost_calls(exprs: &[Expr]) -> Result<Vec<Expr>> {
    let mut calls = Vec::new();
    for expr in exprs {
        expr.apply(|expr| {
            if is_call(expr) && !calls.contains(expr) && !has_inner_call(expr)? {
                check(expr)?;
                calls.push(expr.clone());
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    Ok(calls)
}

fn has_inner_call(call: &Expr) -> Result<bool> {
    let mut inner = false;
    call.apply_children(|argument| {
        inner |= argument.exists(|e| Ok(is_call(e)))?;
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(inner)
}

/// Returns the distinct calls that are not part of an argument of another call.
fn outermost_calls(exprs: &[Expr]) -> Result<Vec<Expr>> {
    let mut calls = Vec::new();
    for expr in exprs {
        expr.apply(|expr| {
            if !is_call(expr) {
                return Ok(TreeNodeRecursion::Continue);
            }
            if !calls.contains(expr) {
                calls.push(expr.clone());
            }
            Ok(TreeNodeRecursion::Jump)
        })?;
    }
    Ok(calls)
}

/// Checks that a call can be hoisted. The model is loaded once per query, so its name must not depend on the row; and
/// the columns that the call reads must be available below it.
fn check(call: &Expr) -> Result<()> {
    if call.contains_outer() {
        return not_impl_err!(
            "{FUNCTION} over columns of an outer query; join the tables, and call it in a SELECT over the join"
        );
    }
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

/// Puts the node's calls into a [`Predict`] node below it, and restores the node's columns above it.
fn hoist(node: LogicalPlan) -> Result<LogicalPlan> {
    if let LogicalPlan::Join(join) = node {
        return hoist_join(join);
    }
    let inputs = node.inputs();
    let [input] = inputs[..] else {
        return plan_err!(
            "{FUNCTION} cannot be called in {}; call it in a SELECT below and use its result here",
            node.display()
        );
    };
    let mut names = Names::avoiding(&[input]);
    let (below, exprs) = extract_calls(input.clone(), node.expressions(), &mut names)?;
    let rewritten = rebuild(&node, exprs, below)?;
    restore(rewritten, &names, node.schema().columns())
}

/// Moves calls into [`Predict`] nodes above `input`, the innermost calls lowest, and replaces them by columns.
fn extract_calls(mut input: LogicalPlan, mut exprs: Vec<Expr>, names: &mut Names) -> Result<(LogicalPlan, Vec<Expr>)> {
    loop {
        let calls = innermost_calls(&exprs)?;
        if calls.is_empty() {
            return Ok((input, exprs));
        }
        let calls: Vec<(Expr, String)> = calls.into_iter().map(|call| (call, names.generate())).collect();
        let columns: Vec<(Expr, Expr)> =
            calls.iter().map(|(call, name)| (call.clone(), Expr::Column(Column::from_name(name)))).collect();
        exprs = exprs.into_iter().map(|expr| replace(expr, &columns)).collect::<Result<_>>()?;
        input = predict_over(input, calls)?;
    }
}

/// Puts a [`Predict`] node over a plan. `DataFusion` turns a filter on an outer query's columns into a join only if no
/// node unknown to it stands above the filter, so the node goes below such a filter.
fn predict_over(input: LogicalPlan, calls: Vec<(Expr, String)>) -> Result<LogicalPlan> {
    match input {
        LogicalPlan::Filter(filter) if filter.predicate.contains_outer() => {
            let below = predict_over(filter.input.as_ref().clone(), calls)?;
            Ok(LogicalPlan::Filter(Filter::try_new(filter.predicate, Arc::new(below))?))
        }
        input => Ok(Predict::try_new(input, calls)?.into_plan()),
    }
}

/// Rebuilds the node with other expressions over another input.
fn rebuild(node: &LogicalPlan, mut exprs: Vec<Expr>, input: LogicalPlan) -> Result<LogicalPlan> {
    let LogicalPlan::Distinct(Distinct::On(on)) = node else { return node.with_new_exprs(exprs, vec![input]) };
    // `with_new_exprs` panics for DISTINCT ON with a sort order.
    let order = exprs.split_off(on.on_expr.len() + on.select_expr.len());
    let selected = exprs.split_off(on.on_expr.len());
    let order = on
        .sort_expr
        .as_ref()
        .map(|before| before.iter().zip(order).map(|(before, expr)| before.with_expr(expr)).collect::<Vec<_>>());
    let distinct = DistinctOn::try_new(exprs, selected, order, Arc::new(input))?;
    Ok(LogicalPlan::Distinct(Distinct::On(distinct)))
}

/// Hoists calls in a join condition below the side that they read. If a call reads both sides, an inner join becomes a
/// filter over the join.
fn hoist_join(join: Join) -> Result<LogicalPlan> {
    let columns = join.schema.columns();
    let exprs = LogicalPlan::Join(join.clone()).expressions();
    let calls = outermost_calls(&exprs)?;
    let reads_only =
        |call: &Expr, side: &LogicalPlan| call.column_refs().into_iter().all(|column| side.schema().has_column(column));
    let (left, rest): (Vec<_>, Vec<_>) = calls.into_iter().partition(|call| reads_only(call, &join.left));
    let (right, both): (Vec<_>, Vec<_>) = rest.into_iter().partition(|call| reads_only(call, &join.right));
    if !both.is_empty() {
        for call in &both {
            check(call)?;
        }
        return filter_after_join(join, &both);
    }
    let sides: [&LogicalPlan; 2] = [&join.left, &join.right];
    let mut names = Names::avoiding(&sides);
    let (mut inputs, mut replacements) = (Vec::new(), Vec::new());
    for (side, calls) in sides.into_iter().zip([left, right]) {
        let (below, columns) = extract_calls(side.clone(), calls.clone(), &mut names)?;
        inputs.push(below);
        replacements.extend(calls.into_iter().zip(columns));
    }
    let exprs = exprs.into_iter().map(|expr| replace(expr, &replacements)).collect::<Result<Vec<_>>>()?;
    let rewritten = LogicalPlan::Join(join.clone()).with_new_exprs(exprs, inputs)?;
    restore(rewritten, &names, columns)
}

/// Moves those parts of an inner join's condition that call `predict` over both sides to a filter above the join.
fn filter_after_join(mut join: Join, calls: &[Expr]) -> Result<LogicalPlan> {
    if join.join_type != JoinType::Inner {
        return not_impl_err!(
            "{FUNCTION} over columns of both sides in the condition of a {} join; call it in a SELECT over the join",
            join.join_type
        );
    }
    let condition = join.filter.take().map(split_conjunction_owned).unwrap_or_default();
    let reads_both = |expr: &Expr| expr.exists(|e| Ok(calls.contains(e)));
    let (mut above, mut within) = (Vec::new(), Vec::new());
    for part in condition {
        if reads_both(&part)? { above.push(part) } else { within.push(part) }
    }
    let mut keys = Vec::new();
    for (left, right) in join.on {
        if reads_both(&left)? || reads_both(&right)? { above.push(left.eq(right)) } else { keys.push((left, right)) }
    }
    (join.on, join.filter) = (keys, conjunction(within));
    let Some(predicate) = conjunction(above) else {
        return not_impl_err!("{FUNCTION} over columns of both sides of this join");
    };
    // Calls that read only one side may remain in the condition.
    let join = LogicalPlan::Join(join);
    let join = if calls_any(&join)? { hoist(join)? } else { join };
    hoist(LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(join))?))
}

/// Generates names for prediction columns that no input column uses.
struct Names<'a> {
    inputs: Vec<&'a LogicalPlan>,
    generated: Vec<String>,
    next: usize,
}

impl<'a> Names<'a> {
    fn avoiding(inputs: &[&'a LogicalPlan]) -> Self {
        Self { inputs: inputs.to_vec(), generated: Vec::new(), next: 0 }
    }

    fn generate(&mut self) -> String {
        loop {
            let name = format!("__{FUNCTION}_{}", self.next);
            self.next += 1;
            if !self.inputs.iter().any(|input| input.schema().has_column_with_unqualified_name(&name)) {
                self.generated.push(name.clone());
                return name;
            }
        }
    }

    fn has_generated(&self, column: &Column) -> bool {
        column.relation.is_none() && self.generated.contains(&column.name)
    }
}

/// Replaces each call by its column.
fn replace(expr: Expr, columns: &[(Expr, Expr)]) -> Result<Expr> {
    let replaced = expr.transform_down(|expr| {
        Ok(match columns.iter().find(|(call, _)| *call == expr) {
            Some((_, column)) => Transformed::yes(column.clone()),
            None => Transformed::no(expr),
        })
    })?;
    Ok(replaced.data)
}

/// Projects to the original columns of the node, under the names that its parents use.
fn restore(node: LogicalPlan, names: &Names, columns: Vec<Column>) -> Result<LogicalPlan> {
    let now = node.schema().columns();
    // Nodes that pass on their input (filter, sort, window, join) also pass on the prediction columns.
    let passed = now.len() > columns.len();
    if !passed && now == columns {
        return Ok(node);
    }
    let kept = now.into_iter().filter(|column| !(passed && names.has_generated(column)));
    let exprs: Vec<Expr> = kept
        .zip(columns)
        .map(|(now, before)| {
            if now == before {
                Expr::Column(now)
            } else {
                Expr::Column(now).alias_qualified(before.relation, before.name)
            }
        })
        .collect();
    LogicalPlanBuilder::from(node).project(exprs)?.build()
}
