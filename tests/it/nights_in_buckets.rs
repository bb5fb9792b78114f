//! `couplet run` with tables, store and sink on a real S3 server: same results as on a disk, despite any fault.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::Value;

use crate::nights::{POINTS, counts, pairs};
use crate::proxy::{ECHO, Fault, Kind, Rule};
use crate::seaweed::{ACCESS_KEY, Bucket, SECRET_KEY, block_on};
use crate::support::{Job, stderr_of, stdout_of};

/// A job whose pairs, store and sink are in a bucket; `sink` is the rest of its section.
struct BucketJob {
    bucket: Bucket,
    job: Job,
    is_bulky: bool,
}

impl BucketJob {
    fn new(test: &str, name: &str, sink: &str) -> Option<Self> {
        let bucket = Bucket::new(test, name)?;
        let at = |key: &str| format!("\"s3://{}/{key}\"", bucket.name);
        let job = Job::new("")
            .change("\"pairs.csv\"", &at("pairs.csv"))
            .change("uri = \"out/scores.parquet\"", &sink.replace("BUCKET", &format!("s3://{}", bucket.name)))
            .add(&format!("[run]\nwindow = 16\n[score]\nstore = {}\ncheckpoint = \"1ms\"", at("state")));
        Some(Self { bucket, job, is_bulky: false })
    }

    /// A job whose rows are so large that the table is uploaded in parts.
    fn bulky(test: &str, name: &str, sink: &str) -> Option<Self> {
        let night = Self::new(test, name, sink)?;
        let job = night.job.change("SELECT id, a, b FROM pairs", "SELECT id, a, b, noise FROM pairs");
        Some(Self { job, is_bulky: true, ..night })
    }

    fn put(&self, csv: &str) {
        self.bucket.put("pairs.csv", csv);
    }

    fn put_rows(&self, rows: usize) {
        self.put(&if self.is_bulky { bulky(rows, 400_000) } else { pairs(0, rows) });
    }

    fn run(&self, endpoint: Option<&str>) -> assert_cmd::Command {
        let arguments = ["run", "pipeline.toml", "--json"];
        let mut command = match endpoint {
            Some(endpoint) => self.bucket.couplet_at(endpoint, &arguments),
            None => self.bucket.couplet(&arguments),
        };
        // A separate temporary folder for files that a killed run leaves.
        command.current_dir(self.job.path("")).env("TMPDIR", self.job.path(""));
        command
    }

    fn report(&self) -> Value {
        serde_json::from_str(&stdout_of(&mut self.run(None))).unwrap()
    }

    /// The published rows as text, sorted by id; empty before the first run.
    fn published(&self) -> Vec<String> {
        let sql = "SELECT id, a, predicted_label, score FROM predictions ORDER BY CAST(id AS INT)";
        let mut query = self.bucket.couplet(&["query", "--pipeline", "pipeline.toml", "--format", "json", sql]);
        let output = query.current_dir(self.job.path("")).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            assert!(stderr.contains("there is no table `predictions`"), "{stderr}");
            return Vec::new();
        }
        let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        rows.iter().map(ToString::to_string).collect()
    }

    /// The keys of all objects.
    fn keys(&self) -> BTreeSet<String> {
        let objects: Vec<_> = block_on(self.bucket.client.list(None).try_collect()).unwrap();
        objects.into_iter().map(|object| object.location.to_string()).collect()
    }
}

const DELTA: &str = "uri = \"BUCKET/out\"\nformat = \"delta\"\nmode = \"merge\"";
const RUNS: &str = "uri = \"BUCKET/out\"";
const FILE: &str = "uri = \"BUCKET/out/scores.parquet\"";

/// The rows that the same pairs give on a disk.
fn expected(csv: &str) -> Vec<String> {
    let job = Job::new(csv);
    let mut rows = job.rows();
    rows.sort_by_key(|row| row["id"].as_u64());
    rows.iter().map(ToString::to_string).collect()
}

/// The prediction columns of a row of JSON text.
fn prediction_columns(rows: &[String]) -> Vec<String> {
    let row = |text: &String| {
        let row: Value = serde_json::from_str(text).unwrap();
        format!("{} {} {} {}", row["id"], row["a"], row["predicted_label"], row["score"])
    };
    rows.iter().map(row).collect()
}

