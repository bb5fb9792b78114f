//! Text output of a plan.

use std::fmt;
use std::time::Duration;

use couplet_encoder::scorer::{PADDED_BATCH, Pace, Rejection};
use couplet_storage::words::{counted, format_duration, grouped, size};
use couplet_train::training_loop::JobStatus;

use super::writes::LEFT;
use super::{Lengths, Plan, PlannedEvaluation, PlannedScoring, PlannedTraining, Write};

/// Writes lines with an aligned name column; continuation lines have no name.
struct Lines<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Lines<'_, '_> {
    fn add(&mut self, name: &str, value: impl fmt::Display) -> fmt::Result {
        writeln!(self.0, "  {name:<10} {value}")
    }

    fn all(&mut self, name: &str, values: impl IntoIterator<Item = String>) -> fmt::Result {
        values.into_iter().enumerate().try_for_each(|(i, value)| self.add(if i == 0 { name } else { "" }, value))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Lines(f);
        lines.all(
            "tables",
            self.tables.iter().map(|table| {
                let rows = table.rows.map_or_else(|| "rows unknown until read".to_owned(), |rows| counted(rows, "row"));
                let files = counted(table.files, "file");
                format!("{}: {rows} · {} · {}, {files}", table.table, size(table.bytes), table.format)
            }),
        )?;
        for (name, stage) in [("pretrain", &self.pretrain), ("finetune", &self.finetune)] {
            if let Some(stage) = stage {
                lines.all(name, stage.lines())?;
            }
        }
        if let Some(stage) = &self.evaluate {
            lines.all("evaluate", stage.lines())?;
        }
        if let Some(stage) = &self.score {
            stage.write(&mut lines)?;
        }
        if let Some(cluster) = &self.cluster {
            lines.all("cluster", cluster.in_words())?;
        }
        if let Some(memory) = self.memory {
            let spills = size(self.spills_above);
            lines.add(
                "memory",
                format!("about {}; joins and sorts of the queries spill above {spills}", size(memory)),
            )?;
        }
        self.write_places(&mut lines)?;
        lines.all("note", self.notes.iter().cloned())?;
        for (query, plan) in &self.explained {
            writeln!(lines.0, "\n{query}:\n{}", plan.trim_end())?;
        }
        Ok(())
    }
}

impl Plan {
    fn write_places(&self, lines: &mut Lines) -> fmt::Result {
        lines.all(
            "writes",
            self.writes.iter().map(|write| {
                let temporary = if write.temporary { " (removed afterwards)" } else { "" };
                let outside = if write.outside { " · outside the pipeline's folder" } else { "" };
                format!("{}: {}: {}{temporary}{outside}", write.what, write.place, write.change)
            }),
        )?;
        // Sink, store and the system's temporary folder are expected; any other place outside is listed.
        let usual = |write: &Write| {
            ["sink", "store", LEFT].contains(&write.what) || write.temporary && self.spill == std::env::temp_dir()
        };
        let unexpected = self.writes.iter().filter(|write| write.outside && !usual(write));
        let unexpected: Vec<&str> = unexpected.map(|write| write.place.as_str()).collect();
        if unexpected.is_empty() {
            return Ok(());
        }
        lines.add("outside", format!("other places outside the pipeline's folder: {}", unexpected.join(", ")))
    }
}

impl PlannedTraining {
    fn lines(&self) -> Vec<String> {
        let what = if self.texts { "text" } else { "row" };
        let Some(trial) = &self.trial else {
            return vec![
                format!("{} · {}", counted(self.rows as u64, what), counted(self.epochs as u64, "epoch")),
                self.output.clone(),
            ];
        };
        let unit = if self.texts { "sequence" } else { "row" };
        let mut lines = vec![format!(
            "{} · {} for training, {} held out · {} tokens per epoch, {} truncated",
            counted(self.rows as u64, what),
            counted(trial.rows as u64, unit),
            grouped(trial.held_out as u64),
            grouped(trial.tokens),
            grouped(trial.truncated as u64),
        )];
        if !trial.labels.is_empty() {
            lines.push(format!("labels {}", trial.labels.join(", ")));
        }
        let steps = format!("{} in {}", counted(trial.total_steps, "step"), counted(self.epochs as u64, "epoch"));
        lines.push(match trial.status {
            JobStatus::New => steps,
            JobStatus::Resumes(done) => format!("{steps}, of which {} are done and saved", grouped(done)),
            JobStatus::Done => "nothing to do: the existing model has the same base, rows and settings".into(),
            JobStatus::ToCalibrate => "only calibration and evaluation: the model is trained already".into(),
            JobStatus::Rejected => "nothing to do: promote_if rejected this model before".into(),
        });
        if let (Some(pace), Some(seconds)) = (trial.pace, trial.seconds()) {
            lines.push(format!(
                "about {}, at {} tokens/s ({} tried in {})",
                time(seconds),
                grouped(pace.tokens_per_second() as u64),
                counted(pace.steps, "step"),
                time(pace.seconds)
            ));
        }
        lines.push(self.output.clone());
        lines
    }
}

