//! Rejected rows: how many are allowed, and messages about them.

use std::fmt::Write as _;

use couplet_encoder::scorer::Rejection;
use couplet_storage::words::counted;

use super::staged_rows::StagedRows;
use crate::config::Scoring;
use crate::error::Error;

/// Rejected rows by [`Rejection::KINDS`].
type ByKind = [u64; Rejection::KINDS.len()];

/// Maximum number of rejected rows listed in a message.
const MAX_NAMED: usize = 3;

/// Returns the maximum number of errors in `rows` rows.
pub(super) fn most(scoring: &Scoring, rows: u64) -> u64 {
    share_of(scoring.score.max_errors, rows)
}

/// Returns the largest number of rows whose share of `rows` does not exceed `share`.
fn share_of(share: f64, rows: u64) -> u64 {
    let most = (share * rows as f64).floor() as u64;
    // 0.29 * 100 is slightly less than 29 in floating point, but 29 / 100 equals 0.29.
    let one_more = most.saturating_add(1);
    if one_more <= rows && one_more as f64 / rows as f64 <= share { one_more } else { most }
}

/// Checks that the number of rejected rows is within the limit.
///
/// # Errors
/// There are more than allowed.
pub(super) async fn check(scoring: &Scoring, staged: &StagedRows) -> Result<(), Error> {
    if staged.rejected().iter().sum::<u64>() <= most(scoring, staged.len()) {
        return Ok(());
    }
    // If the ids cannot be read, the counts alone describe the problem.
    let first = staged.first_rejected(&scoring.source.id, MAX_NAMED).await.unwrap_or_default();
    Err(too_many(scoring, staged.rejected(), staged.len(), &first))
}

/// Builds the error for too many rejected rows, with the ids of the first ones if known.
pub(super) fn too_many(scoring: &Scoring, rejected: ByKind, rows: u64, first: &[String]) -> Error {
    let mut kinds = in_words(rejected);
    if !first.is_empty() {
        let _ = write!(kinds, "; the first {}: {}", scoring.source.id.join(", "), first.join("; "));
    }
    Error::TooManyErrors { rejected: rejected.iter().sum(), rows, kinds, max_errors: scoring.score.max_errors }
}

/// Warns if no row was scored, which is rarely intended.
pub(super) fn warn_if_none_scored(rejected: ByKind, rows: u64) {
    if rows > 0 && rejected.iter().sum::<u64>() == rows {
        tracing::warn!(
            "none of the {} could be scored ({}), so the output has no predictions; check source.text and the query, \
             or set score.max_errors, so that such a run fails",
            counted(rows, "row"),
            in_words(rejected)
        );
    }
}

fn in_words(rejected: ByKind) -> String {
    kinds(rejected).iter().map(|(kind, n)| format!("{n} with {kind}")).collect::<Vec<_>>().join(", ")
}

/// Returns the kinds of errors that occur, with the number of rows.
pub(super) fn kinds(rejected: ByKind) -> Vec<(String, u64)> {
    let kinds = Rejection::KINDS.iter().zip(rejected).filter(|(_, n)| *n > 0);
    kinds.map(|(kind, n)| ((*kind).to_owned(), n)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_limits_the_number_of_rejected_rows() {
        for (share, rows, most) in [(0.29, 100, 29), (0.57, 100, 57), (0.001, 1000, 1), (0.001, 999, 0), (0.3, 10, 3)] {
            assert_eq!(share_of(share, rows), most, "{share} of {rows}");
        }
        assert_eq!([share_of(1.0, 7), share_of(0.0, 7), share_of(1.0, 0), share_of(0.5, 0)], [7, 0, 0, 0]);
    }
}
