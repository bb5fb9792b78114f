//! `couplet schema`: what a pipeline file may hold.

use clap::Args;

use super::print;
use crate::config;
use crate::error::Error;

#[derive(Debug, Args)]
pub(super) struct Schema {
    /// Print a page to read instead: every key with its values, default, an example and its meaning
    #[arg(long)]
    markdown: bool,
}

impl Schema {
    pub(super) fn execute(&self) -> Result<(), Error> {
        print(&if self.markdown { config::reference() } else { format!("{:#}\n", config::schema()) })
    }
}
