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
use crate::files;
use crate::sql_error::nearest;

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
    /// The command whose page is printed, as in `couplet man model show`, or a folder to write the pages of all commands
    /// into: one that is there, or a path with a slash in it, as in `./man`; without either, the page of `couplet` is
    /// printed
    #[arg(value_name = "COMMAND|FOLDER")]
    what: Vec<PathBuf>,
}

impl Manual {
    pub(super) fn execute(&self) -> Result<(), Error> {
        // The command `help` needs no page.
        let mut couplet = Cli::command().disable_help_subcommand(true);
        couplet.build();
        let commands = all(&couplet);
        // A folder that is called as a command is written as `./run`.
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

/// The command of that name: `model-show`, or as its page is called, `couplet-model-show`; the empty name is couplet's.
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

fn unknown(commands: &[&Command], asked: &str) -> Error {
    let names: Vec<&str> = commands.iter().filter_map(|command| typed(command)).collect();
    let near = nearest(asked, names.iter().copied());
    let near = near.map_or_else(String::new, |near| format!("; did you mean `couplet man {near}`?"));
    Error::Usage(format!(
        "man {asked}: there is no such command, nor a folder of that name (commands: {}; a folder that is to be made needs \
         a slash, as in ./man){near}",
        names.join(", ")
    ))
}

/// A command and those below it.
fn all(command: &Command) -> Vec<&Command> {
    std::iter::once(command).chain(command.get_subcommands().filter(|c| !c.is_hide_set()).flat_map(all)).collect()
}

/// `couplet-model-show`, as pages of manuals are called.
fn full_name(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

/// `model show`, as it is typed after `couplet`; none for couplet itself.
fn typed(command: &Command) -> Option<&str> {
    command.get_bin_name()?.strip_prefix(concat!(env!("CARGO_PKG_NAME"), " "))
}

/// A page of the manual.
fn page(command: &Command) -> String {
    let mut page = Vec::new();
    // What stands behind the options is laid out for terminals: its lines are kept as they are.
    let examples = command.get_after_help().map(ToString::to_string);
    let man = Man::new(command.clone().after_help(None::<&str>));
    // Commands have no version of their own.
    let man = man.source(concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")));
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
