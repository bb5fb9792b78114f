//! `couplet schema`: the schema of pipeline files.

use clap::Args;

use super::print;
use crate::config;
use crate::error::Error;

#[derive(Debug, Args)]
pub(super) struct Schema {
    /// Print a Markdown reference instead: every key with its values, default, example and meaning
    #[arg(long)]
    markdown: bool,
}

impl Schema {
    pub(super) fn execute(&self) -> Result<(), Error> {
        print(&if self.markdown { config::reference() } else { format!("{:#}\n", config::schema()) })
    }
}
