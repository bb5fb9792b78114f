//! The reader of a pipeline file: collects problems, and provides a cursor over the keys of a TOML table.
//!
//! A section of the file is read by a closure over its [`Keys`]. The closure must read exactly the keys that
//! [`described`](super::described) lists for the section; debug assertions check this. A value that cannot be read is
//! `Err(Reported)`, the proof that a problem was recorded, so that no problem is reported twice.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use couplet_storage::place::Problem;
use couplet_storage::words::closest;
use toml::Spanned;
use toml::de::{DeString, DeTable};

use super::described::FILE;
use super::item::Item;
use super::key::{self, Absent, EMPTY, Key, Kind, Section};
use super::syntax::Syntax;
use super::variables::placeholders;

/// The proof that a problem was recorded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reported(());

/// A value of the file, or the proof that a problem was recorded.
pub(super) type Read<T> = Result<T, Reported>;

/// The file, the variables, and the problems found so far.
///
/// Problems are in a cell because a table and its values both hold a reference to the reader.
pub(super) struct Reader<'a> {
    pub(super) text: &'a str,
    /// The folder of the file, at which relative paths start.
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

    /// Records a problem, unless a syntax error may have caused it.
    pub(super) fn report(&self, problem: Problem) -> Reported {
        if problem.span.as_ref().is_none_or(|span| self.syntax.trusts(self.text, span)) {
            self.problems.borrow_mut().push(problem);
        }
        Reported(())
    }

    /// Records a missing key, unless the file has a syntax error, which may hide the key.
    fn report_missing(&self, problem: Problem) -> Reported {
        if self.syntax.is_clean() { self.report(problem) } else { Reported(()) }
    }

    /// Records the variables that a text uses.
    pub(super) fn mention(&self, text: &str) {
        let names = placeholders(text).filter(|placeholder| !placeholder.literal);
        self.mentioned.borrow_mut().extend(names.map(|placeholder| placeholder.name.to_owned()));
    }

    /// Returns the names of the given variables that no text uses.
    pub(super) fn unused_variables(&self) -> BTreeSet<String> {
        let mentioned = self.mentioned.borrow();
        self.variables.keys().filter(|name| !mentioned.contains(*name)).cloned().collect()
    }

    /// Records a given variable that the file does not use.
    pub(super) fn report_unused(&self, name: &str) -> Reported {
        let mentioned = self.mentioned.borrow();
        let problem = Problem::new(format!("`--var {name}=…` is not used in the file"), "");
        self.report_missing(match closest(name, mentioned.iter().map(String::as_str)) {
            Some(near) => problem.help(format!("did you mean `--var {near}=…`?")),
            None if mentioned.is_empty() => problem.help("the file uses no variables; leave the flag out"),
            None => {
                problem.help(format!("leave it out; the file uses {}", listed(mentioned.iter().map(String::as_str))))
            }
        })
    }

    /// Returns all problems in file order, syntax errors included.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.extend(self.syntax.problems().iter().cloned());
        problems.sort_by_key(|problem| problem.span.as_ref().map_or(usize::MAX, |span| span.start));
        problems
    }
}

/// Formats names as a list for a message.
pub(super) fn listed<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// A cursor over the keys of one TOML table.
pub(super) struct Keys<'r> {
    pub(super) reader: &'r Reader<'r>,
    section: &'static Section,
    table: &'r DeTable<'r>,
    /// The dotted path of the table; empty for the whole file.
    path: String,
    /// The span of the table header, or of a whole inline table.
    header: Range<usize>,
    read: Vec<&'static str>,
    later: Vec<&'static str>,
    missing: Vec<(&'static str, Problem)>,
}

impl<'r> Keys<'r> {
    /// Reads the table of a whole file.
    pub(super) fn read_file<T>(
        reader: &'r Reader<'r>,
        table: &'r DeTable<'r>,
        read: impl FnOnce(&mut Self) -> Read<T>,
    ) -> Read<T> {
        Self::read(reader, &FILE, String::new(), 0..0, table, read)
    }

    /// Reads a table with the closure, then records unknown and missing keys.
    ///
    /// The closure must read all keys before its first `?`.
    pub(super) fn read<T>(
        reader: &'r Reader<'r>,
        section: &'static Section,
        path: String,
        header: Range<usize>,
        table: &'r DeTable<'r>,
        read: impl FnOnce(&mut Self) -> Read<T>,
    ) -> Read<T> {
        let (later, missing) = (Vec::new(), Vec::new());
        let mut keys = Self { reader, section, table, path, header, read: Vec::new(), later, missing };
        let mut value = read(&mut keys);
        debug_assert!(
            section.keys().all(|key| keys.read.contains(&key.name)),
            "[{}] describes a key that is never read",
            section.path
        );
        for key in table.keys() {
            if section.key(key.get_ref()).is_none() && !keys.later.contains(&&**key.get_ref()) {
                value = Err(keys.report_unknown(key));
            }
        }
        for (_, problem) in keys.missing {
            reader.report_missing(problem);
        }
        value
    }

