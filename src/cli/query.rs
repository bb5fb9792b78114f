//! `couplet query`.

use std::future::Future;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use clap::Args;
use couplet_cluster::{self as cluster, Address};
use couplet_encoder::scorer::ScorerOptions;
use couplet_tables::predict::Models;
use couplet_tables::session;
use couplet_tables::tables::Table;
use couplet_tables::tables::{self, snapshot};
use datafusion::prelude::SessionContext;

use super::{Variables, name_and_value, read, read_pipeline};
use crate::config;
use crate::error::Error;
use crate::history;
use crate::parameters::Parameters;
use crate::query::{self, Format};
use crate::run;
use crate::shell::Shell;

#[derive(Debug, Args)]
pub(super) struct Query {
    /// The SQL to execute; 'FILE' names a file as a table. Without SQL, starts a shell on a terminal, else executes
    /// stdin
    #[arg(conflicts_with = "file")]
    sql: Option<String>,
    /// Execute the SQL in a file; - reads it from stdin
    #[arg(long, short)]
    file: Option<PathBuf>,
    /// Use the tables of a pipeline; its sink is named like the pipeline and `predictions`, its quarantine `rejected`,
    /// and its run history `runs`
    #[arg(long, short)]
    pipeline: Option<PathBuf>,
    #[command(flatten)]
    variables: Variables,
    /// Use a file, glob or folder as a table, local or in a bucket (s3://…), or a table of options as in `[tables]`:
    /// 'NAME={ uri = "a.txt", format = "csv", delimiter = ";" }'
    #[arg(long = "table", short, value_name = "NAME=URI")]
    tables: Vec<String>,
    /// Bind a value to the parameter $NAME of the SQL
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = name_and_value)]
    parameters: Vec<(String, String)>,
    /// The format of the result (default: by the extension of the output file)
    #[arg(long)]
    format: Option<Format>,
    /// Write the result to a file, which appears only when it is complete; - is stdout
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The number of inference threads of `predict` (default: one per core)
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Execute on a cluster; all its machines must be able to reach the tables and models
    #[arg(long, value_name = "df://HOST:PORT")]
    cluster: Option<Address>,
    /// The maximum input length of `predict`, in tokens; longer inputs are truncated (default: the model's limit)
    #[arg(long)]
    max_length: Option<usize>,
}

impl Query {
    /// Executes the command. `stop` ends everything except the shell, which interrupts each statement by itself.
    pub(super) async fn execute(mut self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        self.output = self.output.filter(|path| path != Path::new("-"));
        let is_shell = self.sql.is_none() && self.file.is_none();
        if is_shell && io::stdin().is_terminal() && io::stdout().is_terminal() {
            return self.answer(true, &OnceLock::new()).await;
        }
        let session = OnceLock::new();
        tokio::select! {
            biased;
            () = stop => {
                if let Some(context) = session.get() {
                    cluster::cancel(context).await;
                }
                Err(Error::Interrupted { after: "while querying".into(), kept: "no output was written".into() })
            }
            done = self.answer(false, &session) => done,
        }
    }

