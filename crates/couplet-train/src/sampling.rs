//! The validation split, class weights, and the order of training rows.
//!
//! Everything is a function of seeds, ids and epochs, so a resumed run sees the same rows in the same order.

use std::collections::BTreeMap;

use thiserror::Error;

use super::random::{Random, first_u64};

/// Errors of sampling.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum SamplingError {
    /// The validation fraction is not between 0 and 1.
    #[error("a validation fraction of {0}; expected a share between 0 and 1, such as 0.1")]
    Fraction(f64),
    /// A weight names an unknown label.
    #[error("class weight for {label:?}, which is not a label; the labels are {}", .labels.join(", "))]
    UnknownLabel {
        /// The label as written.
        label: String,
        /// The known labels.
        labels: Vec<String>,
    },
    /// A label has no weight.
    #[error("label {0:?} has no class weight; give one for each label")]
    NoWeight(String),
    /// A weight is not positive.
    #[error("class weight {weight} for {label:?}; expected a number above 0")]
    Weight {
        /// The label.
        label: String,
        /// Its weight.
        weight: f64,
    },
}

/// Holds out a share of the rows by a hash of their ids.
///
/// The decision for a row does not depend on the other rows, their order or their number: adding rows never moves
/// earlier ones. For many rows the share is within its sampling error, sqrt(f (1 - f) / rows).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HoldOut {
    fraction: f64,
    seed: u64,
}

impl HoldOut {
    /// Takes the share of rows to hold out; another seed selects other rows.
    ///
    /// # Errors
    /// A fraction that is not between 0 and 1.
    pub fn try_new(fraction: f64, seed: u64) -> Result<Self, SamplingError> {
        if fraction > 0.0 && fraction < 1.0 {
            Ok(Self { fraction, seed })
        } else {
            Err(SamplingError::Fraction(fraction))
        }
    }

    /// Returns true if the row with this id, of one or more columns, is held out.
    #[must_use]
    pub fn holds_out<S: AsRef<str>>(&self, id: &[S]) -> bool {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"couplet validation split");
        hasher.update(&self.seed.to_le_bytes());
        for part in id {
            let part = part.as_ref();
            // Hashed with its length, so that ("a", "bc") differs from ("ab", "c").
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let place = (first_u64(&hasher.finalize()) >> 11) as f64 / (1_u64 << 53) as f64;
        place < self.fraction
    }
}

/// The weight of each label in the loss.
#[derive(Debug, Clone, PartialEq)]
pub enum ClassWeights {
    /// Equal weights.
    Equal,
    /// Weights that give all labels the same total weight, as in `sklearn.utils.class_weight`.
    Balanced,
    /// A weight for each label.
    Given(BTreeMap<String, f64>),
}

impl ClassWeights {
    /// Returns the weights in the order of the labels, given the number of rows per label.
    ///
    /// Balanced: all rows / (labels with rows * rows of the label). A label without rows gets 1.
    ///
    /// # Errors
    /// Given weights for unknown labels, or not for all labels, or that are not above 0.
    pub fn weights(&self, labels: &[String], rows: &[u64]) -> Result<Vec<f64>, SamplingError> {
        match self {
            Self::Equal => Ok(vec![1.0; labels.len()]),
            Self::Balanced => {
                let all = rows.iter().sum::<u64>() as f64;
                let seen = rows.iter().filter(|rows| **rows > 0).count() as f64;
                Ok(rows.iter().map(|&rows| if rows == 0 { 1.0 } else { all / (seen * rows as f64) }).collect())
            }
            Self::Given(weights) => {
                if let Some(label) = weights.keys().find(|label| !labels.contains(label)) {
                    return Err(SamplingError::UnknownLabel { label: label.clone(), labels: labels.to_vec() });
                }
                let weight = |label: &String| {
                    let weight = *weights.get(label).ok_or_else(|| SamplingError::NoWeight(label.clone()))?;
                    if weight > 0.0 && weight.is_finite() {
                        Ok(weight)
                    } else {
                        Err(SamplingError::Weight { label: label.clone(), weight })
                    }
                };
                labels.iter().map(weight).collect()
            }
        }
    }
}

/// Returns the order of rows in an epoch: every row once, in an order that depends on the seed, the epoch and the
/// number of rows.
///
/// # Panics
/// If there are 2^32 rows or more.
#[must_use]
pub fn epoch_order(seed: u64, epoch: u64, rows: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..u32::try_from(rows).expect("there are fewer than 2^32 rows")).collect();
    Random::new(seed, "epoch order", &[epoch]).shuffle(&mut order);
    order
}

