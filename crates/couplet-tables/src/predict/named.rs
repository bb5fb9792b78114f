//! Extracts the model names from the text of a query, before it is planned or executed.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, visit_expressions,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;

use super::FUNCTION;

/// Returns the distinct first arguments of all calls of `predict`. Returns nothing for invalid SQL, which the planner
/// reports later.
#[must_use]
pub fn named_models(sql: &str) -> Vec<String> {
    let Ok(statements) = Parser::parse_sql(&GenericDialect {}, sql) else { return Vec::new() };
    let mut models = Vec::new();
    let _ = visit_expressions(&statements, |expr| {
        if let Some(model) = model_of(expr)
            && !models.contains(&model)
        {
            models.push(model);
        }
        ControlFlow::<()>::Continue(())
    });
    models
}

fn model_of(expr: &Expr) -> Option<String> {
    let Expr::Function(call) = expr else { return None };
    if !call.name.to_string().trim_matches('"').eq_ignore_ascii_case(FUNCTION) {
        return None;
    }
    let FunctionArguments::List(list) = &call.args else { return None };
    match list.args.first()? {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(model)) => text_of(model),
        _ => None,
    }
}

/// Returns the value of a string literal or of a concatenation of literals.
fn text_of(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Value(value) => value.value.clone().into_string(),
        Expr::Nested(inner) | Expr::Cast { expr: inner, .. } => text_of(inner),
        Expr::BinaryOp { left, op: BinaryOperator::StringConcat, right } => Some(text_of(left)? + &text_of(right)?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::named_models;

    #[test]
    fn models_are_found_wherever_a_query_calls_them() {
        let sql = "WITH c AS (SELECT *, PREDICT('hf://a/b', x)['label'] AS l FROM t -- predict('no', x)
            ) SELECT id, 'predict(''no'', x)' FROM c WHERE \"predict\"(('s3://b/' || 'm'), x, y)['score'] > 0.5
            AND EXISTS (SELECT predict('models/c'::varchar, x), predict('hf://a/b', y) FROM u) ORDER BY predict(n, x)";
        assert_eq!(named_models(sql), ["hf://a/b", "s3://b/m", "models/c"]);
        assert_eq!(named_models("SELECT predict('m' FROM"), Vec::<String>::new());
    }
}
