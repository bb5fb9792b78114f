//! One value of a pipeline file and the methods that read it. Each returns the value or records a problem.

use std::ops::Range;
use std::time::Duration;

use couplet_storage::place::{Problem, resolve, resolve_local, resolve_model};
use couplet_tables::tables::Location;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::key::{Kind, Numbers, Section};
use super::pipeline::{LocalPath, Sql};
use super::problem::position;
use super::reader::{Keys, Read, Reader, Reported, join, listed};
use super::variables::{Placeholder, placeholders, substitute};

/// A named value of a key: its name in the file and its meaning.
pub(super) type Choice<T> = (&'static str, T);

/// Returns the names of the choices.
pub(super) fn names<T>(choices: &[Choice<T>]) -> Vec<&'static str> {
    choices.iter().map(|&(name, _)| name).collect()
}

/// One value of the file.
pub(super) struct Item<'r> {
    pub(super) reader: &'r Reader<'r>,
    /// The values that the key takes.
    pub(super) kind: &'static Kind,
    /// The dotted path of the key, as in `model.max_length`.
    pub(super) path: String,
    pub(super) key: &'r Spanned<DeString<'r>>,
    pub(super) value: &'r Spanned<DeValue<'r>>,
}

impl<'r> Item<'r> {
    /// Returns the part of the key's description that `pick` selects.
    ///
    /// # Panics
    /// If the description has no such part, which is a bug.
    fn described<T>(&self, pick: &dyn Fn(&'static Kind) -> Option<T>) -> T {
        self.kind.find(pick).unwrap_or_else(|| unreachable!("`{}` is read as what it is not described as", self.path))
    }

    /// Records a problem; it points at the value, unless it already has a span.
    pub(super) fn refuse(&self, problem: Problem) -> Reported {
        self.reader.report(if problem.span.is_some() { problem } else { problem.at(self.value.span()) })
    }

    /// Reads a string.
    pub(super) fn string(&self) -> Read<&'r str> {
        let value = self.value.get_ref();
        value.as_str().ok_or_else(|| {
            let fix = match value {
                DeValue::Array(array) => match array.iter().next() {
                    Some(only) if array.len() == 1 && only.get_ref().is_str() => Some(self.text_of(only)),
                    _ => None,
                },
                DeValue::Table(_) => None,
                _ => Some(format!("\"{}\"", self.text_of(self.value))),
            };
            self.unexpected("a string", fix)
        })
    }

