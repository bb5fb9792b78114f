//! What a key of a pipeline file is: its values, its default, an example, and what it means.
//!
//! [`described`](super::described) holds the one table of them. The reader takes ranges and defaults from there, the
//! errors take examples, and [`schema`](super::schema()) makes the JSON Schema and the reference of it: so the four
//! cannot differ. A key that is read and not described, or described and never read, fails whatever test reads a file.

use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::sync::LazyLock;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// A table of the file.
#[derive(Debug)]
pub(super) struct Section {
    /// The dotted path; a part in capitals stands for any name. Empty for the whole file.
    pub(super) path: &'static str,
    pub(super) doc: &'static str,
    /// In groups, so that two sections may share one.
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
    /// A value as TOML; for a section the first line below its header.
    pub(super) example: &'static str,
    pub(super) doc: &'static str,
}

/// What a file means that does not have the key.
#[derive(Debug)]
pub(super) enum Absent {
    /// Nothing: it is a mistake.
    Mistake,
    /// What it would mean with this value, as TOML.
    Default(&'static str),
    /// Something that no value of the key says, in words.
    Means(&'static str),
}

/// The values that a key takes.
#[derive(Debug)]
pub(super) enum Kind {
    Text,
    Sql,
    Path,
    Uri,
    /// A string with a pattern, and the name of such strings.
    Pattern(&'static str, &'static str),
    /// This boolean alone.
    Only(bool),
    Boolean,
    /// A range up to `usize::MAX` has no upper end.
    Integer(RangeInclusive<usize>),
    Number(Numbers),
    /// 0 to 1.
    Share,
    Duration,
    Bytes,
    /// At most so many names, or one alone.
    Names(usize),
    Choice(fn() -> Vec<&'static str>),
    /// One of these names, however it is spelt.
    Named(fn() -> Vec<&'static str>),
    Section(&'static Section),
    /// Names, each with a URI or a table of options.
    Tables(&'static Section),
    /// Names, each with such a value.
    Entries(&'static Kind),
    List(&'static Kind),
    Either(&'static [Kind]),
}

/// From `low`, or above it, to below `high`; no upper end if that is `f64::MAX`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers {
    pub(super) low: f64,
    pub(super) with_low: bool,
    pub(super) high: f64,
}

impl Kind {
    /// The first that `pick` takes, of this kind and those that it is made of.
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

/// A key with a default, which is TOML.
pub(super) const fn or(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    example: &'static str,
    doc: &'static str,
) -> Key {
    Key { name, kind, absent: Absent::Default(default), example, doc }
}

/// A key that may be absent, and what that means.
pub(super) const fn optional(
    name: &'static str,
    kind: Kind,
    means: &'static str,
    example: &'static str,
    doc: &'static str,
) -> Key {
    Key { name, kind, absent: Absent::Means(means), example, doc }
}

/// A section, for tables and the reader of defaults: every one that can be reached from this one, itself first.
pub(super) fn sections(from: &'static Section) -> Vec<&'static Section> {
    let inner = from.keys().filter_map(|key| {
        key.kind.find(&|kind| match kind {
            Kind::Section(section) | Kind::Tables(section) => Some(*section),
            _ => None,
        })
    });
    std::iter::once(from).chain(inner.flat_map(sections)).collect()
}

/// The defaults of all sections as one document: a table of the section's path for each.
static DEFAULTS: LazyLock<DeTable<'static>> = LazyLock::new(|| {
    let mut text = String::new();
    for section in sections(&super::described::FILE) {
        // A string takes every write.
        let _ = writeln!(text, "[\"{}\"]", section.path);
        for key in section.keys() {
            if let Absent::Default(default) = key.absent {
                let _ = writeln!(text, "{} = {default}", key.name);
            }
        }
    }
    // Kept for good, as the values borrow from it.
    DeTable::parse(text.leak()).expect("the defaults are TOML").into_inner()
});

/// The default of a key, as if it stood in a file.
pub(super) fn default_of(
    section: &Section,
    name: &str,
) -> Option<(&'static Spanned<DeString<'static>>, &'static Spanned<DeValue<'static>>)> {
    DEFAULTS.get(section.path)?.get_ref().as_table()?.get_key_value(name)
}

/// A table without keys.
pub(super) static EMPTY: LazyLock<DeTable<'static>> = LazyLock::new(DeTable::new);
