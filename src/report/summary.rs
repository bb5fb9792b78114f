//! The text summary of the scoring stage.

use std::fmt;
use std::time::Duration;

use couplet_encoder::model::Problem;
use couplet_encoder::scorer::PADDED_BATCH;
use couplet_storage::escape::printable;
use couplet_storage::words::{counted, format_duration, grouped, size};

use super::Report;
use crate::frequent::most_frequent;

/// The maximum number of labels listed with their row counts.
const MAX_LISTED: usize = 20;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = &self.record;
        let [read, scored, rejected, tokens] =
            [record.rows_read, record.rows_scored, record.rows_rejected, record.tokens].map(Option::unwrap_or_default);
        let mut line = |name: &str, value: String| writeln!(f, "  {name:<10} {value}");
        let mut parts = vec![format!("{} read", grouped(read)), format!("{} scored", grouped(scored))];
        for (n, what) in [(record.rows_remembered, "cached"), (record.rows_repeated, "repeated")] {
            parts.extend(n.filter(|n| *n > 0).map(|n| format!("{} {what}", grouped(n))));
        }
        parts.push(format!("{} rejected", grouped(rejected)));
        line("rows", parts.join(" · "))?;
        for (kind, n) in &record.rejected {
            line("", format!("{} with {kind}", grouped(*n)))?;
        }
        if let Some(damaged) = record.scores_damaged.filter(|n| *n > 0) {
            line("", format!("{} damaged in the store, dropped", counted(damaged, "score")))?;
        }
        let labels = record.labels.as_deref().unwrap_or_default();
        if !labels.is_empty() {
            let any_number = record.task == Some(Problem::MultiLabel.to_string());
            let all = if any_number { read - rejected } else { labels.iter().map(|(_, n)| n).sum() };
            let share = |n: u64| if all == 0 { 0.0 } else { 100.0 * n as f64 / all as f64 };
            let listed = most_frequent(labels, MAX_LISTED, |(_, n)| *n);
            let listed = listed.into_iter().map(|place| &labels[place]);
            let listed = listed.map(|(label, n)| format!("{label} {} ({:.1} %)", grouped(*n), share(*n)));
            let mut listed: Vec<String> = listed.collect();
            if labels.len() > MAX_LISTED {
                listed.push(format!("{} more labels", grouped((labels.len() - MAX_LISTED) as u64)));
            }
            line("labels", listed.join(" · "))?;
        }
        let truncated = match record.rows_truncated {
            None | Some(0) => "none truncated".to_owned(),
            Some(n) => format!("{} truncated", counted(n, "row")),
        };
        line("tokens", format!("{} · {truncated}", grouped(tokens)))?;
        if tokens == 0 {
            line("time", format_duration(self.elapsed))?;
            return self.write_end(f);
        }
        line(
            "padding",
            format!(
                "{} tokens avoided ({:.1} % of padded batches of {PADDED_BATCH})",
                grouped(record.padding_avoided.unwrap_or_default()),
                100.0 * record.speed.padding_share.unwrap_or_default()
            ),
        )?;
        let [rows, tokens] =
            [record.speed.rows_per_second, record.speed.tokens_per_second].map(Option::unwrap_or_default);
        line("speed", format!("{rows:.0} rows/s · {} tokens/s", grouped(tokens as u64)))?;
        let scoring = Duration::from_secs_f64(record.stages.score.unwrap_or_default());
        line("time", format!("{} ({} scoring)", format_duration(self.elapsed), format_duration(scoring)))?;
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
        let record = &self.record;
        let [fingerprint, precision, output] =
            [&record.model, &record.precision, &record.output].map(|text| text.as_deref().unwrap_or_default());
        let fingerprint = &fingerprint[..fingerprint.len().min(16)];
        let revision = self.revision.as_ref().map_or_else(String::new, |commit| format!(", commit {commit}"));
        line("model", format!("{} ({fingerprint}, {precision}{revision})", self.model))?;
        let version = record.output_version.map_or_else(String::new, |version| format!(", version {version}"));
        line("output", format!("{output} ({}{version})", size(record.output_bytes.unwrap_or_default())))?;
        match &self.quarantine {
            Some((path, rows)) => line("rejected", format!("{path} ({})", counted(*rows, "row"))),
            None => Ok(()),
        }
    }
}
