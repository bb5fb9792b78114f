//! `couplet model`: what a checkpoint is, and base checkpoints from encoders.

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::{model_place, print};
use crate::error::Error;
use crate::model::{Architecture, Calibration, Form, ImportError, Imported, Model, import};
use crate::objects::model_folder;
use crate::progress::grouped;
use crate::scorer::ScorerError;
use crate::sink::may_replace;

#[derive(Debug, Subcommand)]
pub(super) enum ModelCommand {
    /// Show a model's architecture, size, labels, calibration and fingerprint
    #[command(after_help = "Examples:
  couplet model show pipelines/quickstart/model
  couplet model show pipelines/quickstart/model --json")]
    Show {
        /// The model: a folder, here or in a bucket (s3://…)
        #[arg(value_name = "URI")]
        model: String,
        /// Print it as one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Make a base model of an encoder: one file of f32 weights, without a head
    #[command(after_help = "Examples:
  couplet model import downloads/bert-base-uncased models/bert-base
  couplet model import downloads/MiniLM-L6 models/minilm --as distilbert

As DistilBERT, a BERT loses its token types: the two texts of a pair are then told apart by [SEP] only. For single
texts the hidden states stay the same, which is checked before anything is written.")]
    Import(Import),
}

#[derive(Debug, clap::Args)]
pub(super) struct Import {
    /// The folder of the encoder: BERT or DistilBERT, with or without a head
    source: PathBuf,
    /// The folder to write, which appears when it is complete
    target: PathBuf,
    /// The architecture to write; the encoder's own if not given
    #[arg(long = "as", value_name = "ARCHITECTURE")]
    form: Option<Target>,
    /// Replace TARGET if it is there
    #[arg(long)]
    force: bool,
    /// Print what was done as one JSON document
    #[arg(long)]
    json: bool,
}

/// An architecture to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    Distilbert,
    Bert,
}

impl ModelCommand {
    pub(super) async fn execute(self) -> Result<(), Error> {
        match self {
            Self::Show { model, json } => show(&model, json).await,
            Self::Import(arguments) => arguments.execute(),
        }
    }
}

impl Import {
    fn execute(self) -> Result<(), Error> {
        let Self { source, target, form, force, json } = self;
        if target.exists() && !force {
            let problem = format!("{} is there already; name another folder, or add --force", target.display());
            return Err(Error::Usage(problem));
        }
        // What is replaced must be a model: `--force` is no way to lose a folder of something else.
        if !may_replace(&target, "config.json") {
            let problem = format!("{} is not the folder of a model and is not replaced", target.display());
            return Err(Error::Usage(problem));
        }
        let form = match form {
            Some(Target::Distilbert) => Form::DistilBert,
            Some(Target::Bert) => Form::Bert,
            None => Form::AsItIs,
        };
        let imported = import(&source, &target, form).map_err(|error| match error {
            ImportError::Load(error) => Error::Model(ScorerError::Load(error)),
            ImportError::Write { source: error, folder } => {
                Error::Io { context: format!("cannot write {}", folder.display()), error }
            }
            error => Error::Usage(error.to_string()),
        })?;
        print(&describe(&imported, &source, &target, json))
    }
}

fn describe(imported: &Imported, source: &Path, target: &Path, as_json: bool) -> String {
    let Imported { from, architecture, parameters, dropped, difference } = imported;
    let name = |architecture: &Architecture| match architecture {
        Architecture::DistilBert => "DistilBERT",
        Architecture::Bert => "BERT",
    };
    if as_json {
        let document = json!({
            "source": source,
            "target": target,
            "from": name(from),
            "architecture": name(architecture),
            "parameters": parameters,
            "dropped": dropped,
            "largest_difference": difference,
        });
        return format!("{document:#}\n");
    }
    let how = if from == architecture { "as it is".to_owned() } else { format!("folded from {}", name(from)) };
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
        source.display(),
        name(architecture),
        grouped(*parameters as u64),
    )
}

async fn show(uri: &str, as_json: bool) -> Result<(), Error> {
    let place = model_place(uri)?;
    let folder = model_folder(&place).await.map_err(ScorerError::from)?;
    let model = Model::load(&folder, &candle_core::Device::Cpu);
    let model = model.map_err(|e| ScorerError::from(e).of_copy(&place, &folder))?;
    let config = &model.config;
    if as_json {
        let document = json!({
            "architecture": config.architecture.class_name(),
            "task": config.problem.to_string(),
            "labels": config.labels,
            "layers": config.n_layers,
            "dim": config.dim,
            "heads": config.n_heads,
            "hidden_dim": config.hidden_dim,
            "parameters": model.parameters,
            "bytes": model.bytes,
            "vocabulary": model.tokenizer.vocab_size(),
            "max_length": model.max_length(),
            "calibration": model.calibration.as_ref().map(Calibration::to_json),
            "fingerprint": model.fingerprint.as_str(),
        });
        return print(&format!("{document:#}\n"));
    }
    let labels =
        if config.labels.is_empty() { "none: the output is a number".to_owned() } else { config.labels.join(", ") };
    let calibration = model.calibration.as_ref();
    let calibration = calibration.map_or_else(String::new, |found| format!("\n  calibration   {found}"));
    print(&format!(
        "{}
  architecture  {}
  task          {}
  labels        {labels}
  encoder       {} layers x {}, {} heads, feed-forward {}
  parameters    {} ({:.1} MB on disk)
  vocabulary    {} word pieces
  max length    {} tokens{calibration}
  fingerprint   {}
",
        place,
        config.architecture.class_name(),
        config.problem,
        config.n_layers,
        config.dim,
        config.n_heads,
        config.hidden_dim,
        grouped(model.parameters as u64),
        model.bytes as f64 / 1e6,
        grouped(model.tokenizer.vocab_size() as u64),
        model.max_length(),
        model.fingerprint.as_str(),
    ))
}
