//! Locates a statement, or the wrong name in it, by its line in a text of several statements.

use std::fmt;

use couplet_tables::sql_error;
use datafusion::common::DataFusionError;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

/// A statement within a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed<'a> {
    /// The origin of the text.
    pub(super) origin: &'a str,
    /// The text.
    pub(super) sql: &'a str,
    /// The index of the statement, counted from 0.
    pub(super) statement: usize,
}

impl Placed<'_> {
    /// Returns the position of the name that an error is about, or else of the statement.
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
