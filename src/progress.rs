//! Shows the progress of a run on stderr: a bar on a terminal, periodic log lines elsewhere.
//!
//! The remaining time is estimated from tokens. A window is scored from its longest texts to its shortest, so the
//! number of rows says little about the remaining work, while the cost per token is nearly constant.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use couplet_encoder::scorer::{Counts, Scorer};
use couplet_storage::words::{format_duration, grouped};
use couplet_train::training_loop::Event;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The interval between two updates of the bar.
const BAR_INTERVAL: Duration = Duration::from_millis(100);
/// The interval between two log lines.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// The style of progress output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A bar if stderr is a terminal, log lines otherwise.
    Auto,
    /// Log lines.
    Lines,
    /// Nothing.
    Quiet,
}

/// Shows a scorer's progress until it is dropped.
pub struct Progress {
    task: Option<tokio::task::JoinHandle<()>>,
    bar: ProgressBar,
}

impl Progress {
    /// Starts showing the progress of a scorer over `rows` rows.
    #[must_use]
    pub fn start(style: Style, scorer: &Scorer, rows: u64) -> Self {
        let terminal = style == Style::Auto && std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(1), target);
        if let Ok(template) = ProgressStyle::with_template("{bar:32} {percent:>3}%  {msg}") {
            bar.set_style(template);
        }
        if style == Style::Quiet {
            return Self { task: None, bar };
        }
        let (scorer, shown) = (scorer.clone(), bar.clone());
        let began = Instant::now();
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(if terminal { BAR_INTERVAL } else { LOG_INTERVAL });
            ticks.tick().await;
            loop {
                ticks.tick().await;
                let estimate = Estimate::new(&scorer.tally().counts(), rows, began.elapsed());
                if terminal {
                    shown.set_length(estimate.tokens_in_all.max(1));
                    shown.set_position(estimate.tokens);
                    shown.set_message(estimate.to_string());
                } else {
                    tracing::info!("{estimate}");
                }
            }
        });
        Self { task: Some(task), bar }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.bar.finish_and_clear();
    }
}

/// Shows the progress of training: a bar on a terminal, log lines elsewhere.
pub struct TrainingProgress {
    bar: Option<ProgressBar>,
    style: Style,
    last_line: Instant,
}

impl TrainingProgress {
    /// Starts showing the progress of training.
    #[must_use]
    pub fn start(style: Style) -> Self {
        let terminal = style == Style::Auto && std::io::stderr().is_terminal();
        let bar = terminal.then(|| ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr()));
        if let (Some(bar), Ok(template)) = (&bar, ProgressStyle::with_template("{bar:32} {percent:>3}%  {msg}")) {
            bar.set_style(template);
        }
        Self { bar, style, last_line: Instant::now() }
    }

    /// Shows an event of the training loop.
    pub fn show(&mut self, event: &Event) {
        if self.style == Style::Quiet && !event.is_warning() {
            return;
        }
        match (event, &self.bar) {
            (event, Some(bar)) if event.is_warning() => bar.suspend(|| tracing::warn!("{event}")),
            (event, None) if event.is_warning() => tracing::warn!("{event}"),
            (Event::Step { step, total_steps, .. }, Some(bar)) => {
                bar.set_length(*total_steps);
                bar.set_position(*step);
                bar.set_message(event.to_string());
            }
            (Event::Step { .. }, None) => {
                if self.last_line.elapsed() >= LOG_INTERVAL {
                    self.last_line = Instant::now();
                    tracing::info!("{event}");
                }
            }
            // The run itself warns about a rejected model, in quiet mode too.
            (Event::Saved { .. } | Event::Rejected { .. }, _) => tracing::debug!("{event}"),
            (_, Some(bar)) => bar.suspend(|| tracing::info!("{event}")),
            (_, None) => tracing::info!("{event}"),
        }
    }
}

impl Drop for TrainingProgress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The progress of a run and its estimated end.
#[derive(Debug, PartialEq)]
struct Estimate {
    rows: u64,
    rows_in_all: u64,
    tokens: u64,
    tokens_in_all: u64,
    elapsed: Duration,
}

impl Estimate {
    fn new(counts: &Counts, rows_in_all: u64, elapsed: Duration) -> Self {
        let rows_left = rows_in_all.saturating_sub(counts.rows_planned);
        // Assumes that the remaining rows have as many tokens on average as those planned so far.
        let per_row = ratio(counts.tokens_planned, counts.rows_planned);
        let tokens_left = (per_row * rows_left as f64).round() as u64;
        Self {
            rows: rows_in_all.min(counts.scored + counts.remembered + counts.rejected_rows()),
            rows_in_all,
            tokens: counts.tokens,
            tokens_in_all: counts.tokens_planned + tokens_left,
            elapsed,
        }
    }

    fn remaining(&self) -> Option<Duration> {
        let left = self.tokens_in_all.saturating_sub(self.tokens);
        (self.tokens > 0).then(|| self.elapsed.mul_f64(ratio(left, self.tokens)))
    }

    /// Returns rows per second, estimated from the share of tokens that are done.
    fn rows_per_second(&self) -> f64 {
        ratio(self.tokens, self.tokens_in_all) * self.rows_in_all as f64 / self.elapsed.as_secs_f64()
    }
}

impl std::fmt::Display for Estimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}/{} rows · {:.0} rows/s · {} tokens/s",
            grouped(self.rows),
            grouped(self.rows_in_all),
            self.rows_per_second(),
            grouped((self.tokens as f64 / self.elapsed.as_secs_f64()) as u64),
        )?;
        match self.remaining() {
            Some(remaining) => write!(f, " · {} left", format_duration(remaining)),
            None => Ok(()),
        }
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_estimated_by_tokens() {
        // 100 of 400 rows were tokenized to 1000 tokens, the longest half of which were read in 5 s.
        let counts = Counts { rows_planned: 100, tokens_planned: 1000, tokens: 500, ..Counts::default() };
        let estimate = Estimate::new(&counts, 400, Duration::from_secs(5));
        assert_eq!(estimate.tokens_in_all, 4000);
        assert_eq!(estimate.remaining(), Some(Duration::from_secs(35)));
        assert!((estimate.rows_per_second() - 10.0).abs() < 1e-9);
    }

    #[test]
    fn there_is_no_estimate_before_the_first_token() {
        assert_eq!(Estimate::new(&Counts::default(), 10, Duration::from_secs(1)).remaining(), None);
    }
}
