//! `couplet plan`.

use std::path::PathBuf;

use clap::Args;
use couplet_cluster::Address;

use super::{Variables, at_least, print, print_as, read_pipeline};
use crate::error::Error;
use crate::logging::Messages;
use crate::run;

#[derive(Debug, Args)]
pub(super) struct Plan {
    /// The pipeline file
    pipeline: PathBuf,
    #[command(flatten)]
    variables: Variables,
    /// Plan only these stages of the pipeline
    #[arg(long, value_delimiter = ',', value_name = "STAGE")]
    only: Vec<run::Stage>,
    /// Plan for `couplet run --fresh`, which ignores cached scores
    #[arg(long)]
    fresh: bool,
    /// Read only the first N rows of the source (default: all rows, as the run does)
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    rows: Option<u64>,
    /// Plan for `couplet run --cluster`, with the executors of this scheduler
    #[arg(long, value_name = "df://HOST:PORT")]
    cluster: Option<Address>,
    /// Print the plan as one JSON document
    #[arg(long)]
    json: bool,
}

impl Plan {
    pub(super) async fn execute(self, messages: Messages) -> Result<(), Error> {
        let variables = self.variables.to_map()?;
        let pipeline = read_pipeline(&self.pipeline, &variables)?;
        let options = run::plan::Options {
            only: self.only,
            fresh: self.fresh,
            rows: self.rows.map(|rows| usize::try_from(rows).unwrap_or(usize::MAX)),
            cluster: self.cluster,
            verbose: messages.is_verbose(),
            ..run::plan::Options::default()
        };
        let plan = run::plan::plan(&pipeline, &variables, &options).await?;
        if self.json {
            print_as(&format!("{:#}\n", plan.to_json()), true)?;
        } else {
            let end = if plan.problems.is_empty() { "nothing was written" } else { "a run would fail" };
            print(&format!("{}: plan\n{plan}{end}\n", pipeline.name))?;
        }
        if plan.problems.is_empty() { Ok(()) } else { Err(Error::Foreseen(plan.problems)) }
    }
}
