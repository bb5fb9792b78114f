//! Temperature scaling: fits one parameter that calibrates a model's confidence.
//!
//! **Source**: Guo, Pleiss, Sun, Weinberger 2017, "On calibration of modern neural networks", section 4.2.

use super::metrics::MetricError;

/// The lowest temperature. Without errors on the validation rows, the loss falls towards temperature 0, where every
/// probability is 0 or 1; no finite number of rows justifies that.
pub const LOWEST: f64 = 0.05;
/// The highest temperature. For a model that is wrong more often than right, the best temperature is infinite, which
/// gives equal probabilities.
pub const HIGHEST: f64 = 20.0;

/// The maximum number of iterations. Newton's method converges in about six; bisection alone would take sixty.
const MAX_ITERATIONS: usize = 100;

/// A fitted temperature, with its effect on the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature {
    /// The divisor of the logits: above 1 for an overconfident model, below 1 for an underconfident one.
    pub value: f64,
    /// The bound that was hit, if the rows have no optimal temperature.
    pub bound: Option<Bound>,
    /// The mean negative log-likelihood of the gold label at temperature 1, in nats; for a multi-label model, the mean
    /// over rows and labels.
    pub before: f64,
    /// The mean negative log-likelihood at the fitted temperature.
    pub after: f64,
}

/// The reason why a temperature is not the optimum, but the best allowed value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// [`LOWEST`]: the loss still falls there, for example because every row is correct.
    Lowest,
    /// [`HIGHEST`]: the loss still falls there, for example because more rows are wrong than correct.
    Highest,
    /// Temperature 1, as the temperature has no effect: all logits of each row are equal.
    Flat,
}

impl Bound {
    /// Returns the name in `calibration.json`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lowest => "lowest",
            Self::Highest => "highest",
            Self::Flat => "flat",
        }
    }
}

/// The mean loss at an inverse temperature, with its first and second derivatives.
#[derive(Debug, Clone, Copy, Default)]
struct Loss {
    value: f64,
    slope: f64,
    curvature: f64,
}

impl Temperature {
    /// Fits a temperature on logits, `labels` per row, for softmax probabilities of one label per row.
    ///
    /// # Errors
    /// No rows; columns of different lengths; a label beyond `labels`; a logit that is not finite.
    pub fn fit_softmax(labels: usize, logits: &[f32], gold: &[u32]) -> Result<Self, MetricError> {
        check(labels, logits, gold.len() * labels)?;
        super::metrics::check_labels("the gold label", gold, labels)?;
        let mut exp = vec![0.0; labels];
        let loss = |inverse: f64| {
            let mut total = Loss::default();
            for (row, gold) in logits.chunks_exact(labels).zip(gold) {
                let gold = f64::from(row[*gold as usize]);
                let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                // Relative to the largest logit, so that no exponential overflows.
                let (mut sum, mut mean, mut square) = (0.0, 0.0, 0.0);
                for (exp, logit) in exp.iter_mut().zip(row) {
                    let logit = f64::from(*logit) - max;
                    *exp = (inverse * logit).exp();
                    sum += *exp;
                    mean += *exp * logit;
                    square += *exp * logit * logit;
                }
                (mean, square) = (mean / sum, square / sum);
                total.value += sum.ln() - inverse * (gold - max);
                total.slope += mean - (gold - max);
                total.curvature += square - mean * mean;
            }
            total.mean_of(gold.len())
        };
        Ok(minimum(loss))
    }

    /// Fits a temperature on logits, `labels` per row, for sigmoid probabilities of independent labels.
    ///
    /// # Errors
    /// No rows; columns of different lengths; a logit that is not finite.
    pub fn fit_sigmoid(labels: usize, logits: &[f32], gold: &[bool]) -> Result<Self, MetricError> {
        check(labels, logits, gold.len())?;
        let loss = |inverse: f64| {
            let mut total = Loss::default();
            for (logit, gold) in logits.iter().zip(gold) {
                // The loss of an absent label is that of a present one with the negated logit.
                let logit = if *gold { f64::from(*logit) } else { -f64::from(*logit) };
                let x = inverse * logit;
                let miss = 1.0 / (1.0 + x.exp());
                total.value += (-x).max(0.0) + (-x.abs()).exp().ln_1p();
                total.slope -= miss * logit;
                total.curvature += miss * (1.0 - miss) * logit * logit;
            }
            total.mean_of(logits.len())
        };
        Ok(minimum(loss))
    }
}

impl Loss {
    fn mean_of(self, n: usize) -> Self {
        let n = n as f64;
        Self { value: self.value / n, slope: self.slope / n, curvature: self.curvature / n }
    }
}

