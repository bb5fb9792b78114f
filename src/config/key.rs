//! The description of a key of a pipeline file: its values, its default, an example and its meaning.
//!
//! [`described`](super::described) holds the descriptions. The reader takes ranges and defaults from them, errors take
//! examples, and [`schema`](super::schema()) generates the JSON Schema and the reference, so the four cannot disagree.
//! A key that is read but not described, or described but never read, fails every test that reads a file.

use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::sync::LazyLock;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// A table of the file.
#[derive(Debug)]
pub(super) struct Section {
    /// The dotted path, empty for the whole file. A part in capitals stands for any name.
    pub(super) path: &'static str,
    pub(super) doc: &'static str,
    /// Groups of keys, which several sections may share.
    pub(super) groups: &'static [&'static [Key]],
}

impl Section {
    pub(super) fn keys(&self) -> impl Iterator<Item = &'static Key> + Clone {
        self.groups.iter().copied().flatten()
    }

    pub(super) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys().find(|key| key.name == name)
    }
}

/// A key of a table.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) absent: Absent,
    /// An example value as TOML; for a section, the first line below its header.
    pub(super) example: &'static str,
    pub(super) doc: &'static str,
}

/// The meaning of a missing key.
#[derive(Debug)]
pub(super) enum Absent {
    /// An error: the key is required.
    Mistake,
    /// A default value, as TOML.
    Default(&'static str),
    /// A default that no value expresses, in words.
    Means(&'static str),
}

/// The values that a key takes.
#[derive(Debug)]
pub(super) enum Kind {
    Text,
    Sql,
    Path,
    Uri,
    /// A string that matches a pattern, with a description of such strings.
    Pattern(&'static str, &'static str),
    /// Only this boolean.
    Only(bool),
    Boolean,
    /// An integer in a range; up to `usize::MAX` means unbounded.
    Integer(RangeInclusive<usize>),
    Number(Numbers),
    /// A number from 0 to 1.
    Share,
    Duration,
    Bytes,
    /// A list of at most this many names, or a single name.
    Names(usize),
    Choice(fn() -> Vec<&'static str>),
    /// One of these names, in any case and with or without dashes.
    Named(fn() -> Vec<&'static str>),
    Section(&'static Section),
    /// A table of names, each with a URI or a table of options.
    Tables(&'static Section),
    /// A table of names, each with a value of this kind.
    Entries(&'static Kind),
    List(&'static Kind),
    Either(&'static [Kind]),
}

/// A range of numbers from `low` (included if `with_low`) to below `high`; `f64::MAX` means unbounded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers {
    pub(super) low: f64,
    pub(super) with_low: bool,
    pub(super) high: f64,
}

impl Kind {
    /// Returns the first result of `pick` for this kind and the kinds nested in it.
    pub(super) fn find<T>(&'static self, pick: &dyn Fn(&'static Self) -> Option<T>) -> Option<T> {
        pick(self).or_else(|| match self {
            Self::Entries(inner) | Self::List(inner) => inner.find(pick),
            Self::Either(kinds) => kinds.iter().find_map(|kind| kind.find(pick)),
            _ => None,
        })
    }
}

pub(super) const fn required(name: &'static str, kind: Kind, example: &'static str, doc: &'static str) -> Key {
    Key { name, kind, absent: Absent::Mistake, example, doc }
}

/// Describes a key with a default value, written as TOML.
pub(super) const fn or(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    example: &'static str,
    doc: &'static str,
) -> Key {
    Key { name, kind, absent: Absent::Default(default), example, doc }
}

/// Describes an optional key, with the meaning of its absence in words.
pub(super) const fn optional(
    name: &'static str,
    kind: Kind,
    means: &'static str,
    example: &'static str,
    doc: &'static str,
) -> Key {
    Key { name, kind, absent: Absent::Means(means), example, doc }
}

/// Returns a section and all sections nested in it, itself first.
pub(super) fn sections(from: &'static Section) -> Vec<&'static Section> {
    let inner = from.keys().filter_map(|key| {
        key.kind.find(&|kind| match kind {
            Kind::Section(section) | Kind::Tables(section) => Some(*section),
            _ => None,
        })
    });
    std::iter::once(from).chain(inner.flat_map(sections)).collect()
}

/// The defaults of all sections as one TOML document, with one table per section path.
static DEFAULTS: LazyLock<DeTable<'static>> = LazyLock::new(|| {
    let mut text = String::new();
    for section in sections(&super::described::FILE) {
        // Writes to a string cannot fail.
        let _ = writeln!(text, "[\"{}\"]", section.path);
        for key in section.keys() {
            if let Absent::Default(default) = key.absent {
                let _ = writeln!(text, "{} = {default}", key.name);
            }
        }
    }
    // The values borrow from the text, so it is leaked.
    DeTable::parse(text.leak()).expect("the defaults are valid TOML").into_inner()
});

/// Returns the default of a key, as a key and a value of a document.
pub(super) fn default_of(
    section: &Section,
    name: &str,
) -> Option<(&'static Spanned<DeString<'static>>, &'static Spanned<DeValue<'static>>)> {
    DEFAULTS.get(section.path)?.get_ref().as_table()?.get_key_value(name)
}

/// A table without keys.
pub(super) static EMPTY: LazyLock<DeTable<'static>> = LazyLock::new(DeTable::new);
