//! Compact histograms of scores. A run stores the histogram of its scores, so that later runs can detect drift without
//! the table, which may have been replaced by then.
//!
//! Bins are `(a, b]`. Their width is a power of two, and they start at integer multiples of it. When a value is out of
//! range, pairs of bins are merged; histograms of different widths can still be compared.

use serde::Serialize;

/// The maximum number of bins; beyond it their width doubles.
const MAX_BINS: i64 = 128;
/// The maximum number of bins for comparing two histograms.
const MAX_COMPARED_BINS: i64 = 4096;
/// The initial bin width: finer than the displayed precision of a probability.
const FINEST: f64 = 1.0 / 1024.0;
/// The number of PSI bins. Each has the same number of earlier values, except that equal values are not split.
const PSI_BINS: f64 = 10.0;

/// Counts of values in bins of equal width.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Histogram {
    /// The lower end of the first bin.
    pub from: f64,
    /// The width of each bin, a power of two.
    pub width: f64,
    /// The number of values in each bin.
    pub counts: Vec<u64>,
    /// The mean of all values; NULL if there are none.
    pub mean: Option<f64>,
    #[serde(skip)]
    sum: f64,
    #[serde(skip)]
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { from: 0.0, width: FINEST, counts: Vec::new(), mean: None, sum: 0.0, total: 0 }
    }
}

/// The difference between two distributions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Drift {
    /// Population stability index: 0 for equal distributions; 0.1 is a small shift, 0.25 a large one.
    pub psi: f64,
    /// Kolmogorov-Smirnov statistic: the largest difference of the cumulative shares, 0 to 1.
    pub ks: f64,
    /// The KS statistic that samples of the same distribution exceed in one of 20 cases.
    pub ks_by_chance: f64,
}

impl Histogram {
    /// Restores a stored histogram.
    #[must_use]
    pub fn of_counts(from: f64, width: f64, counts: Vec<u64>, mean: Option<f64>) -> Self {
        let total: u64 = counts.iter().sum();
        Self { from, width, counts, mean, sum: mean.unwrap_or(0.0) * total as f64, total }
    }

    /// Returns the number of values in all bins.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Adds a value; a value that is not finite is ignored.
    pub fn add(&mut self, value: f64) {
        if !value.is_finite() {
            return;
        }
        while bin_of(value, self.width).abs() > 1e15 {
            self.widen();
        }
        let mut bin = bin_of(value, self.width) as i64;
        if self.counts.is_empty() {
            self.from = bin as f64 * self.width;
        }
        loop {
            let (first, end) = self.ends();
            let (low, high) = (first.min(bin), end.max(bin + 1));
            if high - low <= MAX_BINS {
                let (before, after) = (first - low, high - end);
                self.counts.splice(0..0, std::iter::repeat_n(0, before as usize));
                self.counts.extend(std::iter::repeat_n(0, after as usize));
                self.from = low as f64 * self.width;
                self.counts[(bin - low) as usize] += 1;
                break;
            }
            self.widen();
            bin = bin_of(value, self.width) as i64;
        }
        self.total += 1;
        self.sum += value;
        self.mean = Some(self.sum / self.total as f64);
    }

    /// Returns the index of the first bin, and of the one after the last.
    fn ends(&self) -> (i64, i64) {
        let first = (self.from / self.width).round() as i64;
        (first, first.saturating_add_unsigned(self.counts.len() as u64))
    }

    /// Merges pairs of bins.
    fn widen(&mut self) {
        let (first, _) = self.ends();
        let wide_first = first.div_euclid(2);
        let mut counts = Vec::with_capacity(self.counts.len() / 2 + 1);
        for (bin, count) in (first..).zip(&self.counts) {
            let place = (bin.div_euclid(2) - wide_first) as usize;
            counts.resize(counts.len().max(place + 1), 0);
            counts[place] += count;
        }
        self.width *= 2.0;
        self.from = wide_first as f64 * self.width;
        self.counts = counts;
    }

    /// Returns the histogram with at most `bins` bins. The two bins on either side of 0 are never merged into one.
    #[must_use]
    pub fn coarser(&self, bins: usize) -> Self {
        let mut coarse = self.clone();
        while coarse.counts.len() > bins.max(2) {
            coarse.widen();
        }
        coarse
    }

    /// Returns the middle of each bin, with the share of the values in it.
    #[must_use]
    pub fn shares(&self) -> Vec<(f64, f64)> {
        let total = self.total().max(1) as f64;
        let bins = self.counts.iter().enumerate();
        bins.map(|(i, count)| (self.from + (i as f64 + 0.5) * self.width, *count as f64 / total)).collect()
    }

