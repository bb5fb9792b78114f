//! Selects sample rows: the most and least certain predictions, mistakes, and rows without a score.

use std::collections::HashSet;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use couplet_tables::dates::value_texts;
use couplet_tables::store::RunRecord;
use couplet_tables::tables::PREDICTIONS;
use serde::Serialize;

use super::judged::is_regression;
use super::table::{Output, quoted};
use crate::config::Scoring;
use crate::error::Error;

/// The column with the size of the error of a row.
const ERROR_SIZE: &str = "__couplet_sureness";
/// The number of sample rows of each kind.
const ROWS: usize = 6;
/// The maximum length of a text, in characters; longer texts are cut.
const MAX_CHARS: usize = 300;

/// A titled table of rows.
#[derive(Debug, Serialize)]
pub struct Rows {
    /// The title.
    pub title: &'static str,
    /// The column names.
    pub columns: Vec<String>,
    /// The values as text, shortened if long; `None` for NULL.
    pub rows: Vec<Vec<Option<String>>>,
}

/// Returns the sample rows of each kind. `mistakes` is SQL for the size of the error of a row, NULL for a correct row.
pub(super) async fn samples(
    table: &Output,
    scoring: &Scoring,
    record: &RunRecord,
    mistakes: Option<&str>,
) -> Result<Vec<Rows>, Error> {
    let source = &scoring.source;
    // The table of an earlier run has the columns of the pipeline at that time.
    let exists = |name: &&String| table.schema.field_with_name(name).is_ok();
    let id: Vec<String> = source.id.iter().filter(exists).map(|name| quoted(name)).collect();
    let mut columns = id.clone();
    columns.extend(source.text.iter().chain(&source.label).filter(exists).map(|name| quoted(name)));
    let mut seen = HashSet::new();
    columns.retain(|name| seen.insert(name.clone()));
    let regression = is_regression(record);
    let predicted = if regression { "score" } else { "predicted_label, score" };
    let select_from = |from: &str, what: &str, which: &str, order: &str| {
        // The table of an earlier run may lack the columns that the pipeline names now.
        let selected = [&columns[..], &[what.to_owned()]].concat().join(", ");
        let sorted = [&[order.to_owned()], &id[..]].concat().join(", ");
        format!("SELECT {selected} FROM {from} WHERE {which} ORDER BY {sorted} LIMIT {ROWS}")
    };
    let select = |what: &str, which: &str, order: &str| select_from(PREDICTIONS, what, which, order);
    let mut queries = if regression {
        vec![
            ("Highest values", select(predicted, "score IS NOT NULL", "score DESC")),
            ("Lowest values", select(predicted, "score IS NOT NULL", "score")),
        ]
    } else {
        vec![
            ("Most certain", select(predicted, "score IS NOT NULL", "score DESC")),
            ("Least certain", select(predicted, "score IS NOT NULL", "score")),
        ]
    };
    if let Some(size) = mistakes {
        let title = if regression { "Largest differences from the labels" } else { "Mistakes, most confident first" };
        let sized = format!("(SELECT *, {size} AS {ERROR_SIZE} FROM {PREDICTIONS})");
        let (which, order) = (format!("{ERROR_SIZE} IS NOT NULL"), format!("{ERROR_SIZE} DESC"));
        queries.insert(0, (title, select_from(&sized, predicted, &which, &order)));
    }
    queries.push(("Rows without a score", select("error", "error IS NOT NULL", "error")));
    let mut samples = Vec::new();
    for (title, query) in queries {
        let batches = table.query(&query).await?;
        let Some(first) = batches.first() else { continue };
        let columns: Vec<String> = first.schema().fields().iter().map(|field| field.name().clone()).collect();
        let rows = batches.iter().map(texts).collect::<Result<Vec<_>, ArrowError>>();
        let rows = rows.map_err(|e| table.failed(&e.into()))?.concat();
        if !rows.is_empty() {
            samples.push(Rows { title, columns, rows });
        }
    }
    Ok(samples)
}

fn texts(batch: &RecordBatch) -> Result<Vec<Vec<Option<String>>>, ArrowError> {
    let schema = batch.schema();
    let columns: Vec<_> = batch.columns().iter().map(value_texts).collect::<Result<_, _>>()?;
    let value = |row: usize| {
        let values = schema.fields().iter().zip(&columns).map(|(field, texts)| {
            let text = texts[row].as_ref()?;
            // Scores are rounded for display.
            let is_score = field.name() == "score";
            let rounded = is_score.then(|| text.parse::<f64>().ok()).flatten().map(|score| format!("{score:.4}"));
            Some(rounded.unwrap_or_else(|| shortened(text)))
        });
        values.collect::<Vec<_>>()
    };
    Ok((0..batch.num_rows()).map(value).collect())
}

/// Cuts a text after [`MAX_CHARS`] characters.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shortened("é".repeat(300).as_str()), "é".repeat(300));
        assert_eq!(shortened("é".repeat(301).as_str()), format!("{}…", "é".repeat(300)));
    }
}
