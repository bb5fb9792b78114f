//! Splits a window into packed batches: longest sequences first, each batch filled up to a token budget.

/// Groups sequences into batches of at most `batch_tokens` tokens. Returns the indices of the sequences per batch.
///
/// `lengths: [B]` are in tokens. A sequence longer than `batch_tokens` is a batch of its own. Lengths decrease from the
/// first batch to the last, so that the last batches, when threads run out of work, are the short ones.
///
/// The sort is stable, so the result depends on the lengths alone.
#[must_use]
pub fn plan(lengths: &[usize], batch_tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut remaining = 0;
    for i in order {
        match batches.last_mut() {
            Some(batch) if lengths[i] <= remaining => {
                batch.push(i);
                remaining -= lengths[i];
            }
            _ => {
                batches.push(vec![i]);
                remaining = batch_tokens.saturating_sub(lengths[i]);
            }
        }
    }
    batches
}

/// Returns the number of padding tokens in padded batches of `size` sequences each, in the given order.
pub(super) fn padding_of_batches(lengths: &[usize], size: usize) -> usize {
    lengths
        .chunks(size)
        .map(|batch| batch.iter().max().map_or(0, |longest| longest * batch.len()) - batch.iter().sum::<usize>())
        .sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fills_batches_longest_first() {
        assert_eq!(plan(&[3, 9, 4, 4], 8), [vec![1], vec![2, 3], vec![0]]);
        assert_eq!(plan(&[], 8), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn counts_the_padding_of_a_padded_batch() {
        assert_eq!(padding_of_batches(&[5, 3, 4, 8], 2), 2 + 4);
        assert_eq!(padding_of_batches(&[], 32), 0);
    }

    proptest! {
        #[test]
        fn every_sequence_is_in_one_batch_within_the_budget(
            lengths in prop::collection::vec(1usize..200, 0..300), budget in 1usize..500,
        ) {
            let batches = plan(&lengths, budget);
            let mut all: Vec<usize> = batches.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
            for batch in batches {
                let tokens: usize = batch.iter().map(|&i| lengths[i]).sum();
                prop_assert!(batch.len() == 1 || tokens <= budget);
            }
        }
    }
}