/// Returns the batches of an epoch: [`epoch_order`] in parts of `batch_size`; the last one may be smaller.
///
/// # Panics
/// If the batch size is 0, or if there are 2^32 rows or more.
#[must_use]
pub fn epoch_batches(seed: u64, epoch: u64, rows: usize, batch_size: usize) -> Vec<Vec<u32>> {
    epoch_order(seed, epoch, rows).chunks(batch_size).map(<[u32]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_held_out_by_id_alone() {
        for fraction in [0.02, 0.1, 0.5] {
            let hold_out = HoldOut::try_new(fraction, 1).unwrap();
            let held: Vec<bool> = (0..100_000).map(|i| hold_out.holds_out(&[format!("row-{i}")])).collect();
            let share = held.iter().filter(|held| **held).count() as f64 / held.len() as f64;
            assert!((share - fraction).abs() < 4.0 * (fraction * (1.0 - fraction) / 1e5).sqrt(), "{share}");
        }
        let hold_out = HoldOut::try_new(0.5, 1).unwrap();
        let held = |id: &[&str]| hold_out.holds_out(id);
        assert!((0..64).any(|i| held(&[&format!("a{i}"), "b"]) != held(&["a", &format!("{i}b")])));
        let other = HoldOut::try_new(0.5, 2).unwrap();
        let differ = (0..1000).filter(|i| other.holds_out(&[i.to_string()]) != held(&[&i.to_string()])).count();
        assert!(differ.abs_diff(500) < 100, "{differ}");
    }

    /// The split is part of what a reported metric means: it must never change.
    #[test]
    fn the_split_never_changes() {
        let hold_out = HoldOut::try_new(0.1, 0).unwrap();
        let held: Vec<usize> = (0..100).filter(|i| hold_out.holds_out(&[i.to_string()])).collect();
        assert_eq!(held, FIRST_HELD_OUT);
        assert_eq!(epoch_order(7, 2, 8), FIRST_ORDER);
    }

    const FIRST_HELD_OUT: [usize; 10] = [10, 16, 22, 23, 29, 53, 58, 86, 92, 99];
    const FIRST_ORDER: [u32; 8] = [0, 4, 7, 6, 3, 2, 1, 5];

    #[test]
    fn a_fraction_is_between_0_and_1() {
        for fraction in [0.0, 1.0, -0.1, 10.0, f64::NAN] {
            assert!(HoldOut::try_new(fraction, 1).is_err());
        }
    }

    #[test]
    fn weights_balance_or_are_given_for_all() {
        let labels = ["no".to_owned(), "yes".to_owned(), "maybe".to_owned()];
        assert_eq!(ClassWeights::Balanced.weights(&labels, &[6, 2, 0]), Ok(vec![8.0 / 12.0, 2.0, 1.0]));
        let given = |weights: &[(&str, f64)]| {
            ClassWeights::Given(weights.iter().map(|(label, weight)| ((*label).to_owned(), *weight)).collect())
                .weights(&labels, &[6, 2, 0])
                .map_err(|error| error.to_string())
        };
        assert_eq!(given(&[("maybe", 3.0), ("no", 1.0), ("yes", 2.0)]), Ok(vec![1.0, 2.0, 3.0]));
        assert_eq!(given(&[("no", 1.0)]), Err("label \"yes\" has no class weight; give one for each label".into()));
        assert_eq!(
            given(&[("nope", 1.0)]),
            Err("class weight for \"nope\", which is not a label; the labels are no, yes, maybe".into())
        );
        assert_eq!(
            given(&[("maybe", 0.0), ("no", 1.0), ("yes", 2.0)]),
            Err("class weight 0 for \"maybe\"; expected a number above 0".into())
        );
    }

    #[test]
    fn every_row_occurs_once_per_epoch() {
        for rows in [0, 1, 31, 32, 33, 5000] {
            let batches = epoch_batches(3, 1, rows, 32);
            let mut seen: Vec<u32> = batches.concat();
            seen.sort_unstable();
            assert!(seen.iter().copied().eq(0..rows as u32));
            assert!(batches.iter().rev().skip(1).all(|batch| batch.len() == 32));
        }
        assert_ne!(epoch_order(3, 1, 100), epoch_order(3, 2, 100));
        assert_ne!(epoch_order(3, 1, 100), epoch_order(4, 1, 100));
        assert_eq!(epoch_order(3, 1, 100), epoch_order(3, 1, 100));
    }
}
