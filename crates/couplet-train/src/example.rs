//! Training examples: encoded texts with their targets, and the split of a batch into micro-batches.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use couplet_encoder::model::ModelConfig;

use super::TrainError;
use super::loss::Objective;

/// An encoded text or text pair with its target.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Token ids with the special tokens.
    pub input_ids: Vec<u32>,
    /// 0 for the first text and its special tokens, 1 for the second.
    pub token_type_ids: Vec<u32>,
    /// The expected output.
    pub target: Target,
}

impl Example {
    /// Returns the masked tokens; none if the target is of another kind.
    pub(super) fn words(&self) -> &[(u32, u32)] {
        match &self.target {
            Target::Words(words) => words,
            _ => &[],
        }
    }
}

/// The expected output for an example.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// The index of the label, for [`Objective::Classification`].
    Label(usize),
    /// The value, for [`Objective::Regression`].
    Value(f32),
    /// 1 for each label that applies and 0 for the others, for [`Objective::MultiLabel`].
    Labels(Vec<f32>),
    /// The masked tokens as (position in the sequence, token id), by ascending position, for
    /// [`Objective::MaskedWords`].
    Words(Vec<(u32, u32)>),
}

/// Checks that the examples fit the model and the objective.
pub(super) fn validate(examples: &[Example], objective: &Objective, config: &ModelConfig) -> Result<(), TrainError> {
    for (index, example) in examples.iter().enumerate() {
        let error = |problem: String| Err(TrainError::Example { index, problem });
        let tokens = example.input_ids.len();
        if tokens == 0 || tokens > config.max_position_embeddings {
            return error(format!("{tokens} tokens; expected 1 to {}", config.max_position_embeddings));
        }
        if example.token_type_ids.len() != tokens {
            return error(format!("{tokens} tokens have {} token types", example.token_type_ids.len()));
        }
        match (objective, &example.target) {
            (Objective::Classification { labels, .. }, Target::Label(label)) if label < labels => {}
            (Objective::Regression, Target::Value(value)) if value.is_finite() => {}
            (Objective::MultiLabel { labels }, Target::Labels(values)) if values.len() == *labels => {}
            (Objective::MaskedWords, Target::Words(words)) => {
                let ascending = words.is_sorted_by(|(a, _), (b, _)| a < b);
                let in_range =
                    words.iter().all(|(at, id)| (*at as usize) < tokens && (*id as usize) < config.vocab_size);
                if !ascending || !in_range {
                    return error("masked words at positions or with ids that do not exist, or not in order".into());
                }
            }
            (objective, target) => return error(format!("target {target:?} does not fit {objective:?}")),
        }
    }
    Ok(())
}

/// Splits examples of the given lengths into micro-batches with about equal numbers of tokens, not much above
/// `max_tokens`. If there are enough examples, the number of micro-batches is a multiple of `lanes`.
///
/// The rule does not depend on the number of threads, so neither do the sums over micro-batches. Examples are assigned
/// in order of decreasing length, each to the micro-batch with the fewest tokens.
pub(super) fn micro_batches(lengths: &[usize], max_tokens: usize, lanes: usize) -> Vec<Vec<usize>> {
    let tokens: usize = lengths.iter().sum();
    let count = tokens.div_ceil(max_tokens.max(1)).next_multiple_of(lanes).min(lengths.len());
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|i| Reverse(lengths[*i]));
    let mut batches = vec![Vec::new(); count];
    // (tokens, index) of each micro-batch, the fewest tokens first; of equals the first index.
    let mut fewest: BinaryHeap<Reverse<(usize, usize)>> = (0..count).map(|place| Reverse((0, place))).collect();
    for i in order {
        if let Some(mut top) = fewest.peek_mut() {
            let Reverse((tokens, place)) = &mut *top;
            *tokens += lengths[i];
            batches[*place].push(i);
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_hold_every_example_once_and_are_about_equal() {
        let lengths: Vec<usize> = (0..100).map(|i| 10 + i * 37 % 90).collect();
        let batches = micro_batches(&lengths, 512, 4);
        assert_eq!(batches.len(), 12);
        let mut all: Vec<usize> = batches.concat();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..100));
        let tokens = batches.iter().map(|batch| batch.iter().map(|i| lengths[*i]).sum::<usize>());
        let (min, max) = (tokens.clone().min().unwrap(), tokens.max().unwrap());
        assert!(max < 512 && max - min < 40, "{min} to {max} tokens");
    }

    /// The sums over micro-batches determine the result for a seed: the split must never change.
    #[test]
    fn micro_batches_are_those_that_a_search_of_all_would_give() {
        let searched = |lengths: &[usize], count: usize| {
            let mut order: Vec<usize> = (0..lengths.len()).collect();
            order.sort_by_key(|i| Reverse(lengths[*i]));
            let mut batches = vec![(0, Vec::new()); count];
            for i in order {
                let (tokens, batch) = batches.iter_mut().min_by_key(|(tokens, _)| *tokens).unwrap();
                *tokens += lengths[i];
                batch.push(i);
            }
            batches.into_iter().map(|(_, batch)| batch).collect::<Vec<_>>()
        };
        for modulus in [1, 3, 17, 90] {
            let lengths: Vec<usize> = (0..500).map(|i| 3 + i * 37 % modulus).collect();
            let batches = micro_batches(&lengths, 64, 4);
            assert_eq!(batches, searched(&lengths, batches.len()), "lengths 3 to {}", 2 + modulus);
        }
    }

    #[test]
    fn fewer_examples_than_lanes_are_one_micro_batch_each() {
        assert_eq!(micro_batches(&[5, 9], 512, 4), [[1], [0]]);
        assert!(micro_batches(&[], 512, 4).is_empty());
    }
}
