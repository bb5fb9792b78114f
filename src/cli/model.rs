//! `couplet model`: shows checkpoints, and converts encoders to base checkpoints.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use couplet_encoder::model::card::{self, Card};
use couplet_encoder::model::{
    Family, ImportError, Imported, MODEL_FOLDER, ModelDescription, Problem, ScoreActivation, import,
};
use couplet_encoder::scorer::ScorerError;
use couplet_storage::escape::in_line;
use couplet_storage::files::irreplaceable;
use couplet_storage::hub::{ModelFolder, model_folder, read_model_file};
use couplet_storage::place::Place;
use couplet_storage::words::grouped;
use serde_json::json;

use super::{model_place, print_as};
use crate::error::Error;

#[derive(Debug, Subcommand)]
pub(super) enum ModelCommand {
    /// Show a model's card: architecture, labels, size, training, metrics, calibration, licence, fingerprint
    #[command(after_help = "Examples:
  couplet model show pipelines/quickstart/model
  couplet model show hf://org/name@v1.0 --json")]
    Show {
        /// The model: a folder, local or in a bucket (s3://…), or on a hub (`hf://ORG/NAME[@REVISION][/FOLDER]`)
        #[arg(value_name = "URI")]
        model: String,
        /// Print the card as one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Convert an encoder to a base model: one file of f32 weights, without a head
    #[command(after_help = "Examples:
  couplet model import downloads/bert-base-uncased models/bert-base
  couplet model import hf://nreimers/MiniLM-L6-H384-uncased models/minilm --as distilbert

With `--as distilbert`, a BERT loses its token types: only [SEP] separates the two texts of a pair. For single texts the
hidden states stay the same, which is checked before anything is written.")]
    Import(Import),
}

/// The `model_type` of each family.
fn families() -> PossibleValuesParser {
    PossibleValuesParser::new(Family::ALL.map(|family| family.model_type))
}

#[derive(Debug, clap::Args)]
pub(super) struct Import {
    /// The encoder, BERT or DistilBERT, with or without a head: a folder, local or in a bucket, or on a hub (hf://…)
    source: String,
    /// The folder to write; it appears only when it is complete
    target: PathBuf,
    /// The architecture to write (default: that of the encoder)
    #[arg(long = "as", value_name = "ARCHITECTURE", value_parser = families())]
    form: Option<String>,
    /// Replace TARGET if it exists
    #[arg(long)]
    force: bool,
    /// Print the result as one JSON document
    #[arg(long)]
    json: bool,
}

impl ModelCommand {
    pub(super) async fn execute(self) -> Result<(), Error> {
        match self {
            Self::Show { model, json } => show(&model, json).await,
            Self::Import(arguments) => arguments.execute().await,
        }
    }
}

impl Import {
    async fn execute(self) -> Result<(), Error> {
        let Self { source, target, form, force, json } = self;
        if target.exists() && !force {
            let problem = format!("{} already exists; name another folder, or add --force", target.display());
            return Err(Error::Usage(problem));
        }
        // `--force` replaces only model folders, so that no other data is lost.
        if let Some(problem) = irreplaceable(&target, &MODEL_FOLDER) {
            return Err(Error::Usage(format!("{} {problem}", target.display())));
        }
        let form = form.as_deref().and_then(Family::of);
        let place = model_place(&source)?;
        let folder = model_folder(&place).await.map_err(ScorerError::from)?;
        let imported = import(&folder.path, &target, form).map_err(|error| match error {
            ImportError::Load(error) => Error::Model(ScorerError::Load(error).of_copy(&place, &folder.path)),
            ImportError::Write { source: error, folder } => {
                Error::Io { context: format!("cannot write {}", folder.display()), error }
            }
            error => Error::Usage(error.to_string()),
        })?;
        let source = folder.name_of_copy(&place).unwrap_or(source);
        print_as(&describe(&imported, &source, &target, json), json)
    }
}

fn describe(imported: &Imported, source: &str, target: &Path, as_json: bool) -> String {
    let Imported { from, family, parameters, dropped, difference } = imported;
    if as_json {
        let document = json!({
            "source": source,
            "target": target,
            "from": from.name,
            "architecture": family.name,
            "parameters": parameters,
            "dropped": dropped,
            "largest_difference": difference,
        });
        return format!("{document:#}\n");
    }
    let how = if from == family { "as it is".to_owned() } else { format!("folded from {}", from.name) };
    let dropped = if dropped.is_empty() { "nothing".to_owned() } else { dropped.join(", ") };
    format!(
        "{}
  from          {}
  encoder       {}, {how}
  parameters    {} in f32
  left out      {dropped}
  checked       hidden states of single texts differ by {difference:.1e} at most
",
        target.display(),
        source,
        family.name,
        grouped(*parameters as u64),
    )
}

async fn show(uri: &str, as_json: bool) -> Result<(), Error> {
    let place = model_place(uri)?;
    let folder = model_folder(&place).await.map_err(ScorerError::from)?;
    let model = ModelDescription::load(&folder.path).map_err(|e| ScorerError::from(e).of_copy(&place, &folder.path))?;
    let readme = read_model_file(&place, &folder, card::README, card::MAX_BYTES).await?;
    let training = read_model_file(&place, &folder, card::TRAINING, card::MAX_BYTES).await?;
    let card = Card::read(readme.as_deref(), training.as_deref());
    let text = if as_json {
        format!("{:#}\n", card_json(&place, &folder, &model, &card))
    } else {
        card_text(&place, &folder, &model, &card)
    };
    print_as(&text, as_json)
}

fn card_json(place: &Place, folder: &ModelFolder, model: &ModelDescription, card: &Card) -> serde_json::Value {
    let config = &model.config;
    let mut json = json!({
        "uri": place.to_string(),
        "revision": folder.revision,
        "architecture": architecture(model),
        "task": model.headless.is_none().then(|| config.problem.to_string()),
        "labels": if model.headless.is_none() { &config.labels[..] } else { &[] },
        "score": is_scored(model).then(|| config.score.name()),
        "layers": config.n_layers,
        "dim": config.dim,
        "heads": config.n_heads,
        "hidden_dim": config.hidden_dim,
        "parameters": model.parameters,
        "bytes": model.bytes,
        "vocabulary": model.vocabulary,
        "max_length": model.max_length,
        "calibration": model.calibration,
        "fingerprint": model.fingerprint.as_str(),
    });
    if let (Some(json), serde_json::Value::Object(card)) = (json.as_object_mut(), json!(card)) {
        json.extend(card);
    }
    json
}

/// Returns true if the model has one logit, which becomes the score.
fn is_scored(model: &ModelDescription) -> bool {
    model.headless.is_none() && model.config.problem == Problem::Regression
}

/// Returns the name of its class in `transformers`.
fn architecture(model: &ModelDescription) -> String {
    let family = model.config.family;
    if model.headless.is_some() { family.class("Model") } else { family.class("ForSequenceClassification") }
}

/// Returns the card as text; unknown facts have no line.
fn card_text(place: &Place, folder: &ModelFolder, model: &ModelDescription, card: &Card) -> String {
    let config = &model.config;
    let labels: Vec<_> = config.labels.iter().map(|label| in_line(label)).collect();
    let labels = if labels.is_empty() { "none: the output is a number".to_owned() } else { labels.join(", ") };
    let task = model.headless.as_ref().map_or_else(|| config.problem.to_string(), |why| format!("none: {why}"));
    let trained = card.training.as_ref();
    let base: Vec<String> = trained.and_then(card::Training::base).into_iter().chain(card.base.clone()).collect();
    let mut metrics = trained.map(card::Training::metrics).unwrap_or_default();
    metrics.extend(card.metrics.iter().cloned());
    let listed = |values: &[String]| Some(values.join(", ")).filter(|text| !text.is_empty());
    let lines = [
        ("revision", folder.revision.as_ref().map(|commit| format!("commit {commit}"))),
        ("architecture", Some(architecture(model))),
        ("task", Some(task)),
        ("labels", Some(labels).filter(|_| model.headless.is_none())),
        (
            "score",
            is_scored(model).then(|| match config.score {
                ScoreActivation::Identity => "the logit".to_owned(),
                ScoreActivation::Sigmoid => "the sigmoid of the logit".to_owned(),
            }),
        ),
        (
            "encoder",
            Some(format!(
                "{} layers x {}, {} heads, feed-forward {}",
                config.n_layers, config.dim, config.n_heads, config.hidden_dim
            )),
        ),
        (
            "parameters",
            Some(format!("{} ({:.1} MB on disk)", grouped(model.parameters as u64), model.bytes as f64 / 1e6)),
        ),
        ("vocabulary", Some(format!("{} word pieces", grouped(model.vocabulary as u64)))),
        ("max length", Some(format!("{} tokens", model.max_length))),
        ("languages", listed(&card.languages)),
        ("base model", listed(&base)),
        ("trained", trained.map(card::Training::summary)),
        ("data", listed(&card.datasets)),
        ("metrics", Some(metrics.join(NEXT_LINE)).filter(|text| !text.is_empty())),
        ("calibration", model.calibration.as_ref().map(ToString::to_string)),
        ("licence", card.licence.clone()),
        ("fingerprint", Some(model.fingerprint.as_str().to_owned())),
    ];
    let lines = lines.into_iter().filter_map(|(name, value)| Some(format!("  {name:<13} {}\n", value?)));
    format!("{place}\n{}", lines.collect::<String>())
}

/// A line break that aligns with the values of the card.
const NEXT_LINE: &str = "\n                ";
