//! The scorer: a prediction depends only on its texts, not on the window, batch, thread or other rows.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use couplet::model::Tokenizer;
use couplet::scorer::{
    MAX_TEXT_BYTES, PADDED_BATCH, Pool, Prediction, Rejection, Scorer, ScorerError, ScorerOptions, TextColumn, Window,
};
use futures::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tokio::runtime::Runtime;

use crate::support::golden;
use crate::tiny::Variant;

type Outcome = Result<Prediction, Rejection>;
/// A text and an optional second one; `None` is NULL.
type Row<'a> = (Option<&'a str>, Option<&'a str>);

/// Far longer than any operation here: a test that reaches this limit hangs.
const PATIENCE: Duration = Duration::from_secs(60);

fn column<'a>(name: &str, values: impl Iterator<Item = Option<&'a str>>) -> TextColumn {
    TextColumn { name: name.to_owned(), values: values.collect() }
}

fn pairs<'a>(rows: &[Row<'a>]) -> Window {
    let second = column("second", rows.iter().map(|row| row.1));
    Window::new(column("first", rows.iter().map(|row| row.0)), Some(second))
}

fn singles<'a>(texts: impl IntoIterator<Item = &'a str>) -> Window {
    Window::new(column("first", texts.into_iter().map(Some)), None)
}

fn scorer_with(options: ScorerOptions, threads: usize) -> Scorer {
    Scorer::load(&golden("tiny-bert"), options, &Pool::new(Some(threads)).unwrap()).unwrap()
}

fn scorer() -> Scorer {
    scorer_with(ScorerOptions::default(), 2)
}

fn score(scorer: &Scorer, window: Window) -> Vec<Outcome> {
    Runtime::new()
        .unwrap()
        .block_on(async { tokio::time::timeout(PATIENCE, scorer.score(window)).await.unwrap().unwrap() })
}

/// A prediction, bit for bit.
fn bits(outcome: &Outcome) -> (Option<usize>, u32, Vec<u32>, usize, bool) {
    let p = outcome.as_ref().unwrap();
    (p.label, p.score.to_bits(), p.probabilities.iter().map(|x| x.to_bits()).collect(), p.tokens, p.truncated)
}

#[allow(clippy::type_complexity, reason = "the bits of one prediction, for comparison only")]
fn all_bits(outcomes: &[Outcome]) -> Vec<(Option<usize>, u32, Vec<u32>, usize, bool)> {
    outcomes.iter().map(bits).collect()
}

// Properties, over texts of few different words, so that lengths vary and rows repeat.

fn text() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec!["the", "man", "went", "home", "unbelievable", "12", "x", "中", "!", "É"]);
    prop::collection::vec(word, 1..30).prop_map(|words| words.join(" "))
}

fn rows() -> impl Strategy<Value = Vec<(String, String)>> {
    let row =
        prop_oneof![4 => (text(), text()), 1 => (text(), Just(String::new())), 3 => Just(("same".into(), "x".into()))];
    prop::collection::vec(row, 1..40)
}

fn borrowed(rows: &[(String, String)]) -> Vec<Row<'_>> {
    rows.iter().map(|(a, b)| (Some(a.as_str()), Some(b.as_str()))).collect()
}

