//! The text summary of the scoring stage.

use std::fmt;

use couplet_encoder::model::Problem;
use couplet_encoder::scorer::{PADDED_BATCH, Rejection};
use couplet_storage::escape::printable;
use couplet_storage::words::{counted, grouped, size, spoken};

use super::Report;
use crate::frequent::most_frequent;

/// The maximum number of labels listed with their row counts.
const MOST_LISTED: usize = 20;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        let mut line = |name: &str, value: String| writeln!(f, "  {name:<10} {value}");
        let mut parts =
            vec![format!("{} read", grouped(self.rows.read)), format!("{} scored", grouped(self.rows.scored))];
        for (n, what) in [(self.rows.remembered, "remembered"), (self.rows.repeated, "repeated")] {
            if n > 0 {
                parts.push(format!("{} {what}", grouped(n)));
            }
        }
        parts.push(format!("{} rejected", grouped(self.rows.rejected())));
        line("rows", parts.join(" · "))?;
        for (kind, n) in Rejection::KINDS.iter().zip(self.rows.rejected).filter(|(_, n)| *n > 0) {
            line("", format!("{} with {kind}", grouped(n)))?;
        }
        if self.rows.damaged_scores > 0 {
            let damaged = counted(self.rows.damaged_scores, "score");
            line("", format!("{damaged} in the store damaged and dropped"))?;
        }
        if !self.labels.is_empty() {
            let all = match self.problem {
                Problem::MultiLabel => self.rows.read - self.rows.rejected(),
                _ => self.labels.iter().map(|(_, n)| n).sum(),
            };
            let share = |n: u64| if all == 0 { 0.0 } else { 100.0 * n as f64 / all as f64 };
            let listed = most_frequent(&self.labels, MOST_LISTED, |(_, n)| *n);
            let listed = listed.into_iter().map(|place| &self.labels[place]);
            let labels = listed.map(|(label, n)| format!("{label} {} ({:.1} %)", grouped(*n), share(*n)));
            let mut labels: Vec<String> = labels.collect();
            if self.labels.len() > MOST_LISTED {
                labels.push(format!("{} more labels", grouped((self.labels.len() - MOST_LISTED) as u64)));
            }
            line("labels", labels.join(" · "))?;
        }
        let truncated = match self.rows.truncated {
            0 => "none truncated".to_owned(),
            n => format!("{} truncated", counted(n, "row")),
        };
        line("tokens", format!("{} · {truncated}", grouped(counts.tokens)))?;
        if counts.tokens == 0 {
            line("time", spoken(self.elapsed))?;
            return self.write_end(f);
        }
        line(
            "padding",
            format!(
                "{} tokens avoided ({:.1} % of what batches of {PADDED_BATCH} would have run)",
                grouped(counts.padding_avoided),
                100.0 * self.padding_share()
            ),
        )?;
        line(
            "speed",
            format!("{:.0} rows/s · {} tokens/s", self.rows_per_second(), grouped(self.tokens_per_second() as u64)),
        )?;
        line("time", format!("{} ({} scoring)", spoken(self.elapsed), spoken(self.scoring)))?;
        let all: u64 = self.executors.iter().map(|executor| executor.tokens).sum();
        for (i, executor) in self.executors.iter().enumerate() {
            let name = if i == 0 { "executors" } else { "" };
            let share = 100.0 * executor.tokens as f64 / all.max(1) as f64;
            let done =
                format!("{}, {} ({share:.0} %)", counted(executor.tasks, "task"), counted(executor.texts, "text"));
            line(name, format!("{} {done}", printable(&executor.name)))?;
        }
        self.write_end(f)
    }
}

impl Report {
    fn write_end(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: String| writeln!(f, "  {name:<10} {value}");
        let fingerprint = &self.fingerprint[..self.fingerprint.len().min(16)];
        let revision = self.revision.as_ref().map_or_else(String::new, |commit| format!(", commit {commit}"));
        line("model", format!("{} ({fingerprint}, {}{revision})", self.model, self.precision))?;
        let version = self.output_version.map_or_else(String::new, |version| format!(", version {version}"));
        line("output", format!("{} ({}{version})", self.output, size(self.output_bytes)))?;
        match &self.quarantine {
            Some((path, rows)) => line("rejected", format!("{path} ({})", counted(*rows, "row"))),
            None => Ok(()),
        }
    }
}
