//! The command line. Each command is one function call into the library.

mod cluster;
mod completions;
mod init;
mod model;
mod plan;
mod predict;
mod query;
mod report;
mod run;
mod runs;
mod schema;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use couplet_storage::files;
use couplet_storage::place::{self, Place};
use couplet_storage::redact::{holds_credentials, without_credentials};
use futures::future::LocalBoxFuture;

use crate::config::{self, Pipeline};
use crate::error::Error;
use crate::logging::{LogFormat, Messages, colors};
pub use crate::terminal::report_error;
pub(crate) use crate::terminal::{print, print_as, print_document};

/// Score sentence pairs in bulk with a BERT-family model: SQL in, predictions out as Parquet.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "Examples:
  couplet run pipelines/quickstart/pipeline.toml
  couplet query --pipeline pipelines/quickstart/pipeline.toml -f sql/accuracy.sql

Exit codes: 0 done, 1 failed while running, 2 wrong usage, pipeline or credentials, 130 interrupted.
NO_COLOR turns colors off; RUST_LOG, such as RUST_LOG=couplet=debug, sets what is logged and overrides -q and -v.")]
pub struct Cli {
    #[command(flatten)]
    messages: Messages,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a pipeline: a project with sample data, or a pipeline for your own data
    #[command(after_help = "Examples:
  couplet init my-job
  couplet init --from pairs.parquet
  couplet init --from reviews.csv reviews --text review --label stars --model models/sentiment

Nothing is overwritten: the folder must be new or empty.")]
    Init(init::Init),
    /// Run a pipeline: read its rows, score them, publish the table
    #[command(after_help = "Examples:
  couplet run pipelines/quickstart/pipeline.toml
  couplet run pipelines/quickstart/pipeline.toml --quiet --only score
  couplet run nightly.toml --var date=2026-11-24 --wait 10m --json
  couplet run nightly.toml --metrics /var/lib/node_exporter/couplet_nightly.prom
  couplet run nightly.toml --cluster df://10.0.0.7:50050

Exit codes: 0 done, 1 failed while running, 2 wrong usage, pipeline or credentials, 130 interrupted")]
    Run(run::Run),
    /// Show what a run would do, how long it would take and where it would write, without writing anything
    #[command(after_help = "Examples:
  couplet plan pipelines/quickstart/pipeline.toml
  couplet plan nightly.toml --var date=2026-11-24 --json > plan.json

Exit codes: 0 a run can start, 1 or 2 a run would fail with this code")]
    Plan(plan::Plan),
    /// Query tables, results and models with SQL, in one command or in an interactive shell
    #[command(after_help = "Examples:
  couplet query --pipeline pipelines/quickstart/pipeline.toml
  couplet query --pipeline pipelines/quickstart/pipeline.toml -f sql/accuracy.sql
  couplet query --pipeline pipelines/quickstart/pipeline.toml -f sql/score_histogram.sql --param width=0.1
  couplet query \"SELECT category, count(*) FROM 'pipelines/quickstart/pairs.parquet' GROUP BY category\"
  couplet query --table t=pipelines/quickstart/pairs.parquet 'SELECT * FROM t' -o pairs.csv
  couplet query --table t=pairs.csv \"SELECT predict('pipelines/quickstart/model', sentence1, sentence2)['label'] AS \
    answer, count(*) FROM (SELECT * FROM t LIMIT 20) GROUP BY answer\"")]
    Query(query::Query),
    /// Score one text or pair
    #[command(after_help = "Examples:
  couplet predict --model pipelines/quickstart/model 'He sold the car.' 'The car was sold by him.'
  couplet predict --model models/sentiment 'A warm and funny film.'")]
    Predict(predict::Predict),
    /// Show models, and convert encoders to base models
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// List the runs of a pipeline
    #[command(after_help = "Examples:
  couplet runs pipelines/quickstart/pipeline.toml
  couplet query --pipeline pipelines/quickstart/pipeline.toml \"SELECT outcome, count(*) FROM runs GROUP BY outcome\"")]
    Runs(runs::Runs),
    /// Write a report about a run: rows, scores, agreement with labels, drift, speed, sample rows
    #[command(after_help = "Examples:
  couplet report pipelines/quickstart/pipeline.toml -o report.html
  couplet report nightly.toml --var date=2026-11-24 --run 0198c2 --format json
  couplet report nightly.toml --format prometheus -o /var/lib/node_exporter/couplet_nightly.prom")]
    Report(report::Report),
    /// Maintain the stores that cache the scores of pipelines
    #[command(subcommand)]
    Store(runs::StoreCommand),
    /// Start the scheduler of a cluster, which distributes the work of runs and queries to executors
    #[command(after_help = "Examples:
  couplet scheduler
  couplet scheduler --bind 10.0.0.7 --port 50050

By default it listens on the loopback interface only: anyone who can reach its port can execute queries.
Needs a build with the feature `cluster`.")]
    Scheduler(cluster::Scheduler),
    /// Start an executor of a cluster, which runs the tasks of a scheduler
    #[command(after_help = "Examples:
  couplet executor
  couplet executor --scheduler df://10.0.0.7:50050 --bind 10.0.0.8 --name gpu-3 --device cuda:0

