//! A full disk under the sink, the store and the spill folder: the message names the place, the old output is intact,
//! and the next run with enough space succeeds.
//!
//! The disk is a tmpfs of a few hundred KiB in a separate mount namespace, which needs no privileges on Linux.

use std::path::Path;
use std::process::{Command, Output};

use crate::support::{Job, rows_of, skip, stdout_of};

/// Rows with incompressible texts, which fill a small disk quickly.
fn pairs(rows: usize) -> String {
    let mut state = 1_u64;
    let mut word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{:x}", state >> 20)
    };
    let row = |row| format!("{row},{} {},{}\n", word(), word(), word());
    "id,a,b\n".to_owned() + &(0..rows).map(row).collect::<String>()
}

/// Runs the pipeline with a disk of this many KiB mounted at a folder. The folder's files are copied to the disk before
/// the run and back afterwards. Returns `None` if such a disk cannot be mounted.
fn run_on_a_disk(test: &str, job: &Job, folder: &Path, kibibytes: usize) -> Option<Output> {
    let script = "set -e
        cp -a \"$1\" before
        mount -t tmpfs -o size=\"$2k\" tmpfs \"$1\"
        cp -a before/. \"$1\"
        touch mounted
        status=0
        \"$3\" run pipeline.toml || status=$?
        cp -a \"$1\" after
        exit $status";
    std::fs::create_dir_all(folder).unwrap();
    let _ = std::fs::remove_file(job.path("mounted"));
    let mut run = Command::new("unshare");
    run.args(["-rm", "sh", "-c", script, "sh"]).arg(folder).arg(kibibytes.to_string());
    run.arg(env!("CARGO_BIN_EXE_couplet")).current_dir(job.path("")).env("NO_COLOR", "1").env_remove("RUST_LOG");
    let output = run.output();
    if !job.path("mounted").exists() {
        let why =
            output.map_or_else(|e| e.to_string(), |output| String::from_utf8_lossy(&output.stderr).trim().to_owned());
        skip(test, &format!("no disk can be mounted here ({why})"));
        return None;
    }
    output.ok()
}

fn messages_of(job: &Job, output: &Output) -> String {
    let message = job.without_paths(&String::from_utf8_lossy(&output.stderr));
    // Drops progress lines, which appear in long runs only.
    message.lines().filter(|line| !line.contains(" INFO ")).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_sink_on_a_full_disk_keeps_the_old_output() {
    let job = Job::new(pairs(60));
    job.report();
    let before = rows_of(&job.output());
    std::fs::write(job.path("pairs.csv"), pairs(6000)).unwrap();
    let Some(output) = run_on_a_disk("a_sink_on_a_full_disk", &job, &job.path("out"), 96) else { return };
    let message = messages_of(&job, &output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    insta::assert_snapshot!(message);
    assert_eq!(rows_of(&job.path("after/scores.parquet")), before);
    // No files are left that would keep the disk full.
    let left: Vec<_> = job.path("after").read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["scores.parquet"]);
    // The scores are cached: with enough space, nothing is scored again.
    let report: serde_json::Value = serde_json::from_str(&stdout_of(job.run().arg("--json"))).unwrap();
    assert_eq!((&report["rows"]["scored"], &report["rows"]["read"]), (&0.into(), &6000.into()), "{report}");
    assert_eq!(rows_of(&job.output()).len(), 6000);
}

#[test]
fn a_full_store_disk_fails_the_run_and_keeps_the_old_output() {
    let job = Job::new(pairs(60)).add("[score]\nstore = \"store\"");
    job.report();
    let before = rows_of(&job.output());
    std::fs::write(job.path("pairs.csv"), pairs(6000)).unwrap();
    let Some(output) = run_on_a_disk("a_store_on_a_full_disk", &job, &job.path("store"), 160) else { return };
    let message = messages_of(&job, &output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(
        message.contains("store/scores") && message.contains("disk is full") && !message.contains("panicked"),
        "{message}"
    );
    assert_eq!(rows_of(&job.output()), before);
    // The store is unchanged: the next run with enough space resumes from it.
    assert_eq!(job.rows().len(), 6000);
}

#[test]
fn a_full_spill_disk_fails_the_run_and_keeps_the_old_output() {
    let job = Job::new(pairs(60)).add("[run]\nspill = \"spill\"");
    job.report();
    let before = rows_of(&job.output());
    std::fs::write(job.path("pairs.csv"), pairs(6000)).unwrap();
    let Some(output) = run_on_a_disk("a_spill_folder_on_a_full_disk", &job, &job.path("spill"), 64) else { return };
    let message = messages_of(&job, &output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    insta::assert_snapshot!(message);
    assert_eq!(rows_of(&job.output()), before);
    assert_eq!(job.path("after").read_dir().unwrap().count(), 0);
    assert_eq!(job.rows().len(), 6000);
}
