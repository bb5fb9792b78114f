//! Exact comparison of literals with decimals.
//!
//! DataFusion parses `818565974.1` as a 64-bit float, and then compares a decimal with it as floats: even the decimal
//! 818565974.1 itself would compare as less. In SQL such a literal is exact. Here it is exact up to 15 digits, which a
//! float preserves.

use arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, Operator};
use datafusion::optimizer::AnalyzerRule;

use crate::types::widened;

/// The analyzer rule that turns literals compared with decimals into decimals. It runs before type coercion.
#[derive(Debug)]
pub(crate) struct ExactLiterals;

impl AnalyzerRule for ExactLiterals {
    fn name(&self) -> &'static str {
        "exact_literals"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        let analyzed = plan.transform_up_with_subqueries(|node| {
            let (names, schema) = (NamePreserver::new(&node), merge_schema(&node.inputs()));
            node.map_expressions(|expr| {
                let name = names.save(&expr);
                let exact = expr.transform_up(|expr| Ok(exact(expr, &schema)))?;
                Ok(exact.update_data(|expr| name.restore(expr)))
            })
        })?;
        Ok(analyzed.data)
    }
}

fn exact(mut expr: Expr, schema: &DFSchema) -> Transformed<Expr> {
    let decimal = |expr: &Expr| expr.get_type(schema).ok().filter(DataType::is_decimal);
    let is_changed = match &mut expr {
        Expr::BinaryExpr(both) if is_comparison(both.op) => match (decimal(&both.left), decimal(&both.right)) {
            (Some(decimal_type), None) => make_decimal(&mut both.right, &decimal_type),
            (None, Some(decimal_type)) => make_decimal(&mut both.left, &decimal_type),
            _ => false,
        },
        Expr::Between(between) => decimal(&between.expr).is_some_and(|decimal_type| {
            make_decimal(&mut between.low, &decimal_type) | make_decimal(&mut between.high, &decimal_type)
        }),
        Expr::InList(list) => decimal(&list.expr).is_some_and(|decimal_type| {
            list.list.iter_mut().fold(false, |changed, value| changed | make_decimal(value, &decimal_type))
        }),
        _ => false,
    };
    if is_changed { Transformed::yes(expr) } else { Transformed::no(expr) }
}

fn is_comparison(operator: Operator) -> bool {
    use Operator::{Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq};
    matches!(operator, Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom)
}

/// Replaces a float literal by a decimal of a type that also holds the decimals it is compared with. Returns false if
/// the expression is not such a literal or there is no such type.
fn make_decimal(literal: &mut Expr, decimal_type: &DataType) -> bool {
    let Expr::Literal(ScalarValue::Float64(Some(value)), _) = literal else { return false };
    let Some(exact) = decimal(*value) else { return false };
    let data_type = widened(decimal_type, &exact.data_type());
    let Some(exact) = data_type.and_then(|data_type| exact.cast_to(&data_type).ok()) else { return false };
    *literal = Expr::Literal(exact, None);
    true
}

/// Returns the decimal with the fewest digits that reads as this float. For literals of up to 15 digits, these are the
/// digits as written.
fn decimal(value: f64) -> Option<ScalarValue> {
    let written = format!("{value:e}");
    let (mantissa, exponent) = written.split_once('e')?;
    let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let scale = i32::try_from(fraction.len()).ok()? - exponent.parse::<i32>().ok()?;
    let digits: i128 = format!("{integer}{fraction}").parse().ok()?;
    let digits = digits.checked_mul(10_i128.checked_pow(u32::try_from(-scale).unwrap_or(0))?)?;
    let scale = u8::try_from(scale.max(0)).ok()?;
    let precision = u8::try_from(digits.unsigned_abs().to_string().len()).ok()?.max(scale);
    (precision <= 38).then_some(ScalarValue::Decimal128(Some(digits), precision, i8::try_from(scale).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_has_the_digits_that_were_written() {
        assert_eq!(decimal(818_565_974.1), Some(ScalarValue::Decimal128(Some(8_185_659_741), 10, 1)));
        assert_eq!(decimal(-0.05), Some(ScalarValue::Decimal128(Some(-5), 2, 2)));
        assert_eq!(decimal(1e20), Some(ScalarValue::Decimal128(Some(10_i128.pow(20)), 21, 0)));
        assert_eq!(decimal(0.0), Some(ScalarValue::Decimal128(Some(0), 1, 0)));
        for none in [1e40, 1e-40, f64::NAN, f64::INFINITY] {
            assert_eq!(decimal(none), None);
        }
    }
}