#[test]
fn runs_in_a_bucket_give_the_same_tables_as_on_a_disk() {
    let test = "runs_in_a_bucket_give_the_same_tables_as_on_a_disk";
    for (name, sink) in [("night-delta", DELTA), ("night-runs", RUNS), ("night-file", FILE)] {
        let Some(night) = BucketJob::new(test, name, sink) else { return };
        night.put(&pairs(0, 90));
        assert_eq!(counts(&night.report()), [90, 60, 0, 30, 0]);
        assert_eq!(counts(&night.report()), [90, 0, 90, 0, 0]);
        night.put(&pairs(0, 99));
        assert_eq!(counts(&night.report()), [99, 6, 90, 3, 0]);
        assert_eq!(prediction_columns(&night.published()), prediction_columns(&expected(&pairs(0, 99))), "{name}");
        let runs = night.bucket.couplet(&["runs", "pipeline.toml", "--json"]).current_dir(night.job.path("")).output();
        let runs: Value = serde_json::from_slice(&runs.unwrap().stdout).unwrap();
        assert_eq!(runs.as_array().unwrap().len(), 3);
        assert!(runs[0]["sources"][0]["etag"].is_string(), "{}", runs[0]);
        for secret in [ACCESS_KEY, SECRET_KEY] {
            assert!(!runs.to_string().contains(secret), "{secret} is in {runs}");
            for key in night.keys() {
                let object = block_on(async {
                    let path = object_store::path::Path::parse(&key).unwrap();
                    night.bucket.client.get(&path).await.unwrap().bytes().await.unwrap()
                });
                let found = object.windows(secret.len()).any(|bytes| bytes == secret.as_bytes());
                assert!(!found, "{secret} is in {key}");
            }
        }
    }
}

/// Pairs with an incompressible column of this many characters.
fn bulky(rows: usize, characters: usize) -> String {
    let mut state = 1_u64;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'0' + (state % 75) as u8)
    };
    let mut csv = String::new();
    for (i, line) in pairs(0, rows).lines().enumerate() {
        let last = if i == 0 { "noise".to_owned() } else { (0..characters).map(|_| noise()).collect() };
        csv.push_str(&format!("{line},{}\n", last.replace(['\\', '"'], "/")));
    }
    csv
}

#[test]
fn the_next_run_aborts_uploads_of_a_killed_one() {
    let test = "the_next_run_aborts_uploads_of_a_killed_one";
    for (name, sink) in [("uploads-delta", DELTA), ("uploads-runs", RUNS), ("uploads-file", FILE)] {
        let Some(night) = BucketJob::bulky(test, name, sink) else { return };
        night.put_rows(60);
        let proxy = night.bucket.proxy(1);
        let killed = night.run(Some(&proxy.endpoint())).env("COUPLET_CRASH", "upload.part").output().unwrap();
        assert_eq!(killed.status.code(), None, "{name}: {}", String::from_utf8_lossy(&killed.stderr));
        let ended = || proxy.requests(Kind::UploadComplete) + proxy.requests(Kind::UploadAbort);
        let begun = proxy.requests(Kind::UploadStart);
        assert!(begun > ended(), "{name}: an upload is unfinished");
        let notes = || night.keys().into_iter().filter(|key| key.contains("state/uploads/")).count();
        assert_eq!(notes(), begun - ended(), "{name}");

        let again = night.run(Some(&proxy.endpoint())).output().unwrap();
        let message = String::from_utf8_lossy(&again.stderr);
        assert!(
            again.status.success() && message.contains("unfinished upload of killed runs aborted"),
            "{name}: {message}"
        );
        assert!(proxy.requests(Kind::UploadAbort) > 0, "{name}");
        assert_eq!(proxy.requests(Kind::UploadStart), ended(), "{name}: every upload has ended");
        assert_eq!(notes(), 0, "{name}");
        assert_eq!(night.published().len(), 60, "{name}");
    }
}

