//! `couplet runs` and `couplet store`: what is remembered.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Variables, print, print_as, read_pipeline};
use crate::error::Error;
use crate::history;
use crate::progress::grouped;

#[derive(Debug, Args)]
pub(super) struct Runs {
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

impl Runs {
    pub(super) async fn execute(self) -> Result<(), Error> {
        let pipeline = read_pipeline(&self.pipeline, &self.variables.to_map())?;
        print_as(&history::runs(&pipeline, self.limit, self.json).await?, self.json)
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Forget the scores of models that none of these pipelines uses any more, and remove files that nobody reads
    #[command(after_help = "Examples:
  couplet store gc pipelines/quickstart/pipeline.toml --dry-run
  couplet store gc pipelines/quickstart/pipeline.toml")]
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

impl StoreCommand {
    pub(super) async fn execute(self) -> Result<(), Error> {
        let Self::Gc { pipelines, variables, dry_run } = self;
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
}
