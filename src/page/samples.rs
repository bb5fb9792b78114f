//! Rows worth looking at: those of which the model is most and least sure, those it got wrong, those without a score.

use std::collections::HashSet;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use serde::Serialize;

use super::judged::is_regression;
use super::table::{Output, quoted};
use crate::config::PREDICTIONS;
use crate::config::Scoring;
use crate::dates::value_texts;
use crate::error::Error;
use crate::store::RunRecord;

/// The column of how wrong a row is.
const SURENESS: &str = "__couplet_sureness";
/// Rows of each kind.
const ROWS: usize = 6;
/// Characters after which a text is cut.
const MOST_CHARS: usize = 300;

/// Rows with a title.
#[derive(Debug, Serialize)]
pub struct Rows {
    /// What they are.
    pub title: &'static str,
    /// Their columns.
    pub columns: Vec<String>,
    /// Their values as texts, long ones cut; none for NULL.
    pub rows: Vec<Vec<Option<String>>>,
}

/// The rows of each kind that there are; `mistakes` is how wrong a row is, as SQL, NULL for one that is right.
pub(super) async fn samples(
    table: &Output,
    scoring: &Scoring,
    record: &RunRecord,
    mistakes: Option<&str>,
) -> Result<Vec<Rows>, Error> {
    let source = &scoring.source;
    // The table of an earlier run has the columns that the pipeline had then.
    let there = |name: &&String| table.schema.field_with_name(name).is_ok();
    let id: Vec<String> = source.id.iter().filter(there).map(|name| quoted(name)).collect();
    let mut columns = id.clone();
    columns.extend(source.text.iter().chain(&source.label).filter(there).map(|name| quoted(name)));
    let mut seen = HashSet::new();
    columns.retain(|name| seen.insert(name.clone()));
    let regression = is_regression(record);
    let predicted = if regression { "score" } else { "predicted_label, score" };
    let select_from = |from: &str, what: &str, which: &str, order: &str| {
        // The table of an earlier run may have none of the columns that the pipeline names now.
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
        let title = if regression { "Largest differences from the labels" } else { "Mistakes, the surest first" };
        let sized = format!("(SELECT *, {size} AS {SURENESS} FROM {PREDICTIONS})");
        let (which, order) = (format!("{SURENESS} IS NOT NULL"), format!("{SURENESS} DESC"));
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
            // The table rounds what nobody reads.
            let is_score = field.name() == "score";
            let rounded = is_score.then(|| text.parse::<f64>().ok()).flatten().map(|score| format!("{score:.4}"));
            Some(rounded.unwrap_or_else(|| shortened(text)))
        });
        values.collect::<Vec<_>>()
    };
    Ok((0..batch.num_rows()).map(value).collect())
}

/// A text without what is beyond a few lines.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(MOST_CHARS) {
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