#[test]
fn a_run_in_a_bucket_killed_at_any_step_resumes() {
    let test = "a_run_in_a_bucket_killed_at_any_step_resumes";
    let csv = pairs(0, 90);
    let expected = prediction_columns(&expected(&csv));
    for (name, sink) in [("kill-delta", DELTA), ("kill-runs", RUNS), ("kill-file", FILE)] {
        let Some(night) = BucketJob::new(test, name, sink) else { return };
        night.put(&csv);
        for point in POINTS {
            if point == "publish.written" && sink == DELTA {
                continue;
            }
            let output = night.run(None).env("COUPLET_CRASH", point).output().unwrap();
            // If everything is cached, there is no third commit to kill at.
            let is_late = point.starts_with("store.") && output.status.success();
            assert!(is_late || output.status.code().is_none(), "{point}: {}", String::from_utf8_lossy(&output.stderr));
            let now = prediction_columns(&night.published());
            assert!(now.is_empty() || now == expected, "{name} {point}: readers see all or nothing");
            assert_eq!(counts(&night.report())[0], 90, "{name} {point}");
            assert_eq!(prediction_columns(&night.published()), expected, "{name} {point}");
        }
    }
}

#[test]
fn an_unwritable_sink_is_found_before_scoring() {
    let test = "an_unwritable_sink_is_found_before_scoring";
    for (name, sink) in [("refused-delta", DELTA), ("refused-runs", RUNS), ("refused-file", FILE)] {
        let Some(night) = BucketJob::new(test, name, sink) else { return };
        night.put(&pairs(0, 30));
        let proxy = night.bucket.proxy(1);
        proxy.fail(Rule::new(Fault::Status(403)).on(&[Kind::Put, Kind::PutIf]).path("/out"));
        let message = stderr_of(&mut night.run(Some(&proxy.endpoint())), 2);
        let expected = format!("cannot write s3://{}/out", night.bucket.name);
        assert!(message.contains(&expected) && message.contains("writing is refused"), "{name}: {message}");
        assert!(!night.keys().iter().any(|key| key.contains("scores/model=")), "{name}: {:?}", night.keys());
    }
}

const FAULTS: [(&str, Fault); 9] = [
    ("500", Fault::Status(500)),
    ("503", Fault::Status(503)),
    ("429", Fault::Status(429)),
    ("error-body", Fault::ErrorBody),
    ("reset", Fault::Reset),
    ("drop-answer", Fault::DropAnswer),
    ("done-but-500", Fault::DoneButStatus(500)),
    ("truncated", Fault::TruncatedBody),
    ("slow", Fault::SlowBody(Duration::from_millis(1))),
];

fn assert_no_secret(printed: &str) {
    for secret in [ACCESS_KEY, SECRET_KEY, "Signature=", "Credential=", ECHO] {
        assert!(!printed.contains(secret), "{secret} is in {printed}");
    }
}

/// Responses to an expired session contain its token; no message shows it, whichever request got the response.
#[test]
fn secrets_in_server_responses_are_not_printed() {
    let test = "secrets_in_server_responses_are_not_printed";
    for (name, sink) in [("answers-delta", DELTA), ("answers-runs", RUNS), ("answers-file", FILE)] {
        let Some(night) = BucketJob::new(test, name, sink) else { return };
        night.put_rows(60);
        let mut expired = 0;
        for (kinds, path) in [
            (&[Kind::Put, Kind::PutIf][..], "/state/scores"),
            (&[Kind::Put, Kind::PutIf], "/state/runs"),
            (&[Kind::PutIf], "/out"),
            (&[Kind::Put], "/out"),
            (&[Kind::Get, Kind::Head], "/state/scores"),
            (&[Kind::List], "state%2Fruns"),
            (&[Kind::List], "out"),
            (&[Kind::Get], "/out"),
        ] {
            for after in [0, 2] {
                let proxy = night.bucket.proxy(1);
                proxy.fail(Rule::new(Fault::Status(400)).on(kinds).path(path).after(after));
                let at = |arguments: &[&str]| {
                    let mut command = night.bucket.couplet_at(&proxy.endpoint(), arguments);
                    command.current_dir(night.job.path("")).output().unwrap()
                };
                for arguments in [
                    &["run", "pipeline.toml", "-v"][..],
                    &["runs", "pipeline.toml"],
                    &["query", "--pipeline", "pipeline.toml", "-v", "SELECT count(*) FROM predictions"],
                    &["report", "pipeline.toml", "--format", "json"],
                    &["store", "gc", "pipeline.toml"],
                ]
                .into_iter()
                .take(if after == 0 { 5 } else { 1 })
                {
                    let output = at(arguments);
                    let message = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
                    assert_no_secret(&message);
                    let is_clear = output.status.success()
                        || message.contains("the session has expired")
                        || message.contains("the server no longer accepts the credentials")
                        || message.contains("(400 Bad Request)")
                        || message.contains("there is no table `predictions`");
                    assert!(is_clear, "{name} {kinds:?} {path} {after} {arguments:?}: {message}");
                    expired += usize::from(!output.status.success());
                }
            }
        }
        assert!(expired > 5, "{name}: {expired}");
        // Nor do the recorded outcomes.
        night.report();
        let runs = night.bucket.couplet(&["runs", "pipeline.toml", "--json"]).current_dir(night.job.path("")).output();
        let runs = String::from_utf8(runs.unwrap().stdout).unwrap();
        assert!(runs.contains("the server no longer accepts") || runs.contains("400 Bad Request"), "{runs}");
        assert_no_secret(&runs);
    }
}

