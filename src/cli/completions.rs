//! `couplet completions` and `couplet man`: what a shell and `man` know of the commands.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::{Cli, print, print_document};
use crate::error::Error;

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn execute(self) -> Result<(), Error> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), env!("CARGO_PKG_NAME"), &mut script);
        print_document(&String::from_utf8_lossy(&script))
    }
}

#[derive(Debug, Args)]
pub(super) struct Manual {
    /// The command whose page is printed, or a folder to write the pages of all commands into; without either, the page
    /// of `couplet` is printed
    #[arg(value_name = "COMMAND|FOLDER")]
    folder: Option<PathBuf>,
}

impl Manual {
    pub(super) fn execute(&self) -> Result<(), Error> {
        // The command `help` needs no page.
        let mut command = Cli::command().disable_help_subcommand(true);
        command.build();
        let Some(folder) = &self.folder else { return print_document(&page(&command)) };
        // A folder of that name is written as `./run`.
        let named = command.get_subcommands().find(|c| folder.as_os_str() == c.get_name() && !c.is_hide_set());
        if let Some(command) = named {
            return print_document(&page(command));
        }
        let failed = |path: &Path, error| Error::Io { context: format!("cannot write {}", path.display()), error };
        fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
        let mut written = String::new();
        for command in all(&command) {
            let path = folder.join(format!("{}.1", full_name(command)));
            fs::write(&path, page(command)).map_err(|error| failed(&path, error))?;
            let _ = writeln!(written, "{}", path.display());
        }
        print(&written)
    }
}

/// A command and those below it.
fn all(command: &Command) -> Vec<&Command> {
    std::iter::once(command).chain(command.get_subcommands().filter(|c| !c.is_hide_set()).flat_map(all)).collect()
}

/// `couplet-model-show`, as pages of manuals are called.
fn full_name(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

/// A page of the manual.
fn page(command: &Command) -> String {
    let mut page = Vec::new();
    // What stands behind the options is laid out for terminals: its lines are kept as they are.
    let examples = command.get_after_help().map(ToString::to_string);
    let man = Man::new(command.clone().after_help(None::<&str>));
    man.render(&mut page).expect("memory takes every write");
    let mut page = String::from_utf8_lossy(&page).into_owned();
    if let Some(examples) = examples {
        let mut roff = Roff::new();
        roff.control("SH", ["EXAMPLES"]).control("nf", []);
        for line in examples.trim_start_matches("Examples:").lines() {
            roff.text([roman(line)]);
        }
        roff.control("fi", []);
        page.push_str(&roff.render());
    }
    page
}
