//! `couplet completions` and `couplet man`: shell completion scripts and manual pages.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use couplet_storage::files;
use couplet_storage::words::closest;

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
    /// A command whose page to print, as in `couplet man model show`, or a folder to write all pages to: an existing
    /// folder, or a path with a slash, as in `./man` (default: print the page of `couplet`)
    #[arg(value_name = "COMMAND|FOLDER")]
    what: Vec<PathBuf>,
}

impl Manual {
    pub(super) fn execute(&self) -> Result<(), Error> {
        // The command `help` needs no page.
        let mut couplet = Cli::command().disable_help_subcommand(true);
        couplet.build();
        let commands = all(&couplet);
        // A folder with the name of a command must be written with a slash, as in `./run`.
        let words: Vec<_> = self.what.iter().map(|word| word.to_string_lossy()).collect();
        if let Some(command) = named(&commands, &words.join("-")) {
            return print_document(&page(command));
        }
        match &self.what[..] {
            [folder] if folder.is_dir() || words[0].contains(std::path::is_separator) => write_all(&commands, folder),
            _ => Err(unknown(&commands, &words.join(" "))),
        }
    }
}

/// Returns the command with a name such as `model-show` or `couplet-model-show`; the empty name is couplet itself.
fn named<'a>(commands: &[&'a Command], name: &str) -> Option<&'a Command> {
    let couplet = env!("CARGO_PKG_NAME");
    let full = if name.is_empty() { couplet.to_owned() } else { format!("{couplet}-{name}") };
    commands.iter().find(|command| [name, &full].contains(&full_name(command).as_str())).copied()
}

fn write_all(commands: &[&Command], folder: &Path) -> Result<(), Error> {
    let failed = |path: &Path, error| Error::Io { context: format!("cannot write {}", path.display()), error };
    fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    let mut written = String::new();
    for command in commands {
        let path = folder.join(format!("{}.1", full_name(command)));
        files::write(&path, page(command)).map_err(|error| failed(&path, error))?;
        let _ = writeln!(written, "{}", path.display());
    }
    print(&written)
}

fn unknown(commands: &[&Command], name: &str) -> Error {
    let names: Vec<&str> = commands.iter().filter_map(|command| typed(command)).collect();
    let near = closest(name, names.iter().copied());
    let near = near.map_or_else(String::new, |near| format!("; did you mean `couplet man {near}`?"));
    Error::Usage(format!(
        "man {name}: no command and no folder has this name (commands: {}; to create a folder, write it with a slash, \
         as in ./man){near}",
        names.join(", ")
    ))
}

/// Returns a command and all its subcommands.
fn all(command: &Command) -> Vec<&Command> {
    std::iter::once(command).chain(command.get_subcommands().filter(|c| !c.is_hide_set()).flat_map(all)).collect()
}

/// Returns the name of the manual page, such as `couplet-model-show`.
fn full_name(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

/// Returns the words after `couplet`, such as `model show`; `None` for couplet itself.
fn typed(command: &Command) -> Option<&str> {
    command.get_bin_name()?.strip_prefix(concat!(env!("CARGO_PKG_NAME"), " "))
}

/// Returns the manual page of a command, in roff.
fn page(command: &Command) -> String {
    let mut page = Vec::new();
    // The text after the options is laid out for terminals, so its lines are kept.
    let examples = command.get_after_help().map(ToString::to_string);
    let man = Man::new(command.clone().after_help(None::<&str>));
    // Subcommands have no version of their own.
    let man = man.source(concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")));
    man.render(&mut page).expect("writes to memory cannot fail");
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
