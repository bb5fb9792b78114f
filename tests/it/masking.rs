//! Masked-language-model examples with a real tokenizer: the shares of BERT, whole words, no special tokens.

use couplet::train::masking::{Chunking, Masking, Pieces};
use couplet::train::random::Random;
use tokenizers::Tokenizer;

use crate::support::{golden, shared};

/// Many token sequences, including `[CLS]`, `[SEP]` and some `[PAD]`.
struct Corpus {
    pieces: Pieces,
    sequences: Vec<Vec<u32>>,
    mask: u32,
}

fn corpus() -> Corpus {
    let tokenizer = Tokenizer::from_file(golden("tiny-distilbert/tokenizer.json")).unwrap();
    let pieces = Pieces::of_tokenizer(&tokenizer, "[MASK]").unwrap();
    let id = |token: &str| tokenizer.token_to_id(token).unwrap();
    let mut vocab: Vec<u32> = tokenizer.get_vocab(true).into_values().filter(|id| !pieces.is_special(*id)).collect();
    vocab.sort_unstable();
    let mut random = Random::new(1, "corpus", &[]);
    let sequence =
        |_| {
            let body = 10 + random.below(110);
            let mut ids = vec![id("[CLS]")];
            ids.extend(
                (0..body).map(|i| {
                    if i == body / 2 { id("[SEP]") } else { vocab[random.below(vocab.len() as u32) as usize] }
                }),
            );
            ids.extend([id("[SEP]"), id("[PAD]"), id("[PAD]")]);
            ids
        };
    Corpus { sequences: (0..8000).map(sequence).collect(), mask: id("[MASK]"), pieces }
}

#[test]
fn masking_shares_match_the_settings() {
    let corpus = corpus();
    for probability in [0.15, 0.5] {
        let masking = Masking::try_new(probability, 7).unwrap();
        let (mut tokens, mut chosen, mut masked, mut changed) = (0_u64, 0_u64, 0_u64, 0_u64);
        for (example, ids) in (0..).zip(&corpus.sequences) {
            let hidden = masking.mask(&corpus.pieces, ids, 3, example);
            tokens += ids.iter().filter(|id| !corpus.pieces.is_special(**id)).count() as u64;
            chosen += hidden.labels.len() as u64;
            for (place, label) in hidden.positions.iter().zip(&hidden.labels) {
                let now = hidden.input_ids[*place as usize];
                masked += u64::from(now == corpus.mask);
                changed += u64::from(now != corpus.mask && now != *label);
            }
        }
        assert!(tokens > 400_000);
        // In each sequence the share is off by less than a word, so the total is much closer than with independent
        // draws.
        let share = chosen as f64 / tokens as f64;
        assert!((share - probability).abs() < 0.001, "{probability}: {share}");
        let (masked, changed) = (masked as f64 / chosen as f64, changed as f64 / chosen as f64);
        // Five standard deviations.
        let tolerance = |share: f64| 5.0 * (share * (1.0 - share) / chosen as f64).sqrt();
        assert!((masked - 0.8).abs() < tolerance(0.8), "{masked}");
        // A random token is occasionally the original one.
        assert!((changed - 0.1).abs() < tolerance(0.1) + 0.1 / 700.0, "{changed}");
    }
}