impl PlannedEvaluation {
    fn lines(&self) -> Vec<String> {
        let rows = self.rows as u64;
        let mut lines = vec![format!("{} · {}", counted(rows, "row"), self.lengths.in_words(rows))];
        if let Some(pace) = self.pace {
            lines.push(format!("about {} to score them, at {}", time(self.seconds), speed(pace, &self.lengths)));
        }
        lines.push(format!("{} → {}", self.model, self.output));
        lines
    }
}

impl PlannedScoring {
    fn write(&self, lines: &mut Lines) -> fmt::Result {
        let columns =
            self.columns.iter().map(|column| format!("{} `{}` {}", column.role, column.name, column.data_type));
        let mut columns = columns.collect::<Vec<_>>();
        if !self.other_columns.is_empty() {
            columns.push(format!("{} more", self.other_columns.len()));
        }
        lines.add("columns", columns.join(" · "))?;
        let limited = match (self.limited, self.all_rows) {
            (true, Some(all)) => format!(" of {}", grouped(all)),
            (true, None) => " (only these)".to_owned(),
            (false, _) => String::new(),
        };
        let mut parts =
            vec![format!("{} read{limited}", grouped(self.rows)), format!("{} to score", grouped(self.texts))];
        for (n, what) in [(self.remembered, "cached"), (self.repeated, "repeated")] {
            if n > 0 {
                parts.push(format!("{} {what}", grouped(n)));
            }
        }
        parts.push(format!("{} to be rejected", grouped(self.rejected.iter().sum())));
        lines.add("rows", parts.join(" · "))?;
        let kinds = Rejection::KINDS.iter().zip(self.rejected).filter(|(_, n)| *n > 0);
        kinds.map(|(kind, n)| format!("{} with {kind}", grouped(n))).try_for_each(|kind| lines.add("", kind))?;
        if let Some(labels) = &self.labels {
            lines.add("labels", labels)?;
        }
        if let Some(lengths) = &self.lengths {
            lines.add("tokens", lengths.in_words(self.texts))?;
            lines.add("", lengths.cut_in_words(self.texts))?;
            let padding = lengths.scaled(lengths.padding, self.texts);
            let padded = lengths.padding + lengths.tokens;
            let share = if padded == 0 { 0.0 } else { 100.0 * lengths.padding as f64 / padded as f64 };
            lines.add(
                "padding",
                format!("{} tokens avoided ({share:.1} % of padded batches of {PADDED_BATCH})", grouped(padding)),
            )?;
            if let Some(pace) = self.pace {
                lines.add("speed", speed(pace, lengths))?;
            }
        }
        let seconds = &self.seconds;
        let of = if self.limited && self.all_rows.is_none() { " for the rows that were read" } else { "" };
        lines.add(
            "time",
            format!(
                "about {}{of}: {} scoring, {} loading, {} reading, {} writing",
                time(seconds.all()),
                time(seconds.scoring),
                time(seconds.loading),
                time(seconds.reading),
                time(seconds.publishing)
            ),
        )?;
        let named = match &self.fingerprint {
            Ok(fingerprint) => fingerprint[..fingerprint.len().min(16)].to_owned(),
            Err(substitute) => format!("does not exist yet; planned with {substitute}"),
        };
        lines.add("model", format!("{} ({named}, {})", self.model, self.precision))?;
        lines.add(
            "disk",
            format!("about {} of output, {} of temporary files", size(self.output_bytes), size(self.temporary_bytes)),
        )
    }
}

impl Lengths {
    fn in_words(&self, texts: u64) -> String {
        let sample =
            if self.all { String::new() } else { format!(", from a sample of {} texts", grouped(self.sampled as u64)) };
        format!(
            "{} in all · per text: median {}, p90 {}, p99 {}, maximum {}{sample}",
            grouped(self.tokens_of(texts)),
            self.p50,
            self.p90,
            self.p99,
            self.max
        )
    }

    fn cut_in_words(&self, texts: u64) -> String {
        let about = if self.all { "" } else { "about " };
        match self.scaled(self.truncated, texts) {
            0 => format!("none longer than max_length = {}", self.max_length),
            n => format!(
                "{about}{} of {} are truncated to max_length = {} ({:.1} %)",
                grouped(n),
                grouped(texts),
                self.max_length,
                100.0 * n as f64 / texts as f64
            ),
        }
    }
}

fn speed(pace: Pace, lengths: &Lengths) -> String {
    let rows = if lengths.mean > 0.0 { pace.tokens_per_second / lengths.mean } else { 0.0 };
    format!(
        "{rows:.0} rows/s · {} tokens/s ({} tried in {} on {})",
        grouped(pace.tokens_per_second as u64),
        if pace.batches == 1 { "1 batch".to_owned() } else { format!("{} batches", grouped(pace.batches as u64)) },
        time(pace.seconds),
        counted(pace.threads as u64, "thread")
    )
}

fn time(seconds: f64) -> String {
    format_duration(Duration::from_secs_f64(seconds.max(0.0)))
}
