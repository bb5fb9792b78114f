//! Messages about damaged stores, stores in use, and pipelines without a store.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use couplet::lock::{Claim, Place, acquire};

use crate::support::{Job, golden, stderr_of, stdout_of, write};

const PAIRS: &str = "id,a,b\n1,x,y\n2,p,q\n";

/// The only entry of a folder with `part` in its name.
fn only(folder: &Path, part: &str) -> PathBuf {
    let entries = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries.filter(|path| path.file_name().unwrap().to_str().unwrap().contains(part)).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn cut(file: &Path) {
    let whole = fs::read(file).unwrap();
    fs::write(file, &whole[..whole.len() / 2]).unwrap();
}

/// The message about a damaged store, without the file's name.
fn refused(job: &Job, arguments: &[&str], file: &Path) -> String {
    let message = job.error_of(&mut job.couplet(arguments), 2);
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(message.contains(name) && !message.contains("   0: ") && !message.contains("range"), "{message}");
    message
}

#[test]
fn rows_of_a_damaged_score_file_are_scored_again_with_a_warning() {
    let job = Job::new(PAIRS);
    job.report();
    let model = only(&job.path(".couplet/demo/scores"), "model=");
    let file = only(&model, ".parquet");
    cut(&file);
    let message = stderr_of(&mut job.couplet(&["plan", "pipeline.toml"]), 0);
    assert!(message.contains("is damaged: its checksum is wrong"), "{message}");
    assert!(file.exists(), "a plan removes nothing");
    let output = job.run().arg("--json").output().unwrap();
    let message = job.without_paths(&String::from_utf8(output.stderr).unwrap());
    assert!(
        message.contains("is damaged: its checksum is wrong. Its scores are dropped, and their texts scored anew: 2"),
        "{message}"
    );
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["rows"]["scored"], &report["rows"]["damaged_scores"]), (&2.into(), &2.into()), "{report:#}");
    let report = job.report();
    assert_eq!(
        (&report["rows"]["remembered"], &report["rows"]["damaged_scores"]),
        (&2.into(), &0.into()),
        "{report:#}"
    );
    // A missing file is not an error.
    fs::remove_file(only(&model, ".parquet")).unwrap();
    assert_eq!(job.report()["rows"]["scored"], 2);
}

#[test]
fn a_damaged_log_is_reported_with_the_folder_to_remove() {
    let job = Job::new(PAIRS);
    job.report();
    let log = |entry: u8| job.path(&format!(".couplet/demo/runs/_delta_log/{entry:020}.json"));
    cut(&log(1));
    for arguments in [&["runs", "pipeline.toml"][..], &["store", "gc", "pipeline.toml"]] {
        let message = refused(&job, arguments, &log(1));
        assert!(message.contains("its log is damaged: DIR/.couplet/demo/runs/_delta_log/"), "{message}");
        assert!(message.contains("; remove .couplet/demo/runs: the list of runs starts over"), "{message}");
    }
    fs::write(log(0), "").unwrap();
    let message = refused(&job, &["runs", "pipeline.toml"], &log(0));
    assert!(message.contains(" is empty; remove"), "{message}");
}

#[test]
fn a_damaged_run_record_is_reported_with_the_folder_to_remove() {
    let job = Job::new(PAIRS);
    job.report();
    let file = only(&job.path(".couplet/demo/runs"), ".parquet");
    cut(&file);
    let message = refused(&job, &["runs", "pipeline.toml"], &file);
    assert!(message.contains(" is damaged: ") && message.contains("; remove .couplet/demo/runs: "), "{message}");
}

#[tokio::test]
async fn a_run_in_progress_is_listed() {
    let job = Job::new(PAIRS);
    let runs = || stdout_of(&mut job.couplet(&["runs", "pipeline.toml"]));
    let claim = Claim { run_id: "0198".into(), pipeline: "other".into(), wait: None, lease: Duration::from_secs(60) };
    let held = acquire(&Place::Folder(job.path(".couplet/demo")), &claim).await.unwrap();
    let message = runs();
    assert!(message.starts_with("demo has not ended a run yet"), "{message}");
    assert!(
        message.contains("\na run is in progress") && message.contains("pipeline `other`, run 0198, process "),
        "{message}"
    );
    held.release().await.unwrap();
    assert!(!runs().contains("in progress"));
    job.report();
    assert_eq!(runs().lines().count(), 2);
}

#[test]
fn a_limit_of_zero_runs_is_refused() {
    let job = Job::new(PAIRS);
    let message = stderr_of(&mut job.couplet(&["runs", "pipeline.toml", "-n", "0"]), 2);
    assert!(
        message.contains("invalid value '0' for '--limit <LIMIT>'")
            && message.contains("expected a whole number, 1 or more"),
        "{message}"
    );
}

#[test]
fn an_evaluation_pipeline_is_not_reported_as_a_training() {
    let job = Job::new(PAIRS);
    let model = golden("tiny-distilbert");
    let sql = "SELECT a, b, 'x' AS label FROM pairs";
    write(
        &job.path("measure.toml"),
        format!(
            "name = \"measure\"\n[tables]\npairs = \"pairs.csv\"\n[evaluate]\nsql = \"{sql}\"\n\
             text = [\"a\", \"b\"]\nmodel = {model:?}\noutput = \"evaluation\"\n"
        ),
    );
    let message = job.error_of(&mut job.couplet(&["runs", "measure.toml"]), 2);
    insta::assert_snapshot!(message, @"error: measure.toml: this pipeline does not score, so it has no scores or runs: [source], [model] and [sink] are missing");
}