    /// Computes the drift of this distribution from `before`; none if either has no values.
    ///
    /// The PSI uses ten bins with equal numbers of earlier values. A value with a tenth of them or more is a bin of its
    /// own, which keeps the values below and above it apart. Scores are often almost all in the last bin: if that bin
    /// reached over all other values, it would hold all values before and all of them now, whatever changed. An empty
    /// bin counts as half a value. `sql/drift.sql` does the same with single scores.
    #[must_use]
    pub fn drift_from(&self, before: &Self) -> Option<Drift> {
        let (n, m) = (before.total() as f64, self.total() as f64);
        if n == 0.0 || m == 0.0 {
            return None;
        }
        let (before, now) = aligned(before, self);
        let mut bins: Vec<(f64, f64)> = Vec::new();
        let (mut ks, mut all_before, mut all_now) = (0.0_f64, 0.0, 0.0);
        // The index of the last bin among the ten; none for a bin of its own, or if there is none yet.
        let mut last = None;
        for (was, is) in before.iter().zip(&now).filter(|(was, is)| **was > 0.0 || **is > 0.0) {
            let below = all_before * PSI_BINS / n;
            (all_before, all_now) = (all_before + was, all_now + is);
            ks = ks.max((all_before / n - all_now / m).abs());
            // Without earlier values, the values go to the bin of the next earlier value.
            let place = if *was > 0.0 { (all_before * PSI_BINS / n).ceil() } else { below.floor() + 1.0 };
            let place = (was * PSI_BINS < n).then_some(place.min(PSI_BINS));
            match bins.last_mut() {
                Some(bin) if place.is_some() && place == last => *bin = (bin.0 + was, bin.1 + is),
                _ => bins.push((*was, *is)),
            }
            last = place;
        }
        Some(Drift { psi: psi(&bins, n, m), ks, ks_by_chance: 1.358 * ((n + m) / (n * m)).sqrt() })
    }
}

/// Computes the PSI of `n` earlier values and `m` later ones from their counts per bin. An empty count is replaced by
/// half a value, so that the PSI is finite and depends on the number of values only through empty bins.
fn psi(bins: &[(f64, f64)], n: f64, m: f64) -> f64 {
    let term = |(was, is): &(f64, f64)| {
        let (p, q) = (was.max(0.5) / n, is.max(0.5) / m);
        (q - p) * (q / p).ln()
    };
    bins.iter().filter(|(was, is)| *was > 0.0 || *is > 0.0).map(term).sum()
}

/// Returns the index of the bin that holds a value.
fn bin_of(value: f64, width: f64) -> f64 {
    (value / width).ceil() - 1.0
}

/// Returns the counts of both in the same bins.
fn aligned(a: &Histogram, b: &Histogram) -> (Vec<f64>, Vec<f64>) {
    let (mut a, mut b) = (a.clone(), b.clone());
    loop {
        let (ends_a, ends_b) = (a.ends(), b.ends());
        let length = ends_a.1.max(ends_b.1).saturating_sub(ends_a.0.min(ends_b.0));
        // Values that are far apart stay apart in wide bins too.
        if a.width < b.width || a.width <= b.width && length > MAX_COMPARED_BINS {
            a.widen();
        } else if b.width < a.width {
            b.widen();
        } else {
            break;
        }
    }
    let (ends_a, ends_b) = (a.ends(), b.ends());
    let (first, end) = (ends_a.0.min(ends_b.0), ends_a.1.max(ends_b.1));
    let spread = |histogram: &Histogram, own: i64| {
        let mut counts = vec![0.0; (end - first) as usize];
        for (i, count) in histogram.counts.iter().enumerate() {
            counts[(own - first) as usize + i] = *count as f64;
        }
        counts
    };
    (spread(&a, ends_a.0), spread(&b, ends_b.0))
}

