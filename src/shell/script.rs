//! Splits a text into statements and commands.
//!
//! A statement ends at a `;` outside of strings, quoted names and comments. A command is a line that begins with a
//! backslash, or with a dot and a word, where a statement could begin. The comments before a statement belong to it, as
//! they may declare its parameters.
//!
//! Strings, names and comments are recognized as the parser does: `E'…'` has escapes, block comments nest, and
//! `$tag$…$tag$` may contain anything.

/// A statement or a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    line: usize,
    text: String,
    placed: String,
}

impl Piece {
    /// The line of the text on which it begins, counted from 1.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Returns the statement with the comments before it, padded to its line and column in the whole text, so that
    /// positions in error messages refer to the whole text.
    pub(super) fn placed(&self) -> &str {
        &self.placed
    }
}

/// Splits a text. Comments alone do not make a piece.
pub(super) fn split(text: &str) -> Vec<Piece> {
    scan(text).0
}

/// Returns true if the last statement of a text ends with `;`.
pub(super) fn is_complete(text: &str) -> bool {
    scan(text).1
}

/// Returns the quotation mark of a string or name that is still open at the end of a text, with its offset.
pub(super) fn open_quote(text: &str) -> Option<(char, usize)> {
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let (length, ends) = token(text, at);
        if matches!(first, '\'' | '"' | '`') && !ends {
            return Some((first, at));
        }
        at += length;
    }
    None
}

/// Returns the pieces, and true if the text ends between two statements.
fn scan(text: &str) -> (Vec<Piece>, bool) {
    let mut pieces = Vec::new();
    // The offsets of the current statement, of the comments before it, and of the end of the previous statement.
    let (mut start, mut comments, mut ended) = (None, None, None);
    let mut all_end = true;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let (length, ends) = token(text, at);
        let is_comment = rest.starts_with("--") || rest.starts_with("/*");
        match start {
            None if is_command(rest) => {
                let end = rest.find('\n').map_or(text.len(), |end| at + end);
                pieces.push(piece(text, at, at, end));
                (at, comments, ended) = (end, None, Some(end));
                continue;
            }
            None if rest.starts_with(';') => (comments, ended) = (None, Some(at)),
            // A comment after a statement on the same line belongs to that statement.
            None if is_comment && ended.is_some_and(|ended: usize| !text[ended..at].contains('\n')) => {}
            None if is_comment => comments = comments.or(Some(at)),
            None if rest.starts_with(char::is_whitespace) => {}
            None => start = Some(at),
            Some(from) if rest.starts_with(';') => {
                pieces.push(piece(text, comments.unwrap_or(from), from, at + 1));
                (start, comments, ended) = (None, None, Some(at));
            }
            Some(_) => {}
        }
        all_end = ends;
        at += length;
    }
    let is_between = start.is_none() && all_end;
    pieces.extend(start.map(|from| piece(text, comments.unwrap_or(from), from, text.len())));
    (pieces, is_between)
}

fn piece(text: &str, comments: usize, from: usize, to: usize) -> Piece {
    let line_of = |at: usize| text[..at].matches('\n').count();
    let column = text[..comments].rsplit('\n').next().unwrap_or_default().chars().count();
    let placed = format!("{}{}{}", "\n".repeat(line_of(comments)), " ".repeat(column), text[comments..to].trim_end());
    Piece { line: line_of(from) + 1, text: text[from..to].trim().to_owned(), placed }
}

/// Returns true if a text begins with a command, in the syntax of `psql` or that of `duckdb` and `sqlite3`.
fn is_command(text: &str) -> bool {
    text.starts_with('\\')
        || text.strip_prefix('.').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphabetic()))
}

/// Returns the length in bytes of the string, name, comment or character at an offset, and true if it is terminated. An
/// unterminated one extends to the end of the text.
fn token(text: &str, at: usize) -> (usize, bool) {
    let rest = &text[at..];
    let until = |from: usize, end: &str| match rest[from..].find(end) {
        Some(found) => (from + found + end.len(), true),
        None => (rest.len(), false),
    };
    match rest.as_bytes() {
        [b'\'', ..] if has_escapes(&text[..at]) => escaped(rest),
        // A doubled quotation mark reads as the end of one string and the start of the next, with the same result.
        [b'\'', ..] => until(1, "'"),
        [b'"', ..] => until(1, "\""),
        [b'`', ..] => until(1, "`"),
        // The end of the text also ends a line comment.
        [b'-', b'-', ..] => (until(2, "\n").0, true),
        [b'/', b'*', ..] => comment(rest),
        [b'$', ..] => match tag(rest) {
            Some(tag) => until(tag.len(), tag),
            None => (1, true),
        },
        _ => (rest.chars().next().map_or(0, char::len_utf8), true),
    }
}

/// Returns true if a string that follows this text has escapes: `E'…'`.
fn has_escapes(before: &str) -> bool {
    let word = before.trim_end_matches(|c: char| c.is_alphanumeric() || c == '_');
    matches!(&before[word.len()..], "E" | "e")
}

