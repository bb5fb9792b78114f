//! The command line: each command is one function call.

mod model;
mod predict;
mod query;
mod run;
mod runs;

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Pipeline, Place};
use crate::error::Error;
use crate::query::end_if_nobody_reads;

/// Score sentence pairs in bulk with a BERT-family model: SQL in, predictions out as Parquet.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a pipeline: read its rows, score them, publish the table
    #[command(after_help = "Examples:
  couplet run pipelines/quickstart/pipeline.toml
  couplet run nightly.toml --var date=2026-11-24 --json

Exit codes: 0 done, 1 failed while running, 2 wrong usage or pipeline, 130 interrupted")]
    Run(run::Run),
    /// Query tables, results and models with SQL, or in a shell
    #[command(after_help = "Examples:
  couplet query --pipeline pipelines/quickstart/pipeline.toml
  couplet query --pipeline pipelines/quickstart/pipeline.toml -f sql/accuracy.sql
  couplet query --table t=pairs.parquet \"SELECT predict('models/mrpc', a, b)['label'] AS answer, count(*) FROM t GROUP BY answer\"
  couplet query --table t=scores.csv 'SELECT * FROM t' -o scores.parquet")]
    Query(query::Query),
    /// Score one text or pair
    #[command(after_help = "Examples:
  couplet predict --model pipelines/quickstart/model 'He sold the car.' 'The car was sold by him.'
  couplet predict --model models/sentiment 'A warm and funny film.'")]
    Predict(predict::Predict),
    /// Look at models, and make base models of encoders
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// List what the runs of a pipeline did
    #[command(after_help = "Examples:
  couplet runs nightly.toml
  couplet query --pipeline nightly.toml \"SELECT outcome, count(*) FROM runs GROUP BY outcome\"")]
    Runs(runs::Runs),
    /// Look after the stores in which pipelines remember scores
    #[command(subcommand)]
    Store(runs::StoreCommand),
}

#[derive(Debug, Args)]
struct Variables {
    /// Replace {NAME} in the pipeline by a value
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = name_and_value)]
    variables: Vec<(String, String)>,
}

impl Variables {
    fn to_map(&self) -> BTreeMap<String, String> {
        self.variables.iter().cloned().collect()
    }
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE, such as date=2026-11-24".into()),
    }
}

impl Cli {
    /// Executes the command; `stop` resolves when the user wants it to end.
    ///
    /// # Errors
    /// Whatever ended the command early.
    pub async fn execute(self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        match self.command {
            Command::Run(command) => command.execute(stop).await,
            Command::Query(command) => command.execute(stop).await,
            Command::Predict(command) => command.execute().await,
            Command::Runs(command) => command.execute().await,
            Command::Store(command) => command.execute().await,
            Command::Model(command) => command.execute().await,
        }
    }
}

fn model_place(uri: &str) -> Result<Place, Error> {
    config::model_place(uri).map_err(|problem| Error::Usage(format!("model {uri}: {problem}")))
}

fn read_pipeline(path: &Path, variables: &BTreeMap<String, String>) -> Result<Pipeline, Error> {
    config::parse(path, &read(path)?, variables).map_err(|errors| Error::Config(Box::new(errors)))
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|e| Error::Usage(format!("cannot read {}: {e}", path.display())))
}

pub(crate) fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    end_if_nobody_reads(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
        .map_err(|error| Error::Io { context: "writing to stdout".into(), error })
}

/// Writes why a command ended to stderr, as a compiler would.
pub fn report_error(error: &Error) {
    let width =
        terminal_size::terminal_size_of(io::stderr()).map_or(100, |(width, _)| usize::from(width.0).clamp(60, 140));
    // Nothing can be said of a stderr that cannot be written to.
    let _ = match error {
        Error::Config(errors) => write!(io::stderr(), "{}", errors.render(colors(), width)),
        error => writeln!(io::stderr(), "error: {error}"),
    };
}

/// See <https://no-color.org>.
fn colors() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
