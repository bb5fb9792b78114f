//! The reader of a pipeline file: where problems are collected, and the cursor over the keys of one TOML table.
//!
//! A section of the file is a closure over its [`Keys`]. Asking for a key is what makes it known, so the list of
//! keys that a section takes and the list that its error messages give cannot differ. A value that cannot be read
//! is `Err(Reported)`: the proof that a problem was recorded, so that nothing is reported twice.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeString, DeTable};

use super::item::Item;
use super::problem::{Problem, closest};
use super::syntax::Syntax;
use super::variables::placeholders;

/// The proof that a problem was recorded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reported(());

/// A value of the file, or the proof that a problem was recorded.
pub(super) type Read<T> = Result<T, Reported>;

/// What is known about the file as a whole, and the problems found so far.
///
/// Problems go into a cell, because a table and the values in it report side by side.
pub(super) struct Reader<'a> {
    pub(super) text: &'a str,
    /// The folder of the file, which relative paths are relative to.
    pub(super) folder: &'a Path,
    pub(super) variables: &'a BTreeMap<String, String>,
    syntax: &'a Syntax,
    mentioned: RefCell<BTreeSet<String>>,
    problems: RefCell<Vec<Problem>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        file: &'a Path,
        text: &'a str,
        variables: &'a BTreeMap<String, String>,
        syntax: &'a Syntax,
    ) -> Self {
        Self {
            text,
            folder: file.parent().unwrap_or(Path::new("")),
            variables,
            syntax,
            mentioned: RefCell::default(),
            problems: RefCell::default(),
        }
    }

    /// Records a problem, unless it may be no more than the echo of a syntax error.
    pub(super) fn report(&self, problem: Problem) -> Reported {
        if problem.span.as_ref().is_none_or(|span| self.syntax.trusts(self.text, span)) {
            self.problems.borrow_mut().push(problem);
        }
        Reported(())
    }

    /// Records that something is not there, unless a syntax error may have swallowed it.
    fn report_missing(&self, problem: Problem) -> Reported {
        if self.syntax.is_clean() { self.report(problem) } else { Reported(()) }
    }

    /// Notes which variables a text mentions.
    pub(super) fn mention(&self, text: &str) {
        let names = placeholders(text).filter(|placeholder| !placeholder.literal);
        self.mentioned.borrow_mut().extend(names.map(|placeholder| placeholder.name.to_owned()));
    }

    /// Gives the names of the variables that were given but not mentioned.
    pub(super) fn unused_variables(&self) -> BTreeSet<String> {
        let mentioned = self.mentioned.borrow();
        self.variables.keys().filter(|name| !mentioned.contains(*name)).cloned().collect()
    }

    /// Records that a variable was given for nothing.
    pub(super) fn report_unused(&self, name: &str) -> Reported {
        let mentioned = self.mentioned.borrow();
        let problem = Problem::new(format!("`--var {name}=…` is used nowhere in the file"), "");
        self.report_missing(match closest(name, mentioned.iter().map(String::as_str)) {
            Some(near) => problem.help(format!("did you mean `--var {near}=…`?")),
            None if mentioned.is_empty() => problem.help("the file uses no variables; leave the flag out"),
            None => {
                problem.help(format!("leave it out; the file uses {}", listed(mentioned.iter().map(String::as_str))))
            }
        })
    }

    /// Gives every problem, those of the syntax included, in the order of the file.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.extend(self.syntax.problems().iter().cloned());
        problems.sort_by_key(|problem| problem.span.as_ref().map_or(usize::MAX, |span| span.start));
        problems
    }
}

/// Lists names for a sentence.
pub(super) fn listed<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The keys of one TOML table while it is read.
pub(super) struct Keys<'r> {
    pub(super) reader: &'r Reader<'r>,
    table: &'r DeTable<'r>,
    /// The dotted path of the table; empty for the whole file.
    path: String,
    /// The header of the table, or all of an inline table.
    header: Range<usize>,
    known: Vec<&'static str>,
    later: Vec<&'static str>,
    missing: Vec<(&'static str, Problem)>,
}

