//! `couplet run --metrics FILE`: Prometheus metrics of successful and failed runs.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::{Job, finetune_stage, golden, stderr_of, stdout_of, write};

const PAIRS: &str =
    "id,a,b\n1,A man walks.,A man is walking.\n2,A man walks.,A man is walking.\n3,,x\n4,One cat.,Two cats.\n";

/// Parses a metrics file into values by name and labels, and checks that it is valid for Prometheus.
fn metrics(text: &str) -> BTreeMap<String, f64> {
    let (mut values, mut typed, mut described) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.split(' ');
            let (kind, name) = (words.next().unwrap(), words.next().unwrap().to_owned());
            let new = if kind == "TYPE" { typed.insert(name) } else { described.insert(name) };
            assert!(new && words.next().is_some(), "{line}");
            continue;
        }
        let (key, value) = line.rsplit_once(' ').unwrap();
        let name = key.split('{').next().unwrap();
        assert!(typed.contains(name) && described.contains(name), "{line} has no HELP or TYPE");
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        assert!(key.contains("{pipeline=\"demo\""), "{line}");
        assert!(
            values
                .insert(
                    key.replace("pipeline=\"demo\",", "").replace("{pipeline=\"demo\"}", ""),
                    value.parse().unwrap()
                )
                .is_none()
        );
    }
    values
}

fn read(job: &Job) -> BTreeMap<String, f64> {
    metrics(&std::fs::read_to_string(job.path("metrics/demo.prom")).unwrap())
}

fn run(job: &Job) -> assert_cmd::Command {
    job.couplet(&["run", "pipeline.toml", "--quiet", "--metrics", "metrics/demo.prom"])
}

#[test]
fn a_run_leaves_its_metrics() {
    let job = Job::new(PAIRS);
    stdout_of(&mut run(&job));
    let first = read(&job);
    assert_eq!(first["couplet_run_success"], 1.0);
    assert_eq!(first["couplet_run_read_rows"], 4.0);
    let rows =
        |values: &BTreeMap<String, f64>, outcome: &str| values[&format!("couplet_run_rows{{outcome=\"{outcome}\"}}")];
    let outcomes = ["scored", "remembered", "repeated", "rejected"];
    assert_eq!(outcomes.map(|outcome| rows(&first, outcome)), [2.0, 0.0, 1.0, 1.0]);
    assert_eq!(first["couplet_run_rejected_rows{reason=\"NULL text\"}"], 1.0);
    let labels =
        ["paraphrase", "not_paraphrase"].map(|label| first[&format!("couplet_run_label_rows{{label=\"{label}\"}}")]);
    assert_eq!(labels.iter().sum::<f64>(), 3.0);
    assert!(first["couplet_run_duration_seconds"] > 0.0 && first["couplet_run_tokens"] > 10.0, "{first:#?}");
    assert!(first["couplet_run_start_timestamp_seconds"] <= first["couplet_run_end_timestamp_seconds"]);
    assert_eq!(first["couplet_run_last_success_timestamp_seconds"], first["couplet_run_end_timestamp_seconds"]);
    assert!(first.keys().any(|key| key.starts_with("couplet_run_info{run=\"")), "{first:#?}");
    assert!(!first.contains_key("couplet_run_score_psi"), "there was no run before");
    // All texts of the next run are cached, and it can be compared with this one.
    stdout_of(&mut run(&job));
    let second = read(&job);
    assert_eq!(outcomes.map(|outcome| rows(&second, outcome)), [0.0, 3.0, 0.0, 1.0]);
    assert_eq!((second["couplet_run_score_psi"], second["couplet_run_score_ks_ratio"]), (0.0, 0.0));
    assert!(!second.contains_key("couplet_run_rows_per_second"), "nothing was scored");
    // No other files are left beside the metrics.
    assert_eq!(job.path("metrics").read_dir().unwrap().count(), 1);
}

#[test]
fn the_report_gives_the_same_metrics() {
    let job = Job::new(PAIRS);
    stdout_of(&mut run(&job));
    let written = read(&job);
    let printed = metrics(&stdout_of(&mut job.couplet(&["report", "pipeline.toml", "--format", "prometheus"])));
    assert_eq!(written, printed);
}

