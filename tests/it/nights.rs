//! `couplet run`, night after night: cached scores, recovery after kills, and what readers see meanwhile.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Job, golden, rows_of, stderr_of, stdout_of, write};
use crate::tiny::Variant;

/// CSV with `id,a,b` of rows from `from` up to `to`; every third text occurs twice.
pub fn pairs(from: usize, to: usize) -> String {
    let mut csv = String::from("id,a,b\n");
    for id in from..to {
        let text = id - usize::from(id % 3 == 2);
        csv.push_str(&format!("{id},The council heard letter {text} on the plan,Letter {text} reached the council\n"));
    }
    csv
}

/// A job of 300 rows and 200 texts in windows of 16, with a commit after each window.
fn job() -> Job {
    Job::new(pairs(0, 300)).add("[run]\nwindow = 16\n[score]\nstore = \"state\"\ncheckpoint = \"1ms\"")
}

fn delta(job: Job, mode: &str) -> Job {
    job.change("uri = \"out/scores.parquet\"", &format!("uri = \"out/scores\"\nformat = \"delta\"\nmode = {mode:?}"))
}

fn folder(job: Job, mode: &str) -> Job {
    job.change("uri = \"out/scores.parquet\"", &format!("uri = \"out/scores\"\nmode = {mode:?}"))
}

/// The published rows sorted by id, as `couplet query` reads them.
fn published(job: &Job) -> Vec<Value> {
    let sql = "SELECT * FROM predictions ORDER BY CAST(id AS INT)";
    let mut query = job.couplet(&["query", "--pipeline", "pipeline.toml", "--format", "json", sql]);
    serde_json::from_str(&stdout_of(&mut query)).unwrap()
}

pub fn counts(report: &Value) -> [u64; 5] {
    ["read", "scored", "remembered", "repeated", "rejected"].map(|name| report["rows"][name].as_u64().unwrap())
}

/// Runs the job with these arguments and returns the report.
fn report_of(job: &Job, arguments: &[&str]) -> Value {
    serde_json::from_str(&stdout_of(job.run().arg("--json").args(arguments))).unwrap()
}