    /// Reads a string that is not blank.
    pub(super) fn non_blank(&self) -> Read<&'r str> {
        let text = self.string()?;
        if text.trim().is_empty() {
            let problem = Problem::new(format!("`{}` is empty", self.path), "empty");
            return Err(self.refuse(problem.help("write a value between the quotation marks")));
        }
        Ok(text)
    }

    /// Reads a string that is not blank, such as the name of a column.
    pub(super) fn text(&self) -> Read<String> {
        self.non_blank().map(str::to_owned)
    }

    /// Reads a boolean.
    pub(super) fn boolean(&self) -> Read<bool> {
        self.value
            .get_ref()
            .as_bool()
            .ok_or_else(|| self.unexpected("true or false", self.unquoted(|text| text.parse::<bool>().is_ok())))
    }

    /// Reads an integer in the range of its key.
    pub(super) fn integer(&self) -> Read<usize> {
        let range = self.described(&|kind| if let Kind::Integer(range) = kind { Some(range) } else { None });
        let value = self.value.get_ref();
        let Some(integer) = value.as_integer() else {
            let integral = value.as_float().and_then(|float| float.as_str().strip_suffix(".0")).map(str::to_owned);
            let fix = self.unquoted(|text| text.parse::<i64>().is_ok()).or(integral);
            return Err(self.unexpected("an integer", fix));
        };
        let (start, end) = (range.start(), range.end());
        match usize::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if range.contains(&number) => Ok(number),
            Ok(_) if *end == usize::MAX => Err(self.out_of_range(&format!("{start} or more"))),
            _ => Err(self.out_of_range(&format!("{start} to {end}"))),
        }
    }

    /// Reads a share, 0 to 1.
    pub(super) fn share(&self) -> Read<f64> {
        self.float()?
            .filter(|share| (0.0..=1.0).contains(share))
            .ok_or_else(|| self.out_of_range("0 to 1, a share of the rows"))
    }

    /// Reads a number in the range of its key.
    pub(super) fn number(&self) -> Read<f64> {
        let numbers = self.described(&|kind| if let Kind::Number(numbers) = kind { Some(*numbers) } else { None });
        let Numbers { low, with_low, high } = numbers;
        let fits = |x: &f64| (*x > low || with_low && *x >= low) && *x < high;
        self.float()?.filter(fits).ok_or_else(|| {
            let from = if with_low { format!("{low} or more") } else { format!("above {low}") };
            self.out_of_range(&if high >= f64::MAX { from } else { format!("{from} and below {high}") })
        })
    }

    /// Reads a number; `None` if it is not finite.
    fn float(&self) -> Read<Option<f64>> {
        let number = match self.value.get_ref() {
            DeValue::Float(float) => float.as_str().parse::<f64>().ok(),
            DeValue::Integer(integer) => integer.as_str().parse::<f64>().ok(),
            _ => {
                return Err(self.unexpected("a number", self.unquoted(|text| text.parse::<f64>().is_ok())));
            }
        };
        Ok(number.filter(|number| number.is_finite()))
    }

    /// Reads a duration: `"90s"`, `"5m"`, `"1h"`.
    pub(super) fn duration(&self) -> Read<Duration> {
        if let Some(number) = self.value.get_ref().as_integer() {
            return Err(self.unexpected("a length of time", Some(format!("\"{}s\"", number.as_str()))));
        }
        let text = self.non_blank()?;
        super::duration(text).ok_or_else(|| {
            let problem = Problem::new(format!("`{}` cannot be \"{text}\"", self.path), "not a length of time");
            self.refuse(problem.allowed("a whole number with ms, s, m or h, as in \"60s\""))
        })
    }

    /// Reads a number of bytes: `"512MiB"`, `"4GiB"`, `"4 GB"`.
    pub(super) fn bytes(&self) -> Read<u64> {
        if let Some(number) = self.value.get_ref().as_integer() {
            // Guesses the unit of a number without one by its magnitude.
            let fix = match number.as_str().parse::<u64>() {
                Ok(number @ 1..=64) => Some(format!("\"{number}GiB\"")),
                Ok(number @ 65..0x10_0000) => Some(format!("\"{number}MiB\"")),
                Ok(number @ 0x100_0000..) => Some(format!("\"{}MiB\"", number >> 20)),
                _ => Some("\"4GiB\"".into()),
            };
            return Err(self.unexpected("an amount of memory", fix));
        }
        let text = self.non_blank()?;
        let bytes = super::bytes(text);
        bytes.filter(|bytes| *bytes >= 16 << 20).ok_or_else(|| {
            let problem = Problem::new(format!("`{}` cannot be \"{text}\"", self.path), "not an amount of memory");
            self.refuse(problem.allowed("a whole number with MiB, GiB, MB or GB, at least 16 MiB, as in \"4GiB\""))
        })
    }

    pub(super) fn is_text(&self) -> bool {
        self.value.get_ref().is_str()
    }

    /// Reads one of the choices.
    pub(super) fn choice<T: Copy>(&self, choices: &[Choice<T>]) -> Read<T> {
        let text = self.string()?;
        debug_assert!(
            self.kind
                .find(&|kind| matches!(kind, Kind::Choice(all) if all() == names(choices)).then_some(()))
                .is_some(),
            "`{}` has other choices than it is described with",
            self.path
        );
        if let Some(&(_, meaning)) = choices.iter().find(|&&(name, _)| name == text) {
            return Ok(meaning);
        }
        let problem = Problem::new(format!("`{}` cannot be \"{text}\"", self.path), "unknown value");
        Err(self.refuse(problem.suggest(text, names(choices)).allowed(names(choices).join(", "))))
    }

    /// Returns the elements of a list; a single string counts as a list of one.
    pub(super) fn elements(&self) -> Read<Vec<Self>> {
        let element = |value, path| Item { reader: self.reader, kind: self.kind, path, key: self.key, value };
        match self.value.get_ref() {
            DeValue::String(_) => Ok(vec![element(self.value, self.path.clone())]),
            DeValue::Array(array) => {
                let path = |index| format!("{}[{index}]", self.path);
                Ok(array.iter().enumerate().map(|(index, value)| element(value, path(index))).collect())
            }
            _ => Err(self.unexpected("a list of names", None)),
        }
    }

    /// Reads a list of names, or a single name. The list must not be empty, and no name may be empty or repeated.
    pub(super) fn names(&self) -> Read<Vec<String>> {
        let elements = self.elements()?;
        let mut names = Vec::with_capacity(elements.len());
        for element in &elements {
            let name = element.non_blank()?;
            if let Some(first) = names.iter().position(|earlier| earlier == name) {
                let message = format!("`{}` names \"{name}\" twice", self.path);
                let problem = Problem::new(message, "the same name again").help("remove one of the two");
                return Err(element.refuse(problem.related(elements[first].value.span(), "named here")));
            }
            names.push(name.to_owned());
        }
        if names.is_empty() {
            let problem = Problem::new(format!("`{}` names no column", self.path), "empty list");
            return Err(self.refuse(problem.help("name at least one column")));
        }
        Ok(names)
    }

    /// Reads a string and replaces its variables.
    pub(super) fn template(&self) -> Read<String> {
        let text = self.non_blank()?;
        self.reader.mention(text);
        match substitute(text, self.reader.variables) {
            Ok((replaced, _)) => Ok(replaced),
            Err(_) => Err(self.report_unknown_variables(text)),
        }
    }

    /// Reads SQL.
    pub(super) fn sql(&self) -> Read<Sql> {
        let text = self.template()?;
        let span = self.value.span();
        // If the file has syntax errors, spans may be out of bounds.
        let raw = self.reader.text.get(span.clone());
        let start = raw.map(|raw| span.start + raw.len() - body_of(raw).len());
        let (line, column) = start.map_or((0, 0), |start| position(self.reader.text, start));
        Ok(Sql { text, line, column })
    }

    /// Reads the location of a file or folder.
    pub(super) fn location(&self) -> Read<Location> {
        let written = self.non_blank()?;
        let place = resolve(self.reader.folder, &self.template()?).map_err(|problem| self.refuse(problem))?;
        Ok(Location { written: written.to_owned(), place })
    }

    /// Reads the location of a model folder, which may be on a hub.
    pub(super) fn model(&self) -> Read<Location> {
        let written = self.non_blank()?;
        let place = resolve_model(self.reader.folder, &self.template()?).map_err(|problem| self.refuse(problem))?;
        Ok(Location { written: written.to_owned(), place })
    }

    /// Reads the path of a file or folder that must be on the local disk.
    pub(super) fn local_path(&self) -> Read<LocalPath> {
        let written = self.non_blank()?;
        let path = resolve_local(self.reader.folder, &self.template()?, &self.path);
        Ok(LocalPath { written: written.to_owned(), path: path.map_err(|problem| self.refuse(problem))? })
    }

    pub(super) fn is_table(&self) -> bool {
        self.value.get_ref().is_table()
    }

    /// Returns true if the value is a table with this key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.value.get_ref().as_table().is_some_and(|table| table.contains_key(key))
    }

    /// Reads a table of known keys.
    pub(super) fn table<T>(&self, read: impl FnOnce(&mut Keys<'r>) -> Read<T>) -> Read<T> {
        Keys::read(self.reader, self.section(), self.path.clone(), self.value.span(), self.table_value()?, read)
    }

    /// Returns the section that describes the keys of the table.
    fn section(&self) -> &'static Section {
        self.described(&|kind| match kind {
            Kind::Section(section) | Kind::Tables(section) => Some(*section),
            _ => None,
        })
    }

    /// Reads a table with arbitrary names as keys; returns its values in file order.
    pub(super) fn entries(&self) -> Read<Vec<Self>> {
        let entries = self.table_value()?.iter();
        let entries = entries.map(|(key, value)| {
            let path = join(&self.path, key.get_ref());
            Item { reader: self.reader, kind: self.kind, path, key, value }
        });
        let mut entries: Vec<_> = entries.collect();
        entries.sort_by_key(|item| item.key.span().start);
        Ok(entries)
    }

    fn table_value(&self) -> Read<&'r DeTable<'r>> {
        let example = format!("write a line with `[{}]`, its keys below", self.path);
        self.value.get_ref().as_table().ok_or_else(|| self.refuse(self.wrong_type("a table").help(example)))
    }

    fn report_unknown_variables(&self, text: &str) -> Reported {
        let given = self.reader.variables;
        let mut names: Vec<&str> = Vec::new();
        let mut spans: Vec<Range<usize>> = Vec::new();
        let unknown = |placeholder: &Placeholder<'_>| !placeholder.literal && !given.contains_key(placeholder.name);
        for placeholder in placeholders(text).filter(unknown) {
            if !names.contains(&placeholder.name) {
                names.push(placeholder.name);
            }
            spans.push(self.inside(placeholder.span));
        }
        spans.dedup();
        let noun = if names.len() == 1 { "variable" } else { "variables" };
        let flags: Vec<_> = names.iter().map(|name| format!("--var {name}=…")).collect();
        let given = if given.is_empty() {
            "no variable was given".to_owned()
        } else {
            format!("given: {}", listed(given.keys().map(String::as_str)))
        };
        let problem = Problem::new(format!("{noun} {} not given", listed(names)), "not given")
            .help(format!("add `{}` to the command; {given}", flags.join(" ")));
        let mut spans = spans.into_iter();
        let problem = spans.next().into_iter().fold(problem, Problem::at);
        self.refuse(spans.fold(problem, |problem, span| problem.related(span, "not given")))
    }

    /// Returns the span in the file of a part of this string, or the span of the whole string if escapes make the part
    /// ambiguous.
    fn inside(&self, part: Range<usize>) -> Range<usize> {
        let span = self.value.span();
        let (Some(text), Some(raw)) = (self.value.get_ref().as_str(), self.reader.text.get(span.clone())) else {
            return span;
        };
        let body = body_of(raw);
        let body_start = span.start + raw.len() - body.len();
        match (source_offset(body, text, part.start), source_offset(body, text, part.end)) {
            (Some(start), Some(end)) => body_start + start..body_start + end,
            _ => span,
        }
    }

    /// Returns the text of a string that is valid without quotes.
    fn unquoted(&self, fits: impl FnOnce(&str) -> bool) -> Option<String> {
        self.value.get_ref().as_str().filter(|text| fits(text)).map(str::to_owned)
    }

    /// Records a value of the wrong type; `fix` is the corrected value.
    fn unexpected(&self, wanted: &str, fix: Option<String>) -> Reported {
        let problem = self.wrong_type(wanted);
        self.refuse(match fix {
            // A list element has no key, so only the value is shown.
            Some(fix) if self.path.ends_with(']') => problem.help(format!("write `{fix}`")),
            Some(fix) => problem.help(format!("write `{} = {fix}`", self.key.get_ref())),
            None => problem,
        })
    }

    pub(super) fn wrong_type(&self, wanted: &str) -> Problem {
        let found = match self.value.get_ref() {
            DeValue::Array(_) => "a list".to_owned(),
            DeValue::Table(_) => "a table".to_owned(),
            scalar => format!("the {} {}", scalar.type_str(), self.text_of(self.value)),
        };
        Problem::new(format!("`{}` must be {wanted}, not {found}", self.path), format!("expected {wanted}"))
    }

    fn out_of_range(&self, allowed: &str) -> Reported {
        let message = format!("`{}` cannot be {}", self.path, self.text_of(self.value));
        self.refuse(Problem::new(message, "out of range").allowed(allowed))
    }

    /// Returns the source text of a value, shortened to its first line and 40 characters.
    fn text_of(&self, value: &Spanned<DeValue<'_>>) -> String {
        const MAX_CHARS: usize = 40;
        let written = &self.reader.text[value.span()];
        let shown: String = written.chars().take_while(|&char| char != '\n').take(MAX_CHARS).collect();
        if shown.len() < written.len() { format!("{shown}…") } else { shown }
    }
}

