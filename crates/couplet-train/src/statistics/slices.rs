//! Metrics per slice of the rows, by the values of a column.

use std::collections::BTreeMap;

use serde::Serialize;

use super::metrics::{MetricError, Metrics, Sample, check_length};

/// The rows that share a value of a column.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Slice {
    /// The value; none for the rows whose value is NULL.
    #[serde(rename = "value")]
    pub key: Option<String>,
    /// The number of rows in the slice.
    pub rows: usize,
    /// The metrics of these rows; none for an undefined metric.
    pub metrics: Metrics,
}

/// Computes the metrics of each slice. Slices with the most rows come first, then by the bytes of the key, NULL first.
///
/// Every row is in one slice. Metrics of few rows are unreliable: consider the number of rows, or a
/// [`super::bootstrap`].
///
/// # Errors
/// A number of keys that differs from the number of rows.
pub fn slices(sample: &Sample, keys: &[Option<&str>]) -> Result<Vec<Slice>, MetricError> {
    check_length("slice keys", keys.len(), sample.rows())?;
    let mut rows: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
    for (row, key) in keys.iter().enumerate() {
        rows.entry(*key).or_default().push(row);
    }
    let measured = rows.into_iter().map(|(key, rows)| {
        let metrics = sample.select(&rows)?.metrics();
        Ok(Slice { key: key.map(str::to_owned), rows: rows.len(), metrics })
    });
    let mut slices = measured.collect::<Result<Vec<_>, MetricError>>()?;
    slices.sort_by_key(|slice| std::cmp::Reverse(slice.rows));
    Ok(slices)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::metrics::{Metric, Values};

    #[test]
    fn every_row_is_in_the_slice_of_its_key() {
        let sample = Sample::Values(Values::new(vec![1.0, 2.0, 3.0, 4.0, 5.0], vec![1.5, 2.0, 3.0, 5.0, 5.0]).unwrap());
        let slices = slices(&sample, &[Some("b"), None, Some("a"), Some("b"), Some("")]).unwrap();
        let shown: Vec<_> = slices.iter().map(|s| (s.key.as_deref(), s.rows, s.metrics.get(Metric::Mae))).collect();
        assert_eq!(
            shown,
            [(Some("b"), 2, Some(0.75)), (None, 1, Some(0.0)), (Some(""), 1, Some(0.0)), (Some("a"), 1, Some(0.0)),]
        );
        assert_eq!(slices[1].metrics.get(Metric::Pearson), None);
    }

    #[test]
    fn a_key_is_needed_for_each_row() {
        let sample = Sample::Values(Values::new(vec![1.0], vec![1.0]).unwrap());
        assert_eq!(slices(&sample, &[]).unwrap_err().to_string(), "slice keys: 0 values, expected 1");
    }
}
