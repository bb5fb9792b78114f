//! A mistake in a pipeline file or a place: what is wrong, where, what is allowed, and how to fix it.

use std::ops::Range;

use crate::escape::printable;
use crate::words::closest;

/// A mistake in a pipeline file, or in a place that is named on the command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// What is wrong, with the offending value.
    pub message: String,
    /// The offending bytes of the file; `None` where the mistake is not in the file.
    pub span: Option<Range<usize>>,
    /// A few words about the offending bytes.
    pub label: String,
    /// Other bytes of the file that matter, and a few words about them.
    pub related: Vec<(Range<usize>, String)>,
    /// What is allowed there.
    pub allowed: Option<String>,
    /// How to mend it.
    pub help: Option<String>,
    /// Whether the line of the file must not be shown.
    pub(crate) confidential: bool,
}

impl Problem {
    /// Creates a problem that says only what is wrong; the label stands under the offending bytes.
    pub(crate) fn new(message: impl Into<String>, label: impl Into<String>) -> Self {
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

    pub(crate) fn at(mut self, span: Range<usize>) -> Self {
        self.span = Some(span);
        self
    }

    /// Shows what of a stranger's file a terminal would act on.
    pub(crate) fn make_printable(&mut self) {
        let texts = [Some(&mut self.message), Some(&mut self.label), self.allowed.as_mut(), self.help.as_mut()];
        let related = self.related.iter_mut().map(|(_, label)| label);
        for text in texts.into_iter().flatten().chain(related) {
            *text = printable(text).into_owned();
        }
    }

    /// Keeps the line out of what is shown: it may hold a secret.
    pub(crate) fn confidential(mut self) -> Self {
        self.confidential = true;
        self
    }

    /// The message and the mend in one line, for what does not stand in a file.
    pub(crate) fn into_line(self) -> String {
        let mend = self.help.or_else(|| self.allowed.map(|allowed| format!("allowed: {allowed}")));
        mend.map_or(self.message.clone(), |mend| format!("{}; {mend}", self.message))
    }

    pub(crate) fn related(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.related.push((span, label.into()));
        self
    }

    pub(crate) fn allowed(mut self, allowed: impl Into<String>) -> Self {
        self.allowed = Some(allowed.into());
        self
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds "did you mean" where one of the candidates is near to what was written.
    pub(crate) fn suggest<'c>(self, written: &str, candidates: impl IntoIterator<Item = &'c str>) -> Self {
        match closest(written, candidates) {
            Some(candidate) => self.help(format!("did you mean `{candidate}`?")),
            None => self,
        }
    }
}