#[test]
fn an_expired_session_ends_a_run_with_exit_code_1() {
    let test = "an_expired_session_ends_a_run_with_exit_code_1";
    let Some(night) = BucketJob::new(test, "expires", DELTA) else { return };
    night.put_rows(60);
    for (after, code, words) in
        [(0, 2, "the session has expired (400"), (20, 1, "the server no longer accepts the credentials (400")]
    {
        let proxy = night.bucket.proxy(1);
        let kinds = [Kind::Get, Kind::List, Kind::Put, Kind::PutIf, Kind::Delete];
        proxy.fail(Rule::new(Fault::Status(400)).on(&kinds).after(after));
        let message = stderr_of(&mut night.run(Some(&proxy.endpoint())), code);
        assert!(message.contains(words), "{message}");
    }
    // With valid credentials, the same command resumes.
    night.report();
}

/// Runs one night with failing requests between two undisturbed ones, and checks the table after each. Returns the
/// number of failed requests.
fn disturbed(night: &BucketJob, label: &str, fault: Fault, which: impl Fn(Rule) -> Rule, seed: u64) -> usize {
    let [before, after] = [60, 66].map(|rows| prediction_columns(&expected(&pairs(0, rows))));
    night.put_rows(60);
    night.report();
    night.put_rows(66);
    let proxy = night.bucket.proxy(seed);
    proxy.fail(which(Rule::new(fault)));
    let output = night.run(Some(&proxy.endpoint())).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_no_secret(&message);
    let now = prediction_columns(&night.published());
    // Merged rows stay: once a table has had the new rows, it has all 66 ids.
    let whole = now == after || now == before || now.len() == after.len();
    assert!(whole, "{label}: {} rows after {message}", now.len());
    if output.status.success() {
        assert_eq!(now, after, "{label}");
    } else {
        assert!(message.contains("error: "), "{label}: {message}");
    }
    let failed = proxy.faults(fault);
    drop(proxy);
    night.report();
    assert_eq!(prediction_columns(&night.published()), after, "{label}: the next run ends well");
    failed
}

#[test]
fn random_faults_leave_the_old_or_new_table() {
    let test = "random_faults_leave_the_old_or_new_table";
    for (sink_name, sink) in [("delta", DELTA), ("runs", RUNS)] {
        let Some(night) = BucketJob::new(test, &format!("fault-{sink_name}"), sink) else { return };
        for (name, fault) in FAULTS {
            let failed = disturbed(&night, &format!("{sink_name} {name}"), fault, |rule| rule.rate(0.2), 7);
            assert!(failed > 0, "{sink_name} {name}: nothing failed");
        }
    }
}

/// True if all faults are to be tried at all kinds of requests, which takes long.
fn each() -> bool {
    std::env::var("COUPLET_FAULTS").is_ok_and(|which| which == "each")
}