    /// Executes the command. Stores its session in `session`, so that the caller can cancel the query.
    async fn answer(self, in_shell: bool, session: &OnceLock<SessionContext>) -> Result<(), Error> {
        let variables = self.variables.to_map()?;
        let mut pipeline = self.pipeline.as_deref().map(|path| read_pipeline(path, &variables)).transpose()?;
        let scoring = pipeline.as_mut().and_then(|pipeline| pipeline.scoring.as_mut());
        if let (Some(scoring), Some(max_length)) = (scoring, self.max_length) {
            scoring.model.max_length = max_length;
        }
        if pipeline.is_none() && !variables.is_empty() {
            return Err(Error::Usage("--var needs --pipeline: variables belong to a pipeline".into()));
        }
        if let Some(sql) = self.sql.as_deref() {
            refuse_file(sql)?;
        }
        let (sql, origin) = match (self.sql, &self.file) {
            (Some(sql), _) => (sql, "SQL".to_owned()),
            (None, Some(file)) if file != Path::new("-") => (read(file)?, file.display().to_string()),
            (None, None) if in_shell => (String::new(), String::new()),
            (None, _) => (read_stdin().await?, "stdin".to_owned()),
        };
        let from_stdin = !in_shell && origin == "stdin";
        let parameters = if in_shell || from_stdin {
            Parameters::default()
        } else {
            Parameters::of(&sql, &origin, &self.parameters)?
        };
        let format = query::format_of(self.format, self.output.as_deref())?;
        let mut tables = match &pipeline {
            Some(pipeline) => query::tables_of(pipeline).await?,
            None => Vec::new(),
        };
        let mut given: Vec<Table> = Vec::new();
        for text in &self.tables {
            let table = table_argument(text)?;
            if let Some(before) = given.iter().find(|other| other.name.eq_ignore_ascii_case(&table.name)) {
                let problem = format!("{} was given before, as {}; give each name once", table.name, before.location);
                return Err(Error::Usage(format!("--table {text}: {problem}")));
            }
            given.push(table);
        }
        for table in given {
            // Tables of the command line replace those of the pipeline.
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
        let settings = pipeline.as_ref().map(|pipeline| pipeline.run.clone()).unwrap_or_default();
        let window = settings.window;
        let resources = run::resources(&settings)?;
        let models = Arc::new(models);
        let context = match &self.cluster {
            None => {
                let context = session::open(&[], models, window, cores, &resources).await.map_err(Error::Tables)?;
                snapshot::install(context).map_err(|e| Error::sql("the session", &e, None))?
            }
            Some(address) => cluster::session_of(address, window, models).await?,
        };
        session::register(&context, &tables).await.map_err(Error::Tables)?;
        let context = tables::enable_places(context);
        // The cell is new, so setting it cannot fail.
        let _ = session.set(context.clone());
        if let Some(pipeline) = &pipeline {
            history::register(&context, pipeline).await?;
        }
        if in_shell || from_stdin {
            let shell = Shell::new(&context, &tables, self.parameters, self.format, self.output);
            return if in_shell { shell.run().await } else { shell.execute(&sql, &origin).await };
        }
        let has_file = self.output.is_some();
        let script = query::Script {
            context: context.clone(),
            tables: tables.clone(),
            sql,
            origin,
            parameters,
            format,
            output: self.output,
            most_rows: None,
        };
        match query::execute(script).await {
            Ok(_) => Ok(()),
            Err(error) => {
                let kept = if has_file { "no output was written" } else { "the output is not complete" };
                Err(run::blame(&context, &tables, error, kept).await)
            }
        }
    }
}

/// Reads all of stdin, on a blocking thread because a pipe may take long.
pub(super) async fn read_stdin() -> Result<String, Error> {
    let unreadable = |error: io::Error| Error::Io { context: "reading stdin".into(), error };
    let reading = tokio::task::spawn_blocking(|| io::read_to_string(io::stdin()));
    reading.await.map_err(|e| unreadable(io::Error::other(e)))?.map_err(unreadable)
}

/// Rejects a file name given as SQL, with a clearer message than the parser's.
fn refuse_file(sql: &str) -> Result<(), Error> {
    let path = Path::new(sql.trim());
    if sql.contains(['\n', ';']) || !path.is_file() {
        return Ok(());
    }
    let meant = if path.extension().is_some_and(|extension| extension == "sql") {
        format!("execute its SQL with --file {sql}")
    } else {
        format!("read it as a table: \"SELECT * FROM '{sql}'\"")
    };
    Err(Error::Usage(format!("`{sql}` is a file, not SQL; {meant}")))
}

fn table_argument(text: &str) -> Result<Table, Error> {
    let Some((name, uri)) = text.split_once('=') else {
        return Err(Error::Usage(format!("--table {text}: expected NAME=URI, such as pairs=data/pairs.parquet")));
    };
    let given = config::table_from_argument(name, uri);
    given.map(|given| given.table).map_err(|problem| Error::Usage(format!("--table {text}: {problem}")))
}