#[test]
fn training_and_evaluation_are_in_the_report_and_the_metrics() {
    let job = Job::over_quickstart_pairs().add(&finetune("accuracy > 0"));
    stdout_of(&mut run(&job));
    let written = read(&job);
    let printed = metrics(&stdout_of(&mut job.couplet(&["report", "pipeline.toml", "--format", "prometheus"])));
    assert_eq!(written, printed);
    let training = written["couplet_run_stage_duration_seconds{stage=\"finetune\"}"];
    assert!(training > 0.0 && written["couplet_run_duration_seconds"] > training, "{written:#?}");
    let (start, end) = (written["couplet_run_start_timestamp_seconds"], written["couplet_run_end_timestamp_seconds"]);
    // The wall clock and the monotonic clock agree.
    assert!((end - start - written["couplet_run_duration_seconds"]).abs() < 1.0, "{written:#?}");
    assert_eq!(written["couplet_run_promoted"], 1.0);
    // A run without training has no metrics of it.
    stdout_of(run(&job).args(["--only", "score"]));
    assert!(!read(&job).keys().any(|key| key.contains("finetune") || key.contains("promoted")), "{:#?}", read(&job));
}

#[test]
fn a_rejected_model_gives_a_warning_and_a_metric() {
    let job = Job::over_quickstart_pairs().add(&finetune("accuracy > 0.999"));
    for again in ["", ", as before"] {
        let message = stderr_of(&mut run(&job), 0);
        assert!(message.contains("WARN") && message.contains(&format!("finetune: not promoted{again}")), "{message}");
        assert_eq!((read(&job)["couplet_run_success"], read(&job)["couplet_run_promoted"]), (1.0, 0.0));
    }
}

/// A stage that trains a model which no stage scores with.
fn finetune(promote_if: &str) -> String {
    finetune_stage("id <= 'q0100'", &format!("promote_if = {promote_if:?}"))
}

#[test]
fn a_failed_run_records_the_time_of_the_last_success() {
    let job = Job::new(PAIRS);
    stdout_of(&mut run(&job));
    let done = read(&job);
    // Too many bad rows.
    let job = job.add("[score]\nmax_errors = 0.1");
    stderr_of(&mut run(&job), 1);
    let failed = read(&job);
    assert_eq!((failed["couplet_run_success"], failed["couplet_run_read_rows"]), (0.0, 4.0));
    let last = "couplet_run_last_success_timestamp_seconds";
    assert_eq!(failed[last], done[last]);
    assert!(failed["couplet_run_end_timestamp_seconds"] > done["couplet_run_end_timestamp_seconds"]);
    // A missing model and an unreadable pipeline: neither run is recorded in the store.
    let job = job.change(&format!("{:?}", golden("tiny-distilbert")), "\"nowhere\"");
    stderr_of(&mut run(&job), 2);
    let failed = read(&job);
    assert_eq!((failed["couplet_run_success"], failed[last]), (0.0, done[last]));
    assert!(!failed.contains_key("couplet_run_read_rows"));
    write(&job.path("demo.toml"), "name = 1");
    stderr_of(&mut job.couplet(&["run", "demo.toml", "--metrics", "metrics/demo.prom"]), 2);
    assert_eq!((read(&job)["couplet_run_success"], read(&job)[last]), (0.0, done[last]));
}

/// The pipeline's name differs from its file's name, and the metrics file is new.
#[test]
fn the_time_of_the_last_success_survives_failures() {
    let job = Job::new(PAIRS);
    stdout_of(&mut run(&job));
    let last = "couplet_run_last_success_timestamp_seconds";
    let done = read(&job)[last];
    // The metrics file provides the pipeline's name while the TOML cannot be read.
    let job = job.change("[source]", "[source");
    stderr_of(&mut run(&job), 2);
    assert_eq!((read(&job)["couplet_run_success"], read(&job)[last]), (0.0, done));
    let job = job.change("[source", "[source]").change("pairs.csv", "nothing.csv");
    stderr_of(&mut run(&job), 2);
    assert_eq!((read(&job)["couplet_run_success"], read(&job)[last]), (0.0, done));
    // The store has it too.
    std::fs::remove_file(job.path("metrics/demo.prom")).unwrap();
    stderr_of(&mut run(&job), 2);
    assert_eq!((read(&job)["couplet_run_success"], read(&job)[last]), (0.0, done));
}

#[test]
fn metrics_that_cannot_be_written_do_not_fail_the_run() {
    let job = Job::new(PAIRS);
    write(&job.path("metrics"), "a file");
    let message = stderr_of(&mut run(&job), 0);
    assert!(message.contains("--metrics metrics/demo.prom: cannot write the file"), "{message}");
    assert!(job.output().exists());
}
