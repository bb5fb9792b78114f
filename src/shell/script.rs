//! Where statements begin and end in a text: at a `;` that is in no string, name or comment. A command is a line that
//! begins with a backslash where a statement could begin.

/// A statement or a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    line: usize,
    text: String,
}

impl Piece {
    /// The line of the text on which it begins, from 1.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn is_command(&self) -> bool {
        self.text.starts_with('\\')
    }
}

/// Splits a text; what is only comments is no piece.
pub(super) fn split(text: &str) -> Vec<Piece> {
    scan(text).0
}

/// Whether the last statement of a text has its `;`.
pub(super) fn is_complete(text: &str) -> bool {
    scan(text).1
}

/// The quotation mark of the string or name in which a text ends.
pub(super) fn open_quote(text: &str) -> Option<char> {
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = token(rest);
        let is_quoted = matches!(first, '\'' | '"');
        if is_quoted && length == rest.len() && (length == 1 || !rest.ends_with(first)) {
            return Some(first);
        }
        rest = &rest[length..];
    }
    None
}

/// The pieces, and whether the text ends between two statements.
fn scan(text: &str) -> (Vec<Piece>, bool) {
    let mut pieces = Vec::new();
    let (mut start, mut at) = (None, 0);
    let line_of = |at: usize| text[..at].matches('\n').count() + 1;
    let piece = |from: usize, to: usize| Piece { line: line_of(from), text: text[from..to].trim().to_owned() };
    while at < text.len() {
        let rest = &text[at..];
        let length = token(rest);
        let is_blank = rest.starts_with(char::is_whitespace) || rest.starts_with("--") || rest.starts_with("/*");
        match start {
            None if rest.starts_with('\\') => {
                let end = rest.find('\n').map_or(text.len(), |end| at + end);
                pieces.push(piece(at, end));
                at = end;
                continue;
            }
            None if rest.starts_with(';') || is_blank => {}
            None => start = Some(at),
            Some(from) if rest.starts_with(';') => {
                pieces.push(piece(from, at + 1));
                start = None;
            }
            Some(_) => {}
        }
        at += length;
    }
    pieces.extend(start.map(|from| piece(from, text.len())));
    (pieces, start.is_none())
}

/// Bytes of the string, name or comment at the start of a text, or of its first character; all of it if it does not end.
fn token(text: &str) -> usize {
    let until = |from: usize, end: &str| text[from..].find(end).map_or(text.len(), |at| from + at + end.len());
    match text.as_bytes() {
        // A doubled mark is the end of one string and the start of the next, which comes to the same.
        [b'\'', ..] => until(1, "'"),
        [b'"', ..] => until(1, "\""),
        [b'-', b'-', ..] => until(2, "\n"),
        [b'/', b'*', ..] => until(2, "*/"),
        [b'$', b'$', ..] => until(2, "$$"),
        _ => text.chars().next().map_or(0, char::len_utf8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_end_at_semicolons_of_their_own() {
        let text = "-- first; not here\nSELECT ';' AS \"a;b\", 'it''s;'; /* ; */\n\\d t ; x\nSELECT\n 2";
        let pieces = split(text);
        let found: Vec<(usize, &str)> = pieces.iter().map(|piece| (piece.line(), piece.text())).collect();
        assert_eq!(found, [(2, "SELECT ';' AS \"a;b\", 'it''s;';"), (3, "\\d t ; x"), (4, "SELECT\n 2")]);
        assert!(split(" ; -- nothing\n/* at all */;").is_empty());
    }

    #[test]
    fn a_statement_is_complete_with_its_semicolon() {
        for text in ["", "SELECT 1;", "SELECT 1; -- done", "SELECT 1; SELECT 'é;';\n", "\\d"] {
            assert!(is_complete(text), "{text}");
        }
        for text in ["SELECT 1", "SELECT ';", "SELECT 1; SELECT", "SELECT 1 -- ;", "SELECT /* ;"] {
            assert!(!is_complete(text), "{text}");
        }
    }

    #[test]
    fn an_open_string_is_seen() {
        assert_eq!(open_quote("SELECT 'a''b', predict('mod"), Some('\''));
        assert_eq!(open_quote("SELECT \"na"), Some('"'));
        assert_eq!(open_quote("SELECT '"), Some('\''));
        assert_eq!(open_quote("SELECT 'a' -- it's"), None);
    }
}
