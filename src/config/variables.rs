//! Replaces variables: `{date}` in a text is replaced by the value of `--var date=…`.
//!
//! A name is a letter or `_`, then letters, digits and `_`, all ASCII. `{{date}}` is a literal `{date}`. All other
//! braces, such as those of an SQL struct literal, are literal too.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::ops::Range;

/// A variable that a text uses but that was not given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("variable `{name}` was not given")]
pub struct UnknownVariable {
    /// The name of the variable.
    pub name: String,
    /// The byte offset of its `{` in the text.
    pub offset: usize,
}

/// Replaces the variables of a text. Returns the new text and the names of the variables that it used.
///
/// # Errors
/// The first variable of the text that is missing from `variables`.
pub fn substitute<'t>(
    text: &'t str,
    variables: &BTreeMap<String, String>,
) -> Result<(String, BTreeSet<&'t str>), UnknownVariable> {
    let mut replaced = String::with_capacity(text.len());
    let mut used = BTreeSet::new();
    let mut copied = 0;
    for Placeholder { name, span, literal } in placeholders(text) {
        replaced.push_str(&text[copied..span.start]);
        if literal {
            replaced.push_str(&text[span.start + 1..span.end - 1]);
        } else {
            let Some(value) = variables.get(name) else {
                return Err(UnknownVariable { name: name.to_owned(), offset: span.start });
            };
            replaced.push_str(value);
            used.insert(name);
        }
        copied = span.end;
    }
    replaced.push_str(&text[copied..]);
    Ok((replaced, used))
}

/// Returns the names of the variables that a text uses.
#[must_use]
pub fn variables_in(text: &str) -> BTreeSet<&str> {
    placeholders(text).filter(|placeholder| !placeholder.literal).map(|placeholder| placeholder.name).collect()
}

/// One `{name}` or `{{name}}` of a text.
pub(super) struct Placeholder<'t> {
    pub(super) name: &'t str,
    /// The span in the text, braces included.
    pub(super) span: Range<usize>,
    /// True for doubled braces, which are a literal and not a variable.
    pub(super) literal: bool,
}

/// Returns the placeholders of a text, in order.
pub(super) fn placeholders(text: &str) -> impl Iterator<Item = Placeholder<'_>> {
    let mut position = 0;
    iter::from_fn(move || {
        while let Some(brace) = text[position..].find('{') {
            let open = position + brace;
            let found = placeholder_at(text, open, "{{", "}}").or_else(|| placeholder_at(text, open, "{", "}"));
            position = found.as_ref().map_or(open + 1, |placeholder| placeholder.span.end);
            if found.is_some() {
                return found;
            }
        }
        None
    })
}

fn placeholder_at<'t>(text: &'t str, start: usize, open: &str, close: &str) -> Option<Placeholder<'t>> {
    let inner = text[start..].strip_prefix(open)?;
    let length = inner.bytes().take_while(|&byte| byte == b'_' || byte.is_ascii_alphanumeric()).count();
    let (name, rest) = inner.split_at(length);
    let is_name = name.starts_with(|first: char| !first.is_ascii_digit());
    (is_name && rest.starts_with(close)).then(|| Placeholder {
        name,
        span: start..start + open.len() + length + close.len(),
        literal: open.len() == 2,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[track_caller]
    fn becomes(text: &str, expected: &str, expected_used: &[&str]) {
        let (replaced, used) = substitute(text, &given(&[("date", "2026-01-01"), ("_x1", "{date}")])).unwrap();
        assert_eq!(replaced, expected);
        assert_eq!(used.into_iter().collect::<Vec<_>>(), expected_used);
    }

    #[test]
    fn replaces_every_use_and_reports_each_name_once() {
        becomes("dt={date}/{date}.csv", "dt=2026-01-01/2026-01-01.csv", &["date"]);
        becomes("{date}{_x1}", "2026-01-01{date}", &["_x1", "date"]);
    }

    #[test]
    fn leaves_other_braces_alone() {
        for text in ["", "{", "}", "{}", "{ date }", "{a: 1}", "{'a': 1}", "{1a}", "{date", "date}", "é{é}", "{{"] {
            becomes(text, text, &[]);
        }
    }

    #[test]
    fn doubled_braces_around_a_name_are_literal() {
        becomes("{{date}}", "{date}", &[]);
        becomes("{{unknown}} {date}", "{unknown} 2026-01-01", &["date"]);
        becomes("{{{date}}}", "{{date}}", &[]);
        becomes("{{date}", "{2026-01-01", &["date"]);
        becomes("{date}}", "2026-01-01}", &["date"]);
    }

    #[test]
    fn names_the_variables_of_a_text() {
        assert_eq!(variables_in("a/{date}/{x1}/{{y}}/{date}").into_iter().collect::<Vec<_>>(), ["date", "x1"]);
    }

    #[test]
    fn reports_the_first_unknown_variable_and_where_it_is() {
        let error = substitute("é {date} {day} {hour}", &given(&[("date", "x")])).unwrap_err();
        assert_eq!(error, UnknownVariable { name: "day".to_owned(), offset: 10 });
        assert_eq!(error.to_string(), "variable `day` was not given");
    }
}