/// Minimizes a loss that is convex in the inverse temperature, by Newton's method within a shrinking bracket.
fn minimum(mut loss: impl FnMut(f64) -> Loss) -> Temperature {
    let at_one = loss(1.0);
    let found = |temperature: f64, bound, after: Loss| Temperature {
        value: temperature,
        bound,
        before: at_one.value,
        after: after.value,
    };
    // A convex function with slope 0 at both ends is constant between them.
    let (mut low, mut high) = (1.0 / HIGHEST, 1.0 / LOWEST);
    let (at_low, at_high) = (loss(low), loss(high));
    if at_low.slope >= 0.0 {
        let flat = at_high.slope <= 0.0;
        return if flat { found(1.0, Some(Bound::Flat), at_one) } else { found(HIGHEST, Some(Bound::Highest), at_low) };
    }
    if at_high.slope <= 0.0 {
        return found(LOWEST, Some(Bound::Lowest), at_high);
    }
    let (mut inverse, mut current) = (1.0, at_one);
    for _ in 0..MAX_ITERATIONS {
        if current.slope < 0.0 {
            low = inverse;
        } else {
            high = inverse;
        }
        let newton = inverse - current.slope / current.curvature;
        // The bracket also covers a curvature of 0, where the step is infinite or NaN.
        let next = if newton > low && newton < high { newton } else { f64::midpoint(low, high) };
        let step = (next - inverse).abs();
        inverse = next;
        current = loss(inverse);
        if step <= 1e-12 * inverse || high - low <= 1e-12 * high {
            break;
        }
    }
    found(1.0 / inverse, None, current)
}

fn check(labels: usize, logits: &[f32], expected: usize) -> Result<(), MetricError> {
    if labels == 0 || expected == 0 {
        return Err(MetricError::Empty);
    }
    super::metrics::check_length("logits", logits.len(), expected.next_multiple_of(labels))?;
    match logits.iter().position(|logit| !logit.is_finite()) {
        Some(i) => Err(MetricError::Value {
            row: i / labels,
            what: "a logit",
            value: f64::from(logits[i]),
            expected: "a finite number",
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correct_rows_give_the_lowest_temperature() {
        let fitted = Temperature::fit_softmax(2, &[2.0, -2.0, -1.0, 1.0], &[0, 1]).unwrap();
        assert_eq!((fitted.value, fitted.bound), (LOWEST, Some(Bound::Lowest)));
        assert!(fitted.after < fitted.before);
    }

    #[test]
    fn mostly_wrong_rows_give_the_highest_temperature() {
        let fitted = Temperature::fit_softmax(2, &[2.0, -2.0, -1.0, 1.0], &[1, 0]).unwrap();
        assert_eq!((fitted.value, fitted.bound), (HIGHEST, Some(Bound::Highest)));
    }

    #[test]
    fn equal_logits_give_temperature_1() {
        let fitted = Temperature::fit_softmax(2, &[2.0, 2.0, -1.0, -1.0], &[1, 0]).unwrap();
        assert_eq!((fitted.value, fitted.bound), (1.0, Some(Bound::Flat)));
        let fitted = Temperature::fit_sigmoid(1, &[0.0, 0.0], &[true, false]).unwrap();
        assert_eq!((fitted.value, fitted.bound), (1.0, Some(Bound::Flat)));
    }

    /// Three of four rows are correct at the same distance: the optimal probability is 3/4, so T = d / ln 3.
    #[test]
    fn the_best_temperature_is_known_for_equal_distances() {
        for distance in [0.1_f32, 1.0, 7.0, 20.0] {
            let logits = [distance, 0.0].repeat(4);
            let fitted = Temperature::fit_softmax(2, &logits, &[0, 0, 1, 0]).unwrap();
            let expected = f64::from(distance) / 3.0_f64.ln();
            assert!((fitted.value - expected).abs() < 1e-9 * expected, "{fitted:?} {expected}");
            let gold = [true, true, false, true];
            let sigmoid = Temperature::fit_sigmoid(1, &[distance; 4], &gold).unwrap();
            assert!((sigmoid.value - expected).abs() < 1e-9 * expected, "{sigmoid:?} {expected}");
        }
    }

    #[test]
    fn logits_that_are_not_finite_are_rejected() {
        let error = Temperature::fit_softmax(2, &[0.0, 1.0, f32::NAN, 1.0], &[0, 1]).unwrap_err();
        assert_eq!(error.to_string(), "row 2: a logit is NaN, expected a finite number");
        assert!(Temperature::fit_softmax(2, &[0.0, 1.0, 1.0], &[0, 1]).is_err());
        assert!(Temperature::fit_sigmoid(2, &[0.0, 1.0, 1.0], &[true, false, true]).is_err());
        assert_eq!(Temperature::fit_softmax(2, &[], &[]), Err(MetricError::Empty));
    }
}
