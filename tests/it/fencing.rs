//! Runs that were stopped past the end of their lock, and concurrent runs: a commit replaces only the version that its
//! run has read.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use object_store::ObjectStoreExt;
use serde_json::Value;

use crate::nights::pairs;
use crate::seaweed::{Bucket, block_on};
use crate::support::{Job, rows_of, stdout_of, write};

/// Kinds of sinks, their `[sink]` keys below a place, and whether runs append rows.
const SINKS: [(&str, &str, bool); 6] = [
    ("file", "uri = \"PLACE/scores.parquet\"", false),
    ("runs", "uri = \"PLACE/runs/\"\nmode = \"overwrite\"", false),
    ("runs append", "uri = \"PLACE/runs/\"\nmode = \"append\"", true),
    ("delta", "uri = \"PLACE/delta\"\nformat = \"delta\"\nmode = \"overwrite\"", false),
    ("delta merge", "uri = \"PLACE/delta\"\nformat = \"delta\"\nmode = \"merge\"", false),
    ("delta append", "uri = \"PLACE/delta\"\nformat = \"delta\"\nmode = \"append\"", true),
];

fn job(rows: usize, sink: &str, place: &str) -> Job {
    Job::new(pairs(0, rows)).change("uri = \"out/scores.parquet\"", &sink.replace("PLACE", place))
}

/// The location of a job: local disk, or a server.
struct Site<'a> {
    job: &'a Job,
    bucket: Option<&'a Bucket>,
}