impl<'r> Keys<'r> {
    /// Reads a table with the closure, then records the keys that the closure did not ask for.
    ///
    /// The closure asks for every key before its first `?`, or else a good key could be taken for an unknown one.
    pub(super) fn read<T>(
        reader: &'r Reader<'r>,
        path: String,
        header: Range<usize>,
        table: &'r DeTable<'r>,
        read: impl FnOnce(&mut Self) -> Read<T>,
    ) -> Read<T> {
        let mut keys = Self { reader, table, path, header, known: Vec::new(), later: Vec::new(), missing: Vec::new() };
        let mut value = read(&mut keys);
        for key in table.keys() {
            if !keys.knows(key.get_ref()) {
                value = Err(keys.report_unknown(key));
            }
        }
        for (_, problem) in keys.missing {
            reader.report_missing(problem);
        }
        value
    }

    /// Reads a key that may be absent.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Item<'r>) -> Read<T>,
    ) -> Read<Option<T>> {
        self.known.push(key);
        self.item(key).map(|item| read(&item)).transpose()
    }

    /// Reads a key that has a default.
    pub(super) fn or<T>(&mut self, key: &'static str, default: T, read: impl FnOnce(&Item<'r>) -> Read<T>) -> Read<T> {
        self.optional(key, read).map(|value| value.unwrap_or(default))
    }

    /// Reads a section that must be there; the example shows its first line below the header.
    pub(super) fn section<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&mut Self) -> Read<T>,
    ) -> Read<T> {
        let section = self.optional(key, |item| item.table(read))?;
        section.ok_or_else(|| self.lacks(key, &format!("[{key}]"), &format!("[{key}]\n{example}")))
    }

    /// Reads a key that must be there; the example shows the whole line.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&Item<'r>) -> Read<T>,
    ) -> Read<T> {
        let value = self.optional(key, read)?;
        value.ok_or_else(|| self.lacks(key, &format!("`{key}`"), example))
    }

    /// Records that a key is missing, unless it turns out to be there under a misspelt name.
    pub(super) fn lacks(&mut self, key: &'static str, name: &str, example: &str) -> Reported {
        let (place, help) = match self.path.as_str() {
            "" => ("the file".to_owned(), format!("add to the file:\n{example}")),
            path if self.reader.text[self.header.clone()].starts_with('{') => {
                (format!("`{path}`"), format!("add `{example}`"))
            }
            path => (format!("[{path}]"), format!("write for example:\n[{path}]\n{example}")),
        };
        let problem = Problem::new(format!("{place} has no {name}"), format!("{name} is missing"));
        self.missing.push((key, problem.at(self.header.clone()).help(help)));
        Reported(())
    }

    /// Makes a key known that a later version will take, and refuses it.
    pub(super) fn not_yet(&mut self, key: &'static str, mend: &str) -> Read<()> {
        self.later.push(key);
        match self.item(key) {
            None => Ok(()),
            Some(item) => {
                let name = if item.is_table() { format!("[{}]", item.path) } else { format!("`{}`", item.path) };
                let message = format!("{name} is not supported yet in this version of couplet");
                Err(self.reader.report(Problem::new(message, "not supported yet").at(item.key.span()).help(mend)))
            }
        }
    }

    /// Records a problem that points at the value of a key.
    pub(super) fn refuse(&self, key: &str, problem: Problem) -> Reported {
        match self.item(key) {
            Some(item) => item.refuse(problem),
            None => self.reader.report(problem.at(self.header.clone())),
        }
    }

    /// Gives the value of a key as it stands in the file.
    pub(super) fn item(&self, key: &str) -> Option<Item<'r>> {
        self.table.get_key_value(key).map(|(key, value)| Item {
            reader: self.reader,
            path: join(&self.path, key.get_ref()),
            key,
            value,
        })
    }

    fn knows(&self, key: &str) -> bool {
        self.known.contains(&key) || self.later.contains(&key)
    }

    fn report_unknown(&mut self, key: &Spanned<DeString<'_>>) -> Reported {
        let place = if self.path.is_empty() { "the file".to_owned() } else { format!("[{}]", self.path) };
        let absent = self.known.iter().copied().filter(|known| !self.table.contains_key(*known));
        let meant = closest(key.get_ref(), absent);
        self.missing.retain(|(missing, _)| Some(*missing) != meant);
        let problem = Problem::new(format!("unknown key `{}` in {place}", key.get_ref()), "unknown key")
            .at(key.span())
            .allowed(self.known.join(", "));
        self.reader.report(match meant {
            Some(meant) => problem.help(format!("did you mean `{meant}`?")),
            None => problem,
        })
    }
}

/// Adds a key to a dotted path.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
