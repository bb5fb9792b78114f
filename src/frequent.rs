//! Selects the most frequent of many labels: a model may have thousands, too many to display.

/// Returns the indices of the items with the most rows, at most `limit` of them, in the order of the items.
#[must_use]
pub fn most_frequent<T>(items: &[T], limit: usize, rows: impl Fn(&T) -> u64) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..items.len()).collect();
    // Of two items with equal rows, the first comes first.
    indices.sort_by_key(|&index| std::cmp::Reverse(rows(&items[index])));
    indices.truncate(limit);
    indices.sort_unstable();
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_stay_in_their_order() {
        let rows = [3, 9, 0, 9, 1];
        assert_eq!(most_frequent(&rows, 3, |n| *n), [0, 1, 3]);
        assert_eq!(most_frequent(&rows, 9, |n| *n), [0, 1, 2, 3, 4]);
        assert_eq!(most_frequent(&[0_u64, 0], 1, |n| *n), [0]);
    }
}