/// Returns the length of the string with escapes at the start of a text, and true if it is terminated.
fn escaped(text: &str) -> (usize, bool) {
    let mut at = 1;
    while at < text.len() {
        match text.as_bytes()[at..] {
            [b'\\', _, ..] | [b'\'', b'\'', ..] => at += 2,
            [b'\'', ..] => return (at + 1, true),
            _ => at += 1,
        }
    }
    (text.len(), false)
}

/// Returns the length of the block comment at the start of a text, including nested ones, and true if it is terminated.
fn comment(text: &str) -> (usize, bool) {
    let (mut at, mut depth) = (0, 0);
    while at < text.len() {
        match text.as_bytes()[at..] {
            [b'/', b'*', ..] => (at, depth) = (at + 2, depth + 1),
            [b'*', b'/', ..] if depth == 1 => return (at + 2, true),
            [b'*', b'/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
    }
    (text.len(), false)
}

/// Returns the `$$` or `$tag$` at the start of a text; none for a parameter.
fn tag(text: &str) -> Option<&str> {
    let end = 1 + text[1..].find(|c: char| !(c.is_alphanumeric() || c == '_'))?;
    text[end..].starts_with('$').then(|| &text[..=end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(usize, String)> {
        split(text).iter().map(|piece| (piece.line(), piece.text().to_owned())).collect()
    }

    fn texts(text: &str) -> Vec<String> {
        found(text).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn statements_end_at_top_level_semicolons() {
        let text = "-- first; not here\nSELECT ';' AS \"a;b\", 'it''s;'; /* ; */\n\\d t ; x\nSELECT\n 2";
        let expected = [(2, "SELECT ';' AS \"a;b\", 'it''s;';"), (3, "\\d t ; x"), (4, "SELECT\n 2")];
        assert_eq!(found(text), expected.map(|(line, text)| (line, text.to_owned())));
        assert!(split(" ; -- nothing\n/* at all */;").is_empty());
    }

    #[test]
    fn semicolons_in_strings_and_comments_end_no_statement() {
        for one in [
            "SELECT 1 -- it's; not\"\n + 1;",
            "SELECT /* a /* b; */ it's; */ 1;",
            "SELECT E'it\\'s;' || e'a''b\\\\';",
            "SELECT `a;b`, $$a;'b$$, $x$ ; $$ ; $x$;",
            "SELECT 'C:\\';",
            "SELECT \"E\" 'a;';",
        ] {
            assert_eq!(texts(one), [one], "{one}");
        }
        // A parameter is not a tag, and a name that ends in `e` does not start an escape string.
        assert_eq!(texts("SELECT $a; SELECT $b;").len(), 2);
        assert_eq!(texts("SELECT DATE '\\'; SELECT 2").len(), 2);
        assert_eq!(texts(".tables\nSELECT .5;\n.quit"), [".tables", "SELECT .5;", ".quit"]);
    }

    #[test]
    fn comments_belong_to_the_next_statement_and_keep_positions() {
        let text =
            "\\timing -- é\nSELECT 1; -- about the first\n\n-- $x = 1\n/* b */ SELECT $x; SELEC\n-- nothing\n\\q";
        let pieces = split(text);
        let placed: Vec<_> = pieces.iter().map(Piece::placed).collect();
        let third = format!("\n\n\n\n{}SELEC\n-- nothing\n\\q", " ".repeat("/* b */ SELECT $x; ".len()));
        assert_eq!(placed, ["\\timing -- é", "\nSELECT 1;", "\n\n\n-- $x = 1\n/* b */ SELECT $x;", &third]);
        assert_eq!(pieces.iter().map(Piece::line).collect::<Vec<_>>(), [1, 2, 5, 5]);
        // Columns count characters, not bytes.
        assert_eq!(split("SELECT 'é'; SELEC 1")[1].placed(), format!("{}SELEC 1", " ".repeat(12)));
        assert_eq!(split("SELECT 1;\r\nSELEC 2;\r\n")[1].placed(), "\nSELEC 2;");
    }

    #[test]
    fn a_statement_is_complete_with_its_semicolon() {
        for text in ["", "SELECT 1;", "SELECT 1; -- done", "SELECT 1; SELECT 'é;';\n", "\\d", "-- it's", ".tables"] {
            assert!(is_complete(text), "{text}");
        }
        for text in ["SELECT 1", "SELECT ';", "SELECT 1; SELECT", "SELECT 1 -- ;", "SELECT /* ;", "/* a", "/* /* */"] {
            assert!(!is_complete(text), "{text}");
        }
    }

    #[test]
    fn an_open_string_is_detected() {
        assert_eq!(open_quote("SELECT 'a''b', predict('mod"), Some(('\'', 23)));
        assert_eq!(open_quote("SELECT \"na"), Some(('"', 7)));
        assert_eq!(open_quote("SELECT '"), Some(('\'', 7)));
        assert_eq!(open_quote("SELECT 'a' -- it's"), None);
        assert_eq!(open_quote("SELECT ''"), None);
    }
}
