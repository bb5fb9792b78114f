//! Log messages on stderr, their level and format, and traces to a collector.
//!
//! `RUST_LOG` sets the level if it is set, else the switches `--quiet` and `--verbose` do. Traces need the build
//! feature `otel`, and are sent to `OTEL_EXPORTER_OTLP_ENDPOINT`.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};

use clap::{ArgAction, Args, ValueEnum};
use couplet_storage::redact::without_credentials;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterExt, FilterFn, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::progress::Style;

#[cfg(feature = "otel")]
mod traces;

/// The format of log messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON document per line, errors included
    Json,
}

impl LogFormat {
    /// Parses the log format from the arguments, even if clap rejects them. The first argument is the program name.
    #[must_use]
    pub fn from_arguments(arguments: impl Iterator<Item = OsString>) -> Self {
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

/// The message options that all commands share.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Messages")]
pub struct Messages {
    /// Print warnings only, without progress and summary; repeat for errors only
    #[arg(long, short, global = true, action = ArgAction::Count, conflicts_with = "verbose")]
    quiet: u8,
    /// Print more messages; repeat up to three times for more
    #[arg(long, short, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// The format of messages on stderr
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
}

impl Messages {
    /// Returns true if only warnings and errors are shown.
    #[must_use]
    pub fn is_quiet(self) -> bool {
        self.quiet > 0
    }

    /// Returns true if additional messages are shown.
    #[must_use]
    pub fn is_verbose(self) -> bool {
        self.verbose > 0
    }

    /// Returns the format of errors.
    #[must_use]
    pub fn format(self) -> LogFormat {
        self.log_format
    }

    /// Returns the style of progress output.
    #[must_use]
    pub fn style(self) -> Style {
        match self.log_format {
            _ if self.is_quiet() => Style::Quiet,
            LogFormat::Text => Style::Auto,
            LogFormat::Json => Style::Lines,
        }
    }

    /// Returns the filter that is used if `RUST_LOG` is not set.
    fn default_filter(self) -> String {
        let levels = match (self.quiet, self.verbose) {
            (0, 0) => "warn,couplet=info",
            (1, _) => "warn",
            (2.., _) => "error",
            (0, 1) => "warn,couplet=debug",
            (0, 2) => "info,couplet=debug",
            (0, 3..) => "debug,couplet=trace",
        };
        // The Delta library and its kernel (these targets) log server responses verbatim, which may repeat request
        // data, and warn about internal counters. couplet reports the resulting errors itself.
        format!("{levels},deltalake_core=off,buoyant_kernel=off")
    }
}

/// The logging and tracing setup, active until the program ends.
#[derive(Debug)]
#[must_use = "the remaining traces are sent by `end`"]
pub struct Logging {
    #[cfg(feature = "otel")]
    traces: Option<traces::Traces>,
}

impl Logging {
    /// Starts writing messages to stderr, and sending traces if the environment configures it. It must be called in a
    /// Tokio runtime, which sends the traces.
    ///
    /// # Panics
    /// If logging has already been started in this process.
    pub fn start(messages: Messages) -> Self {
        hide_known_panics();
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(messages.default_filter()));
        let stderr = fmt::layer().with_writer(|| Stderr).with_target(false).with_ansi(colors());
        let stderr = match messages.log_format {
            // Text lines leave out the spans of stages.
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

/// Writes log lines to stderr, with credentials removed.
struct Stderr;

impl Write for Stderr {
    /// Writes one line; the layer passes a whole line per call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let shown = without_credentials(&String::from_utf8_lossy(line)).into_owned();
        io::stderr().write_all(shown.as_bytes()).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Hides one known panic, which is harmless.
///
/// After a failed write to a local disk, the Delta library drops its writer, and a running task of `object_store`
/// panics because the writer is gone (`buffered.rs`, "Already shut down"). The run reports the actual error.
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

/// Creates a filter with a maximum-level hint.
///
/// Without the hint, libraries would format each message only for it to be discarded. In the tokenizer, that takes
/// several times as long as the tokenization.
fn up_to<F: Fn(&Metadata<'_>) -> bool>(level: Level, passes: F) -> FilterFn<F> {
    filter_fn(passes).with_max_level_hint(LevelFilter::from_level(level))
}

/// The level of the spans of stages.
const STAGES: Level = Level::INFO;

/// Returns true if the metadata is of a span of couplet; these spans are the stages of a run.
fn is_stage(about: &Metadata<'_>) -> bool {
    about.is_span() && about.target().starts_with(env!("CARGO_PKG_NAME"))
}

/// Returns true if colors should be used on stderr. See <https://no-color.org>.
#[must_use]
pub fn colors() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_format_is_found_in_invalid_arguments() {
        let format_of = |line: &str| LogFormat::from_arguments(line.split(' ').map(OsString::from));
        for line in
            ["couplet run --nope --log-format json", "couplet --log-format=json", "couplet a --log-format json b"]
        {
            assert_eq!(format_of(line), LogFormat::Json, "{line}");
        }
        for line in [
            "couplet run",
            "couplet run --log-format",
            "couplet --log-format text json",
            "couplet -- --log-format=json",
        ] {
            assert_eq!(format_of(line), LogFormat::Text, "{line}");
        }
    }
}
