//! A mistake in a pipeline file or a place: what is wrong, where, what is allowed, and how to fix it.

use std::ops::Range;

use crate::escape::printable;
use crate::words::closest;

/// One problem of a pipeline file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// The message, with the offending value.
    pub message: String,
    /// The span of the offending bytes in the file; `None` if the problem is not in the file.
    pub span: Option<Range<usize>>,
    /// A few words about the offending bytes.
    pub label: String,
    /// Other relevant spans of the file, each with a label.
    pub related: Vec<(Range<usize>, String)>,
    /// The allowed values.
    pub allowed: Option<String>,
    /// A suggested fix.
    pub help: Option<String>,
    /// True if the line of the file must not be shown.
    pub confidential: bool,
}

impl Problem {
    /// Creates a problem with only a message and the label of the offending bytes.
    pub fn new(message: impl Into<String>, label: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            label: label.into(),
            span: None,
            related: Vec::new(),
            allowed: None,
            help: None,
            confidential: false,
        }
    }

    /// Sets the bytes of the file that are at fault.
    #[must_use]
    pub fn at(mut self, span: Range<usize>) -> Self {
        self.span = Some(span);
        self
    }

    /// Escapes control characters of the file for terminals.
    pub fn make_printable(&mut self) {
        let texts = [Some(&mut self.message), Some(&mut self.label), self.allowed.as_mut(), self.help.as_mut()];
        let related = self.related.iter_mut().map(|(_, label)| label);
        for text in texts.into_iter().flatten().chain(related) {
            *text = printable(text).into_owned();
        }
    }

    /// Hides the line of the file, which may hold a secret.
    pub(crate) fn confidential(mut self) -> Self {
        self.confidential = true;
        self
    }

    /// Returns the message and the fix in one line, for values that are not in a file.
    #[must_use]
    pub fn into_line(self) -> String {
        let fix = self.help.or_else(|| self.allowed.map(|allowed| format!("allowed: {allowed}")));
        fix.map_or(self.message.clone(), |fix| format!("{}; {fix}", self.message))
    }

    /// Sets other bytes of the file to show, with their label.
    #[must_use]
    pub fn related(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.related.push((span, label.into()));
        self
    }

    /// Sets the values that are allowed.
    #[must_use]
    pub fn allowed(mut self, allowed: impl Into<String>) -> Self {
        self.allowed = Some(allowed.into());
        self
    }

    /// Sets the advice on how to fix it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds "did you mean" if a candidate is similar to the written word.
    #[must_use]
    pub fn suggest<'c>(self, written: &str, candidates: impl IntoIterator<Item = &'c str>) -> Self {
        match closest(written, candidates) {
            Some(candidate) => self.help(format!("did you mean `{candidate}`?")),
            None => self,
        }
    }
}
