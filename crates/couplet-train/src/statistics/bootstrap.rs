//! Confidence intervals of metrics: percentile intervals of the bootstrap.
//!
//! A resample draws as many rows as the sample has, with replacement; a row's prediction and label stay together. It is
//! represented as a count per row, so that nothing is copied and sorted rows stay sorted. All metrics of a sample are
//! computed on the same resamples.

use thiserror::Error;

use super::metrics::{Metric, Sample};
use crate::random::Random;

/// The settings of the bootstrap.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bootstrap {
    resamples: usize,
    level: f64,
    seed: u64,
}

/// Invalid bootstrap settings.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum BootstrapError {
    /// The number of resamples is too small for an interval, or too large.
    #[error("{0} bootstrap resamples; expected 20 to 1000000 (1000 suit most)")]
    Resamples(usize),
    /// The level is not between 0 and 1.
    #[error("a confidence level of {0}; expected a share between 0 and 1, such as 0.95")]
    Level(f64),
}

/// The confidence interval of a metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// The number of resamples on which the metric was defined; the others are left out.
    pub defined: usize,
}

impl Bootstrap {
    /// Returns the default settings: 1000 resamples, 95 %.
    #[must_use]
    pub fn usual(seed: u64) -> Self {
        Self { resamples: 1000, level: 0.95, seed }
    }

    /// Takes a number of resamples and a confidence level.
    ///
    /// # Errors
    /// Fewer than 20 resamples or more than a million; a level that is not between 0 and 1.
    pub fn try_new(resamples: usize, level: f64, seed: u64) -> Result<Self, BootstrapError> {
        if !(20..=1_000_000).contains(&resamples) {
            return Err(BootstrapError::Resamples(resamples));
        }
        if !(level > 0.0 && level < 1.0) {
            return Err(BootstrapError::Level(level));
        }
        Ok(Self { resamples, level, seed })
    }

    /// Returns the confidence level.
    #[must_use]
    pub fn level(&self) -> f64 {
        self.level
    }

    /// Draws a resample as a count per row. The result depends only on the seed, the resample and the number of rows.
    ///
    /// # Panics
    /// If there are 2^32 rows or more.
    pub fn draw(&self, resample: usize, counts: &mut [u32]) {
        counts.fill(0);
        let rows = u32::try_from(counts.len()).expect("there are fewer than 2^32 rows");
        let mut random = Random::new(self.seed, "bootstrap", &[resample as u64]);
        for _ in 0..rows / 2 {
            let (first, second) = random.two_below(rows);
            counts[first as usize] += 1;
            counts[second as usize] += 1;
        }
        if rows % 2 == 1 {
            counts[random.below(rows) as usize] += 1;
        }
    }

    /// Returns the intervals of all metrics of a sample, in its order; none for a metric that is undefined on more than
    /// half of the resamples.
    #[must_use]
    pub fn intervals(&self, sample: &Sample) -> Vec<(Metric, Option<Interval>)> {
        let metrics: Vec<Metric> = sample.metrics().iter().map(|(metric, _)| metric).collect();
        let intervals = self.intervals_of(sample.rows(), |counts, values| {
            values.extend(sample.metrics_under(counts).iter().map(|(_, value)| value));
        });
        metrics.into_iter().zip(intervals).collect()
    }

    /// Returns the intervals of any statistics over `rows` rows; `measure` appends their values under the given counts.
    ///
    /// Values that it does not append, or that are not finite, count as undefined.
    pub fn intervals_of(
        &self,
        rows: usize,
        mut measure: impl FnMut(&[u32], &mut Vec<Option<f64>>),
    ) -> Vec<Option<Interval>> {
        let mut counts = vec![0; rows];
        let mut defined: Vec<Vec<f64>> = Vec::new();
        let mut values = Vec::new();
        for resample in 0..self.resamples {
            self.draw(resample, &mut counts);
            values.clear();
            measure(&counts, &mut values);
            if defined.len() < values.len() {
                defined.resize(values.len(), Vec::new());
            }
            for (defined, value) in defined.iter_mut().zip(&values) {
                defined.extend(value.filter(|value| value.is_finite()));
            }
        }
        defined.into_iter().map(|values| self.interval(values)).collect()
    }

    fn interval(&self, mut values: Vec<f64>) -> Option<Interval> {
        if values.is_empty() || values.len() * 2 < self.resamples {
            return None;
        }
        values.sort_by(f64::total_cmp);
        let tail = (1.0 - self.level) / 2.0;
        Some(Interval { low: quantile(&values, tail), high: quantile(&values, 1.0 - tail), defined: values.len() })
    }
}

/// Returns a quantile of sorted values, interpolated between neighbours as in `numpy.quantile`.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resample_has_as_many_rows() {
        let bootstrap = Bootstrap::usual(1);
        let mut seen = vec![0_u64; 101];
        for resample in 0..2000 {
            let mut counts = vec![9; 101];
            bootstrap.draw(resample, &mut counts);
            assert_eq!(counts.iter().sum::<u32>(), 101);
            seen.iter_mut().zip(counts).for_each(|(seen, count)| *seen += u64::from(count));
        }
        // The standard deviation of a count is 45.
        assert!(seen.iter().all(|n| n.abs_diff(2000) < 225), "{seen:?}");
    }

    #[test]
    fn quantiles_are_interpolated() {
        let values = [1.0, 2.0, 4.0];
        for (share, expected) in [(0.0, 1.0), (0.25, 1.5), (0.5, 2.0), (1.0, 4.0)] {
            assert!((quantile(&values, share) - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn a_statistic_that_is_rarely_defined_has_no_interval() {
        let mut resample = 0;
        let intervals = Bootstrap::usual(1).intervals_of(10, |_, values| {
            resample += 1;
            values.extend([(resample % 3 == 0).then_some(1.0), (resample % 3 > 0).then_some(2.0), Some(f64::NAN)]);
        });
        assert_eq!(intervals, [None, Some(Interval { low: 2.0, high: 2.0, defined: 667 }), None]);
    }

    #[test]
    fn invalid_settings_are_refused() {
        assert_eq!(Bootstrap::try_new(3, 0.9, 1), Err(BootstrapError::Resamples(3)));
        let error = Bootstrap::try_new(100, 95.0, 1).unwrap_err();
        assert_eq!(error.to_string(), "a confidence level of 95; expected a share between 0 and 1, such as 0.95");
    }
}