fn few_cases() -> ProptestConfig {
    ProptestConfig { cases: 16, rng_seed: RngSeed::Fixed(2), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(few_cases())]

    #[test]
    fn a_prediction_depends_only_on_its_texts(
        (rows, order) in rows().prop_flat_map(|rows| {
            let order: Vec<usize> = (0..rows.len()).collect();
            (Just(rows), Just(order).prop_shuffle())
        }),
        window in 1usize..50, batch_tokens in 0usize..700, threads in 1usize..4, at_once: bool,
    ) {
        let rows = borrowed(&rows);
        let options = ScorerOptions { max_length: Some(24), ..ScorerOptions::default() };
        // Each row in a separate window, and so in a separate batch.
        let alone = scorer_with(options, 1);
        let expected: Vec<_> = rows.iter().flat_map(|row| all_bits(&score(&alone, pairs(&[*row])))).collect();

        let scorer = scorer_with(ScorerOptions { batch_tokens: Some(batch_tokens), ..options }, threads);
        let shuffled: Vec<Row> = order.iter().map(|&i| rows[i]).collect();
        let outcomes: Vec<Outcome> = Runtime::new().unwrap().block_on(async {
            let windows = shuffled.chunks(window).map(|rows| scorer.score(pairs(rows)));
            if at_once {
                let outcomes = tokio::time::timeout(PATIENCE, join_all(windows)).await.unwrap();
                outcomes.into_iter().flat_map(Result::unwrap).collect()
            } else {
                let mut outcomes = Vec::new();
                for window in windows {
                    outcomes.extend(tokio::time::timeout(PATIENCE, window).await.unwrap().unwrap());
                }
                outcomes
            }
        });
        for (i, outcome) in order.iter().zip(&outcomes) {
            prop_assert_eq!(&bits(outcome), &expected[*i], "row {} of {:?}", i, rows);
        }

        let counts = scorer.tally().counts();
        let distinct = rows.iter().collect::<HashSet<_>>().len() as u64;
        prop_assert_eq!((counts.rows, counts.scored), (rows.len() as u64, distinct));
        prop_assert_eq!(counts.remembered, counts.rows - counts.scored);
        prop_assert_eq!((counts.rows_planned, counts.tokens_planned), (counts.rows, counts.tokens));
        let tokens: usize = outcomes.iter().map(|outcome| outcome.as_ref().unwrap().tokens).sum();
        prop_assert_eq!(counts.tokens_in_rows, tokens as u64);
        let truncated = outcomes.iter().filter(|outcome| outcome.as_ref().unwrap().truncated).count();
        prop_assert_eq!(counts.truncated, truncated as u64);
    }

    #[test]
    fn truncation_is_reported_for_the_rows_it_affects(rows in rows(), max_length in 3usize..40) {
        let scorer = scorer_with(ScorerOptions { max_length: Some(max_length), ..ScorerOptions::default() }, 2);
        let outcomes = score(&scorer, pairs(&borrowed(&rows)));
        let singly = score(&scorer, singles(rows.iter().map(|row| row.0.as_str())));
        let whole = |first: &str, second: Option<&str>| {
            scorer.model().tokenizer.encode(first, second).unwrap().input_ids.len()
        };
        for (i, (first, second)) in rows.iter().enumerate() {
            for (outcome, tokens) in [(&outcomes[i], whole(first, Some(second))), (&singly[i], whole(first, None))] {
                let prediction = outcome.as_ref().unwrap();
                prop_assert_eq!((prediction.tokens, prediction.truncated), (tokens.min(max_length), tokens > max_length));
            }
        }
    }

    #[test]
    fn avoided_padding_is_relative_to_batches_in_input_order(rows in prop::collection::vec((text(), text()), 1..120)) {
        let scorer = scorer();
        let mut window = borrowed(&rows);
        // A rejected row is in no batch.
        window.insert(window.len() / 2, (None, Some("x")));
        let tokenizer: &Tokenizer = &scorer.model().tokenizer;
        let lengths: Vec<usize> =
            rows.iter().map(|(a, b)| tokenizer.encode(a, Some(b)).unwrap().input_ids.len()).collect();
        let mut padding = 0;
        for batch in lengths.chunks(PADDED_BATCH) {
            for length in batch {
                padding += batch.iter().max().unwrap() - length;
            }
        }
        score(&scorer, pairs(&window));
        prop_assert_eq!(scorer.tally().counts().padding_avoided, padding as u64);
    }
}

// Rows that cannot be scored.

