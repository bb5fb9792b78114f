//! Scores two sentence pairs with a checkpoint: `score_pairs MODEL_FOLDER`.

use std::error::Error;
use std::path::Path;

use couplet_encoder::scorer::{Pool, Prediction, Scorer, ScorerOptions, Window};

const PAIRS: [(&str, &str); 2] = [("A cat sat on the mat.", "On the mat sat a cat."), ("A cat sat.", "It rained.")];

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).ok_or("usage: score_pairs MODEL_FOLDER")?;
    let (scorer, predictions) = score(folder.as_ref()).await?;
    for ((text, pair), prediction) in PAIRS.into_iter().zip(predictions) {
        let label = prediction.label.map_or("", |label| &scorer.model().config.labels[label]);
        println!("{label}\t{:.4}\t{text}\t{pair}", prediction.score);
    }
    Ok(())
}

async fn score(folder: &Path) -> Result<(Scorer, Vec<Prediction>), Box<dyn Error>> {
    let scorer = Scorer::load(folder, ScorerOptions::default(), &Pool::new(None)?)?;
    let outcomes = scorer.score(Window::of_pairs(PAIRS)).await?;
    // Each row is a prediction, or the reason why it has none, such as an empty text.
    let predictions = outcomes.into_iter().collect::<Result<_, _>>().map_err(|rejection| rejection.to_string())?;
    Ok((scorer, predictions))
}

#[tokio::test]
async fn a_paraphrase_scores_higher_than_another_sentence() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines/quickstart/model");
    let (_, predictions) = score(&model).await.unwrap();
    assert!(predictions[0].probabilities[1] > predictions[1].probabilities[1], "{predictions:?}");
}
