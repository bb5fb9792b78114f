//! The source query of a run, with the checks made before scoring begins.

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use couplet_storage::words::closest;
use datafusion::common::{Column, DataFusionError};
use datafusion::execution::context::SQLOptions;
use datafusion::functions_aggregate::expr_fn::{count, max, sum};
use datafusion::logical_expr::{Expr, lit, when};
use datafusion::prelude::{DataFrame, SessionContext};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;
use thiserror::Error;

use crate::dates::value_texts;
use crate::from_first;
use crate::sql_error::NOT_A_QUERY;

/// The columns that a run adds to the source columns.
pub const OUTPUT_COLUMNS: [&str; 7] =
    ["predicted_label", "score", "probabilities", "truncated", "error", "raw_probabilities", "model"];

/// The maximum number of columns that a query may return.
pub const MAX_COLUMNS: usize = 1000;

/// A source query that does not fit the pipeline.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The query cannot be planned or executed.
    #[error(transparent)]
    Query(#[from] DataFusionError),
    /// The query's result lacks columns that the pipeline needs, or has invalid ones.
    #[error("{0}")]
    Columns(String),
    /// The id columns do not identify rows.
    #[error("{0}")]
    Ids(String),
}

/// The planned source query.
#[derive(Debug)]
pub struct Source {
    frame: DataFrame,
    schema: SchemaRef,
}

impl Source {
    /// Plans the query and checks its columns: all named columns exist, texts are strings, and no name is reserved or
    /// used twice.
    ///
    /// # Errors
    /// SQL that cannot be planned; missing or invalid columns.
    pub async fn open(
        context: &SessionContext,
        sql: &str,
        id: &[String],
        text: &[String],
        label: Option<&str>,
    ) -> Result<Self, SourceError> {
        let frame = select(context, sql).await?;
        let schema = Arc::new(frame.schema().as_arrow().clone());
        check_width(&schema).map_err(SourceError::Columns)?;
        let named = [("source.id", id), ("source.text", text)]
            .into_iter()
            .flat_map(|(key, names)| names.iter().map(move |name| (key, name.as_str())))
            .chain(label.map(|name| ("source.label", name)));
        let mut problems: Vec<String> = named.filter_map(|(key, name)| missing_column(&schema, key, name)).collect();
        for name in text {
            if let Ok(field) = schema.field_with_name(name)
                && !(field.data_type().is_string() || field.data_type().is_null())
            {
                problems.push(format!(
                    "source.text names `{name}`, which is {} and must be a string; write CAST({name} AS VARCHAR) AS {name} in the query",
                    field.data_type()
                ));
            }
        }
        for (i, field) in schema.fields().iter().enumerate() {
            let name = field.name();
            // Many readers of the output treat names that differ only in case as the same.
            if OUTPUT_COLUMNS.iter().any(|column| column.eq_ignore_ascii_case(name)) {
                problems.push(format!(
                    "the source query returns a column `{name}`, which couplet adds itself; rename it with AS"
                ));
            }
            if let Some(twin) = schema.fields()[..i].iter().find(|other| other.name().eq_ignore_ascii_case(name)) {
                problems.push(format!(
                    "the source query returns two columns named `{}` and `{name}`; rename one of them with AS",
                    twin.name()
                ));
            }
        }
        if problems.is_empty() { Ok(Self { frame, schema }) } else { Err(SourceError::Columns(problems.join("\n"))) }
    }

    /// Returns the schema of the query.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Checks that the id columns identify each row of `kept`, the stored result of the query.
    ///
    /// # Errors
    /// An id that is NULL or occurs more than once.
    pub async fn check_ids(kept: &DataFrame, id: &[String]) -> Result<(), SourceError> {
        let ids: Vec<Expr> = id.iter().map(|name| Expr::Column(Column::from_name(name))).collect();
        let rows = || Expr::Column(Column::from_name("__rows"));
        let Some(any_null) = ids.iter().cloned().map(Expr::is_null).reduce(Expr::or) else {
            return Err(SourceError::Columns("source.id names no column".into()));
        };
        let groups = kept.clone().aggregate(ids, vec![count(lit(1)).alias("__rows")])?;
        let nulls = when(any_null, rows()).otherwise(lit(0))?;
        let totals = groups.clone().aggregate(vec![], vec![sum(rows()), max(rows()), sum(nulls)])?.collect().await?;
        let total = |column: usize| {
            let values = totals.first().map(|batch| batch.column(column).as_primitive::<Int64Type>());
            values.filter(|v| v.len() == 1 && v.is_valid(0)).map_or(0, |v| v.value(0))
        };
        let (all, most, null) = (total(0), total(1), total(2));
        let key = format!("source.id ({})", id.join(", "));
        if null > 0 {
            return Err(SourceError::Ids(format!(
                "{key} must identify each row, but is NULL in {null} of {all} rows; filter them out in the source query, or name another column"
            )));
        }
        if most > 1 {
            let shared = groups.filter(rows().gt(lit(1)))?.limit(0, Some(3))?.collect().await?;
            let examples = shared.iter().map(describe_rows).collect::<Result<Vec<_>, _>>();
            let examples = examples.map_err(DataFusionError::from)?.concat();
            return Err(SourceError::Ids(format!(
                "{key} must be unique, but some values occur more than once: {}; add a column that tells the rows apart, or SELECT DISTINCT",
                examples.join(", ")
            )));
        }
        Ok(())
    }

