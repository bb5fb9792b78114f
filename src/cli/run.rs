//! `couplet run`.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::Utc;
use clap::Args;

use super::{Variables, print, print_as, read, read_pipeline};
use crate::cluster::Address;
use crate::config::{self, Pipeline};
use crate::error::Error;
use crate::history;
use crate::logging::Messages;
use crate::prometheus::{self, Facts};
use crate::report::{Predicted, RunReport};
use crate::run::plan::Forecast;
use crate::run::{self, Remembering};
use crate::sink::AtomicFile;
use crate::store::RunRecord;

#[derive(Debug, Args)]
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
    /// Wait this long for another run on the same store to end, as in 90s or 10m; without it, give up at once
    #[arg(long, value_name = "TIME", value_parser = duration)]
    wait: Option<Duration>,
    /// Compare with what `couplet plan --json` said, from a file
    #[arg(long, value_name = "PLAN.json")]
    plan: Option<PathBuf>,
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
        let mut facts = Facts { started_at: Some(Utc::now()), ..Facts::default() };
        let began = Instant::now();
        let pipeline = read_pipeline(&self.pipeline, &variables);
        let done = match &pipeline {
            Ok(pipeline) => self.run(pipeline, &variables, messages, stop, &mut facts.record).await.map_err(Some),
            Err(_) => Err(None),
        };
        if let Some(path) = &self.metrics {
            facts.seconds = Some(began.elapsed().as_secs_f64());
            write_metrics(path, &self.pipeline, facts, pipeline.as_ref().ok(), done.as_ref().ok()).await;
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
        recorded: &mut Option<RunRecord>,
    ) -> Result<RunReport, Error> {
        let plan = self.plan.as_deref().map(|path| predicted(path, pipeline)).transpose()?;
        let remembering = Remembering {
            fresh: self.fresh,
            retry_errors: self.retry_errors,
            wait: self.wait,
            plan,
            cluster: self.cluster.clone(),
        };
        run::run_recorded(pipeline, variables, &self.only, remembering, messages.style(), stop, recorded).await
    }
}

/// Writes the file for Prometheus. What fails here is said, and changes nothing about how the run ended.
async fn write_metrics(
    path: &Path,
    pipeline_file: &Path,
    mut facts: Facts,
    pipeline: Option<&Pipeline>,
    report: Option<&RunReport>,
) {
    // A file that cannot be read as a pipeline has no other name.
    let stem = || pipeline_file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    facts.pipeline = pipeline.map_or_else(stem, |pipeline| pipeline.name.clone());
    facts.success = report.is_some();
    facts.ended_at = Some(Utc::now());
    if let Some(report) = report {
        let trained = [("pretrain", &report.pretrain), ("finetune", &report.finetune)];
        let trained = trained.into_iter().filter_map(|(name, stage)| Some((name, stage.as_ref()?.elapsed)));
        let evaluated = report.evaluate.iter().map(|stage| ("evaluate", stage.elapsed));
        facts.stages = trained.chain(evaluated).map(|(name, took)| (name, took.as_secs_f64())).collect();
    }
    if let (Some(pipeline), Some(record)) = (pipeline, &facts.record) {
        match history::drift(pipeline, record).await {
            Ok(drift) => facts.drift = drift,
            Err(error) => tracing::warn!("--metrics: the run before is not known: {error}"),
        }
    }
    let before = std::fs::read_to_string(path).unwrap_or_default();
    facts.last_success = prometheus::last_success(&before, &facts.pipeline);
    let written = AtomicFile::create(path).and_then(|mut file| {
        file.write_all(prometheus::text(&facts).as_bytes())?;
        file.publish()
    });
    if let Err(error) = written {
        tracing::warn!("--metrics {}: cannot be written: {error}", path.display());
    }
}

/// What a plan said of the run.
fn predicted(path: &Path, pipeline: &Pipeline) -> Result<Predicted, Error> {
    let json: serde_json::Value = serde_json::from_str(&read(path)?)
        .map_err(|e| Error::Usage(format!("--plan {}: it is no JSON: {e}", path.display())))?;
    if json["score"]["rows"]["limited"] == true && json["predicted"].is_null() {
        return Err(Error::Usage(format!(
            "--plan {}: it read only {} rows of a number that is not known, and says nothing of a run over all of them; \
             plan without --rows",
            path.display(),
            json["score"]["rows"]["read"]
        )));
    }
    let forecast = Forecast::from_json(&json["predicted"]).ok_or_else(|| {
        Error::Usage(format!(
            "--plan {}: it is not the plan of a pipeline that scores; make one with `couplet plan PIPELINE --json`",
            path.display()
        ))
    })?;
    if json["pipeline"] != pipeline.name {
        return Err(Error::Usage(format!(
            "--plan {}: it is the plan of pipeline {}, and {} is `{}`; make one with `couplet plan {} --json`",
            path.display(),
            json["pipeline"].as_str().map_or_else(|| "without a name".into(), |name| format!("`{name}`")),
            pipeline.path.display(),
            pipeline.name,
            pipeline.path.display()
        )));
    }
    Ok(Predicted { by: path.display().to_string(), after: None, forecast })
}

fn duration(text: &str) -> Result<Duration, String> {
    config::duration(text).ok_or_else(|| "expected a whole number with s, m or h, such as 10m".into())
}
