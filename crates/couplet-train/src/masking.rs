//! Masked-language-model examples: selects tokens, replaces them and keeps the originals as labels.
//!
//! **Source**: Devlin et al. 2019, "BERT", section 3.1 and appendix A.1: 15 % of the tokens are selected; of those 80 %
//! become `[MASK]`, 10 % a random token and 10 % stay. Whole words are selected, as in the authors' later models.
//! Wettig et al. 2023, "Should you mask 15% in masked language modeling?", is the reason to try 0.5.

use std::ops::Range;

use thiserror::Error;

use super::random::Random;

/// BERT's share of selected tokens.
pub const BERT_MASK_PROBABILITY: f64 = 0.15;

/// The share of the selected tokens that become `[MASK]`, and the share that become a random token; the rest stay.
const MASKED: f64 = 0.8;
const RANDOM: f64 = 0.1;

/// Errors of masking.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum MaskingError {
    /// The probability is not between 0 and 1.
    #[error("mask_probability = {0}; expected a share above 0 and below 1, such as 0.15 or 0.5")]
    Probability(f64),
    /// The tokenizer has no mask token of this name.
    #[error("the tokenizer has no token {0:?}, which masking needs")]
    NoToken(String),
    /// The tokenizer has only special tokens.
    #[error("the tokenizer has no tokens but special ones")]
    NoPieces,
    /// The maximum length leaves no room for text.
    #[error("max_length = {0} leaves no room for text between the special tokens; expected 3 or more")]
    MaxLength(usize),
}

/// The properties of a vocabulary's tokens that masking needs.
#[derive(Debug, Clone)]
pub struct Pieces {
    /// By id: special tokens, and ids unknown to the tokenizer.
    special: Vec<bool>,
    /// By id: word pieces that continue the previous word, such as `##ing`.
    continuation: Vec<bool>,
    mask: u32,
    /// The tokens that may replace a selected one.
    replacements: Vec<u32>,
}

/// A masked sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masked {
    /// The input of the encoder, as long as the original sequence.
    pub input_ids: Vec<u32>,
    /// The selected positions, in ascending order.
    pub positions: Vec<u32>,
    /// The original token at each selected position.
    pub labels: Vec<u32>,
}

/// The settings of masking.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Masking {
    probability: f64,
    seed: u64,
}

impl Pieces {
    /// Reads a tokenizer's vocabulary; `mask` is the name of the mask token, usually `[MASK]`.
    ///
    /// # Errors
    /// A tokenizer without that token, or with special tokens only.
    pub fn of_tokenizer(tokenizer: &tokenizers::Tokenizer, mask: &str) -> Result<Self, MaskingError> {
        let added = tokenizer.get_added_tokens_decoder();
        let is_special = |id: u32| added.get(&id).is_some_and(|token| token.special);
        let vocab = tokenizer.get_vocab(true);
        let pieces = vocab.iter().map(|(token, &id)| (token.as_str(), id, is_special(id)));
        Self::new(pieces, mask)
    }

    /// Takes tuples of a token, its id, and true if it is special.
    ///
    /// Special tokens and BERT's `[unused…]` tokens, which never occur in texts, are not used as replacements.
    ///
    /// # Errors
    /// A vocabulary without the token `mask`, or with special tokens only.
    pub fn new<'t>(tokens: impl Iterator<Item = (&'t str, u32, bool)>, mask: &str) -> Result<Self, MaskingError> {
        let tokens: Vec<(&str, u32, bool)> = tokens.collect();
        let size = tokens.iter().map(|(_, id, _)| *id as usize + 1).max().unwrap_or(0);
        let mut pieces =
            Self { special: vec![true; size], continuation: vec![false; size], mask: 0, replacements: Vec::new() };
        let mut found = false;
        for (token, id, special) in tokens {
            let special = special || token == mask;
            pieces.special[id as usize] = special;
            pieces.continuation[id as usize] = token.len() > 2 && token.starts_with("##");
            if token == mask {
                (pieces.mask, found) = (id, true);
            } else if !special && !is_unused(token) {
                pieces.replacements.push(id);
            }
        }
        if !found {
            return Err(MaskingError::NoToken(mask.to_owned()));
        }
        if pieces.replacements.is_empty() {
            return Err(MaskingError::NoPieces);
        }
        // The iteration order of a hash map differs from run to run.
        pieces.replacements.sort_unstable();
        Ok(pieces)
    }

    /// Returns true if a token is special, or unknown to the tokenizer.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(true)
    }

    /// Returns true if the token at a position continues the previous token's word.
    #[must_use]
    pub fn is_continuation(&self, input_ids: &[u32], place: usize) -> bool {
        let id = input_ids[place];
        self.continuation.get(id as usize).copied().unwrap_or(false)
            && !self.is_special(id)
            && place > 0
            && !self.is_special(input_ids[place - 1])
    }

    /// Returns the words of a sequence: each is a token with its continuations. Special tokens are left out.
    #[must_use]
    pub fn words(&self, input_ids: &[u32]) -> Vec<Range<usize>> {
        let mut words: Vec<Range<usize>> = Vec::new();
        for (place, _) in input_ids.iter().enumerate().filter(|(_, id)| !self.is_special(**id)) {
            match words.last_mut() {
                Some(word) if self.is_continuation(input_ids, place) => word.end = place + 1,
                _ => words.push(place..place + 1),
            }
        }
        words
    }
}