#[test]
fn rejected_rows_keep_their_position() {
    let scorer = scorer();
    let (just_fits, too_large) = ("a ".repeat(MAX_TEXT_BYTES / 2), "a".repeat(MAX_TEXT_BYTES + 1));
    let rows: [Row; 13] = [
        (Some("the man"), Some("went home")),
        (None, Some("went home")),
        (Some("the man"), None),
        (Some(""), Some("went home")),
        (Some("the man"), Some("")),
        (Some(" \t\r\n\u{3000}\u{a0}"), Some("went home")),
        (Some(&too_large), Some("went home")),
        (Some("the man"), Some(&too_large)),
        (Some(&just_fits), Some("went home")),
        (None, None),
        (Some(""), Some(&too_large)),
        // Not empty, but the tokenizer keeps nothing of it.
        (Some("\u{1}\u{2}"), Some("\u{1}")),
        (Some("the man"), Some("went home")),
    ];
    let outcomes = score(&scorer, pairs(&rows));
    let described: Vec<String> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Ok(prediction) => {
                format!("{} tokens{}", prediction.tokens, if prediction.truncated { ", cut" } else { "" })
            }
            Err(rejection) => rejection.to_string(),
        })
        .collect();
    insta::assert_snapshot!(described.join("\n"), @r"
    7 tokens
    first is NULL
    second is NULL
    first is empty
    5 tokens
    first is empty
    first has 1048577 bytes, more than the 1048576 that are scored
    second has 1048577 bytes, more than the 1048576 that are scored
    512 tokens, cut
    first is NULL
    second has 1048577 bytes, more than the 1048576 that are scored
    3 tokens
    7 tokens
    ");
    assert_eq!(bits(&outcomes[0]), bits(&outcomes[12]));
    let counts = scorer.tally().counts();
    assert_eq!((counts.rows, counts.scored, counts.remembered, counts.rejected_rows()), (13, 4, 1, 8));
    assert_eq!(counts.rejected, [3, 2, 3, 0]);
}

#[test]
fn a_window_of_rejected_rows_and_an_empty_one_come_back() {
    let scorer = scorer();
    assert_eq!(score(&scorer, pairs(&[])).len(), 0);
    assert_eq!(score(&scorer, singles([])).len(), 0);
    assert!(score(&scorer, pairs(&[(None, None), (Some(""), None)])).iter().all(Result::is_err));
    assert_eq!(scorer.tally().counts().rows, 2);
}

#[test]
fn a_text_that_the_tokenizer_refuses_is_rejected_every_time() {
    // Unknown words become a token that is not in the vocabulary either.
    let variant = Variant::of("tiny-distilbert").with_json("tokenizer.json", |json| {
        json["model"]["unk_token"] = "[NONE]".into();
    });
    let scorer = Scorer::load(variant.folder(), ScorerOptions::default(), &Pool::new(Some(2)).unwrap()).unwrap();
    for _ in 0..2 {
        let outcomes = score(&scorer, singles(["the man", "\u{2603}", "\u{2603}", "the man"]));
        assert_eq!(bits(&outcomes[0]), bits(&outcomes[3]));
        for outcome in &outcomes[1..3] {
            let rejection = outcome.as_ref().unwrap_err();
            insta::allow_duplicates! {
                insta::assert_snapshot!(rejection, @"the tokenizer refused the text: WordPiece error: Missing [UNK] token from the vocabulary");
            }
        }
    }
    let counts = scorer.tally().counts();
    assert_eq!((counts.rows, counts.scored, counts.remembered, counts.rejected), (8, 1, 3, [0, 0, 0, 4]));
}