    /// Returns the description of a key.
    ///
    /// # Panics
    /// If the section does not describe the key, which is a bug.
    fn key(&self, name: &str) -> &'static Key {
        let key = self.section.key(name);
        key.unwrap_or_else(|| unreachable!("[{}] does not describe `{name}`, which is read", self.section.path))
    }

    /// Reads an optional key.
    pub(super) fn optional<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&Item<'r>) -> Read<T>,
    ) -> Read<Option<T>> {
        self.read.push(name);
        self.item(name).map(|item| read(&item)).transpose()
    }

    /// Reads a key that has a default.
    pub(super) fn or<T>(&mut self, name: &'static str, read: impl FnOnce(&Item<'r>) -> Read<T>) -> Read<T> {
        self.read.push(name);
        match self.item(name) {
            Some(item) => read(&item),
            None => self.default_in(self.section, name, read),
        }
    }

    /// Reads the default of a key of any section.
    pub(super) fn default_in<T>(
        &self,
        section: &'static Section,
        name: &str,
        read: impl FnOnce(&Item<'r>) -> Read<T>,
    ) -> Read<T> {
        let described = section.key(name).zip(key::default_of(section, name));
        let (Key { kind, .. }, (key, value)) =
            described.unwrap_or_else(|| unreachable!("[{}] describes no default of `{name}`", section.path));
        read(&Item { reader: self.reader, kind, path: join(section.path, name), key, value })
    }

    /// Reads a required section.
    pub(super) fn section<T>(&mut self, name: &'static str, read: impl FnOnce(&mut Self) -> Read<T>) -> Read<T> {
        let section = self.optional(name, |item| item.table(read))?;
        section.ok_or_else(|| {
            let example = format!("[{name}]\n{}", self.key(name).example);
            self.lack(name, &format!("[{name}]"), &example)
        })
    }

    /// Reads a section; a missing section counts as an empty one.
    pub(super) fn section_or_empty<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Self) -> Read<T>,
    ) -> Read<T> {
        self.read.push(name);
        match (self.item(name), &self.key(name).kind) {
            (Some(item), _) => item.table(read),
            (None, Kind::Section(section)) => {
                Keys::read(self.reader, section, join(&self.path, name), 0..0, &EMPTY, read)
            }
            (None, _) => unreachable!("`{name}` is not described as a section"),
        }
    }

    /// Marks keys as read that are absent and not needed.
    pub(super) fn none_of(&mut self, names: &[&'static str]) {
        self.read.extend(names);
    }

    /// Reads a required key.
    pub(super) fn required<T>(&mut self, name: &'static str, read: impl FnOnce(&Item<'r>) -> Read<T>) -> Read<T> {
        debug_assert!(matches!(self.key(name).absent, Absent::Mistake), "`{name}` is described as one to be left out");
        let value = self.optional(name, read)?;
        value.ok_or_else(|| self.lacks(name, &format!("`{name}`")))
    }

    /// Records a missing key; `title` names it, or the alternatives.
    pub(super) fn lacks(&mut self, name: &'static str, title: &str) -> Reported {
        let example = format!("{name} = {}", self.key(name).example);
        self.lack(name, title, &example)
    }

    /// Records a missing key. The record is dropped later if the key is found under a misspelt name.
    fn lack(&mut self, key: &'static str, name: &str, example: &str) -> Reported {
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

    /// Rejects a section that only later versions support, without reporting it as unknown.
    pub(super) fn not_yet(&mut self, name: &'static str, help: &str) -> Read<()> {
        self.later.push(name);
        match self.table.get_key_value(name) {
            None => Ok(()),
            Some((key, _)) => {
                let message = format!("[{name}] is not supported yet in this version of couplet");
                Err(self.reader.report(Problem::new(message, "not supported yet").at(key.span()).help(help)))
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

    /// Returns the value of a key, if the file has it.
    pub(super) fn item(&self, name: &str) -> Option<Item<'r>> {
        let kind = &self.key(name).kind;
        let item = |(key, value)| Item { reader: self.reader, kind, path: join(&self.path, name), key, value };
        self.table.get_key_value(name).map(item)
    }

    fn report_unknown(&mut self, key: &Spanned<DeString<'_>>) -> Reported {
        let name = key.get_ref();
        let place = if self.path.is_empty() { "the file".to_owned() } else { format!("[{}]", self.path) };
        let names = self.section.keys().map(|key| key.name);
        let absent = names.clone().filter(|known| !self.table.contains_key(*known));
        let meant = closest(name, absent);
        self.missing.retain(|(missing, _)| Some(*missing) != meant);
        let problem = Problem::new(format!("unknown key `{name}` in {place}"), "unknown key")
            .at(key.span())
            .allowed(names.collect::<Vec<_>>().join(", "));
        self.reader.report(match (meant, in_other_sections(name, self.section)) {
            (_, Some(sections)) => problem.help(sections),
            (Some(meant), None) => problem.help(format!("did you mean `{meant}`?")),
            (None, None) => problem,
        })
    }
}

/// Names the section that an unknown key belongs to, if there is one.
fn in_other_sections(name: &str, section: &'static Section) -> Option<String> {
    let others = key::sections(&FILE).into_iter().filter(|other| other.path != section.path);
    let places: Vec<_> = others.filter(|other| other.key(name).is_some()).collect();
    if let Some(key) = places.iter().find(|other| other.path.is_empty()).and_then(|file| file.key(name)) {
        return Some(match key.kind {
            Kind::Section(_) | Kind::Tables(_) => {
                format!("`{name}` is a section of its own: write its keys below a line with `[{name}]`")
            }
            _ => format!("`{name}` belongs at the top of the file, above the first section"),
        });
    }
    let places: Vec<_> = places.iter().map(|section| format!("[{}]", section.path)).collect();
    (!places.is_empty()).then(|| format!("`{name}` is a key of {}", places.join(", ")))
}

/// Appends a key to a dotted path.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