/// Returns true if a token is one of BERT's unused ones.
fn is_unused(token: &str) -> bool {
    token.starts_with("[unused") && token.ends_with(']')
}

impl Masking {
    /// Takes the share of tokens to select, not counting special ones, and a seed.
    ///
    /// # Errors
    /// A share that is not between 0 and 1.
    pub fn try_new(probability: f64, seed: u64) -> Result<Self, MaskingError> {
        if probability > 0.0 && probability < 1.0 {
            Ok(Self { probability, seed })
        } else {
            Err(MaskingError::Probability(probability))
        }
    }

    /// Masks words of a sequence. The selection depends on the seed, the epoch and the example only.
    ///
    /// Words are selected in random order until the share of the sequence's tokens is reached. The word that would
    /// exceed it is selected with the probability that makes the expected number of selected tokens exactly the share.
    /// A short sequence may therefore have no selected word.
    #[must_use]
    pub fn mask(&self, pieces: &Pieces, input_ids: &[u32], epoch: u64, example: u64) -> Masked {
        let mut random = Random::new(self.seed, "masking", &[epoch, example]);
        let mut words = pieces.words(input_ids);
        let mut left = self.probability * words.iter().map(ExactSizeIterator::len).sum::<usize>() as f64;
        random.shuffle(&mut words);
        let mut positions = Vec::with_capacity(left as usize + 1);
        for word in words {
            let tokens = word.len() as f64;
            if tokens > left && random.unit() * tokens >= left {
                break;
            }
            left -= tokens;
            positions.extend(word.map(|place| place as u32));
        }
        positions.sort_unstable();
        let labels = positions.iter().map(|place| input_ids[*place as usize]).collect();
        let mut masked = Masked { input_ids: input_ids.to_vec(), positions, labels };
        for place in &masked.positions {
            let draw = random.unit();
            if draw < MASKED {
                masked.input_ids[*place as usize] = pieces.mask;
            } else if draw < MASKED + RANDOM {
                let choice = random.below(pieces.replacements.len() as u32);
                masked.input_ids[*place as usize] = pieces.replacements[choice as usize];
            }
        }
        masked
    }
}

/// Splits long texts into sequences that fit the encoder: `[CLS] tokens [SEP]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunking {
    max_length: usize,
    first: u32,
    last: u32,
}

impl Chunking {
    /// Takes the maximum length of a sequence in tokens, including `[CLS]` and `[SEP]`, and the ids of these two.
    ///
    /// # Errors
    /// A length that leaves no room for text.
    pub fn try_new(max_length: usize, cls: u32, sep: u32) -> Result<Self, MaskingError> {
        if max_length < 3 {
            return Err(MaskingError::MaxLength(max_length));
        }
        Ok(Self { max_length, first: cls, last: sep })
    }