#[test]
fn a_text_without_any_token_is_rejected() {
    let bare = |json: &mut serde_json::Value| json["post_processor"] = serde_json::Value::Null;
    let variant = Variant::of("tiny-distilbert").with_json("tokenizer.json", bare);
    let load = |max_length| {
        let options = ScorerOptions { max_length, ..ScorerOptions::default() };
        Scorer::load(variant.folder(), options, &Pool::new(Some(2)).unwrap())
    };
    let outcomes = score(&load(None).unwrap(), singles(["\u{1}", "the man", "\u{1}"]));
    assert_eq!(outcomes[1].as_ref().unwrap().tokens, 2);
    insta::assert_snapshot!(outcomes[0].as_ref().unwrap_err(), @"the tokenizer refused the text: it has no tokens, not even special ones");
    assert_eq!(outcomes[0], outcomes[2]);
    assert!(matches!(load(Some(0)), Err(ScorerError::MaxLength { .. })));
}

#[test]
fn a_single_text_differs_from_a_pair_with_an_empty_text() {
    let scorer = scorer();
    let single = score(&scorer, singles(["the man", "went home"]));
    let pair = score(&scorer, pairs(&[(Some("the man"), Some("")), (Some("the man"), Some("went home"))]));
    let tokens = |outcome: &Outcome| outcome.as_ref().unwrap().tokens;
    assert_eq!((tokens(&single[0]), tokens(&pair[0]), tokens(&pair[1])), (4, 5, 7));
    assert_ne!(bits(&single[0]), bits(&pair[0]));
    assert_eq!(scorer.tally().counts().scored, 4);
}

#[test]
fn a_slice_of_a_column_scores_its_own_rows() {
    let scorer = scorer();
    let texts = ["the man", "went home", "x", "he", "she"];
    let whole = score(&scorer, singles(texts));
    let mut slice = column("first", texts.into_iter().map(Some));
    slice.values = slice.values.slice(2, 2);
    assert_eq!(all_bits(&score(&scorer, Window::new(slice, None))), all_bits(&whole[2..4]));
}

// max_length

#[test]
fn a_max_length_that_does_not_fit_the_model_is_refused() {
    let error = |max_length| {
        let options = ScorerOptions { max_length: Some(max_length), ..ScorerOptions::default() };
        let folder = golden("tiny-bert");
        let error = Scorer::load(&folder, options, &Pool::new(Some(1)).unwrap()).unwrap_err();
        error.to_string().replace(folder.to_str().unwrap(), "MODEL")
    };
    insta::assert_snapshot!(error(0), @"max_length = 0 does not suit MODEL: it leaves no room for the 3 special tokens of a pair");
    insta::assert_snapshot!(error(2), @"max_length = 2 does not suit MODEL: it leaves no room for the 3 special tokens of a pair");
    insta::assert_snapshot!(error(513), @"max_length = 513 does not suit MODEL: it reads at most 512 tokens");
}

