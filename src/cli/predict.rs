//! `couplet predict`.

use arrow::array::StringViewArray;
use clap::Args;
use couplet_encoder::model::Model;
use couplet_encoder::scorer::{Prediction, Scorer, ScorerOptions, TextColumn, Window};
use couplet_storage::escape::in_line;
use serde_json::json;

use super::query::read_stdin;
use super::{model_place, print_as};
use crate::error::Error;
use crate::run;

#[derive(Debug, Args)]
pub(super) struct Predict {
    /// The model: a folder, local or in a bucket (s3://…), or on a hub (`hf://ORG/NAME[@REVISION][/FOLDER]`)
    #[arg(long, short, value_name = "URI")]
    model: String,
    /// The text; - reads it from stdin
    text: String,
    /// The second text of a pair
    text_pair: Option<String>,
    /// The maximum length of the input, in tokens; longer inputs are truncated (default: the model's limit)
    #[arg(long)]
    max_length: Option<usize>,
    /// Print the prediction as one JSON document
    #[arg(long)]
    json: bool,
}

impl Predict {
    pub(super) async fn execute(mut self) -> Result<(), Error> {
        if self.text == "-" {
            let text = read_stdin().await?;
            text.trim_end_matches(['\n', '\r']).clone_into(&mut self.text);
        }
        let options = ScorerOptions { max_length: self.max_length, ..ScorerOptions::default() };
        let scorer = Scorer::open(&model_place(&self.model)?, options, &run::pool(Some(1))?).await?;
        let column =
            |name: &str, text: &str| TextColumn { name: name.into(), values: StringViewArray::from(vec![text]) };
        let window =
            Window::new(column("TEXT", &self.text), self.text_pair.as_deref().map(|text| column("TEXT_PAIR", text)));
        let outcome = scorer.score(window).await?.pop();
        let prediction = match outcome {
            Some(Ok(prediction)) => prediction,
            Some(Err(rejection)) => return Err(Error::Usage(rejection.to_string())),
            None => return Err(Error::Usage("there is no text".into())),
        };
        print_as(&describe(&prediction, scorer.model(), self.json), self.json)
    }
}

fn describe(prediction: &Prediction, model: &Model, as_json: bool) -> String {
    let labels = &model.config.labels;
    let label = prediction.label.map(|label| labels[label].as_str());
    let named = |values: &[f32]| {
        let named = labels.iter().zip(values).map(|(label, p)| (label.clone(), (*p).into()));
        (!values.is_empty()).then(|| named.collect::<serde_json::Map<_, _>>())
    };
    let logit = if labels.is_empty() { prediction.raw.first() } else { None };
    if as_json {
        let document = json!({
            "label": label,
            "score": prediction.score,
            "probabilities": named(&prediction.probabilities),
            "raw_probabilities": logit.map_or_else(|| named(&prediction.raw).into(), |logit| json!({ "logit": logit })),
            "tokens": prediction.tokens,
            "truncated": prediction.truncated,
            "model": model.fingerprint.as_str(),
        });
        return format!("{document:#}\n");
    }
    let labels: Vec<_> = labels.iter().map(|label| in_line(label)).collect();
    let mut lines = vec![match label.map(in_line) {
        Some(label) => format!("{label} ({:.1} %)", 100.0 * prediction.score),
        None => prediction.score.to_string(),
    }];
    lines.extend(logit.map(|logit| format!("  logit {logit}")));
    let width = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    for (i, (label, p)) in labels.iter().zip(&prediction.probabilities).enumerate() {
        let raw = prediction.raw.get(i).map_or_else(String::new, |raw| format!("  ({raw:.4} before calibration)"));
        lines.push(format!("  {label:width$}  {p:.4}{raw}"));
    }
    if prediction.truncated {
        lines.push(format!("  truncated to {} tokens", prediction.tokens));
    }
    lines.join("\n") + "\n"
}