    /// Splits the tokens of a text, without special tokens, into sequences; none for no tokens.
    ///
    /// Every token is in exactly one sequence, in order; the last sequence may be short. Words are not split unless a
    /// single word is longer than a sequence.
    #[must_use]
    pub fn split(&self, pieces: &Pieces, text_ids: &[u32]) -> Vec<Vec<u32>> {
        let room = self.max_length - 2;
        let mut chunks = Vec::with_capacity(text_ids.len().div_ceil(room));
        let mut start = 0;
        while start < text_ids.len() {
            let most = (start + room).min(text_ids.len());
            let is_cut = |end: &usize| *end == text_ids.len() || !pieces.is_continuation(text_ids, *end);
            let end = (start + 1..=most).rev().find(is_cut).unwrap_or(most);
            let mut chunk = Vec::with_capacity(end - start + 2);
            chunk.push(self.first);
            chunk.extend_from_slice(&text_ids[start..end]);
            chunk.push(self.last);
            chunks.push(chunk);
            start = end;
        }
        chunks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: [&str; 10] = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "play", "##ing", "##s", "ball", "##"];

    fn pieces() -> Pieces {
        Pieces::new((0..).zip(TOKENS).map(|(id, token)| (token, id, id < 4)), "[MASK]").unwrap()
    }

    #[test]
    fn a_word_is_a_token_with_its_continuations() {
        // [CLS] play ##ing ball ##s ##ing [SEP] ##s ball ## [SEP]; id 99 is unknown
        let ids = [1, 5, 6, 8, 7, 6, 2, 7, 8, 9, 2, 99];
        assert_eq!(pieces().words(&ids), [1..3, 3..6, 7..8, 8..9, 9..10]);
    }

    #[test]
    fn only_tokens_of_texts_replace_others() {
        assert_eq!(pieces().replacements, [5, 6, 7, 8, 9]);
        assert_eq!(
            Pieces::new([("a", 0, false)].into_iter(), "[MASK]").unwrap_err().to_string(),
            "the tokenizer has no token \"[MASK]\", which masking needs"
        );
        assert_eq!(Pieces::new([("[MASK]", 0, true)].into_iter(), "[MASK]").unwrap_err(), MaskingError::NoPieces);
    }

    #[test]
    fn every_epoch_and_example_hides_other_words() {
        let ids: Vec<u32> = [1].into_iter().chain((0..60).map(|i| 5 + i % 4)).chain([2]).collect();
        let masking = Masking::try_new(0.5, 1).unwrap();
        let mask = |epoch, example| masking.mask(&pieces(), &ids, epoch, example);
        assert_eq!(mask(1, 2), mask(1, 2));
        assert_ne!(mask(1, 2), mask(2, 2));
        assert_ne!(mask(1, 2), mask(1, 3));
        assert_ne!(mask(1, 2), Masking::try_new(0.5, 2).unwrap().mask(&pieces(), &ids, 1, 2));
        let masked = mask(1, 2);
        for (place, id) in ids.iter().enumerate() {
            match masked.positions.binary_search(&(place as u32)) {
                Ok(i) => assert_eq!(masked.labels[i], *id),
                Err(_) => assert_eq!(masked.input_ids[place], *id),
            }
        }
    }

    #[test]
    fn a_sequence_of_special_tokens_stays() {
        let masked = Masking::try_new(0.5, 1).unwrap().mask(&pieces(), &[1, 2, 0, 0], 0, 0);
        assert_eq!(masked, Masked { input_ids: vec![1, 2, 0, 0], positions: vec![], labels: vec![] });
        assert!(Masking::try_new(0.0, 1).is_err() && Masking::try_new(15.0, 1).is_err());
    }

    #[test]
    fn chunks_lose_no_token_and_keep_words_whole() {
        let chunking = Chunking::try_new(5, 1, 2).unwrap();
        // play ##ing ball ##s play ball ##s ##s ##s ##s
        let ids = [5, 6, 8, 7, 5, 8, 7, 7, 7, 7];
        let chunks = chunking.split(&pieces(), &ids);
        let expected: [&[u32]; 4] = [&[1, 5, 6, 2], &[1, 8, 7, 5, 2], &[1, 8, 7, 7, 2], &[1, 7, 7, 2]];
        assert_eq!(chunks, expected);
        assert!(chunking.split(&pieces(), &[]).is_empty());
        assert!(Chunking::try_new(2, 1, 2).is_err());
    }
}