#[test]
fn whole_words_are_masked_and_special_tokens_never() {
    let corpus = corpus();
    let masking = Masking::try_new(0.3, 1).unwrap();
    let (mut long, mut seen) = (0, std::collections::HashSet::new());
    for (example, ids) in (0..).zip(&corpus.sequences) {
        let hidden = masking.mask(&corpus.pieces, ids, 0, example);
        assert_eq!(hidden.input_ids.len(), ids.len());
        assert!(hidden.positions.is_sorted_by(|a, b| a < b));
        let chosen = |place: usize| hidden.positions.binary_search(&(place as u32)).is_ok();
        for word in corpus.pieces.words(ids) {
            let hits = word.clone().filter(|place| chosen(*place)).count();
            assert!(hits == 0 || hits == word.len(), "{word:?} of example {example}: {hits}");
            long += usize::from(hits > 1);
        }
        for (place, (&was, &now)) in ids.iter().zip(&hidden.input_ids).enumerate() {
            assert!(chosen(place) || was == now);
            assert!(!(chosen(place) && corpus.pieces.is_special(was)));
            assert!(was == now || now == corpus.mask || !corpus.pieces.is_special(now));
            if was != now {
                seen.insert(now);
            }
        }
    }
    assert!(long > 1000, "{long}");
    // Every token of the vocabulary except the special ones is drawn.
    let vocab = (0..2000).filter(|id| !corpus.pieces.is_special(*id)).count();
    assert_eq!(seen.len(), vocab + 1);
}

/// Long words would be chosen less often than short ones if words that exceed the budget were skipped.
#[test]
fn long_words_are_masked_nearly_as_often_as_short_ones() {
    let corpus = corpus();
    let masking = Masking::try_new(0.15, 5).unwrap();
    let mut tally = [(0_u32, 0_u32); 2];
    for (example, ids) in (0..).zip(corpus.sequences.iter().filter(|ids| ids.len() > 60)) {
        let hidden = masking.mask(&corpus.pieces, ids, 0, example);
        for word in corpus.pieces.words(ids) {
            let (all, chosen) = &mut tally[usize::from(word.len() > 2)];
            *all += 1;
            *chosen += u32::from(hidden.positions.binary_search(&(word.start as u32)).is_ok());
        }
    }
    let [short, long] = tally.map(|(all, chosen)| f64::from(chosen) / f64::from(all));
    assert!((short - 0.15).abs() < 0.02 && (long - 0.15).abs() < 0.03, "{short} {long}");
}

#[test]
fn a_corpus_is_split_into_sequences_without_loss() {
    let test = "a_corpus_is_split_into_sequences_without_loss";
    let (Some(text), Some(model)) = (shared(test, "data/pan/pan-train_s1.txt"), shared(test, "models/minilm-base"))
    else {
        return;
    };
    let mut tokenizer = Tokenizer::from_file(model.join("tokenizer.json")).unwrap();
    tokenizer.with_truncation(None).unwrap().with_padding(None);
    let pieces = Pieces::of_tokenizer(&tokenizer, "[MASK]").unwrap();
    let (cls, sep) = (tokenizer.token_to_id("[CLS]").unwrap(), tokenizer.token_to_id("[SEP]").unwrap());
    let chunking = Chunking::try_new(32, cls, sep).unwrap();
    let masking = Masking::try_new(0.5, 1).unwrap();
    let text = std::fs::read_to_string(text).unwrap();
    let (mut tokens, mut chosen, mut cut) = (0, 0, 0);
    for (example, line) in (0..).zip(text.lines().take(500)) {
        let ids = tokenizer.encode_fast(line, false).unwrap().get_ids().to_vec();
        let chunks = chunking.split(&pieces, &ids);
        let joined: Vec<u32> = chunks.iter().flat_map(|chunk| &chunk[1..chunk.len() - 1]).copied().collect();
        assert_eq!(joined, ids);
        cut += usize::from(chunks.len() > 1);
        for chunk in &chunks {
            assert!((3..=32).contains(&chunk.len()) && chunk[0] == cls && chunk[chunk.len() - 1] == sep);
            assert!(!tokenizer.id_to_token(chunk[1]).unwrap().starts_with("##"));
            tokens += chunk.len() - 2;
            chosen += masking.mask(&pieces, chunk, 0, example).labels.len();
        }
    }
    assert!(cut > 100, "{cut}");
    let share = chosen as f64 / tokens as f64;
    assert!((share - 0.5).abs() < 0.005, "{share}");
}