#[test]
fn a_max_length_of_three_keeps_the_special_tokens_of_a_pair() {
    let scorer = scorer_with(ScorerOptions { max_length: Some(3), ..ScorerOptions::default() }, 1);
    let outcomes = score(&scorer, pairs(&[(Some("the man"), Some("went home")), (Some("x"), Some(""))]));
    for outcome in &outcomes {
        let prediction = outcome.as_ref().unwrap();
        assert_eq!((prediction.tokens, prediction.truncated), (3, true));
    }
    assert_eq!(bits(&outcomes[0]), bits(&outcomes[1]));
    let outcomes = score(&scorer, singles(["the man", "x"]));
    assert_eq!(outcomes.iter().map(|o| o.as_ref().unwrap().truncated).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn the_longest_sequence_of_the_model_is_scored() {
    let long = "the man went home ".repeat(400);
    let scorer = scorer();
    let outcomes = score(&scorer, pairs(&[(Some(&long), Some(&long)), (Some("x"), Some(&long))]));
    for outcome in outcomes {
        let prediction = outcome.unwrap();
        assert_eq!((prediction.tokens, prediction.truncated), (512, true));
    }
}

// Several windows at once.

/// Distinct texts that take some time to score.
fn long_texts(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("{i} {}", "the man went home and ".repeat(20))).collect()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap()
}

#[test]
fn texts_shared_by_two_windows_are_scored_once() {
    let texts = long_texts(300);
    let window = || singles(texts.iter().chain(&texts[..50]).map(String::as_str));
    let scorer = scorer();
    runtime().block_on(async {
        let both = async { tokio::join!(scorer.score(window()), scorer.score(window())) };
        let (first, second) = tokio::time::timeout(PATIENCE, both).await.unwrap();
        assert_eq!(all_bits(&first.unwrap()), all_bits(&second.unwrap()));
    });
    let counts = scorer.tally().counts();
    assert_eq!((counts.rows, counts.scored, counts.remembered), (700, 300, 400));
    assert_eq!((counts.rows_planned, counts.tokens_planned), (700, counts.tokens));
}

#[test]
fn a_dropped_window_stops_its_work() {
    let scorer = scorer_with(ScorerOptions::default(), 1);
    let texts = long_texts(1500);
    runtime().block_on(async {
        let window = singles(texts.iter().map(String::as_str));
        // Dropped as soon as the first batch is through the encoder.
        tokio::select! {
            _ = scorer.score(window) => panic!("the window was finished too soon for this test"),
            () = async {
                while scorer.tally().counts().scored == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            } => {}
        }
        // The next window waits only for the batches in progress.
        let next = tokio::time::timeout(PATIENCE, scorer.score(singles(["the man"]))).await.unwrap().unwrap();
        assert_eq!(next.len(), 1);
        let counts = scorer.tally().counts();
        assert!(counts.scored < 750, "{counts:?}");
        assert_eq!(counts.rows, 1);
    });
}

#[test]
fn a_window_waiting_for_a_dropped_one_gets_its_results() {
    let texts = long_texts(600);
    let window = || singles(texts.iter().map(String::as_str));
    let scorer = scorer();
    runtime().block_on(async {
        let first = tokio::spawn({
            let (scorer, window) = (scorer.clone(), window());
            async move { scorer.score(window).await }
        });
        while scorer.tally().counts().scored == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let (scorer, window) = (scorer.clone(), window());
                tokio::spawn(async move { scorer.score(window).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(!first.is_finished(), "the window was finished too soon for this test");
        first.abort();
        let answers = tokio::time::timeout(PATIENCE, join_all(waiting)).await.unwrap();
        let answers: Vec<_> = answers.into_iter().map(|outcomes| all_bits(&outcomes.unwrap().unwrap())).collect();
        assert_eq!(answers[0].len(), 600);
        assert!(answers.iter().all(|other| *other == answers[0]));
        let sample = score_alone(&texts[599]).await;
        assert_eq!(answers[0][599], sample);
    });
    let counts = scorer.tally().counts();
    // The scores of the dropped window are kept, and nothing was scored twice.
    assert_eq!((counts.rows, counts.scored), (1800, 600));
    assert!(counts.remembered > 1200, "{counts:?}");
    // Rows that waited for the dropped window are still planned once.
    assert_eq!((counts.rows_planned, counts.tokens_planned > counts.tokens), (2400, true));
}

async fn score_alone(text: &str) -> (Option<usize>, u32, Vec<u32>, usize, bool) {
    bits(&scorer_with(ScorerOptions::default(), 1).score(singles([text])).await.unwrap()[0])
}

#[test]
fn throughput_is_measured_over_one_batch_per_thread_or_more() {
    let scorer = scorer_with(ScorerOptions { batch_tokens: Some(8), ..ScorerOptions::default() }, 2);
    let pace = Runtime::new().unwrap().block_on(async {
        let texts = scorer.tokenize(singles(["a man", "the man went home", "yes", "no"])).await.unwrap();
        scorer.pace(Arc::new(texts), Duration::ZERO).await.unwrap().unwrap()
    });
    assert!(pace.batches >= 2 && pace.tokens > 0 && pace.tokens_per_second > 0.0, "{pace:?}");
}
