//! A run that is stopped or killed: the output is unchanged, and the next run removes what it left.

#![cfg(unix)]

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::nights::score_files;
use crate::support::{Job, quickstart_model, rows_of, write};

/// The longest time from the signal to the end of a run: a fraction of the run's full duration.
const PATIENCE: Duration = Duration::from_secs(15);

/// A run that takes minutes, interrupted while it writes.
struct LongRun {
    job: Job,
    child: Child,
}

impl LongRun {
    /// Starts a run and waits until some of its scores are cached.
    fn start(job: Job) -> Self {
        let mut pairs = String::from("id,a,b\n");
        for id in 0..20_000 {
            pairs.push_str(&format!(
                "{id},The council heard {id} letters on the plan,Letter {id} reached the council\n"
            ));
        }
        write(&job.path("pairs.csv"), pairs);
        let tiny = format!("{:?}", crate::support::golden("tiny-distilbert"));
        let job = job
            .change(&tiny, &format!("{:?}", quickstart_model()))
            .add("[score]\nstore = \"state\"\ncheckpoint = \"200ms\"\n[run]\nwindow = 64\nspill = \"spill\"");
        let child = Command::new(env!("CARGO_BIN_EXE_couplet"))
            .args(["run", "pipeline.toml"])
            .current_dir(job.path(""))
            .env_remove("RUST_LOG")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut run = Self { job, child };
        let began = Instant::now();
        while score_files(&run.job).is_empty() {
            assert!(run.child.try_wait().unwrap().is_none(), "the run ended before it could be stopped");
            assert!(began.elapsed() < Duration::from_secs(120), "the run did not begin to score");
            std::thread::sleep(Duration::from_millis(5));
        }
        run
    }

    /// Sends a signal. Returns the exit status and the time until the end.
    fn end(self, signal: &str) -> (Job, Output, Duration) {
        let began = Instant::now();
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let output = self.child.wait_with_output().unwrap();
        (self.job, output, began.elapsed())
    }
}

/// Replaces the number of scored rows in a message.
fn without_progress(message: &str) -> String {
    let (start, rest) = message.split_once("after scoring ").unwrap();
    let (_, end) = rest.split_once(" of ").unwrap();
    format!("{start}after scoring N of {end}")
}

fn check_signal(signal: &str, job: Job) -> (Job, String) {
    let (job, output, took) = LongRun::start(job).end(signal);
    let message = job.without_paths(&String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(130), "{message}");
    assert!(took < PATIENCE, "it took {took:?}");
    assert!(output.stdout.is_empty());
    (job, without_progress(&message))
}

/// The next run, on fewer rows: scored texts are not scored again, and no files of the previous run are left.
fn assert_next_run_resumes(job: &Job) {
    let pairs = std::fs::read_to_string(job.path("pairs.csv")).unwrap();
    let some: Vec<&str> = pairs.lines().take(101).collect();
    write(&job.path("pairs.csv"), some.join("\n"));
    let report = job.report();
    assert!(report["rows"]["remembered"].as_u64().unwrap() >= 64, "{report}");
    assert_eq!(rows_of(&job.output()).len(), 100);
    assert_eq!(job.output_files(), ["scores.parquet"]);
    assert_eq!(job.path("spill").read_dir().unwrap().count(), 0);
}

#[test]
fn ctrl_c_stops_a_run_soon_and_keeps_the_old_output() {
    let job = Job::new("");
    write(&job.output(), "as before");
    let (job, message) = check_signal("-INT", job);
    insta::assert_snapshot!(message, @"error: interrupted after scoring N of 20,000 texts; the new scores are cached in state, and out/scores.parquet is unchanged. Run the same command again to resume");
    assert_eq!(std::fs::read(job.output()).unwrap(), b"as before");
    assert_eq!(job.output_files(), ["scores.parquet"]);
    assert_next_run_resumes(&job);
}

#[test]
fn sigterm_stops_a_first_run_and_leaves_only_cached_scores() {
    let (job, message) = check_signal("-TERM", Job::new(""));
    insta::assert_snapshot!(message, @"error: interrupted after scoring N of 20,000 texts; the new scores are cached in state, and out/scores.parquet is unchanged. Run the same command again to resume");
    assert!(job.output_files().is_empty(), "{:?}", job.output_files());
    assert_next_run_resumes(&job);
}

#[test]
fn a_killed_run_leaves_no_readable_table_and_the_next_cleans_up() {
    let (job, output, _) = LongRun::start(Job::new("")).end("-KILL");
    assert_eq!(output.status.signal(), Some(9));
    assert!(job.output_files().is_empty(), "{:?}", job.output_files());
    assert_eq!(job.path("spill").read_dir().unwrap().count(), 1, "the rows of the run are still there");

    let count = "SELECT count(*) FROM predictions";
    let message = job.error_of(&mut job.couplet(&["query", "--pipeline", "pipeline.toml", count]), 2);
    // After a line about the cleanup.
    let message = message.lines().last().unwrap();
    insta::assert_snapshot!(message, @"error: SQL: there is no table `predictions`: run the pipeline first, or name a result with --table predictions=URI (tables: pairs)");
    assert_next_run_resumes(&job);
}
