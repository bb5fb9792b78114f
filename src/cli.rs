//! The command line: each command is one function call.

mod model;

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::StringViewArray;
use clap::{Args, Parser, Subcommand};
use serde_json::json;

use crate::config::{self, Pipeline, Place, Table};
use crate::error::Error;
use crate::history;
use crate::model::Model;
use crate::predict::Models;
use crate::progress::{Style, grouped};
use crate::query::{self, Format};
use crate::run::{self, Remembering};
use crate::scorer::{Prediction, Scorer, ScorerOptions, TextColumn, Window};
use crate::session;

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
    Run(Run),
    /// Query tables, results and models with SQL
    #[command(after_help = "Examples:
  couplet query --pipeline pipelines/quickstart/pipeline.toml -f sql/accuracy.sql
  couplet query --table t=pairs.parquet \"SELECT predict('models/mrpc', a, b)['label'] AS answer, count(*) FROM t GROUP BY answer\"
  couplet query --table t=scores.csv 'SELECT * FROM t' -o scores.parquet")]
    Query(Query),
    /// Score one text or pair
    #[command(after_help = "Examples:
  couplet predict --model pipelines/quickstart/model 'He sold the car.' 'The car was sold by him.'
  couplet predict --model models/sentiment 'A warm and funny film.'")]
    Predict(Predict),
    /// Look at models, and make base models of encoders
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// List what the runs of a pipeline did
    #[command(after_help = "Examples:
  couplet runs nightly.toml
  couplet query --pipeline nightly.toml \"SELECT outcome, count(*) FROM runs GROUP BY outcome\"")]
    Runs(Runs),
    /// Look after the stores in which pipelines remember scores
    #[command(subcommand)]
    Store(StoreCommand),
}

#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "switches of a command")]
struct Run {
    /// The pipeline file
    pipeline: PathBuf,
    #[command(flatten)]
    variables: Variables,
    /// Run only these stages, of those that the pipeline has
    #[arg(long, value_delimiter = ',', value_name = "STAGE")]
    only: Vec<run::Stage>,
    /// Forget the scores of this model first, and score all rows anew
    #[arg(long)]
    fresh: bool,
    /// Try the rows again that the tokenizer refused in an earlier run
    #[arg(long, conflicts_with = "fresh")]
    retry_errors: bool,
    /// Wait this long for another run on the same store to end, as in 90s or 10m; without it, give up at once
    #[arg(long, value_name = "TIME", value_parser = duration)]
    wait: Option<Duration>,
    /// Print the report as one JSON document
    #[arg(long)]
    json: bool,
    /// Show no progress and no summary
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Debug, Args)]
struct Query {
    /// The SQL to execute
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    sql: Option<String>,
    /// Execute the SQL of a file
    #[arg(long, short)]
    file: Option<PathBuf>,
    /// Use the tables of a pipeline, and its sink: by the pipeline's name, and as `predictions`
    #[arg(long, short)]
    pipeline: Option<PathBuf>,
    #[command(flatten)]
    variables: Variables,
    /// Use a file, glob or folder as a table, here or in a bucket (s3://…)
    #[arg(long = "table", short, value_name = "NAME=URI")]
    tables: Vec<String>,
    /// How the result is written; by the extension of the output file if not given
    #[arg(long)]
    format: Option<Format>,
    /// Write the result to a file, which appears when it is complete
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Inference threads of `predict`; one a core if not given
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// The length at which `predict` cuts its input, in tokens; the model's own limit if not given
    #[arg(long)]
    max_length: Option<usize>,
}

