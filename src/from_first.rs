//! `FROM t`, as `DuckDB` has it, for `SELECT * FROM t`: the parser takes it, and the planner would make a table without
//! columns of it.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Query, SelectFlavor, SelectItem, SetExpr, VisitMut, VisitorMut, WildcardAdditionalOptions,
};

/// Writes out the `SELECT *` of each such query of a statement.
pub(crate) fn select_all(statement: &mut Statement) {
    match statement {
        // It never breaks off.
        Statement::Statement(statement) => {
            let _ = statement.visit(&mut WriteOut);
        }
        Statement::Explain(explain) => select_all(&mut explain.statement),
        _ => {}
    }
}

struct WriteOut;

impl VisitorMut for WriteOut {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        write_out(&mut query.body);
        ControlFlow::Continue(())
    }
}

fn write_out(body: &mut SetExpr) {
    match body {
        SetExpr::Select(select) if select.flavor == SelectFlavor::FromFirstNoSelect => {
            select.projection = vec![SelectItem::Wildcard(WildcardAdditionalOptions::default())];
            select.flavor = SelectFlavor::Standard;
        }
        SetExpr::SetOperation { left, right, .. } => {
            write_out(left);
            write_out(right);
        }
        // A query in brackets is visited by itself.
        _ => {}
    }
}
