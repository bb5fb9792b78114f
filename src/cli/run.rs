//! `couplet run`.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::{Variables, print, read, read_pipeline};
use crate::config;
use crate::error::Error;
use crate::logging::Messages;
use crate::report::Predicted;
use crate::run::plan::Forecast;
use crate::run::{self, Remembering};

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
    /// Print the report as one JSON document
    #[arg(long)]
    json: bool,
}

impl Run {
    pub(super) async fn execute(self, messages: Messages, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let variables = self.variables.to_map();
        let pipeline = read_pipeline(&self.pipeline, &variables)?;
        let plan = self.plan.as_deref().map(predicted).transpose()?;
        let remembering = Remembering { fresh: self.fresh, retry_errors: self.retry_errors, wait: self.wait, plan };
        let report = run::run(&pipeline, &variables, &self.only, remembering, messages.style(), stop).await?;
        if self.json {
            print(&format!("{:#}\n", report.to_json()))
        } else if messages.is_quiet() {
            Ok(())
        } else {
            print(&format!("{}: done\n{report}", pipeline.name))
        }
    }
}

/// What a plan said of the run.
fn predicted(path: &Path) -> Result<Predicted, Error> {
    let json: serde_json::Value = serde_json::from_str(&read(path)?)
        .map_err(|e| Error::Usage(format!("--plan {}: it is no JSON: {e}", path.display())))?;
    let forecast = Forecast::from_json(&json["predicted"]).ok_or_else(|| {
        Error::Usage(format!(
            "--plan {}: it is not the plan of a pipeline that scores; make one with `couplet plan PIPELINE --json`",
            path.display()
        ))
    })?;
    Ok(Predicted { by: path.display().to_string(), after: None, forecast })
}

fn duration(text: &str) -> Result<Duration, String> {
    config::duration(text).ok_or_else(|| "expected a whole number with s, m or h, such as 10m".into())
}