Models, tables and stores are opened with the settings and credentials in the environment of this machine.
Needs a build with the feature `cluster`.")]
    Executor(cluster::Executor),
    /// Print the JSON Schema of pipeline files, which editors use to complete and check them
    #[command(after_help = "Examples:
  couplet schema > pipeline.schema.json
  couplet schema --markdown > reference.md

Editors with Even Better TOML or taplo use the schema if the first line of a pipeline file is:
  #:schema ./pipeline.schema.json")]
    Schema(schema::Schema),
    /// Print a shell completion script
    #[command(after_help = "Examples:
  couplet completions bash > couplet.bash
  couplet completions zsh > _couplet
  couplet completions fish > couplet.fish

Where to install them: bash reads ~/.local/share/bash-completion/completions/couplet, fish
~/.config/fish/completions/couplet.fish, and zsh a file _couplet in a folder of its fpath. For PowerShell and elvish,
source the script in the profile.")]
    Completions(completions::Completions),
    /// Print a manual page, or write the pages of all commands to a folder
    #[command(after_help = "Examples:
  couplet man
  couplet man model show
  couplet man man/man1")]
    Man(completions::Manual),
}

#[derive(Debug, Args)]
struct Variables {
    /// Set the value of the variable {NAME} of the pipeline
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = name_and_value)]
    variables: Vec<(String, String)>,
}

impl Variables {
    fn to_map(&self) -> Result<BTreeMap<String, String>, Error> {
        once_each("--var", &self.variables)
    }
}

/// Collects names and values into a map; rejects a name that is given twice.
fn once_each(option: &str, given: &[(String, String)]) -> Result<BTreeMap<String, String>, Error> {
    let mut values = BTreeMap::new();
    for (name, value) in given {
        if let Some(before) = values.insert(name.clone(), value.clone()) {
            return Err(Error::Usage(format!(
                "{option} {name}={value}: {name} was given before, as {before}; give each name once"
            )));
        }
    }
    Ok(values)
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE, such as date=2026-11-24".into()),
    }
}

impl Cli {
    /// Returns the options for messages on stderr.
    #[must_use]
    pub fn messages(&self) -> Messages {
        self.messages
    }

    /// Executes the command; `stop` resolves when the user interrupts it.
    ///
    /// Both futures are boxed, so that the commands are compiled with the library and not again with every program that
    /// polls them.
    ///
    /// # Errors
    /// The error that ended the command.
    #[must_use]
    pub fn execute(self, stop: LocalBoxFuture<'static, ()>) -> LocalBoxFuture<'static, Result<(), Error>> {
        Box::pin(self.command.execute(self.messages, stop))
    }
}

impl Command {
    async fn execute(self, messages: Messages, stop: LocalBoxFuture<'static, ()>) -> Result<(), Error> {
        match self {
            Self::Init(command) => command.execute(messages).await,
            Self::Run(command) => command.execute(messages, stop).await,
            Self::Plan(command) => tokio::select! {
                biased;
                () = stop => Err(Error::Interrupted { after: "while planning".into(), kept: "nothing was written".into() }),
                done = Box::pin(command.execute(messages)) => done,
            },
            Self::Query(command) => command.execute(stop).await,
            Self::Predict(command) => command.execute().await,
            Self::Runs(command) => command.execute().await,
            Self::Report(command) => command.execute().await,
            Self::Store(command) => command.execute().await,
            Self::Model(command) => command.execute().await,
            Self::Scheduler(command) => command.execute(stop).await,
            Self::Executor(command) => command.execute(stop).await,
            Self::Schema(command) => command.execute(),
            Self::Completions(command) => command.execute(),
            Self::Man(command) => command.execute(),
        }
    }
}

fn model_place(uri: &str) -> Result<Place, Error> {
    place::model_place(uri).map_err(|problem| Error::Usage(format!("model {uri}: {problem}")))
}

fn read_pipeline(path: &Path, variables: &BTreeMap<String, String>) -> Result<Pipeline, Error> {
    config::parse(path, &read(path)?, variables).map_err(|errors| Error::Config(Box::new(errors)))
}

fn read(path: &Path) -> Result<String, Error> {
    files::read_text(path).map_err(Error::Unusable)
}

/// Returns a parser of integers of at least `least`.
fn at_least(least: u64) -> impl Fn(&str) -> Result<u64, String> + Clone + Send + Sync + 'static {
    move |text: &str| {
        let number = text.parse::<u64>().ok().filter(|number| *number >= least);
        number.ok_or_else(|| format!("expected a whole number, {least} or more"))
    }
}

/// Ends the program after a clap error, which may be a request for help. An error is written in the log format that the
/// arguments request, without any credentials in them.
#[must_use]
pub fn refuse_arguments(error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    if !error.use_stderr() {
        error.exit();
    }
    if LogFormat::from_arguments(std::env::args_os()) == LogFormat::Text {
        if !holds_credentials(&text) {
            error.exit();
        }
        let text = if colors() { error.render().ansi().to_string() } else { text };
        // If writing to stderr fails, there is nowhere to report it.
        let _ = write!(io::stderr(), "{}", without_credentials(&text));
        return ExitCode::from(Error::Usage(text).exit_code());
    }
    let error = Error::Usage(text.trim_start_matches("error: ").trim().to_owned());
    report_error(&error, LogFormat::Json);
    ExitCode::from(error.exit_code())
}