impl Site<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_couplet"));
        command.env_remove("RUST_LOG").env("NO_COLOR", "1").env("TMPDIR", self.job.path(""));
        if let Some(bucket) = self.bucket {
            command.envs(bucket.settings());
        }
        command.args(arguments).current_dir(self.job.path(""));
        command
    }

    /// Starts a run that stops itself right after its last check of the lock.
    fn stopped_before_its_commit(&self, pipeline: &str) -> Child {
        let mut run = self.command(&["run", pipeline, "--json"]);
        run.env("COUPLET_STOP", "publish.confirmed").stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = run.spawn().unwrap();
        let began = Instant::now();
        while state_of(&child) != Some('T') {
            assert!(
                child.try_wait().unwrap().is_none(),
                "the run ended: {}",
                stderr_text(&child.wait_with_output().unwrap())
            );
            assert!(began.elapsed() < Duration::from_secs(120), "the run does not reach its commit");
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    }

    fn run(&self, arguments: &[&str]) -> Value {
        let output = self.command(&[&["run", "--json"][..], arguments].concat()).output().unwrap();
        assert!(output.status.success(), "{}", stderr_text(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The number of published rows and of distinct ids.
    fn published(&self) -> [u64; 2] {
        let sql = "SELECT count(*) AS rows, count(DISTINCT id) AS ids FROM predictions";
        let query = ["query", "--pipeline", "pipeline.toml", "--format", "json", sql];
        let output = self.command(&query).output().unwrap();
        assert!(output.status.success(), "{}", stderr_text(&output));
        let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
        ["rows", "ids"].map(|name| rows[0][name].as_u64().unwrap())
    }
}

/// The process state as Linux reports it: `T` if stopped.
fn state_of(child: &Child) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn continue_stopped(child: Child) -> Output {
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    child.wait_with_output().unwrap()
}

fn stderr_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a night of 30 rows; one of 33 that stops before its commit and loses the lock; one of 36 that is published;
/// then continues the stopped one. `lose` lets the third run take the lock.
fn continue_after_a_newer_night(
    name: &str,
    site: &Site,
    appends: bool,
    put: impl Fn(usize),
    lose: impl Fn(),
    wait: &[&str],
) {
    put(30);
    site.run(&["pipeline.toml"]);
    put(33);
    let stopped = site.stopped_before_its_commit("pipeline.toml");
    lose();
    put(36);
    site.run(&[&["pipeline.toml"][..], wait].concat());
    let expected = if appends { [66, 36] } else { [36, 36] };
    assert_eq!(site.published(), expected, "{name}");
    let ended = continue_stopped(stopped);
    assert_eq!(ended.status.code(), Some(1), "{name}: {}", stderr_text(&ended));
    assert_eq!(site.published(), expected, "{name}: {}", stderr_text(&ended));
    // The next night is unaffected.
    put(39);
    site.run(&["pipeline.toml"]);
    assert_eq!(site.published(), if appends { [105, 39] } else { [39, 39] }, "{name}");
}

/// Publishes the same rows twice: one run stops before its commit, and another one publishes them.
fn continue_after_the_same_night(name: &str, site: &Site, put: impl Fn(usize), lose: impl Fn()) {
    put(30);
    let stopped = site.stopped_before_its_commit("pipeline.toml");
    lose();
    site.run(&["pipeline.toml"]);
    let ended = continue_stopped(stopped);
    assert_eq!(ended.status.code(), Some(1), "{name}: {}", stderr_text(&ended));
    assert_eq!(site.published(), [30, 30], "{name}: {}", stderr_text(&ended));
    site.run(&["pipeline.toml"]);
    assert_eq!(site.published(), [30, 30], "{name}");
}

#[test]
fn a_run_that_lost_its_lock_publishes_nothing() {
    for (name, sink, appends) in SINKS {
        let new = || job(0, sink, "out").add("[score]\nstore = \"state\"");
        let lose = |job: &Job| std::fs::remove_file(job.path("state/lock.json")).unwrap();
        let put = |job: &Job, rows| write(&job.path("pairs.csv"), pairs(0, rows));
        let job = new();
        let site = Site { job: &job, bucket: None };
        continue_after_a_newer_night(name, &site, appends, |rows| put(&job, rows), || lose(&job), &[]);
        let job = new();
        continue_after_the_same_night(name, &Site { job: &job, bucket: None }, |rows| put(&job, rows), || lose(&job));
    }
}

/// A job with its pairs, store and sink in a bucket.
fn job_in(bucket: &Bucket, sink: &str) -> Job {
    let at = |key: &str| format!("\"s3://{}/{key}\"", bucket.name);
    let sink = sink.replace("PLACE", &format!("s3://{}/out", bucket.name));
    Job::new("")
        .change("\"pairs.csv\"", &at("pairs.csv"))
        .change("uri = \"out/scores.parquet\"", &sink)
        .add(&format!("[score]\nstore = {}", at("state")))
}

#[test]
fn a_run_that_lost_its_lease_publishes_nothing() {
    let test = "a_run_that_lost_its_lease_publishes_nothing";
    for (name, sink, appends) in SINKS {
        let Some(bucket) = Bucket::new(test, &format!("fence-{}", name.replace(' ', "-"))) else { return };
        let put = |rows| drop(bucket.put("pairs.csv", pairs(0, rows)));
        let lose = || block_on(bucket.client.delete(&"state/lock.json".into())).unwrap();
        let job = job_in(&bucket, sink);
        continue_after_a_newer_night(name, &Site { job: &job, bucket: Some(&bucket) }, appends, put, lose, &[]);
        let Some(bucket) = Bucket::new(test, &format!("same-{}", name.replace(' ', "-"))) else { return };
        let put = |rows| drop(bucket.put("pairs.csv", pairs(0, rows)));
        let lose = || block_on(bucket.client.delete(&"state/lock.json".into())).unwrap();
        let job = job_in(&bucket, sink);
        continue_after_the_same_night(name, &Site { job: &job, bucket: Some(&bucket) }, put, lose);
    }
}

/// Waits for the lease itself to expire, which takes 75 seconds; all sinks wait concurrently. Local sinks have their
/// store in the bucket.
#[test]
fn a_run_stopped_past_its_lease_publishes_nothing() {
    let test = "a_run_stopped_past_its_lease_publishes_nothing";
    std::thread::scope(|scope| {
        for (n, (name, sink, appends)) in SINKS.into_iter().enumerate() {
            for is_local in [false, true] {
                scope.spawn(move || {
                    let Some(bucket) = Bucket::new(test, &format!("lease-{n}-{is_local}")) else { return };
                    let mut job = job_in(&bucket, sink);
                    if is_local {
                        job = job.change(&format!("s3://{}/out", bucket.name), "out");
                    }
                    let put = |rows| drop(bucket.put("pairs.csv", pairs(0, rows)));
                    let site = Site { job: &job, bucket: Some(&bucket) };
                    continue_after_a_newer_night(name, &site, appends, put, || (), &["--wait", "200s"]);
                });
            }
        }
    });
}

#[test]
fn pipelines_that_create_a_table_at_once_commit_once() {
    const PIPELINES: usize = 5;
    for mode in ["append", "merge", "overwrite"] {
        let sink = format!("uri = \"out/delta\"\nformat = \"delta\"\nmode = {mode:?}");
        let job = Job::new(pairs(0, 100)).change("uri = \"out/scores.parquet\"", &sink);
        let toml = std::fs::read_to_string(job.path("pipeline.toml")).unwrap();
        let site = Site { job: &job, bucket: None };
        let names: Vec<String> = (0..PIPELINES).map(|n| format!("p{n}.toml")).collect();
        for (n, name) in names.iter().enumerate() {
            let own = format!("SELECT id, a, b FROM pairs WHERE id % {PIPELINES} = {n}");
            let toml = toml.replace("\"demo\"", &format!("\"demo{n}\"")).replace("SELECT id, a, b FROM pairs", &own);
            write(&job.path(name), toml);
        }
        // All of them have seen that no table exists.
        let stopped: Vec<Child> = names.iter().map(|name| site.stopped_before_its_commit(name)).collect();
        for child in &stopped {
            let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
        }
        let versions: Vec<u64> = stopped
            .into_iter()
            .map(|child| {
                let output = child.wait_with_output().unwrap();
                assert!(output.status.success(), "{mode}: {}", stderr_text(&output));
                let report: Value = serde_json::from_slice(&output.stdout).unwrap();
                report["output"]["version"].as_u64().unwrap()
            })
            .collect();
        let expected = if mode == "overwrite" { [20, 20] } else { [100, 100] };
        assert_eq!(site.published(), expected, "{mode}: {versions:?}");
        assert!(versions.contains(&0), "{mode}: {versions:?}");
    }
}

/// A table of rejected rows holds those of the runs in the sink, at whichever point a run was killed.
fn check_rejected_rows(name: &str, site: &Site, appends: bool, put: impl Fn(&str)) {
    let ids = |table: &str| {
        let sql = format!("SELECT CAST(id AS INT) AS id FROM {table} ORDER BY 1");
        let query = ["query", "--pipeline", "pipeline.toml", "--format", "csv", &sql];
        let output = site.command(&query).output().unwrap();
        if !output.status.success() {
            assert!(stderr_text(&output).contains("there is no table"), "{name}: {}", stderr_text(&output));
            return None;
        }
        let text = String::from_utf8(output.stdout).unwrap();
        Some(text.lines().skip(1).map(|id| id.parse().unwrap()).collect::<Vec<usize>>())
    };
    let crash = |point: &str| {
        let output = site.command(&["run", "pipeline.toml"]).env("COUPLET_CRASH", point).output().unwrap();
        assert_eq!(output.status.code(), None, "{name} {point}: {}", stderr_text(&output));
    };
    let (only_rejected, both) = ("publish.after:1", "publish.after:2");
    put(&(pairs(0, 30) + "30,,x\n31,,x\n"));
    crash(only_rejected);
    assert_eq!((ids("rejected"), ids("predictions")), (None, None), "{name}");
    // Rejected rows of a run that was never committed are gone.
    put(&(pairs(0, 30) + "30,,x\n"));
    crash(both);
    assert_eq!(ids("rejected"), Some(vec![30]), "{name}");
    let first = (0..30).collect::<Vec<_>>();
    assert_eq!(ids("predictions").as_ref(), Some(&first), "{name}");

    put(&(pairs(0, 33) + "40,,x\n41,,x\n"));
    crash(only_rejected);
    assert_eq!((ids("rejected"), ids("predictions")), (Some(vec![30]), Some(first)), "{name}");
    put(&(pairs(0, 33) + "40,,x\n41,a,b\n"));
    // Rejected rows are appended to those of earlier nights if the sink appends or merges.
    let rejected = if appends || name == "delta merge" { vec![30, 40] } else { vec![40] };
    let mut expected: Vec<usize> = (0..33).chain([41]).chain(if appends { 0..30 } else { 0..0 }).collect();
    expected.sort_unstable();
    crash(both);
    assert_eq!((ids("rejected"), ids("predictions")), (Some(rejected.clone()), Some(expected.clone())), "{name}");
    site.run(&["pipeline.toml"]);
    assert_eq!((ids("rejected"), ids("predictions")), (Some(rejected), Some(expected)), "{name}");
}

#[test]
fn rejected_rows_are_those_of_published_runs() {
    for (name, sink, appends) in SINKS {
        let job = job(0, sink, "out").add("[score]\nerrors = \"quarantine\"");
        let put = |csv: &str| write(&job.path("pairs.csv"), csv);
        check_rejected_rows(name, &Site { job: &job, bucket: None }, appends, put);
        // They replace the earlier ones without leaving other files.
        if name == "file" {
            let mut files = job.output_files();
            files.sort();
            assert_eq!(files, ["scores.parquet", "scores_rejected.parquet"]);
            assert_eq!(rows_of(&job.path("out/scores_rejected.parquet")).len(), 1);
        }
    }
}

#[test]
fn a_vacuum_of_rejected_rows_does_not_fail_the_next_run() {
    let (_, sink, _) = SINKS.into_iter().find(|(name, ..)| *name == "delta merge").unwrap();
    let job = job(0, sink, "out").add("[score]\nerrors = \"quarantine\"");
    let site = Site { job: &job, bucket: None };
    write(&job.path("pairs.csv"), pairs(0, 3) + "30,,x\n");
    site.run(&["pipeline.toml"]);
    write(&job.path("pairs.csv"), pairs(0, 3) + "30,,x\n31,,x\n");
    let killed = site.command(&["run", "pipeline.toml"]).env("COUPLET_CRASH", "publish.after:1").output().unwrap();
    assert_eq!(killed.status.code(), None, "{}", stderr_text(&killed));
    // Simulates VACUUM: removes the files that the newest version does not reference.
    let table = job.path("out/delta_rejected");
    let mut vacuumed = 0;
    for entry in table.join("_delta_log").read_dir().unwrap() {
        for line in std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default().lines() {
            let action: Value = serde_json::from_str(line).unwrap();
            if let Some(path) = action["remove"]["path"].as_str() {
                std::fs::remove_file(table.join(path)).unwrap();
                vacuumed += 1;
            }
        }
    }
    assert!(vacuumed > 0, "the row of the first night was not rewritten");
    write(&job.path("pairs.csv"), pairs(0, 3) + "30,,x\n32,,x\n");
    let output = site.command(&["run", "pipeline.toml"]).output().unwrap();
    assert!(
        output.status.success() && stderr_text(&output).contains("a VACUUM has removed files"),
        "{}",
        stderr_text(&output)
    );
    let sql = "SELECT CAST(id AS INT) AS id FROM rejected ORDER BY 1";
    let query = ["query", "--pipeline", "pipeline.toml", "--format", "csv", sql];
    let ids = site.command(&query).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ids.stdout), "id\n30\n31\n32\n", "{}", stderr_text(&ids));
}

#[test]
fn rejected_rows_in_a_bucket_are_those_of_published_runs() {
    let test = "rejected_rows_in_a_bucket_are_those_of_published_runs";
    for (name, sink, appends) in SINKS {
        let Some(bucket) = Bucket::new(test, &format!("rejected-{}", name.replace(' ', "-"))) else { return };
        let job = job_in(&bucket, sink);
        let job = job.change("[score]", "[score]\nerrors = \"quarantine\"");
        let site = Site { job: &job, bucket: Some(&bucket) };
        check_rejected_rows(name, &site, appends, |csv| drop(bucket.put("pairs.csv", csv)));
    }
}

/// Two stores do not know each other, so the sink alone decides.
#[test]
fn runs_of_two_stores_append_a_run_key_once() {
    for (name, sink, _) in SINKS.into_iter().filter(|(.., appends)| *appends) {
        let job = job(30, sink, "out").add("[score]\nstore = \"state\"");
        let toml = std::fs::read_to_string(job.path("pipeline.toml")).unwrap();
        write(&job.path("other.toml"), toml.replace("\"state\"", "\"other\""));
        let site = Site { job: &job, bucket: None };
        let stopped = site.stopped_before_its_commit("pipeline.toml");
        assert_eq!(site.run(&["other.toml"])["already_appended"], false, "{name}");
        let ended = continue_stopped(stopped);
        // The second run finds its key in the table, or that its folder was taken.
        let code = if name.starts_with("delta") { 0 } else { 1 };
        assert_eq!(ended.status.code(), Some(code), "{name}: {}", stderr_text(&ended));
        assert_eq!(site.published(), [30, 30], "{name}");
        assert_eq!(site.run(&["pipeline.toml"])["already_appended"], true, "{name}");
        assert_eq!(stdout_of(&mut job.couplet(&["runs", "pipeline.toml"])).lines().count(), 3);
    }
}