#[derive(Debug, Args)]
struct Predict {
    /// The model: a folder, here or in a bucket (s3://…)
    #[arg(long, short, value_name = "URI")]
    model: String,
    /// The text
    text: String,
    /// The second text of a pair
    text_pair: Option<String>,
    /// The length at which the input is cut, in tokens; the model's own limit if not given
    #[arg(long)]
    max_length: Option<usize>,
    /// Print the prediction as one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Runs {
    /// The pipeline file
    pipeline: PathBuf,
    #[command(flatten)]
    variables: Variables,
    /// The most runs that are listed
    #[arg(long, short = 'n', default_value_t = 20)]
    limit: usize,
    /// Print them as one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Forget the scores of models that none of these pipelines uses any more, and remove files that nobody reads
    Gc {
        /// All pipelines that share the store
        #[arg(required = true)]
        pipelines: Vec<PathBuf>,
        #[command(flatten)]
        variables: Variables,
        /// Say what would be forgotten, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
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

fn duration(text: &str) -> Result<Duration, String> {
    config::duration(text).ok_or_else(|| "expected a whole number with s, m or h, such as 10m".into())
}

impl Cli {
    /// Executes the command; `stop` resolves when the user wants it to end.
    ///
    /// # Errors
    /// Whatever ended the command early.
    pub async fn execute(self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        match self.command {
            Command::Run(args) => run_pipeline(args, stop).await,
            Command::Query(args) => tokio::select! {
                biased;
                () = stop => Err(Error::Interrupted { after: "while querying".into(), kept: "no output was written".into() }),
                done = run_query(args) => done,
            },
            Command::Predict(args) => predict(args).await,
            Command::Runs(args) => {
                let pipeline = read_pipeline(&args.pipeline, &args.variables.to_map())?;
                print(&history::runs(&pipeline, args.limit, args.json).await?)
            }
            Command::Store(StoreCommand::Gc { pipelines, variables, dry_run }) => {
                let variables = variables.to_map();
                let pipelines = pipelines.iter().map(|path| read_pipeline(path, &variables));
                let garbage = history::collect(&pipelines.collect::<Result<Vec<_>, _>>()?, dry_run).await?;
                let done = if dry_run { "would be forgotten" } else { "forgotten" };
                print(&format!(
                    "{} scores of {} models {done}; {} files removed\n",
                    grouped(garbage.scores),
                    garbage.models,
                    garbage.files
                ))
            }
            Command::Model(command) => command.execute().await,
        }
    }
}

async fn run_pipeline(args: Run, stop: impl Future<Output = ()>) -> Result<(), Error> {
    let variables = args.variables.to_map();
    let pipeline = read_pipeline(&args.pipeline, &variables)?;
    let style = if args.quiet { Style::Quiet } else { Style::Auto };
    let remembering = Remembering { fresh: args.fresh, retry_errors: args.retry_errors, wait: args.wait };
    let report = run::run(&pipeline, &variables, &args.only, remembering, style, stop).await?;
    if args.json {
        print(&format!("{:#}\n", report.to_json()))
    } else if args.quiet {
        Ok(())
    } else {
        print(&format!("{}: done\n{report}", pipeline.name))
    }
}

async fn run_query(args: Query) -> Result<(), Error> {
    let variables = args.variables.to_map();
    let mut pipeline = args.pipeline.as_deref().map(|path| read_pipeline(path, &variables)).transpose()?;
    let scoring = pipeline.as_mut().and_then(|pipeline| pipeline.scoring.as_mut());
    if let (Some(scoring), Some(max_length)) = (scoring, args.max_length) {
        scoring.model.max_length = max_length;
    }
    if pipeline.is_none() && !variables.is_empty() {
        return Err(Error::Usage("--var needs --pipeline: variables belong to a pipeline".into()));
    }
    let (sql, origin) = match (args.sql, &args.file) {
        (Some(sql), _) => (sql, "SQL".to_owned()),
        (None, Some(file)) => (read(file)?, file.display().to_string()),
        (None, None) => return Err(Error::Usage("give SQL, or a file with -f".into())),
    };
    let format = format_of(args.format, args.output.as_deref())?;
    let mut tables = match &pipeline {
        Some(pipeline) => query::tables_of(pipeline).await?,
        None => Vec::new(),
    };
    for text in &args.tables {
        let table = table_argument(text)?;
        // What the command line says goes before what the pipeline says.
        tables.retain(|other| !other.name.eq_ignore_ascii_case(&table.name));
        tables.push(table);
    }
    let pool = run::pool(args.threads.map(usize::from))?;
    let cores = pool.threads();
    let base = std::env::current_dir().unwrap_or_default();
    let models = match &pipeline {
        Some(pipeline) => run::models_of(pipeline, pool, &base),
        None => Models::new(pool, base),
    };
    let models = models.with_options(ScorerOptions { max_length: args.max_length, ..ScorerOptions::default() });
    let window = pipeline.as_ref().map_or(config::DEFAULT_WINDOW, |pipeline| pipeline.run.window);
    let settings = pipeline.as_ref().map(|pipeline| pipeline.run.clone()).unwrap_or_default();
    let resources = run::resources(&settings)?;
    let context = session::open(&tables, Arc::new(models), window, cores, &resources).await.map_err(Error::Tables)?;
    if let Some(pipeline) = &pipeline {
        history::register(&context, pipeline).await?;
    }
    match query::query(&context, &sql, &origin, format, args.output.as_deref()).await {
        Ok(()) => Ok(()),
        Err(error) => {
            let kept = if args.output.is_some() { "no output was written" } else { "the output is not complete" };
            Err(run::blame(&context, &tables, error, kept).await)
        }
    }
}

async fn predict(args: Predict) -> Result<(), Error> {
    let options = ScorerOptions { max_length: args.max_length, ..ScorerOptions::default() };
    let scorer = Scorer::open(&model_place(&args.model)?, options, &run::pool(Some(1))?).await?;
    let column = |name: &str, text: &str| TextColumn { name: name.into(), values: StringViewArray::from(vec![text]) };
    let window =
        Window::new(column("TEXT", &args.text), args.text_pair.as_deref().map(|text| column("TEXT_PAIR", text)));
    let outcome = scorer.score(window).await?.pop();
    let prediction = match outcome {
        Some(Ok(prediction)) => prediction,
        Some(Err(rejection)) => return Err(Error::Usage(rejection.to_string())),
        None => return Err(Error::Usage("there is no text".into())),
    };
    print(&describe(&prediction, scorer.model(), args.json))
}

fn describe(prediction: &Prediction, model: &Model, as_json: bool) -> String {
    let labels = &model.config.labels;
    let label = prediction.label.map(|label| labels[label].as_str());
    let named = |values: &[f32]| {
        let named = labels.iter().zip(values).map(|(label, p)| (label.clone(), (*p).into()));
        (!values.is_empty()).then(|| named.collect::<serde_json::Map<_, _>>())
    };
    if as_json {
        let document = json!({
            "label": label,
            "score": prediction.score,
            "probabilities": named(&prediction.probabilities),
            "raw_probabilities": named(&prediction.raw),
            "tokens": prediction.tokens,
            "truncated": prediction.truncated,
            "model": model.fingerprint.as_str(),
        });
        return format!("{document:#}\n");
    }
    let mut lines = vec![match label {
        Some(label) => format!("{label} ({:.1} %)", 100.0 * prediction.score),
        None => prediction.score.to_string(),
    }];
    let width = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    for (i, (label, p)) in labels.iter().zip(&prediction.probabilities).enumerate() {
        let raw = prediction.raw.get(i).map_or_else(String::new, |raw| format!("  ({raw:.4} before calibration)"));
        lines.push(format!("  {label:width$}  {p:.4}{raw}"));
    }
    if prediction.truncated {
        lines.push(format!("  cut to {} tokens", prediction.tokens));
    }
    lines.join("\n") + "\n"
}

fn model_place(uri: &str) -> Result<Place, Error> {
    config::place(uri).map_err(|problem| Error::Usage(format!("model {uri}: {problem}")))
}

fn format_of(asked: Option<Format>, output: Option<&Path>) -> Result<Format, Error> {
    match (asked, output) {
        (Some(format), _) => Ok(format),
        (None, None) => Ok(Format::Table),
        (None, Some(path)) => Format::of_extension(path).ok_or_else(|| {
            Error::Usage(format!(
                "-o {}: the format is not told by the extension (csv, json, parquet, txt); add --format",
                path.display()
            ))
        }),
    }
}

fn table_argument(text: &str) -> Result<Table, Error> {
    let Some((name, uri)) = text.split_once('=') else {
        return Err(Error::Usage(format!("--table {text}: expected NAME=URI, such as pairs=data/pairs.parquet")));
    };
    config::table_from_uri(name, uri).map_err(|problem| Error::Usage(format!("--table {text}: {problem}")))
}

fn read_pipeline(path: &Path, variables: &BTreeMap<String, String>) -> Result<Pipeline, Error> {
    config::parse(path, &read(path)?, variables).map_err(|errors| Error::Config(Box::new(errors)))
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|e| Error::Usage(format!("cannot read {}: {e}", path.display())))
}

fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    query::end_if_nobody_reads(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
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
