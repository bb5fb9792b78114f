//! What is said on stderr besides results and errors: how much, in which form; and traces to a collector.
//!
//! `RUST_LOG` decides where it is set, the switches `--quiet` and `--verbose` otherwise. Traces are a feature of the
//! build, `otel`, and are sent where `OTEL_EXPORTER_OTLP_ENDPOINT` says.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};

use clap::{ArgAction, Args, ValueEnum};
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterExt, FilterFn, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::progress::Style;
use crate::redact::without_credentials;

#[cfg(feature = "otel")]
mod traces;

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// A JSON document a line, errors included
    Json,
}

impl LogFormat {
    /// The format that arguments ask for which cannot be read as a whole, with the program's name in front.
    #[must_use]
    pub fn asked_for(arguments: impl Iterator<Item = OsString>) -> Self {
        let mut words = arguments.skip(1).take_while(|word| word != "--");
        while let Some(word) = words.next() {
            if word == "--log-format=json" || word == "--log-format" && words.next().is_some_and(|next| next == "json")
            {
                return Self::Json;
            }
        }
        Self::Text
    }
}

/// The switches of all commands.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Messages")]
pub struct Messages {
    /// Say less: no progress and no summary, warnings only; twice: errors only
    #[arg(long, short, global = true, action = ArgAction::Count, conflicts_with = "verbose")]
    quiet: u8,
    /// Say more; twice and three times: more still
    #[arg(long, short, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// How messages on stderr are written
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
}

impl Messages {
    /// Whether only what is wrong is to be said.
    #[must_use]
    pub fn is_quiet(self) -> bool {
        self.quiet > 0
    }

    /// Whether more is to be said.
    #[must_use]
    pub fn is_verbose(self) -> bool {
        self.verbose > 0
    }

    /// How errors are written.
    #[must_use]
    pub fn format(self) -> LogFormat {
        self.log_format
    }

    /// How progress is shown.
    #[must_use]
    pub fn style(self) -> Style {
        match self.log_format {
            _ if self.is_quiet() => Style::Quiet,
            LogFormat::Text => Style::Auto,
            LogFormat::Json => Style::Lines,
        }
    }

    /// What `RUST_LOG` is, if it is not set.
    fn default_filter(self) -> String {
        let levels = match (self.quiet, self.verbose) {
            (0, 0) => "warn,couplet=info",
            (1, _) => "warn",
            (2.., _) => "error",
            (0, 1) => "warn,couplet=debug",
            (0, 2) => "info,couplet=debug",
            (0, 3..) => "debug,couplet=trace",
        };
        // The Delta library and its kernel, whose targets begin so, write answers of servers to the letter, which may
        // hold what they were asked with, and warn of counters of their own. What it comes to is said by couplet.
        format!("{levels},deltalake_core=off,buoyant_kernel=off")
    }
}

/// Where messages and traces go until the program ends.
#[derive(Debug)]
#[must_use = "traces are sent when it is ended"]
pub struct Logging {
    #[cfg(feature = "otel")]
    traces: Option<traces::Traces>,
}

impl Logging {
    /// Begins to write messages to stderr, and to send traces where the environment asks for it; call it within the
    /// runtime of Tokio, which sends them.
    ///
    /// # Panics
    /// In a process that has begun already.
    pub fn start(messages: Messages) -> Self {
        hide_known_panics();
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(messages.default_filter()));
        let stderr = fmt::layer().with_writer(|| Stderr).with_target(false).with_ansi(colors());
        let stderr = match messages.log_format {
            // What stage a line belongs to is plain to people.
            LogFormat::Text => stderr.with_filter(filter.and(up_to(Level::TRACE, |about| !about.is_span()))).boxed(),
            LogFormat::Json => {
                stderr.json().with_span_list(false).with_filter(filter.or(up_to(STAGES, is_stage))).boxed()
            }
        };
        let registry = tracing_subscriber::registry().with(stderr);
        #[cfg(feature = "otel")]
        {
            let traces = traces::Traces::from_environment();
            registry.with(traces.as_ref().map(traces::Traces::layer)).init();
            Self { traces }
        }
        #[cfg(not(feature = "otel"))]
        {
            registry.init();
            Self {}
        }
    }

    /// Sends the traces that have not been sent yet.
    pub fn end(self) {
        #[cfg(feature = "otel")]
        if let Some(traces) = self.traces {
            traces.end();
        }
    }
}

/// The way of a line to stderr, on which what is secret in it is left out.
struct Stderr;

impl Write for Stderr {
    /// Takes a line, which is how the layer gives them.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let shown = without_credentials(&String::from_utf8_lossy(line)).into_owned();
        io::stderr().write_all(shown.as_bytes()).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Keeps quiet about one panic that tells nobody anything.
///
/// When a write to a local disk has failed, the Delta library drops its writer, and a task of `object_store` that is still
/// under way finds it gone (`buffered.rs`, "Already shut down"). The error itself is reported by the run.
fn hide_known_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let is_known = panic.payload_as_str() == Some("Already shut down")
            && panic.location().is_some_and(|place| place.file().contains("object_store"));
        if is_known {
            tracing::debug!("object_store: {panic}");
        } else {
            usual(panic);
        }
    }));
}

/// A filter that says up to which level it may let something pass.
///
/// Without that, the libraries below would form each of their messages, only to have it thrown away: the tokenizer's
/// take several times as long as its work.
fn up_to<F: Fn(&Metadata<'_>) -> bool>(level: Level, passes: F) -> FilterFn<F> {
    filter_fn(passes).with_max_level_hint(LevelFilter::from_level(level))
}

/// The level of the spans of stages.
const STAGES: Level = Level::INFO;

/// Whether something is a span of couplet's own: those are the stages of a run.
fn is_stage(about: &Metadata<'_>) -> bool {
    about.is_span() && about.target().starts_with(env!("CARGO_PKG_NAME"))
}

/// Whether stderr takes colors. See <https://no-color.org>.
#[must_use]
pub fn colors() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_found_among_arguments_that_cannot_be_read() {
        let asked = |line: &str| LogFormat::asked_for(line.split(' ').map(OsString::from));
        for line in
            ["couplet run --nope --log-format json", "couplet --log-format=json", "couplet a --log-format json b"]
        {
            assert_eq!(asked(line), LogFormat::Json, "{line}");
        }
        for line in [
            "couplet run",
            "couplet run --log-format",
            "couplet --log-format text json",
            "couplet -- --log-format=json",
        ] {
            assert_eq!(asked(line), LogFormat::Text, "{line}");
        }
    }
}
