//! Turns the errors of the TOML parser into problems that name a fix.
//!
//! The parser continues after an error, so the rest of the file is checked too. Its recovery is a guess, however:
//! values on the line of an error, or after an unclosed bracket, are not trusted.
//!
//! The errors of `toml` (1.2) have no kinds, so only their messages tell them apart.

use std::ops::Range;

use couplet_storage::place::Problem;
use couplet_storage::words::closest;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Error};

/// The syntax errors of a file.
pub(super) struct Syntax {
    problems: Vec<Problem>,
    /// The byte offset after which the parser's recovery is not trusted.
    untrusted_from: usize,
}

impl Syntax {
    pub(super) fn new(text: &str, document: &DeTable<'_>, errors: &[Error]) -> Self {
        let (errors, mut untrusted_from) = first_of(errors);
        let spans: Vec<_> = errors.iter().map(|error| place(error)).collect();
        let mut problems = Vec::with_capacity(errors.len());
        for (error, span) in errors.iter().zip(&spans) {
            let problem = describe(text, document, &spans, error.message(), span);
            if is_unrecoverable(error) {
                untrusted_from = untrusted_from.min(start(&problem));
            }
            problems.push(problem);
        }
        problems.sort_by_key(start);
        problems.retain(|problem| start(problem) <= untrusted_from);
        // One mistake often causes several errors; only the first of each line is kept.
        problems.dedup_by_key(|problem| line_of(text, start(problem)));
        Self { problems, untrusted_from }
    }

    pub(super) fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    pub(super) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Returns true if the value parsed from a span can be trusted.
    pub(super) fn trusts(&self, text: &str, span: &Range<usize>) -> bool {
        // The parser uses an empty span for a value that it could not read.
        self.is_clean()
            || !span.is_empty()
                && span.start < self.untrusted_from
                && !self.problems.iter().any(|problem| line_of(text, start(problem)) == line_of(text, span.start))
    }
}

/// Returns the errors worth reporting, and the offset after which none is. A file of another format, such as CSV,
/// causes an error per line.
fn first_of(errors: &[Error]) -> (Vec<&Error>, usize) {
    const MAX_PROBLEMS: usize = 20;
    let mut sorted: Vec<_> = errors.iter().collect();
    sorted.sort_by_key(|error| place(error).start);
    let end = sorted.get(MAX_PROBLEMS).map_or(usize::MAX, |error| place(error).start);
    let mut first: Vec<_> = sorted.iter().copied().take(MAX_PROBLEMS).collect();
    first.extend(sorted.into_iter().skip(MAX_PROBLEMS).filter(|error| is_unrecoverable(error)).take(MAX_PROBLEMS));
    (first, end)
}

fn place(error: &Error) -> Range<usize> {
    error.span().unwrap_or(0..0)
}

/// Returns true if the parser cannot find the end of the broken part, and treats the rest of the file as part of it.
fn is_unrecoverable(error: &Error) -> bool {
    ["unclosed", "key with no value"].iter().any(|message| error.message().starts_with(message))
}

fn start(problem: &Problem) -> usize {
    problem.span.as_ref().map_or(0, |span| span.start)
}

fn line_of(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count()
}