/// Runs the job, which is killed at a crash point. Fails if the point is not reached.
fn crash(job: &Job, point: &str) {
    let output = job.run().env("COUPLET_CRASH", point).env("TMPDIR", job.path("")).output().unwrap();
    assert_eq!(output.status.code(), None, "{point}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_second_run_scores_new_and_changed_rows() {
    let job = job();
    assert_eq!(counts(&job.report()), [300, 200, 0, 100, 0]);
    let first = rows_of(&job.output());
    assert_eq!(counts(&job.report()), [300, 0, 300, 0, 0]);
    assert_eq!(rows_of(&job.output()), first);

    // Six new rows, one of them with a changed text.
    let grown = pairs(0, 306).replace("0,The council heard letter 0 ", "0,The council read letter 0 ");
    write(&job.path("pairs.csv"), grown);
    assert_eq!(counts(&job.report()), [306, 5, 299, 2, 0]);
    let grown = rows_of(&job.output());
    assert_eq!(grown.len(), 306);
    assert_eq!(grown[1..300], first[1..]);
    assert_ne!(grown[0]["score"], first[0]["score"]);
}

#[test]
fn output_rows_keep_the_order_of_the_source() {
    let job = job();
    job.report();
    let ids = |job: &Job| rows_of(&job.output()).iter().map(|row| row["id"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(ids(&job), (0..300).collect::<Vec<_>>());
    // With too little memory for a hash join with the scores, both sides are sorted, and spilled if that is too much as
    // well.
    let job = Job::new(pairs(0, 120_000)).add("[run]\nmemory = \"16MiB\"\nspill = \"spill\"");
    let job = job.change("SELECT id, a, b FROM pairs", "SELECT id, a, b FROM pairs WHERE id % 1000 < 200");
    assert_eq!(counts(&job.report())[0], 24_000);
    let ids = ids(&job);
    assert!(ids.is_sorted() && ids.len() == 24_000);
    assert_eq!(job.path("spill").read_dir().unwrap().count(), 0, "spilled files are removed");
}

#[test]
fn another_model_or_length_or_fresh_scores_all_rows_again() {
    let job = job();
    job.report();
    let job = job.change("[sink]", "max_length = 16\n[sink]");
    assert_eq!(counts(&job.report())[1], 200);
    assert_eq!(counts(&job.report())[1], 0);
    let fresh: Value = serde_json::from_str(&stdout_of(job.run().args(["--json", "--fresh"]))).unwrap();
    assert_eq!(counts(&fresh), [300, 200, 0, 100, 0]);
    // The scores of both models are in the store; those of the unused one are removed.
    let gc = |dry: &[&str]| stdout_of(job.couplet(&["store", "gc", "pipeline.toml"]).args(dry));
    assert!(gc(&["--dry-run"]).starts_with("200 scores of 1 model would be deleted; "));
    assert!(gc(&[]).starts_with("200 scores of 1 model deleted; "));
    assert!(gc(&[]).starts_with("0 scores of 0 models deleted; "));
    assert_eq!(counts(&job.report()), [300, 0, 300, 0, 0]);
}

#[test]
fn gc_keeps_the_models_of_all_given_values_of_a_variable() {
    let job = job().change(&format!("{:?}", golden("tiny-distilbert")), "\"models/{which}\"");
    for (name, model) in [("a", "tiny-distilbert"), ("b", "tiny-bert")] {
        for file in golden(model).read_dir().unwrap() {
            let file = file.unwrap();
            let copy = job.path("models").join(name).join(file.file_name());
            write(&copy, std::fs::read(file.path()).unwrap());
        }
        stdout_of(job.run().args(["--var", &format!("which={name}"), "--quiet"]));
    }
    // Another pipeline of the same store needs no variable.
    let toml = std::fs::read_to_string(job.path("pipeline.toml")).unwrap();
    write(&job.path("other.toml"), toml.replace("{which}", "a").replace("out/scores", "out/other"));
    let gc = |arguments: &[&str]| {
        let mut command = job.couplet(&["store", "gc", "pipeline.toml", "other.toml"]);
        command.args(arguments).arg("--dry-run");
        command
    };
    let message = stdout_of(&mut gc(&["--var", "which=a"]));
    assert!(message.starts_with("200 scores of 1 model would be deleted; "), "{message}");
    assert!(message.contains("note: pipeline.toml: [model] uri = \"models/{which}\" has {which}: only the scores of its models for which = a"), "{message}");
    let message = stdout_of(&mut gc(&["--var", "which=a", "--var", "which=b"]));
    assert_eq!(message, "0 scores of 0 models would be deleted; 0 files would be removed\n");
    let message = stderr_of(&mut gc(&["--var", "which=a", "--var", "whcih=b"]), 2);
    assert!(message.contains("--var whcih=…: no pipeline uses this variable"), "{message}");
}

/// The crash points of a run, as [`crash`] names them.
pub const POINTS: [&str; 9] = [
    "read",
    "store.before",
    "store.after",
    "store.before:3",
    "store.after:7",
    "publish.before",
    "publish.written",
    "publish.confirmed",
    "publish.after",
];

#[test]
fn rejected_texts_are_retried_on_request() {
    // It has no token for unknown words.
    let model = Variant::of("tiny-distilbert").with_json("tokenizer.json", |tokenizer| {
        tokenizer["model"]["unk_token"] = "[NONE]".into();
    });
    let csv = format!("{}6,𓀀,Hieroglyphs\n7,𓀀,Hieroglyphs\n8,,Nothing\n", pairs(0, 6));
    let job = Job::new(csv).change(golden("tiny-distilbert").to_str().unwrap(), model.folder().to_str().unwrap());
    let job = job.add("[score]\nstore = \"state\"");
    let commits = || score_files(&job);
    let mut before = Vec::new();
    for (arguments, tries) in [(&[][..], true), (&[], false), (&["--retry-errors"], true), (&[], false)] {
        let report: Value = serde_json::from_str(&stdout_of(job.run().arg("--json").args(arguments))).unwrap();
        // Both scores and rejections are committed.
        assert_eq!(commits() != before, tries, "{arguments:?}");
        before = commits();
        assert_eq!(report["rejected"]["text the tokenizer refused"], 2, "{report:#}");
        assert_eq!(report["rejected"]["NULL text"], 1, "{report:#}");
        let rows = rows_of(&job.output());
        let errors: Vec<_> = rows.iter().filter_map(|row| row["error"].as_str()).collect();
        assert!(errors[0].starts_with("the tokenizer refused the text") && errors[0] == errors[1], "{errors:?}");
        assert_eq!(errors.len(), 3, "{errors:?}");
    }
}

#[test]
fn a_killed_run_resumes_and_publishes_the_same_table() {
    let undisturbed = job();
    undisturbed.report();
    let expected = published(&undisturbed);
    for kind in ["file", "runs overwrite", "runs append", "delta overwrite", "delta merge", "delta append"] {
        for point in POINTS {
            // The library writes the rows of Delta tables and has no such crash point.
            if point == "publish.written" && kind.starts_with("delta") {
                continue;
            }
            let job = match kind.split_once(' ') {
                None => job(),
                Some(("runs", mode)) => folder(job(), mode),
                Some((_, mode)) => delta(job(), mode),
            };
            crash(&job, point);
            let report = job.report();
            let is_there = kind.ends_with("append") && point == "publish.after";
            assert_eq!(report["already_appended"], is_there, "{kind} {point}");
            let counts = if is_there { [300, 0, 0, 0, 0] } else { counts(&report) };
            assert_eq!(counts[0], 300, "{kind} {point}");
            // Windows that complete in quick succession are committed together.
            let done = match point {
                "read" | "store.before" => 0..=0,
                "store.after" => 16..=64,
                "store.before:3" => 2 * 16..=200,
                "store.after:7" => 7 * 16..=200,
                _ => 200..=200,
            };
            let remembered = 200 - counts[1];
            assert!(done.contains(&remembered), "{kind} {point}: {remembered} texts were not scored again");
            let rows = published(&job);
            // Also if they were appended before the kill.
            assert_eq!(rows.len(), 300, "{kind} {point}");
            let distinct: BTreeSet<String> = rows.iter().map(ToString::to_string).collect();
            let all: BTreeSet<String> = expected.iter().map(ToString::to_string).collect();
            assert_eq!(distinct, all, "{kind} {point}");
            assert_eq!(outcomes(&job), ["done", "killed"], "{kind} {point}");
        }
    }
}

#[test]
fn rows_are_appended_once_per_run_key() {
    // Rows, model, store, run records and lock do not matter: the run key decides.
    let source = "SELECT id, a, b, random() AS noise, now() AS at FROM pairs";
    let appends = |job: Job| job.change("SELECT id, a, b FROM pairs", source);
    for job in [appends(delta(job(), "append")), appends(folder(job(), "append"))] {
        crash(&job, "publish.after");
        assert_eq!(published(&job).len(), 300);
        let report = job.report();
        assert_eq!((&report["already_appended"], published(&job).len()), (&true.into(), 300));
        std::fs::write(job.path("state/lock.json"), "{\"state\": \"he").unwrap();
        assert_eq!(job.report()["already_appended"], true);
        std::fs::remove_dir_all(job.path("state")).unwrap();
        let job = job.change("tiny-distilbert", "tiny-bert");
        let message = stdout_of(&mut job.run());
        let key = report["run_key"].as_str().unwrap();
        assert!(message.contains(&format!("nothing: out/scores already has the rows of run key {key}")), "{message}");
        assert_eq!(published(&job).len(), 300);

        assert_eq!(report_of(&job, &["--again"])["run_key"], key);
        assert_eq!(published(&job).len(), 600);
        for (appended, rows) in [(false, 900), (true, 900)] {
            let report = report_of(&job, &["--run-key", "2026-11-29"]);
            assert_eq!((&report["already_appended"], &report["run_key"]), (&appended.into(), &"2026-11-29".into()));
            assert_eq!(published(&job).len(), rows);
        }
        // Changed source files are new rows, regardless of the kill.
        write(&job.path("pairs.csv"), pairs(0, 290));
        crash(&job, "publish.after");
        assert_eq!(published(&job).len(), 1190);
        assert_eq!(job.report()["already_appended"], true);
        assert_eq!(published(&job).len(), 1190);
        // So is another query.
        assert_eq!(job.change("random() AS noise", "2.0 AS noise").report()["already_appended"], false);
    }
}

#[test]
fn a_default_run_key_changes_with_a_source_table() {
    // A versioned table is identified by its version, because its files are not listed.
    let source = delta(job(), "append");
    source.report();
    let toml = format!("{:?}", source.path("out/scores"));
    let reader = Job::new("").change("\"pairs.csv\"", &format!("{{ uri = {toml}, format = \"delta\" }}"));
    let reader = delta(reader.change("SELECT id, a, b FROM pairs", "SELECT DISTINCT id, a, b FROM pairs"), "append");
    assert_eq!(reader.report()["already_appended"], false);
    assert_eq!(reader.report()["already_appended"], true);
    report_of(&source, &["--again"]);
    assert_eq!(reader.report()["already_appended"], false);
    assert_eq!(published(&reader).len(), 600);
}

#[test]
fn a_run_key_is_refused_without_append_mode() {
    for (job, option) in [(job(), "--run-key"), (delta(job(), "merge"), "--again"), (delta(job(), "append"), "none")] {
        let arguments: &[&str] = match option {
            "--run-key" => &["--run-key", "x"],
            "--again" => &["--again"],
            _ => &["--run-key", " "],
        };
        let message = stderr_of(job.run().args(arguments), 2);
        let problem = match option {
            "--run-key" => "--run-key: pipeline.toml: with sink.mode = \"overwrite\", every run publishes its rows",
            "--again" => "--again: pipeline.toml: with sink.mode = \"merge\", every run publishes its rows",
            _ => "expected 1 to 200 bytes without control characters",
        };
        assert!(message.contains(problem), "{message}");
    }
}

#[test]
fn the_next_run_removes_partial_store_files_of_a_killed_one() {
    let job = job();
    job.report();
    let staged = job.path("state/runs/_delta_log/00000000000000000099.json#17046467313378935449");
    write(&staged, "half a co");
    assert_eq!(counts(&job.report()), [300, 0, 300, 0, 0]);
    assert!(!staged.exists());
}

#[test]
fn a_run_killed_during_cleanup_counts_as_done() {
    let job = delta(job(), "append");
    crash(&job, "compact");
    assert_eq!(outcomes(&job), ["done"]);
    // A scheduler that restarts a killed program means the same rows.
    assert_eq!(job.report()["already_appended"], true);
    assert_eq!(published(&job).len(), 300);
    assert_eq!(outcomes(&job), ["done", "done"]);
}

#[test]
fn gc_removes_leftovers_of_killed_runs_but_not_of_live_ones() {
    let job = job();
    job.report();
    let part = |number: u8| {
        job.path(&format!("state/runs/part-{number:05}-05493cfe-fd2f-4010-81bd-9092a42365fe-c000.zstd.parquet"))
    };
    let (left, young) = ([part(0), part(1)], part(2));
    for path in left.iter().chain([&young]) {
        write(path, "what no commit names");
    }
    for path in &left {
        let old = std::time::SystemTime::now() - Duration::from_hours(48);
        std::fs::File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
    }
    let mut gc = job.couplet(&["store", "gc", "pipeline.toml"]);
    let mut dry_run = job.couplet(&["store", "gc", "pipeline.toml", "--dry-run"]);
    assert_eq!(stdout_of(&mut dry_run), "0 scores of 0 models would be deleted; 2 files would be removed\n");
    assert_eq!(stdout_of(&mut gc), "0 scores of 0 models deleted; 2 files removed\n");
    assert!(young.exists() && left.iter().all(|path| !path.exists()));
    assert_eq!(counts(&job.report()), [300, 0, 300, 0, 0]);
    // A file of a run in progress is not yet referenced by any commit.
    let file = std::fs::File::options().write(true).open(job.path("state/lock.json")).unwrap();
    file.lock().unwrap();
    let message = job.error_of(&mut job.couplet(&["store", "gc", "pipeline.toml"]), 1);
    assert!(message.contains("is in use by another run"), "{message}");
}

/// The score files in the job's store, sorted by name.
pub fn score_files(job: &Job) -> Vec<String> {
    let Ok(models) = job.path("state/scores").read_dir() else { return Vec::new() };
    let files = models.flat_map(|model| model.unwrap().path().read_dir().unwrap());
    let mut files: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    files.retain(|name| name.ends_with(".parquet"));
    files.sort();
    files
}

/// The outcomes of the job's runs, newest first.
fn outcomes(job: &Job) -> Vec<String> {
    let runs: Value = serde_json::from_str(&stdout_of(&mut job.couplet(&["runs", "pipeline.toml", "--json"]))).unwrap();
    runs.as_array().unwrap().iter().map(|run| run["outcome"].as_str().unwrap().to_owned()).collect()
}

/// Kills at random moments; `COUPLET_KILLS` sets the number, with a small default.
#[test]
fn kills_at_random_moments_lose_nothing() {
    let kills: u64 = std::env::var("COUPLET_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(6);
    let undisturbed = job();
    let began = Instant::now();
    undisturbed.report();
    let whole = began.elapsed();
    let expected = published(&undisturbed);
    let mut state: u64 = 42;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / f64::from(1_u32 << 31)
    };
    let (mut done, mut job, mut in_this_job) = (0, None, 0);
    while done < kills {
        let current = job.get_or_insert_with(|| delta(self::job(), "merge"));
        let mut child = start(current);
        std::thread::sleep(whole.mul_f64(random() * 1.1));
        let _ = child.kill();
        let ended = child.wait().unwrap();
        assert!(ended.code().is_none_or(|code| code == 0), "a run after kills failed");
        done += u64::from(ended.code().is_none());
        in_this_job += 1;
        if in_this_job == 5 {
            current.report();
            assert_eq!(published(current), expected);
            (job, in_this_job) = (None, 0);
        }
    }
    if let Some(current) = job {
        current.report();
        assert_eq!(published(&current), expected);
    }
}

fn start(job: &Job) -> Child {
    Command::new(env!("CARGO_BIN_EXE_couplet"))
        .args(["run", "pipeline.toml", "--quiet"])
        .current_dir(job.path(""))
        .env_remove("RUST_LOG")
        // Other tests would report leftovers of a killed run in the shared temporary folder.
        .env("TMPDIR", job.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn many_small_store_files_are_compacted() {
    // One text per window and one commit per window: more commits than the store keeps uncompacted.
    let job = job().change("window = 16", "window = 1");
    write(&job.path("pairs.csv"), pairs(0, 900));
    job.report();
    let files = score_files(&job);
    assert_eq!(files.len(), 1, "{files:?}");
    assert!(files[0].contains("-600-"), "all scores are in it: {files:?}");
    assert_eq!(counts(&job.report()), [900, 0, 900, 0, 0]);
}

#[test]
fn a_concurrent_second_run_fails_or_waits() {
    let job = job();
    // Holds the lock as a run does.
    std::fs::create_dir_all(job.path("state")).unwrap();
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(job.path("state/lock.json"));
    let file = file.unwrap();
    file.lock().unwrap();
    let message = job.error(1);
    assert!(message.contains("is in use by another run") && message.contains("--wait"), "{message}");
    let waiting = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        drop(file);
    });
    stdout_of(job.run().args(["--wait", "60s"]));
    waiting.join().unwrap();
}

#[test]
fn a_delta_table_gets_a_new_version_per_run() {
    let job = delta(job(), "append").change("mode = \"append\"", "mode = \"append\"\npartition_by = [\"part\"]");
    let job = job.change("SELECT id, a, b FROM pairs", "SELECT id, a, b, id % 2 AS part FROM pairs");
    assert_eq!(job.report()["output"]["version"], 0);
    assert_eq!(report_of(&job, &["--again"])["output"]["version"], 1);
    let count = |table: &str| {
        let sql = "SELECT count(*) AS n, count(DISTINCT id) AS ids, max(part) AS parts FROM";
        let (listed, by_place) = (format!("{sql} t"), format!("{sql} '{table}'"));
        let table = format!("t={table}");
        let text = stdout_of(&mut job.couplet(&["query", "--format", "json", "--table", &table, &listed]));
        assert_eq!(stdout_of(&mut job.couplet(&["query", "--format", "json", &by_place])), text);
        serde_json::from_str::<Value>(&text).unwrap()[0].clone()
    };
    assert_eq!(count("out/scores"), serde_json::json!({ "n": 600, "ids": 300, "parts": 1 }));
    assert_eq!(count("out/scores@0"), serde_json::json!({ "n": 300, "ids": 300, "parts": 1 }));
    assert!(job.path("out/scores/part=1").is_dir());
    let message = stderr_of(&mut job.couplet(&["query", "--table", "t=out/scores@9", "SELECT 1"]), 2);
    assert!(message.contains("version 9"), "{message}");

    // An additional column does not fit the existing table, but is accepted if the run replaces everything.
    let job = job.change("SELECT id, a, b,", "SELECT id, a, b, 'x' AS more,");
    let message = job.error(2);
    assert!(message.contains("column `more` is not in the table"), "{message}");
    let job = job.change("mode = \"append\"", "mode = \"overwrite\"");
    // One version names the columns with statistics in the log, and the next one has the rows.
    assert_eq!(job.report()["output"]["version"], 3);
    assert_eq!(published(&job).len(), 300);
}

#[test]
fn rows_are_merged_by_their_id() {
    let job = delta(job(), "merge");
    job.report();
    let changed = pairs(200, 310).replace("250,The council heard", "250,The mayor heard");
    write(&job.path("pairs.csv"), changed);
    job.report();
    let rows = published(&job);
    assert_eq!(rows.len(), 310);
    assert!(rows[250]["a"].as_str().unwrap().starts_with("The mayor"));
    assert!(rows[100]["a"].as_str().unwrap().starts_with("The council"));
}

#[test]
fn rows_that_exceed_the_memory_limit_are_merged() {
    let rows = |ids: std::ops::Range<u32>, who: &str| {
        ids.fold(String::from("id,a,b\n"), |csv, id| csv + &format!("{id},letter {} came,{who}\n", id % 20))
    };
    let padded = "SELECT id, a, b, repeat('padding' || id, 40) AS padded FROM pairs";
    let job = delta(Job::new(rows(0..40_000, "council")), "merge")
        .change("SELECT id, a, b FROM pairs", padded)
        .add("[run]\nmemory = \"16MiB\"\nspill = \"spill\"");
    job.report();
    write(&job.path("pairs.csv"), rows(100..40_100, "mayor"));
    assert_eq!(counts(&job.report()), [40_000, 20, 0, 39_980, 0]);
    let sql = "SELECT count(*) AS rows, count(DISTINCT id) AS ids, \
               count(*) FILTER (WHERE padded = repeat('padding' || id, 40) AND score IS NOT NULL) AS whole, \
               count(*) FILTER (WHERE (b = 'mayor') = (id >= 100)) AS newest FROM predictions";
    let mut query = job.couplet(&["query", "--pipeline", "pipeline.toml", "--format", "csv", sql]);
    assert_eq!(stdout_of(&mut query), "rows,ids,whole,newest\n40100,40100,40100,40100\n");
    assert_eq!(job.path("spill").read_dir().unwrap().count(), 0, "spilled files are removed");
}

#[test]
fn a_folder_of_runs_is_read_through_its_manifests() {
    let job = folder(job(), "overwrite").change("mode = \"overwrite\"", "mode = \"overwrite\"\nkeep = 2");
    let outputs: Vec<String> = (0..3).map(|_| job.report()["output"]["path"].as_str().unwrap().to_owned()).collect();
    assert_eq!(published(&job).len(), 300);
    let there: BTreeSet<PathBuf> =
        job.path("out/scores").read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    let kept: BTreeSet<PathBuf> = outputs[1..].iter().map(|output| job.path(output)).collect();
    assert_eq!(there, kept, "the newest two stay");
    // A run without its manifest does not exist.
    std::fs::remove_file(job.path(&outputs[2]).join("_SUCCESS")).unwrap();
    assert_eq!(published(&job).len(), 300);
    let job = job.change("mode = \"overwrite\"\nkeep = 2", "mode = \"append\"");
    job.report();
    assert_eq!(published(&job).len(), 600);
}

#[test]
fn rejected_rows_go_to_a_separate_table_on_request() {
    for format in ["", "format = \"delta\"\nmode = \"append\""] {
        let csv = pairs(0, 30) + "30,,nothing\n31,,nothing\n";
        let job = Job::new(csv).add("[score]\nerrors = \"quarantine\"");
        let job = if format.is_empty() {
            job
        } else {
            job.change("uri = \"out/scores.parquet\"", &format!("uri = \"out/scores\"\n{format}"))
        };
        let report = job.report();
        assert_eq!(counts(&report), [32, 20, 0, 10, 2]);
        assert_eq!(report["quarantine"]["rows"], 2);
        assert_eq!(published(&job).len(), 30);
        let sql = format!("SELECT id, error FROM '{}' ORDER BY id", report["quarantine"]["path"].as_str().unwrap());
        let text = stdout_of(&mut job.couplet(&["query", "--format", "csv", &sql]));
        assert_eq!(text, "id,error\n30,a is NULL\n31,a is NULL\n");
        // A second run adds no second copy.
        report_of(&job, if format.is_empty() { &[] } else { &["--again"] });
        let text = stdout_of(&mut job.couplet(&["query", "--format", "csv", &sql]));
        assert_eq!(text.lines().count(), 3, "{text}");
    }
}

#[test]
fn runs_are_rows_of_a_table() {
    let job = job();
    assert!(stdout_of(&mut job.couplet(&["runs", "pipeline.toml"])).starts_with("demo has not run yet"));
    job.report();
    let broken = job.change("[score]", "[score]\nmax_errors = 0.0");
    write(&broken.path("pairs.csv"), pairs(0, 3) + "4,,x\n");
    broken.error(1);
    assert_eq!(outcomes(&broken), ["failed", "done"]);
    let sql = "SELECT outcome, rows_read, rows_scored, rows_remembered, sources LIKE '%pairs.csv%' AS source, \
               length(pipeline_hash) AS hash FROM runs ORDER BY started_at";
    let mut query = broken.couplet(&["query", "--pipeline", "pipeline.toml", "--format", "json", sql]);
    let runs: Value = serde_json::from_str(&stdout_of(&mut query)).unwrap();
    assert_eq!(runs[0]["outcome"], "done");
    assert_eq!(runs[0]["rows_scored"], 200);
    assert_eq!(runs[0]["source"], true);
    assert_eq!(runs[1]["outcome"], "failed");
    let listed = stdout_of(&mut broken.couplet(&["runs", "pipeline.toml"]));
    assert!(listed.lines().count() == 3 && listed.contains("were rejected"), "{listed}");
}

#[test]
fn a_delta_table_keeps_its_schema_and_misfits_fail_early() {
    let select = "SELECT id, a, b FROM pairs";
    let columns = "SELECT id, a, b, 1 AS one, arrow_cast(4000000000, 'UInt32') AS large, \
                   arrow_cast('2020-01-02T03:04:05', 'Timestamp(Nanosecond, None)') AS at, \
                   arrow_cast('2020-01-02T03:04:05', 'Timestamp(Second, Some(\"+00:00\"))') AS zoned FROM pairs";
    let job = || Job::new("id,a,b\n1,x,y\n2,p,q\n");
    for mode in ["append", "merge"] {
        let job = delta(job(), mode).change(select, &columns.replace('"', "\\\""));
        job.report();
        // A column without NULLs now has one.
        let job = job.change("1 AS one", "CASE WHEN id = 1 THEN 1 END AS one");
        job.report();
        let rows = published(&job);
        assert_eq!(rows.len(), if mode == "append" { 4 } else { 2 }, "{rows:?}");
        assert!(rows.iter().all(|row| row["large"] == 4_000_000_000_u64), "{rows:?}");
        assert!(rows.iter().any(|row| row["one"].is_null()), "{rows:?}");
    }
    let time = "SELECT id, a, b, CAST('12:00:00' AS TIME) AS t FROM pairs";
    let message = delta(job(), "append").change(select, time).error(2);
    assert!(message.contains("column `t` is Time64(ns), which no Delta table can hold; CAST it"), "{message}");
    // Two ids that differ only in nanoseconds would become one.
    let finer = "SELECT arrow_cast(id, 'Timestamp(Nanosecond, None)') AS id, a, b FROM pairs";
    let message = delta(job(), "merge").change(select, finer).error(2);
    assert!(
        message.contains("merged by `id`, which is Timestamp(ns), and a Delta table stores it with less precision"),
        "{message}"
    );
    delta(job(), "append").change(select, finer).report();
}
