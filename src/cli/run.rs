//! `couplet run`.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::Utc;
use clap::Args;
use couplet_cluster::Address;
use couplet_storage::files::{self, AtomicFile, MAX_JSON};

use super::{Variables, print, print_as, read_pipeline};
use crate::config::{self, Pipeline};
use crate::error::Error;
use crate::history;
use crate::logging::Messages;
use crate::prometheus::{self, Facts, timestamp};
use crate::report::RunReport;
use crate::run::{self, RunOptions, RunState};

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a command-line switch")]
#[expect(clippy::struct_field_names, reason = "the field is named after the option")]
pub(super) struct Run {
    /// The pipeline file
    pipeline: PathBuf,
    #[command(flatten)]
    variables: Variables,
    /// Run only these stages of the pipeline
    #[arg(long, value_delimiter = ',', value_name = "STAGE")]
    only: Vec<run::Stage>,
    /// Delete the cached scores of this model and score all rows again
    #[arg(long)]
    fresh: bool,
    /// Retry rows that the tokenizer rejected in an earlier run
    #[arg(long, conflicts_with = "fresh")]
    retry_errors: bool,
    /// The idempotency key of an append: a run with the key of a finished run appends nothing (default: derived from
    /// the pipeline, its query and variables, and the source files)
    #[arg(long, value_name = "KEY", value_parser = run::run_key::parse)]
    run_key: Option<String>,
    /// Append the rows even if a run with the same key has appended its rows
    #[arg(long)]
    again: bool,
    /// Wait up to this long for another run on the same store to end, as in 90s or 10m (default: fail at once)
    #[arg(long, value_name = "TIME", value_parser = duration)]
    wait: Option<Duration>,
    /// Score on a cluster; read, cache and publish locally
    #[arg(long, value_name = "df://HOST:PORT")]
    cluster: Option<Address>,
    /// Write metrics of the run for Prometheus' textfile collector, even if the run fails
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// Print the report as one JSON document
    #[arg(long)]
    json: bool,
}

impl Run {
    pub(super) async fn execute(self, messages: Messages, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let variables = self.variables.to_map()?;
        let mut state = RunState::begin();
        let pipeline = read_pipeline(&self.pipeline, &variables);
        let done = match &pipeline {
            Ok(pipeline) => self.run(pipeline, &variables, messages, stop, &mut state).await.map_err(Some),
            Err(_) => Err(None),
        };
        if let Some(path) = &self.metrics {
            write_metrics(path, &self.pipeline, pipeline.as_ref().ok(), state, done.is_ok()).await;
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
        state: &mut RunState,
    ) -> Result<RunReport, Error> {
        let options = RunOptions {
            fresh: self.fresh,
            retry_errors: self.retry_errors,
            wait: self.wait,
            cluster: self.cluster.clone(),
            run_key: self.run_key.clone(),
            again: self.again,
        };
        run::run(pipeline, variables, &self.only, options, messages.style(), stop, state).await
    }
}

/// Writes the metrics file for Prometheus. A failure here is logged and does not change the outcome of the run.
async fn write_metrics(path: &Path, pipeline_file: &Path, pipeline: Option<&Pipeline>, state: RunState, success: bool) {
    let before = files::read_string(path, MAX_JSON).unwrap_or_default();
    let seconds = Some(state.seconds());
    let mut facts = match state.record {
        Some(record) => Facts::of(record),
        None => Facts {
            started_at: Some(state.started_at),
            ended_at: Some(Utc::now()),
            seconds,
            stages: state.stages,
            promoted: state.promoted,
            ..Facts::default()
        },
    };
    facts.success = success;
    // If the pipeline file cannot be parsed, the name in the previous metrics file is used.
    let stem = || pipeline_file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let unread = || prometheus::pipeline_of(&before).unwrap_or_else(stem);
    facts.pipeline = pipeline.map_or_else(unread, |pipeline| pipeline.name.clone());
    facts.last_success = prometheus::last_success(&before, &facts.pipeline);
    if let Some(pipeline) = pipeline {
        let known = add_history(pipeline, &mut facts).await;
        known.unwrap_or_else(|error| tracing::warn!("--metrics: cannot read earlier runs: {error}"));
    }
    let written = AtomicFile::create(path).and_then(|mut file| {
        file.write_all(prometheus::text(&facts).as_bytes())?;
        file.publish()
    });
    if let Err(error) = written {
        tracing::warn!("--metrics {}: cannot write the file: {error}", path.display());
    }
}

/// Adds the metrics that depend on earlier runs.
async fn add_history(pipeline: &Pipeline, facts: &mut Facts) -> Result<(), Error> {
    // A metrics file that is new, or of another pipeline, has no last success.
    if !facts.success && facts.last_success.is_none() {
        facts.last_success = history::last_success(pipeline).await?.map(timestamp);
    }
    if let Some(record) = &facts.record {
        facts.drift = history::drift(pipeline, record).await?;
    }
    Ok(())
}

fn duration(text: &str) -> Result<Duration, String> {
    config::duration(text).ok_or_else(|| "expected an integer with s, m or h, such as 10m".into())
}
