//! `couplet query`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::{Variables, name_and_value, read, read_pipeline};
use crate::config::{self, Table};
use crate::error::Error;
use crate::history;
use crate::parameters::Parameters;
use crate::predict::Models;
use crate::query::{self, Format};
use crate::run;
use crate::scorer::ScorerOptions;
use crate::session;

#[derive(Debug, Args)]
pub(super) struct Query {
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
    /// Give $NAME in the SQL a value, which is bound and never pasted
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = name_and_value)]
    parameters: Vec<(String, String)>,
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

impl Query {
    pub(super) async fn execute(self) -> Result<(), Error> {
        let variables = self.variables.to_map();
        let mut pipeline = self.pipeline.as_deref().map(|path| read_pipeline(path, &variables)).transpose()?;
        let scoring = pipeline.as_mut().and_then(|pipeline| pipeline.scoring.as_mut());
        if let (Some(scoring), Some(max_length)) = (scoring, self.max_length) {
            scoring.model.max_length = max_length;
        }
        if pipeline.is_none() && !variables.is_empty() {
            return Err(Error::Usage("--var needs --pipeline: variables belong to a pipeline".into()));
        }
        let (sql, origin) = match (self.sql, &self.file) {
            (Some(sql), _) => (sql, "SQL".to_owned()),
            (None, Some(file)) => (read(file)?, file.display().to_string()),
            (None, None) => return Err(Error::Usage("give SQL, or a file with -f".into())),
        };
        let parameters = Parameters::of(&sql, &origin, &self.parameters)?;
        let format = format_of(self.format, self.output.as_deref())?;
        let mut tables = match &pipeline {
            Some(pipeline) => query::tables_of(pipeline).await?,
            None => Vec::new(),
        };
        for text in &self.tables {
            let table = table_argument(text)?;
            // What the command line says goes before what the pipeline says.
            tables.retain(|other| !other.name.eq_ignore_ascii_case(&table.name));
            tables.push(table);
        }
        let pool = run::pool(self.threads.map(usize::from))?;
        let cores = pool.threads();
        let base = std::env::current_dir().unwrap_or_default();
        let models = match &pipeline {
            Some(pipeline) => run::models_of(pipeline, pool, &base),
            None => Models::new(pool, base),
        };
        let models = models.with_options(ScorerOptions { max_length: self.max_length, ..ScorerOptions::default() });
        let window = pipeline.as_ref().map_or(config::DEFAULT_WINDOW, |pipeline| pipeline.run.window);
        let settings = pipeline.as_ref().map(|pipeline| pipeline.run.clone()).unwrap_or_default();
        let resources = run::resources(&settings)?;
        let context =
            session::open(&tables, Arc::new(models), window, cores, &resources).await.map_err(Error::Tables)?;
        if let Some(pipeline) = &pipeline {
            history::register(&context, pipeline).await?;
        }
        match query::query(&context, &sql, &origin, &parameters, format, self.output.as_deref()).await {
            Ok(()) => Ok(()),
            Err(error) => {
                let kept = if self.output.is_some() { "no output was written" } else { "the output is not complete" };
                Err(run::blame(&context, &tables, error, kept).await)
            }
        }
    }
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