/// Converts an error of the parser to a problem.
fn describe(
    text: &str,
    document: &DeTable<'_>,
    errors: &[Range<usize>],
    message: &str,
    span: &Range<usize>,
) -> Problem {
    let (before, written) = (&text[..span.start], &text[span.clone()]);
    let problem = if written.starts_with(char::is_alphabetic) && !message.starts_with("duplicate") {
        bare_word(written)
    } else if message.starts_with("string values must be quoted") {
        Problem::new("a value is missing", "missing value").help("write for example `name = \"value\"`")
    } else if message == "duplicate key" {
        duplicate(document, before, written)
    } else if let Some(opening) = never_closed(text, document, errors, message, span) {
        return opening;
    } else if message.starts_with("missing escaped value") && before.ends_with('\\') {
        let escape = span.start - 1..span.start + text[span.start..].chars().next().map_or(0, char::len_utf8);
        return Problem::new(format!("unknown escape `{}` in a string", &text[escape.clone()]), "unknown escape")
            .help("write `\\\\` for a backslash, or put the string in single quotation marks")
            .at(escape);
    } else if message.starts_with("unclosed table") {
        Problem::new("a section header is not closed", "not closed").help("close it with `]`")
    } else if text[span.start..].trim_start().starts_with(':') {
        Problem::new("`:` between a key and its value", "not TOML").help("write `key = value`")
    } else {
        Problem::new(message, "not TOML")
    };
    problem.at(span.clone())
}

fn bare_word(word: &str) -> Problem {
    let problem = Problem::new(format!("`{word}` is not a TOML value"), "a string without quotation marks?");
    match closest(word, ["true", "false"]) {
        Some(value) => problem.help(format!("did you mean `{value}`?")),
        None => problem.help(format!("write `\"{word}\"`")),
    }
}

fn duplicate(document: &DeTable<'_>, before: &str, name: &str) -> Problem {
    let problem = if before.trim_end().ends_with('[') {
        Problem::new(format!("section [{name}] is defined twice"), "again").help("put all its keys under one header")
    } else {
        Problem::new(format!("key `{name}` is defined twice"), "again").help("remove one of the two")
    };
    // The first occurrence is in the last section above this one, or at the top of the file.
    let above = document.values().filter(|value| value.span().start < before.len());
    let section = above.max_by_key(|value| value.span().start).and_then(|value| value.get_ref().as_table());
    let first = section.and_then(|section| section.get_key_value(name)).or_else(|| document.get_key_value(name));
    match first.map(|(key, _)| key.span()).filter(|first| first.start < before.len()) {
        Some(first) => problem.related(first, "first here"),
        None => problem,
    }
}

/// Points at the opening delimiter of an unclosed value; the parser points at the position where it gave up.
fn never_closed(
    text: &str,
    document: &DeTable<'_>,
    errors: &[Range<usize>],
    message: &str,
    span: &Range<usize>,
) -> Option<Problem> {
    const DELIMITERS: [(&str, &str); 6] =
        [("\"\"\"", "\"\"\""), ("'''", "'''"), ("\"", "\""), ("'", "'"), ("[", "]"), ("{", "}")];
    let opens = |bracket, value: &Range<usize>| {
        let swallows = |error: &Range<usize>| value.start < error.start && error.start <= value.end;
        text[value.start..].starts_with(bracket) && errors.iter().any(swallows)
    };
    let (what, opened) = if message.starts_with("unclosed array") {
        ("list", last_value(document, &|value| value.get_ref().is_array() && opens('[', &value.span())))
    } else if message.starts_with("unclosed inline table") {
        ("table", last_value(document, &|value| value.get_ref().is_table() && opens('{', &value.span())))
    } else if message.contains("string, expected") {
        ("string", last_value(document, &|value| value.get_ref().is_str() && value.span().end == span.start))
    } else {
        return None;
    };
    let opened = opened?.start;
    let (open, close) = DELIMITERS.iter().find(|(open, _)| text[opened..].starts_with(open))?;
    let problem = Problem::new(format!("a {what} is not closed"), "opened here");
    Some(problem.help(format!("close it with `{close}`")).at(opened..opened + open.len()))
}

/// Returns the span of the last outermost value that meets a condition.
fn last_value(table: &DeTable<'_>, meets: &dyn Fn(&Spanned<DeValue<'_>>) -> bool) -> Option<Range<usize>> {
    let found = table.values().filter_map(|value| match value.get_ref() {
        _ if meets(value) => Some(value.span()),
        DeValue::Table(table) => last_value(table, meets),
        _ => None,
    });
    found.max_by_key(|span| span.start)
}