/// Computes the PSI of two distributions over the same few categories, such as labels. An empty count is replaced by
/// half a row. None if either has no rows.
#[must_use]
pub fn psi_of_counts(before: &[u64], now: &[u64]) -> Option<f64> {
    let (n, m) = (before.iter().sum::<u64>() as f64, now.iter().sum::<u64>() as f64);
    if n == 0.0 || m == 0.0 {
        return None;
    }
    let bins: Vec<_> = before.iter().zip(now).map(|(was, is)| (*was as f64, *is as f64)).collect();
    Some(psi(&bins, n, m))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl IntoIterator<Item = f64>) -> Histogram {
        let mut histogram = Histogram::default();
        for value in values {
            histogram.add(value);
        }
        histogram
    }

    fn uniform(n: u32, low: f64, high: f64) -> Histogram {
        of((1..=n).map(|i| low + (high - low) * f64::from(i) / f64::from(n)))
    }

    #[test]
    fn every_value_is_counted_in_few_bins_whatever_its_size() {
        let scores = uniform(1000, 0.5, 1.0);
        assert_eq!((scores.total(), scores.width, scores.from), (1000, 1.0 / 256.0, 0.5));
        assert!((scores.mean.unwrap() - 0.750_25).abs() < 1e-9);
        for values in [vec![0.0, 5.0, -3.25, f64::NAN], vec![1e300, -1e300, 1.0], vec![1.0; 3]] {
            let histogram = of(values);
            assert_eq!(histogram.total(), 3, "{histogram:?}");
            assert!(histogram.counts.len() <= 128);
        }
        // A bin includes its upper end, so 1 is in the last bin of the probabilities.
        assert_eq!(of([-1.0, 1.0]).coarser(1).counts.len(), 2);
        let ends = of([1.0, 0.5]).coarser(2);
        assert_eq!((ends.from, ends.width, &*ends.counts), (0.0, 0.5, &[1, 1][..]));
    }

    #[test]
    fn drift_is_zero_for_the_same_and_grows_with_the_distance() {
        let before = uniform(2000, 0.0, 1.0);
        assert_eq!(
            before.drift_from(&before),
            Some(Drift { psi: 0.0, ks: 0.0, ks_by_chance: 1.358 * 0.001_f64.sqrt() })
        );
        let (near, far) = (uniform(2000, 0.1, 1.0), uniform(500, 0.5, 1.0));
        let (near, far) = (near.drift_from(&before).unwrap(), far.drift_from(&before).unwrap());
        assert!(near.psi > 0.0 && near.psi < far.psi, "{near:?} {far:?}");
        // Half of the earlier values are below all of the later ones.
        assert!((far.ks - 0.5).abs() < 0.01 && (near.ks - 0.1).abs() < 0.01, "{near:?} {far:?}");
        assert_eq!(before.drift_from(&Histogram::default()), None);
        let (left, right) = (of([0.001, 0.002]), of([1e9, 1e9 + 1.0]));
        assert_eq!(right.drift_from(&left).map(|drift| drift.ks), Some(1.0));
        // Widths may differ.
        let wide = of((0..1000).map(f64::from));
        assert!((wide.drift_from(&before).unwrap().ks - 0.999).abs() < 0.01);
    }

    #[test]
    fn a_drift_out_of_a_bin_with_most_values_is_seen_on_either_side() {
        let many = |value: f64, n: usize| std::iter::repeat_n(value, n);
        let psi = |before: &Histogram, now: &Histogram| now.drift_from(before).unwrap().psi;
        // Nearly all at one end of the scale, as the scores of a good model are.
        let top = of(many(1.0, 95).chain(many(0.6, 5)));
        let bottom = of(many(0.5, 95).chain(many(0.9, 5)));
        let expected = |p: f64, q: f64| (q - p) * (q / p).ln();
        for (before, now) in
            [(&top, of(many(1.0, 50).chain(many(0.6, 50)))), (&bottom, of(many(0.5, 50).chain(many(0.9, 50))))]
        {
            let psi = psi(before, &now);
            let of_two = expected(0.95, 0.5) + expected(0.05, 0.5);
            assert!((psi - of_two).abs() < 1e-9, "{psi} instead of {of_two}");
        }
        // All of one value, and all of another.
        let (one, other) = (of(many(0.75, 100)), of(many(0.25, 100)));
        let of_two = 2.0 * expected(1.0, 0.005);
        assert!((psi(&one, &other) - of_two).abs() < 1e-9 && (psi(&other, &one) - of_two).abs() < 1e-9);
        assert!(psi(&one, &one).abs() < 1e-12);
    }

    #[test]
    fn the_psi_ignores_labels_without_rows() {
        let with = psi_of_counts(&[3, 7, 0], &[5, 500, 0]).unwrap();
        assert_eq!(Some(with), psi_of_counts(&[3, 7], &[5, 500]));
        assert_eq!(psi_of_counts(&[0, 0], &[1, 2]), None);
    }

    #[test]
    fn the_psi_of_a_distribution_is_that_of_its_definition() {
        // Ten bins of 0.1 before; afterwards the lower half has 0.08 each, the upper 0.12.
        let before = of((0..1024).map(|i| (f64::from(i) + 0.5) / 1024.0));
        let (p, q) = ([100_u64; 10], [80, 80, 80, 80, 80, 120, 120, 120, 120, 120]);
        let expected = 5.0 * (-0.02 * 0.8_f64.ln() + 0.02 * 1.2_f64.ln());
        assert!((psi_of_counts(&p, &q).unwrap() - expected).abs() < 1e-12);
        let now = of((0..10_000).map(|i| {
            let u = (f64::from(i) + 0.5) / 10_000.0;
            if u < 0.4 { u * 1.25 } else { 0.5 + (u - 0.4) / 1.2 }
        }));
        let psi = now.drift_from(&before).unwrap().psi;
        assert!((psi - expected).abs() < 0.005, "{psi} instead of {expected}");
    }
}
