//! In which line of a text of several statements one of them, or the name in it that is wrong, stands.

use std::fmt;

use datafusion::common::DataFusionError;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use crate::sql_error;

/// A statement of a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed<'a> {
    /// Where the text is from.
    pub(super) origin: &'a str,
    /// The text.
    pub(super) sql: &'a str,
    /// Which of its statements, from 0.
    pub(super) statement: usize,
}

impl Placed<'_> {
    /// Where the name stands that an error is about, else where the statement begins.
    pub(super) fn of_error(&self, error: &DataFusionError) -> String {
        self.in_line(sql_error::missing_name(error).as_deref())
    }

    fn in_line(&self, name: Option<&str>) -> String {
        match self.line_of(name) {
            Some(line) if line > 1 || self.sql.trim().contains('\n') => format!("{}, line {line}", self.origin),
            _ => self.origin.to_owned(),
        }
    }

    fn line_of(&self, name: Option<&str>) -> Option<u64> {
        let tokens = Tokenizer::new(&GenericDialect {}, self.sql).tokenize_with_location().ok()?;
        let is_space = |token: &TokenWithSpan| matches!(token.token, Token::Whitespace(_));
        let statements = tokens.split(|token| token.token == Token::SemiColon);
        let statement = statements.filter(|tokens| !tokens.iter().all(is_space)).nth(self.statement)?;
        let is_named = |token: &&TokenWithSpan| {
            let Token::Word(word) = &token.token else { return false };
            name.is_some_and(|name| word.value.eq_ignore_ascii_case(name))
        };
        let found = statement.iter().find(is_named).or(statement.iter().find(|token| !is_space(token)))?;
        Some(found.span.start.line)
    }
}

impl fmt::Display for Placed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.in_line(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_statement_have_lines() {
        let line = |sql: &str, statement, name| Placed { origin: "q", sql, statement }.in_line(name);
        let sql = "-- nope\nSELECT a,\n  Nope FROM t;\n\n-- ; b\nSELECT 'nope;' FROM u";
        assert_eq!(line(sql, 0, Some("nope")), "q, line 3");
        assert_eq!(line(sql, 0, None), "q, line 2");
        assert_eq!(line(sql, 1, Some("nope")), "q, line 6");
        assert_eq!(line("SELECT a", 0, Some("a")), "q");
        assert_eq!(line("\n\nSELECT a", 0, Some("a")), "q, line 3");
    }
}
