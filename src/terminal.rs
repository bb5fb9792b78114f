//! Output of commands: texts and documents on stdout, errors on stderr.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use couplet_storage::escape::{self, printable};
use couplet_storage::redact::without_credentials;
use serde_json::json;

use crate::error::Error;
use crate::logging::{LogFormat, colors};

/// True once the reader of stdout has closed it.
static STDOUT_CLOSED: AtomicBool = AtomicBool::new(false);

/// Prints text for people, escaped for terminals.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    print_document(&printable(text))
}

/// Prints a text for people, or a JSON document.
pub(crate) fn print_as(text: &str, is_json: bool) -> Result<(), Error> {
    if is_json { print_document(&escape::json(text)) } else { print(text) }
}

/// Prints a document for programs, byte by byte.
pub(crate) fn print_document(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    note_closed_stdout(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
        .map_err(|error| Error::Io { context: "writing to stdout".into(), error })
}

/// Writes the error of a command to stderr, as text or as a JSON document.
pub fn report_error(error: &Error, format: LogFormat) {
    let width =
        terminal_size::terminal_size_of(io::stderr()).map_or(100, |(width, _)| usize::from(width.0).clamp(60, 140));
    // If writing to stderr fails, there is nowhere to report it.
    let _ = match (error, format) {
        (error, LogFormat::Json) => {
            let time = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
            let message = error.to_string();
            let mut fields = json!({ "message": without_credentials(&message), "exit_code": error.exit_code() });
            if let Some(hint) = error.hint() {
                fields["hint"] = json!(hint);
            }
            let line = json!({ "timestamp": time, "level": "ERROR", "fields": fields }).to_string();
            writeln!(io::stderr(), "{}", escape::json(&line))
        }
        (Error::Config(errors), LogFormat::Text) => {
            write!(io::stderr(), "{}", without_credentials(&errors.render(colors(), width)))
        }
        (error, LogFormat::Text) => {
            let hint = error.hint().map_or_else(String::new, |hint| format!("\nhelp: {hint}"));
            writeln!(io::stderr(), "error: {}{hint}", printable(&without_credentials(&error.to_string())))
        }
    };
}

/// Records that the reader of stdout has closed it, as `head` does. The error still ends the work in progress, so that
/// temporary files are removed; [`stdout_closed`] then reports that this is not a failure.
pub(crate) fn note_closed_stdout<T>(written: io::Result<T>) -> io::Result<T> {
    if written.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
        STDOUT_CLOSED.store(true, Ordering::Relaxed);
    }
    written
}

/// Returns true if the program ended because the reader of stdout closed it, which is not a failure.
#[must_use]
pub fn stdout_closed() -> bool {
    STDOUT_CLOSED.load(Ordering::Relaxed)
}
