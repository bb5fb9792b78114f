//! Problems of a pipeline file and their rendering: all problems at once, each with its line.

use std::fmt::{self, Write as _};
use std::path::Path;

use couplet_storage::escape::{in_line, of_same_length};
use couplet_storage::place::Problem;
use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError, MietteSpanContents, SourceCode,
    SourceSpan, SpanContents,
};

/// The maximum number of problems that a report shows.
const MAX_SHOWN: usize = 100;

/// All problems of a pipeline file, in file order.
///
/// [`Display`](fmt::Display) writes one line per problem; [`render`](Self::render) shows the lines of the file too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    file: String,
    text: String,
    problems: Vec<Problem>,
}

impl ConfigErrors {
    pub(super) fn new(file: &Path, text: &str, problems: Vec<Problem>) -> Self {
        let mut errors =
            Self { file: in_line(&file.to_string_lossy()).into(), text: of_same_length(text).into(), problems };
        errors.problems.iter_mut().for_each(Problem::make_printable);
        errors
    }

    /// Returns the problems in file order; there is at least one.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Renders the problems with their lines of the file, then the count. `width` is the terminal width in columns.
    ///
    /// # Panics
    /// Never: writes to a string cannot fail.
    #[must_use]
    pub fn render(&self, color: bool, width: usize) -> String {
        let theme = if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let handler = GraphicalReportHandler::new_themed(theme).with_width(width).with_break_words(false);
        let mut report = String::new();
        for problem in self.problems.iter().take(MAX_SHOWN) {
            handler
                .render_report(&mut report, &Shown { problem, errors: self })
                .expect("writes to a string cannot fail, and spans come from the text");
            report.push('\n');
        }
        let count = self.problems.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        let shown = if count > MAX_SHOWN { format!(", the first {MAX_SHOWN} above") } else { String::new() };
        let _ = writeln!(report, "couplet: {count} {noun} in {}{shown}", self.file);
        report
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_char('\n')?;
            }
            f.write_str(&self.file)?;
            if let Some(span) = &problem.span {
                let (line, column) = position(&self.text, span.start);
                write!(f, ":{}:{}", line + 1, column + 1)?;
            }
            write!(f, ": {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Returns the line and the column of a byte offset, both from 0.
pub(super) fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..offset];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count(), before[line_start..].chars().count())
}

/// A problem with its file, as a miette diagnostic.
#[derive(Debug)]
struct Shown<'e> {
    problem: &'e Problem,
    errors: &'e ConfigErrors,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.problem.span {
            Some(span) if self.problem.confidential => {
                let (line, _) = position(&self.errors.text, span.start);
                write!(f, "{}:{}: {}", self.errors.file, line + 1, self.problem)
            }
            _ => self.problem.fmt(f),
        }
    }
}

impl std::error::Error for Shown<'_> {}

impl Diagnostic for Shown<'_> {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        let help = self.problem.help.as_deref();
        match (help, self.problem.allowed.as_deref()) {
            (None, None) => None,
            (Some(help), None) => Some(Box::new(help)),
            (None, Some(allowed)) => Some(Box::new(format!("allowed: {allowed}"))),
            (Some(help), Some(allowed)) => Some(Box::new(format!("{help}\nallowed: {allowed}"))),
        }
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.problem.span.as_ref().filter(|_| !self.problem.confidential).map(|_| self.errors as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let span = self.problem.span.clone().filter(|_| !self.problem.confidential)?;
        let main = LabeledSpan::new_primary_with_span(Some(self.problem.label.clone()), span);
        let related = self.problem.related.iter();
        let related = related.map(|(span, label)| LabeledSpan::new_with_span(Some(label.clone()), span.clone()));
        Some(Box::new(std::iter::once(main).chain(related)))
    }
}

/// Returns exactly the lines of a span. miette's own source cuts the first line if no context is requested.
impl SourceCode for ConfigErrors {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        _context_lines_before: usize,
        _context_lines_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let start = span.offset();
        let end = start + span.len();
        if end > self.text.len() {
            return Err(MietteError::OutOfBounds);
        }
        let first = self.text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        // A span that ends with its line's newline does not reach into the next line.
        let last = end.saturating_sub(1).max(start);
        let rest = &self.text.as_bytes()[last..];
        let end = rest.iter().position(|&byte| byte == b'\n').map_or(self.text.len(), |newline| last + newline + 1);
        let lines = &self.text[first..end];
        let (line, column) = position(&self.text, start);
        Ok(Box::new(MietteSpanContents::new_named(
            self.file.clone(),
            lines.as_bytes(),
            (first, lines.len()).into(),
            line,
            column,
            lines.lines().count(),
        )))
    }
}
