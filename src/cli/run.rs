//! `couplet run`.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::Utc;
use clap::Args;

use super::{Variables, print, print_as, read_pipeline};
use crate::cluster::Address;
use crate::config::{self, Pipeline};
use crate::error::Error;
use crate::files::AtomicFile;
use crate::files::{self, MAX_JSON};
use crate::history;
use crate::logging::Messages;
use crate::prometheus::{self, Facts, timestamp};
use crate::report::RunReport;
use crate::run::{self, Remembering, RunState};

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
#[expect(clippy::struct_field_names, reason = "a run key is what the option is called")]
pub(super) struct Run {
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
    /// The key under which rows are appended: a second run with the key of a finished one appends nothing. Without it,
    /// the key is made of the pipeline, its query and variables, and the source files
    #[arg(long, value_name = "KEY", value_parser = run::run_key::parse)]
    run_key: Option<String>,
    /// Append the rows even if rows were appended under the same key
    #[arg(long)]
    again: bool,
    /// Wait this long for another run on the same store to end, as in 90s or 10m; without it, give up at once
    #[arg(long, value_name = "TIME", value_parser = duration)]
    wait: Option<Duration>,
    /// Have a cluster score; reading, remembering and publishing stay here
    #[arg(long, value_name = "df://HOST:PORT")]
    cluster: Option<Address>,
    /// Write what the run did to a file for Prometheus' textfile collector, also when it fails
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// Print the report as one JSON document
    #[arg(long)]
    json: bool,
}

impl Run {
    pub(super) async fn execute(self, messages: Messages, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let variables = self.variables.to_map()?;
        let mut whole = RunState::begin();
        let pipeline = read_pipeline(&self.pipeline, &variables);
        let done = match &pipeline {
            Ok(pipeline) => self.run(pipeline, &variables, messages, stop, &mut whole).await.map_err(Some),
            Err(_) => Err(None),
        };
        if let Some(path) = &self.metrics {
            write_metrics(path, &self.pipeline, pipeline.as_ref().ok(), whole, done.is_ok()).await;
        }
        let pipeline = pipeline?;
        match done {
            Ok(report) if self.json => print_as(&format!("{:#}\n", report.to_json()), true),
            Ok(_) if messages.is_quiet() => Ok(()),
            Ok(report) => print(&format!("{}: done\n{report}", pipeline.name)),
            Err(error) => error.map_or(Ok(()), Err),
        }
    }

    async fn run(
        &self,
        pipeline: &Pipeline,
        variables: &BTreeMap<String, String>,
        messages: Messages,
        stop: impl Future<Output = ()>,
        whole: &mut RunState,
    ) -> Result<RunReport, Error> {
        let remembering = Remembering {
            fresh: self.fresh,
            retry_errors: self.retry_errors,
            wait: self.wait,
            cluster: self.cluster.clone(),
            run_key: self.run_key.clone(),
            again: self.again,
        };
        run::run_recorded(pipeline, variables, &self.only, remembering, messages.style(), stop, whole).await
    }
}

/// Writes the file for Prometheus. What fails here is said, and changes nothing about how the run ended.
async fn write_metrics(path: &Path, pipeline_file: &Path, pipeline: Option<&Pipeline>, whole: RunState, success: bool) {
    let before = files::read_string(path, MAX_JSON).unwrap_or_default();
    let seconds = Some(whole.seconds());
    let mut facts = match whole.record {
        Some(record) => Facts::of(record),
        None => Facts {
            started_at: Some(whole.started_at),
            ended_at: Some(Utc::now()),
            seconds,
            earlier: whole.earlier,
            ..Facts::default()
        },
    };
    facts.success = success;
    // A file that cannot be read as a pipeline has the name that it had when it could.
    let stem = || pipeline_file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let unread = || prometheus::pipeline_of(&before).unwrap_or_else(stem);
    facts.pipeline = pipeline.map_or_else(unread, |pipeline| pipeline.name.clone());
    facts.last_success = prometheus::last_success(&before, &facts.pipeline);
    if let Some(pipeline) = pipeline {
        let known = ask_the_store(pipeline, &mut facts).await;
        known.unwrap_or_else(|error| tracing::warn!("--metrics: the runs before are not known: {error}"));
    }
    let written = AtomicFile::create(path).and_then(|mut file| {
        file.write_all(prometheus::text(&facts).as_bytes())?;
        file.publish()
    });
    if let Err(error) = written {
        tracing::warn!("--metrics {}: cannot be written: {error}", path.display());
    }
}

/// Adds what only the runs before can say.
async fn ask_the_store(pipeline: &Pipeline, facts: &mut Facts) -> Result<(), Error> {
    // A file that is new, or was another pipeline's, does not know.
    if !facts.success && facts.last_success.is_none() {
        facts.last_success = history::last_success(pipeline).await?.map(timestamp);
    }
    if let Some(record) = &facts.record {
        facts.drift = history::drift(pipeline, record).await?;
    }
    Ok(())
}

fn duration(text: &str) -> Result<Duration, String> {
    config::duration(text).ok_or_else(|| "expected a whole number with s, m or h, such as 10m".into())
}
