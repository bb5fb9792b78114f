//! A limit on how deep SQL may be nested, checked before it is parsed.
//!
//! The tree of a query is as deep as its longest chain: `1+1+1+…` has a level per term, and so have `a AND b AND c …` and
//! `SELECT … UNION SELECT …`. Parser and planner call themselves for each level, and so does the code that copies or
//! drops the tree; past the end of the stack the process would be aborted.

use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

/// Words, operators and values in a row, without a comma or `;` between them, and with those around the brackets that
/// they are in.
pub(crate) const DEEPEST: usize = 10_000;

/// Queries and tables of a statement.
const MOST_QUERIES: usize = 2_000;

/// Why a text is nested too deep, if it is.
pub(crate) fn problem(sql: &str) -> Option<String> {
    // What is no SQL at all is told by the parser.
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize().ok()?;
    // For each open bracket, the tokens in a row before it.
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
                // Branches lie beside each other.
                Keyword::WHEN | Keyword::THEN | Keyword::ELSE => row = outer.last().copied().unwrap_or_default(),
                Keyword::SELECT | Keyword::FROM | Keyword::JOIN => {
                    queries += 1;
                    row += 1;
                }
                _ => row += 1,
            },
            _ => row += 1,
        }
        if row > DEEPEST {
            return Some(format!(
                "an expression has more than {DEEPEST} words and operators in a row; write `x IN (…)` for many values of \
                 a column, or join with a table of them"
            ));
        }
        if queries > MOST_QUERIES {
            return Some(format!(
                "a statement has more than {MOST_QUERIES} SELECT, FROM and JOIN; put the rows into a file, or write \
                 VALUES (…), (…)"
            ));
        }
    }
    None
}
