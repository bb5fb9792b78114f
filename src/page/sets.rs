//! Compares multi-label predictions with gold labels, label by label.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use couplet_encoder::model::Problem;
use couplet_train::statistics::metrics::{LabelScores, Tally, f1_averages};

use super::judged::{Comparison, Judged, MAX_GROUPS, texts};
use super::table::{Output, literal, quoted};
use crate::error::Error;
use crate::frequent::most_frequent;

/// The maximum number of labels that are compared; of more labels, only the most frequent are. Each label adds three
/// sums to the query.
const MAX_LABELS: usize = 100;

/// Compares the predicted and the gold labels of all rows.
pub(super) async fn sets(table: &Output, label: &str, names: &[String]) -> Result<Comparison, Error> {
    let column = quoted(label);
    if names.is_empty() {
        return Ok(Err("the model has no labels".into()));
    }
    let which = format!("{column} IS NOT NULL AND probabilities IS NOT NULL");
    let places = if names.len() > MAX_LABELS {
        let rows = rows_by_label(table, &column, &which).await?;
        most_frequent(names, MAX_LABELS, |name| rows.get(name).copied().unwrap_or(0))
    } else {
        (0..names.len()).collect()
    };
    let left_out = names.len() - places.len();
    let enough = Problem::HAS_LABEL;
    let has_label = |name: &str| format!("coalesce(array_has({column}, {}), false)", literal(name));
    let probability = |place: usize| format!("array_element(probabilities, {})", place + 1);
    let sums = places.iter().map(|&place| {
        let (has_label, is_predicted) = (has_label(&names[place]), format!("{} >= {enough}", probability(place)));
        format!(
            "sum(CASE WHEN {has_label} AND {is_predicted} THEN 1 ELSE 0 END), \
             sum(CASE WHEN {has_label} THEN 1 ELSE 0 END), sum(CASE WHEN {is_predicted} THEN 1 ELSE 0 END)"
        )
    });
    let sums = sums.collect::<Vec<_>>().join(", ");
    let counted = table.query(&format!("SELECT count(*), {sums} FROM predictions WHERE {which}")).await?;
    let Some(counted) = counted.into_iter().find(|batch| batch.num_rows() > 0) else {
        return Ok(Err("it has no rows".into()));
    };
    let count = |column: usize| {
        let values = counted.column(column).as_primitive::<Int64Type>();
        if values.is_valid(0) { values.value(0).unsigned_abs() } else { 0 }
    };
    let rows = count(0);
    if rows == 0 {
        return Ok(Err("no row has both labels and a prediction".into()));
    }
    let tally = |i: usize| Tally { hits: count(3 * i + 1), support: count(3 * i + 2), predicted: count(3 * i + 3) };
    let tallies = (0..places.len()).map(tally);
    let (f1_micro, f1_macro) = f1_averages(tallies.clone());
    let by_label = places.iter().zip(tallies);
    let by_label = by_label.map(|(&place, tally)| LabelScores { label: names[place].clone(), scores: tally.scores() });
    let judged = Judged::Sets {
        rows,
        f1_micro: Some(f1_micro),
        f1_macro: Some(f1_macro),
        by_label: by_label.collect(),
        left_out,
    };
    // The error of a row: the largest distance from the threshold among its wrong labels.
    let sizes = places.iter().map(|&place| {
        let p = probability(place);
        format!(
            "CASE WHEN ({p} >= {enough}) <> {} THEN abs({p} - {enough}) + 0.0001 ELSE 0 END",
            has_label(&names[place])
        )
    });
    let sizes = sizes.collect::<Vec<_>>().join(", ");
    Ok(Ok((judged, Some(format!("CASE WHEN {which} THEN nullif(greatest({sizes}), 0) END")))))
}

/// Counts the rows per gold label.
async fn rows_by_label(table: &Output, column: &str, which: &str) -> Result<BTreeMap<String, u64>, Error> {
    let batches = table
        .query(&format!(
            "SELECT CAST(name AS VARCHAR) AS name, count(*) AS n \
             FROM (SELECT unnest({column}) AS name FROM predictions WHERE {which}) \
             WHERE name IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {MAX_GROUPS}"
        ))
        .await?;
    let mut rows = BTreeMap::new();
    for batch in &batches {
        let names = texts(batch, 0)?;
        let counts = batch.column(1).as_primitive::<Int64Type>();
        let named = names.iter().flatten().map(str::to_owned);
        rows.extend(named.zip(counts.values().iter().map(|n| n.unsigned_abs())));
    }
    Ok(rows)
}
