//! Escapes untrusted text for terminals: column names, model labels, server messages. Escaped text cannot move the
//! cursor, change the window title, hide adjacent text or start a line that looks like couplet's own.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Returns true for control characters and for characters that change the text direction.
fn is_active(char: char) -> bool {
    char.is_control() || matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escape(text: &str, is_active: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_active) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        if is_active(char) {
            out.extend(char.escape_default());
        } else {
            out.push(char);
        }
    }
    Cow::Owned(out)
}

/// Escapes multi-line text or a table: control characters become `\u{1b}` and the like. Newlines and tabs stay.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(text, |char| is_active(char) && !matches!(char, '\n' | '\t'))
}

/// Escapes text that must stay on one line: newlines become `\n`.
pub fn in_line(text: &str) -> Cow<'_, str> {
    escape(text, is_active)
}

/// Escapes a JSON document: control characters in its strings become JSON escapes.
#[must_use]
pub fn json(document: &str) -> Cow<'_, str> {
    let is_active = |char: char| is_active(char) && !matches!(char, '\n' | '\t' | '\r');
    if !document.contains(is_active) {
        return Cow::Borrowed(document);
    }
    let mut out = String::with_capacity(document.len() + 16);
    for char in document.chars() {
        if is_active(char) {
            let _ = write!(out, "\\u{:04x}", u32::from(char));
        } else {
            out.push(char);
        }
    }
    Cow::Owned(out)
}

/// Replaces control characters by printable ones of the same length in bytes, so that spans of the text stay valid.
#[must_use]
pub fn of_same_length(text: &str) -> Cow<'_, str> {
    let is_active = |char: char| is_active(char) && !matches!(char, '\n' | '\t' | '\r');
    if !text.contains(is_active) {
        return Cow::Borrowed(text);
    }
    let shown = |char: char| match (is_active(char), char.len_utf8()) {
        (false, _) => char,
        (true, 1) => '?',
        (true, 2) => '\u{bf}',
        (true, _) => char::REPLACEMENT_CHARACTER,
    };
    Cow::Owned(text.chars().map(shown).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_shown() {
        assert!(matches!(printable("naïve\t文\n"), Cow::Borrowed("naïve\t文\n")));
        assert_eq!(printable("a\u{1b}]0;b\u{7}\r\n\u{9b}2J\u{202e}"), "a\\u{1b}]0;b\\u{7}\\r\n\\u{9b}2J\\u{202e}");
        assert_eq!(in_line("a\nerror: b\tc\u{7f}"), "a\\nerror: b\\tc\\u{7f}");
    }

    #[test]
    fn json_stays_json() {
        let value = serde_json::json!({ "a\u{9b}": "\u{1b}[31m\u{202e}\u{7f}\n" });
        let text = format!("{value:#}\n");
        let shown = json(&text);
        assert!(!shown.contains(|char| is_active(char) && char != '\n'), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }

    #[test]
    fn spans_stay_where_they_are() {
        let text = "a\u{1b}b\u{9b}c\u{202e}d\r\n";
        let shown = of_same_length(text);
        assert_eq!(shown, "a?b\u{bf}c\u{fffd}d\r\n");
        assert_eq!(shown.len(), text.len());
        assert_eq!(shown.find('d'), text.find('d'));
    }
}
