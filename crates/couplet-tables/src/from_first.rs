//! Supports `FROM t`, as in `DuckDB`, as short for `SELECT * FROM t`. The parser accepts it, but the planner would
//! return a table without columns.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Query, SelectFlavor, SelectItem, SetExpr, VisitMut, VisitorMut, WildcardAdditionalOptions,
};

/// Adds `SELECT *` to each such query of a statement.
pub fn select_all(statement: &mut Statement) {
    match statement {
        // The visitor never breaks.
        Statement::Statement(statement) => {
            let _ = statement.visit(&mut AddProjection);
        }
        Statement::Explain(explain) => select_all(&mut explain.statement),
        _ => {}
    }
}

struct AddProjection;

impl VisitorMut for AddProjection {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        add_projection(&mut query.body);
        ControlFlow::Continue(())
    }
}

fn add_projection(body: &mut SetExpr) {
    match body {
        SetExpr::Select(select) if select.flavor == SelectFlavor::FromFirstNoSelect => {
            select.projection = vec![SelectItem::Wildcard(WildcardAdditionalOptions::default())];
            select.flavor = SelectFlavor::Standard;
        }
        SetExpr::SetOperation { left, right, .. } => {
            add_projection(left);
            add_projection(right);
        }
        // A query in brackets is visited on its own.
        _ => {}
    }
}