/// Tries faults at single kinds of requests: the first two of each kind, and with [`each`] also a fifth of them.
/// Returns the number of failed requests per sink and kind; empty if there is no server.
fn disturbed_one_by_one(
    test: &str,
    sinks: &[(&str, &str)],
    kinds: &[Kind],
    faults: &[(&str, Fault)],
    start: impl Fn(&str, &str) -> Option<BucketJob> + Sync,
) -> BTreeMap<String, usize> {
    let cases = sinks.iter().flat_map(|sink| faults.iter().map(move |fault| (sink, fault)));
    let cases = Mutex::new(cases);
    let seen = Mutex::new(BTreeMap::new());
    // Failed requests mostly wait for their retries.
    let work = || {
        loop {
            let Some(((sink_name, sink), (name, fault))) = cases.lock().unwrap().next() else { return };
            let Some(night) = start(&format!("{sink_name}-{name}"), sink) else { return };
            for &kind in kinds {
                let label = format!("{sink_name} {name} at {kind:?}");
                let mut failed = disturbed(&night, &label, *fault, |rule| rule.on(&[kind]).times(2), 7);
                if each() && failed > 0 {
                    failed += disturbed(&night, &label, *fault, |rule| rule.on(&[kind]).rate(0.2), 11);
                }
                println!("{label}: {failed} failed");
                *seen.lock().unwrap().entry(format!("{sink_name} {kind:?}")).or_default() += failed;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..if each() { 6 } else { 2 } {
            scope.spawn(work);
        }
    });
    let seen = seen.into_inner().unwrap();
    println!("{test}: failed requests: {seen:?}");
    seen
}

/// Without `COUPLET_FAULTS=each`, only requests that make commits fail.
#[test]
fn faults_at_one_request_kind_leave_the_old_or_new_table() {
    let test = "faults_at_one_request_kind_leave_the_old_or_new_table";
    let kinds = [Kind::PutIf, Kind::Put, Kind::Get, Kind::Head, Kind::List, Kind::Copy, Kind::Delete];
    let kinds = if each() { &kinds[..] } else { &kinds[..1] };
    let start = |name: &str, sink: &str| BucketJob::new(test, &format!("kinds-{name}"), sink);
    let seen = disturbed_one_by_one(test, &[("delta", DELTA), ("runs", RUNS)], kinds, &FAULTS, start);
    assert!(seen.is_empty() || seen["delta PutIf"] > 0 && seen["runs PutIf"] > 0, "{seen:?}");
}

/// Without `COUPLET_FAULTS=each`, only parts are refused or lose their responses.
#[test]
fn faults_in_multipart_uploads_leave_the_old_or_new_table() {
    let test = "faults_in_multipart_uploads_leave_the_old_or_new_table";
    let sinks = [("delta", DELTA), ("runs", RUNS), ("file", FILE)];
    let kinds = [Kind::UploadPart, Kind::UploadStart, Kind::UploadComplete];
    let some = [("500", Fault::Status(500)), ("drop-answer", Fault::DropAnswer)];
    let start = |name: &str, sink: &str| BucketJob::bulky(test, &format!("parts-{name}"), sink);
    let seen = if each() {
        disturbed_one_by_one(test, &sinks, &kinds, &FAULTS, start)
    } else {
        disturbed_one_by_one(test, &sinks[..1], &kinds[..1], &some, start)
    };
    assert!(seen.values().all(|failed| *failed > 0), "{seen:?}");
}

#[test]
fn a_commit_whose_response_is_lost_is_made_once() {
    let test = "a_commit_whose_response_is_lost_is_made_once";
    let sink = "uri = \"BUCKET/out\"\nformat = \"delta\"\nmode = \"append\"";
    let Some(night) = BucketJob::new(test, "lost-answers", sink) else { return };
    night.put(&pairs(0, 30));
    for rounds in 1..=4 {
        let proxy = night.bucket.proxy(rounds as u64);
        let fault = [Fault::DropAnswer, Fault::DoneButStatus(500)][rounds % 2];
        // The commits of store and table, each of which was made.
        proxy.fail(Rule::new(fault).on(&[Kind::PutIf]).path("_delta_log"));
        let key = rounds.to_string();
        let output = night.run(Some(&proxy.endpoint())).args(["--run-key", &key]).output().unwrap();
        assert!(output.status.success(), "{fault:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(night.published().len(), 30 * rounds, "{fault:?}");
    }
}

#[test]
fn a_server_without_conditional_writes_is_refused() {
    let test = "a_server_without_conditional_writes_is_refused";
    let Some(night) = BucketJob::new(test, "careless", DELTA) else { return };
    night.put(&pairs(0, 3));
    let proxy = night.bucket.proxy(1);
    proxy.fail(Rule::new(Fault::IgnoreCondition).on(&[Kind::PutIf]));
    let message = stderr_of(&mut night.run(Some(&proxy.endpoint())), 1);
    assert!(message.contains("cannot hold a store or a table safely"), "{message}");
    assert_eq!(night.keys(), BTreeSet::from(["pairs.csv".to_owned()]));
}
