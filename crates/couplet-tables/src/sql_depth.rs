//! Limits how deeply SQL may be nested. The limit is checked before parsing.
//!
//! The syntax tree of a query is as deep as its longest chain: `1+1+1+…` has one level per term, and so do
//! `a AND b AND c …` and `SELECT … UNION SELECT …`. The parser, the planner and the code that copies or drops the tree
//! recurse once per level. A stack overflow would abort the process.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

/// The maximum number of words, operators and values in a row without a comma or `;` between them. Those before
/// enclosing brackets count too.
pub const MAX_TOKENS_IN_A_ROW: usize = 10_000;

/// The maximum number of queries and tables per statement.
const MAX_QUERIES: usize = 2_000;

/// Returns the problem if a text is nested too deeply.
#[must_use]
pub fn problem(sql: &str) -> Option<String> {
    // The parser reports text that cannot be tokenized.
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize().ok()?;
    // For each open bracket, the number of tokens in a row before it.
    let mut outer = Vec::new();
    let (mut row, mut queries) = (0, 0);
    for token in &tokens {
        match token {
            Token::Whitespace(_) => {}
            Token::SemiColon => (row, queries) = (0, 0),
            Token::Comma => row = outer.last().copied().unwrap_or_default(),
            Token::LParen | Token::LBracket | Token::LBrace => {
                row += 1;
                outer.push(row);
            }
            Token::RParen | Token::RBracket | Token::RBrace => row = outer.pop().unwrap_or(row) + 1,
            Token::Word(word) => match word.keyword {
                // The branches of a CASE are siblings in the tree.
                Keyword::WHEN | Keyword::THEN | Keyword::ELSE => row = outer.last().copied().unwrap_or_default(),
                Keyword::SELECT | Keyword::FROM | Keyword::JOIN => {
                    queries += 1;
                    row += 1;
                }
                _ => row += 1,
            },
            _ => row += 1,
        }
        if row > MAX_TOKENS_IN_A_ROW {
            return Some(format!(
                "an expression has more than {MAX_TOKENS_IN_A_ROW} words and operators in a row; write `x IN (…)` for \
                 many values of a column, or join with a table of them"
            ));
        }
        if queries > MAX_QUERIES {
            return Some(format!(
                "a statement has more than {MAX_QUERIES} SELECT, FROM and JOIN; put the rows into a file, or write \
                 VALUES (…), (…)"
            ));
        }
    }
    None
}
