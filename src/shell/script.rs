//! Where statements begin and end in a text: at a `;` that is in no string, name or comment. A command is a line that
//! begins with a backslash, or with a dot and a word, where a statement could begin. The comments before a statement
//! belong to it: they may declare its parameters.
//!
//! What a string, a name and a comment are is what the parser takes for one: `E'…'` has escapes, block comments have
//! others in them, and `$tag$…$tag$` has anything.

/// A statement or a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    line: usize,
    text: String,
    placed: String,
}

impl Piece {
    /// The line of the text on which it begins, from 1.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The statement with the comments before it, behind as many lines and columns as in the text: so that whoever
    /// says where something is says where it is there.
    pub(super) fn placed(&self) -> &str {
        &self.placed
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

/// The quotation mark of the string or name in which a text ends, and its place.
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

/// The pieces, and whether the text ends between two statements.
fn scan(text: &str) -> (Vec<Piece>, bool) {
    let mut pieces = Vec::new();
    // Where the statement begins, where the comments before it do, and where the one before ended.
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
            // What stands behind a statement on its line is about that one.
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

/// Whether a text begins with a command, as `psql` has them, or `duckdb` and `sqlite3`.
fn is_command(text: &str) -> bool {
    text.starts_with('\\')
        || text.strip_prefix('.').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphabetic()))
}

/// Bytes of the string, name or comment at a place of a text, or of the character there, and whether it has an end; all
/// of the rest if it has none.
fn token(text: &str, at: usize) -> (usize, bool) {
    let rest = &text[at..];
    let until = |from: usize, end: &str| match rest[from..].find(end) {
        Some(found) => (from + found + end.len(), true),
        None => (rest.len(), false),
    };
    match rest.as_bytes() {
        [b'\'', ..] if has_escapes(&text[..at]) => escaped(rest),
        // A doubled mark is the end of one string and the start of the next, which comes to the same.
        [b'\'', ..] => until(1, "'"),
        [b'"', ..] => until(1, "\""),
        [b'`', ..] => until(1, "`"),
        // The end of the text ends a line too.
        [b'-', b'-', ..] => (until(2, "\n").0, true),
        [b'/', b'*', ..] => comment(rest),
        [b'$', ..] => match tag(rest) {
            Some(tag) => until(tag.len(), tag),
            None => (1, true),
        },
        _ => (rest.chars().next().map_or(0, char::len_utf8), true),
    }
}

/// Whether the string behind this text is one with escapes: `E'…'`.
fn has_escapes(before: &str) -> bool {
    let word = before.trim_end_matches(|c: char| c.is_alphanumeric() || c == '_');
    matches!(&before[word.len()..], "E" | "e")
}

/// The string with escapes at the start of a text.
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

/// The block comment at the start of a text, with those in it.
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

/// The `$$` or `$tag$` at the start of a text; a parameter is none.
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
    fn statements_end_at_semicolons_of_their_own() {
        let text = "-- first; not here\nSELECT ';' AS \"a;b\", 'it''s;'; /* ; */\n\\d t ; x\nSELECT\n 2";
        let expected = [(2, "SELECT ';' AS \"a;b\", 'it''s;';"), (3, "\\d t ; x"), (4, "SELECT\n 2")];
        assert_eq!(found(text), expected.map(|(line, text)| (line, text.to_owned())));
        assert!(split(" ; -- nothing\n/* at all */;").is_empty());
    }

    #[test]
    fn what_only_looks_like_an_end_is_none() {
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
        // Parameters are no tags, and a name that ends with an e has no escapes behind it.
        assert_eq!(texts("SELECT $a; SELECT $b;").len(), 2);
        assert_eq!(texts("SELECT DATE '\\'; SELECT 2").len(), 2);
        assert_eq!(texts(".tables\nSELECT .5;\n.quit"), [".tables", "SELECT .5;", ".quit"]);
    }

    #[test]
    fn comments_before_a_statement_belong_to_it_and_its_places_stay() {
        let text =
            "\\timing -- é\nSELECT 1; -- about the first\n\n-- $x = 1\n/* b */ SELECT $x; SELEC\n-- nothing\n\\q";
        let pieces = split(text);
        let placed: Vec<_> = pieces.iter().map(Piece::placed).collect();
        let third = format!("\n\n\n\n{}SELEC\n-- nothing\n\\q", " ".repeat("/* b */ SELECT $x; ".len()));
        assert_eq!(placed, ["\\timing -- é", "\nSELECT 1;", "\n\n\n-- $x = 1\n/* b */ SELECT $x;", &third]);
        assert_eq!(pieces.iter().map(Piece::line).collect::<Vec<_>>(), [1, 2, 5, 5]);
        // Behind characters of two bytes a column is still a column.
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
    fn an_open_string_is_seen() {
        assert_eq!(open_quote("SELECT 'a''b', predict('mod"), Some(('\'', 23)));
        assert_eq!(open_quote("SELECT \"na"), Some(('"', 7)));
        assert_eq!(open_quote("SELECT '"), Some(('\'', 7)));
        assert_eq!(open_quote("SELECT 'a' -- it's"), None);
        assert_eq!(open_quote("SELECT ''"), None);
    }
}