/// Returns the source text of a string after its opening quotes.
fn body_of(raw: &str) -> &str {
    let is_multiline = raw.starts_with("\"\"\"") || raw.starts_with("'''");
    let quotes = if is_multiline { 3 } else { 1 };
    let body = raw.get(quotes..).unwrap_or(raw);
    // TOML drops a newline right after the opening quotes.
    if is_multiline { body.strip_prefix("\r\n").or(body.strip_prefix('\n')).unwrap_or(body) } else { body }
}

/// Maps a byte offset in the parsed text of a string to the offset in its source; `None` if escapes come before it. A
/// line may end with CR LF in the source and with LF in the parsed text.
fn source_offset(body: &str, text: &str, offset: usize) -> Option<usize> {
    let (mut body, mut text, length) = (body, &text[..offset], body.len());
    while let Some(char) = text.chars().next() {
        text = &text[char.len_utf8()..];
        let written = if char == '\n' && body.starts_with("\r\n") { "\r\n".len() } else { char.len_utf8() };
        let same = body.starts_with(char) || written > char.len_utf8();
        body = same.then(|| &body[written..])?;
    }
    Some(length - body.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_in_a_string_map_to_the_file() {
        assert_eq!(source_offset("é\r\n{x}", "é\n{x}", 3), Some(4));
        assert_eq!(source_offset("é\r\n{x}", "é\r\n{x}", 4), Some(4));
        assert_eq!(source_offset("a\\t{x}", "a\t{x}", 2), None);
        assert_eq!([body_of("\"a\""), body_of("'''\r\nb'''"), body_of("\"\"\"c\"\"\"")], ["a\"", "b'''", "c\"\"\""]);
    }
}