    /// Returns the query as a data frame.
    #[must_use]
    pub fn frame(&self) -> &DataFrame {
        &self.frame
    }
}

/// Formats each row of ids and their count as `"a, b" 2 times`.
fn describe_rows(batch: &RecordBatch) -> Result<Vec<String>, ArrowError> {
    let rows = in_words(batch)?;
    let times = |row: &String| row.rsplit_once(", ").map(|(ids, times)| format!("{ids:?} {times} times"));
    Ok(rows.iter().filter_map(times).collect())
}

/// Formats the values of each row, separated by commas.
///
/// # Errors
/// A column that cannot be cast to text.
pub fn in_words(batch: &RecordBatch) -> Result<Vec<String>, ArrowError> {
    let columns = batch.columns().iter().map(value_texts).collect::<Result<Vec<_>, _>>()?;
    let value = |texts: &Vec<Option<String>>, row: usize| texts[row].clone().unwrap_or_default();
    let row = |row: usize| columns.iter().map(|texts| value(texts, row)).collect::<Vec<_>>().join(", ");
    Ok((0..batch.num_rows()).map(row).collect())
}

/// Plans the query of a pipeline. It must only read: output goes to the sink.
///
/// # Errors
/// SQL that cannot be planned; anything but a single query.
pub async fn select(context: &SessionContext, sql: &str) -> Result<DataFrame, DataFusionError> {
    let state = context.state();
    let mut statement = state.sql_to_statement(sql, &state.config().options().sql_parser.dialect)?;
    from_first::select_all(&mut statement);
    // `EXPLAIN ANALYZE` only reads too, but its rows are not source rows.
    if !matches!(&statement, Statement::Statement(statement) if matches!(**statement, ast::Statement::Query(_))) {
        let kind = sql.split_whitespace().next().unwrap_or_default().to_uppercase();
        return Err(DataFusionError::Plan(format!("{NOT_A_QUERY}{kind}")));
    }
    let plan = state.statement_to_plan(statement).await?;
    // The parser classifies `WITH … INSERT` as a query.
    let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    read_only.verify_plan(&plan)?;
    if let Some(parameter) = plan.get_parameter_names()?.into_iter().min() {
        return Err(DataFusionError::Plan(without_value(&parameter)));
    }
    context.execute_logical_plan(plan).await
}

/// Returns the message for a parameter in a pipeline's SQL. Only `couplet query --param` sets parameters.
fn without_value(parameter: &str) -> String {
    let name = parameter.trim_start_matches('$');
    let name = if name.starts_with(|char: char| char.is_ascii_alphabetic()) { name } else { "name" };
    format!(
        "the parameter `{parameter}` has no value, and the SQL of a pipeline takes none; write {{{name}}} instead, and \
         give it with --var {name}=VALUE"
    )
}

/// Rejects a query with too many columns. Each column has its own buffers in every batch and file.
///
/// # Errors
/// The message about a query with too many columns.
pub fn check_width(schema: &Schema) -> Result<(), String> {
    let columns = schema.fields().len();
    if columns <= MAX_COLUMNS {
        return Ok(());
    }
    Err(format!(
        "the query returns {columns} columns, and at most {MAX_COLUMNS} are allowed; name those that are needed \
         instead of *"
    ))
}

fn missing_column(schema: &Schema, key: &str, name: &str) -> Option<String> {
    if schema.field_with_name(name).is_ok() {
        return None;
    }
    let names = || schema.fields().iter().map(|field| field.name().as_str());
    let nearest = closest(name, names()).map_or_else(String::new, |other| format!("; did you mean `{other}`?"));
    let all = names().collect::<Vec<_>>().join(", ");
    Some(format!("{key} names `{name}`, which the source query does not return (it returns {all}){nearest}"))
}
