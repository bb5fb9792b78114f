//! A cluster of real processes on loopback gives the same rows as one machine, even if processes are killed during a
//! run.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::nights::{counts, pairs, score_files};
use crate::seaweed::Bucket;
use crate::shell::session;
use crate::store_folder::{text_of, user_file_names};
use crate::support::{
    Job, couplet, free_ports, quickstart_model, quickstart_pairs, rows_of, stderr_of, stdout_of, write,
};
use crate::types::column_mapped_table;

/// A process that is killed when the test ends; its temporary folder is removed too.
struct Process {
    child: Child,
    log: tempfile::NamedTempFile,
    temporary: tempfile::TempDir,
}

impl Process {
    fn start(arguments: &[&str], env: &[(&str, String)]) -> Self {
        let (log, temporary) = (tempfile::NamedTempFile::new().unwrap(), tempfile::tempdir().unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_couplet"));
        command.args(arguments).env("NO_COLOR", "1").env_remove("RUST_LOG");
        command.env("TMPDIR", temporary.path());
        command.envs(env.iter().map(|(name, value)| (*name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.reopen().unwrap());
        Self { child: command.spawn().unwrap(), log, temporary }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap()
    }

    /// Waits until the process has printed this text.
    fn wait_for(&mut self, words: &str) {
        let began = Instant::now();
        while !self.log().contains(words) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && began.elapsed() < Duration::from_secs(60), "{ended:?}: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Cluster {
    port: String,
    scheduler: Process,
    executors: Vec<Process>,
    /// The number of executors started so far.
    added: usize,
    env: Vec<(&'static str, String)>,
}

impl Cluster {
    /// Starts a scheduler and executors with one thread each.
    fn new(executors: usize, env: &[(&'static str, String)]) -> Self {
        let [port] = free_ports().map(|port| port.to_string());
        let scheduler = Self::scheduler(&port, env);
        let mut cluster = Self { port, scheduler, executors: Vec::new(), added: 0, env: env.to_vec() };
        for _ in 0..executors {
            cluster.add();
        }
        for executor in &mut cluster.executors {
            executor.wait_for("Connected to scheduler");
        }
        cluster
    }

    fn scheduler(port: &str, env: &[(&str, String)]) -> Process {
        let mut scheduler = Process::start(&["scheduler", "--port", port, "--executor-timeout", "10"], env);
        scheduler.wait_for("scheduler at df://");
        scheduler
    }

    fn add(&mut self) {
        let [port, http] = free_ports();
        self.add_at(port, http);
    }

    /// Adds an executor with one port for results and one for its status.
    fn add_at(&mut self, port: u16, http: u16) {
        let (address, name) = (self.address(), format!("executor-{}", self.added));
        self.added += 1;
        let (port, http) = (port.to_string(), http.to_string());
        let arguments = ["executor", "--scheduler", &address, "--port", &port, "--http-port", &http];
        let arguments = [&arguments[..], &["--threads", "1", "--name", &name]].concat();
        // Ballista logs its start-up messages at a level that is off by default.
        let env = [&self.env[..], &[("RUST_LOG", "info".to_owned())]].concat();
        self.executors.push(Process::start(&arguments, &env));
    }

    fn address(&self) -> String {
        format!("df://127.0.0.1:{}", self.port)
    }
}

/// A job of this many texts in tasks of a few hundred, which caches each task at once.
fn job(rows: usize) -> Job {
    let job = Job::new(pairs(0, rows));
    job.add("[run]\nwindow = 256\ntask_tokens = 4096\nthreads = 1\n[score]\nstore = \"state\"\ncheckpoint = \"1ms\"")
}

fn run(job: &Job, cluster: &Cluster) -> assert_cmd::Command {
    let mut command = job.run();
    command.args(["--json", "--cluster", &cluster.address()]).envs(cluster.env.iter().cloned());
    command
}

fn report(job: &Job, cluster: &Cluster) -> Value {
    serde_json::from_str(&stdout_of(&mut run(job, cluster))).unwrap()
}

fn names(report: &Value) -> Vec<&str> {
    let executors = report["executors"].as_array().unwrap().iter();
    let mut names: Vec<&str> = executors.map(|executor| executor["executor"].as_str().unwrap()).collect();
    names.sort_unstable();
    names
}

/// The rows that one machine gives.
fn expected(rows: usize) -> Vec<Value> {
    let job = job(rows);
    job.rows()
}

/// Starts a run in the background.
fn start(job: &Job, cluster: &Cluster) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_couplet"));
    command.current_dir(job.path("")).args(["run", "pipeline.toml", "--json", "--cluster", &cluster.address()]);
    command.envs(cluster.env.iter().cloned()).env("TMPDIR", job.path(""));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until a run has cached some scores.
fn wait_for_scores(job: &Job) {
    let began = Instant::now();
    while score_files(job).len() < 2 {
        assert!(began.elapsed() < Duration::from_secs(60), "no scores are cached");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_cluster_gives_the_same_rows_as_one_machine() {
    let cluster = Cluster::new(3, &[]);
    let quickstart = || {
        let model = format!("{:?}", quickstart_model());
        let job =
            Job::over_quickstart_pairs().change(&format!("{:?}", crate::support::golden("tiny-distilbert")), &model);
        job.add("[run]\ntask_tokens = 1024")
    };
    let (one, many) = (quickstart(), quickstart());
    one.report();
    let plan = ["plan", "pipeline.toml", "--cluster", &cluster.address()];
    let planned: Value =
        serde_json::from_str(&stdout_of(&mut many.couplet(&[&plan[..], &["--json"]].concat()))).unwrap();
    assert_eq!(names(&planned["cluster"]), ["executor-0", "executor-1", "executor-2"]);
    let people = stdout_of(&mut many.couplet(&plan));
    assert!(people.contains("3 executors with 6 slots") && people.contains("score.store, "), "{people}");
    let report = report(&many, &cluster);
    assert_eq!(rows_of(&many.output()), rows_of(&one.output()));
    assert_eq!(names(&report), ["executor-0", "executor-1", "executor-2"]);
    let sum = |key: &str| report["executors"].as_array().unwrap().iter().map(|e| e[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("texts"), sum("tokens")), (counts(&report)[1], report["tokens"]["scored"].as_u64().unwrap()));
    assert!(sum("tasks") >= planned["cluster"]["tasks_at_least"].as_u64().unwrap().max(6), "{report:#}");
    // The run record has it too, and the texts of the tasks are removed.
    let runs = stdout_of(&mut many.couplet(&["runs", "pipeline.toml", "--json"]));
    assert!(runs.contains("executor-1"), "{runs}");
    let state: Vec<_> =
        many.path("out").read_dir().unwrap().map(|entry| entry.unwrap().path().join("cluster")).collect();
    assert!(state.iter().all(|folder| !folder.exists()), "{state:?}");
    let people = stdout_of(many.run().args(["--fresh", "--cluster", &cluster.address()]));
    assert!(people.contains("  executors  executor-"), "{people}");
}

#[test]
fn user_files_in_a_store_survive_a_run_on_a_cluster() {
    let cluster = Cluster::new(1, &[]);
    let job = job(300);
    report(&job, &cluster);
    let store = job.path("state");
    for name in user_file_names() {
        write(&store.join(&name), text_of(&name));
    }
    let marker: Value = serde_json::from_slice(&std::fs::read(store.join("couplet-store.json")).unwrap()).unwrap();
    let left = store.join(format!("cluster/{}/{}-000001.parquet", "0".repeat(32), marker["id"].as_str().unwrap()));
    write(&left, "what a killed run left");
    stdout_of(run(&job, &cluster).arg("--fresh"));
    assert!(!left.exists());
    for name in user_file_names() {
        assert_eq!(std::fs::read_to_string(store.join(&name)).ok(), Some(text_of(&name)), "{name}");
    }
}

#[test]
fn a_run_survives_a_killed_executor_and_uses_a_new_one() {
    let mut cluster = Cluster::new(2, &[]);
    let job = job(9000);
    let child = start(&job, &cluster);
    wait_for_scores(&job);
    cluster.executors[0].kill();
    cluster.add();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(names(&report).last(), Some(&"executor-2"), "{report:#}");
    assert_eq!(rows_of(&job.output()), expected(9000));
}

#[test]
fn a_scheduler_whose_port_is_taken_reports_only_that() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let stderr = stderr_of(couplet().args(["scheduler", "--port", &port]), 1);
    assert!(stderr.starts_with(&format!("error: cannot start scheduler at 127.0.0.1:{port}: Address ")), "{stderr}");
}

#[test]
fn a_terminated_executor_returns_its_tasks_and_exits() {
    let mut cluster = Cluster::new(2, &[]);
    let job = job(9000);
    let child = start(&job, &cluster);
    wait_for_scores(&job);
    let pid = rustix::process::Pid::from_child(&cluster.executors[0].child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = cluster.executors[0].child.wait().unwrap();
    assert!(ended.success(), "{ended}: {}", cluster.executors[0].log());
    // Its temporary folder is removed with it.
    let temporary = cluster.executors[0].temporary.path();
    assert_eq!(temporary.read_dir().unwrap().count(), 0);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(rows_of(&job.output()), expected(9000));
    assert_eq!(executors(&cluster), ["executor-1"]);
}

#[test]
fn executors_use_free_ports() {
    let mut cluster = Cluster::new(0, &[]);
    for _ in 0..2 {
        cluster.add_at(0, 0);
    }
    let job = job(900);
    report(&job, &cluster);
    assert_eq!(rows_of(&job.output()), expected(900));
    assert!(list(&cluster, "executors").iter().all(|executor| executor["port"] != 0));
}

#[test]
fn a_killed_client_resumes_where_it_stopped() {
    let cluster = Cluster::new(2, &[]);
    let job = job(9000);
    let mut child = start(&job, &cluster);
    wait_for_scores(&job);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!job.output().exists());
    let report = report(&job, &cluster);
    let [read, scored, remembered, ..] = counts(&report);
    assert!(read == 9000 && remembered > 0 && scored < 6000, "{report:#}");
    assert_eq!(rows_of(&job.output()), expected(9000));
    assert!(!job.path("state/cluster").exists());
}

/// One of the lists of the scheduler's REST API.
fn list(cluster: &Cluster, what: &str) -> Vec<Value> {
    use std::io::{Read, Write};
    let mut socket = std::net::TcpStream::connect(format!("127.0.0.1:{}", cluster.port)).unwrap();
    write!(socket, "GET /api/{what} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// The unfinished jobs of a scheduler.
fn open_jobs(cluster: &Cluster) -> usize {
    let open = |job: &&Value| ["Running", "Queued"].contains(&job["status"].as_str().unwrap());
    list(cluster, "jobs").iter().filter(open).count()
}

/// The names of the executors registered with a scheduler.
fn executors(cluster: &Cluster) -> Vec<String> {
    let name = |executor: &Value| executor["id"].as_str().unwrap().split('~').next().unwrap().to_owned();
    list(cluster, "executors").iter().map(name).collect()
}

/// Waits until a scheduler has running jobs, or none.
fn wait_for_jobs(cluster: &Cluster, any: bool) {
    let began = Instant::now();
    while (open_jobs(cluster) > 0) != any {
        assert!(began.elapsed() < Duration::from_secs(60), "{} jobs", open_jobs(cluster));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_interrupted_client_cancels_its_jobs() {
    let mut cluster = Cluster::new(0, &[]);
    let job = job(900);
    // Without an executor, jobs wait.
    let child = start(&job, &cluster);
    wait_for_jobs(&cluster, true);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("interrupted after scoring 0 of 600 texts"), "{stderr}");
    wait_for_jobs(&cluster, false);
    assert!(!job.path("state/cluster").exists());
    cluster.add();
    assert_eq!(names(&report(&job, &cluster)), ["executor-0"]);
    assert_eq!(rows_of(&job.output()), expected(900));
}

#[test]
fn a_killed_scheduler_fails_the_run_and_the_next_run_resumes() {
    let mut cluster = Cluster::new(2, &[]);
    let job = job(9000);
    let child = start(&job, &cluster);
    wait_for_scores(&job);
    cluster.scheduler.kill();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(&format!("the scheduler at {} does not answer: ", cluster.address())), "{stderr}");
    assert!(stderr.contains("the scores so far are cached: run the same command again"), "{stderr}");
    assert!(!job.output().exists() && !job.path("state/cluster").exists());
    // Without a scheduler, a run fails before it reads anything, and a plan predicts that.
    let stderr = stderr_of(&mut run(&job, &cluster), 1);
    assert!(stderr.contains("does not answer"), "{stderr}");
    let stderr = stderr_of(&mut job.couplet(&["plan", "pipeline.toml", "--cluster", &cluster.address()]), 1);
    assert!(stderr.contains("does not answer"), "{stderr}");
    // The executors wait for the next scheduler at that address.
    cluster.scheduler = Cluster::scheduler(&cluster.port, &[]);
    let report = report(&job, &cluster);
    assert!(counts(&report)[2] > 0, "{report:#}");
    assert_eq!(rows_of(&job.output()), expected(9000));
}

#[test]
fn a_run_fails_at_once_if_an_executor_cannot_read_the_model() {
    let test = "a_run_fails_at_once_if_an_executor_cannot_read_the_model";
    let Some(bucket) = Bucket::new(test, "cluster-refused") else { return };
    let model = bucket.put_folder("model", &crate::support::golden("tiny-distilbert"));
    let golden = format!("{:?}", crate::support::golden("tiny-distilbert"));
    let job = job(90).change(&golden, &format!("{model:?}"));
    // The executor has no credentials for the bucket, and the client does not send its own.
    let endpoint: Vec<_> = bucket.server.env().into_iter().filter(|(name, _)| !name.contains("KEY")).collect();
    let cluster = Cluster::new(1, &[&endpoint[..], &[("AWS_EC2_METADATA_DISABLED", "true".into())]].concat());
    let mut command = bucket.couplet(&["run", "pipeline.toml", "--cluster", &cluster.address()]);
    let stderr = stderr_of(command.current_dir(job.path("")), 1);
    assert!(stderr.contains("executor executor-0 refuses the task: "), "{stderr}");
    assert!(stderr.contains(&model) && !stderr.contains("is retried"), "{stderr}");
    assert!(!job.output().exists());
}

#[test]
fn queries_on_a_cluster_give_the_same_results_as_local_ones() {
    let cluster = Cluster::new(2, &[]);
    let job = job(90)
        .change("SELECT id, a, b FROM pairs", "SELECT id, a, b, id % 3 AS part FROM pairs")
        .change("uri = \"out/scores.parquet\"", "uri = \"out/scores\"\nformat = \"delta\"\npartition_by = [\"part\"]");
    report(&job, &cluster);
    let model = quickstart_model();
    let pairs = format!("pairs={}", quickstart_pairs().display());
    for sql in [
        "SELECT count(*) AS n, max(sentence1) AS last FROM pairs".to_owned(),
        "SELECT category, count(*) AS n FROM pairs GROUP BY category ORDER BY category".to_owned(),
        format!(
            "SELECT id, predict('{}', sentence1, sentence2)['label'] AS label FROM pairs ORDER BY id",
            model.display()
        ),
        format!(
            "SELECT id, predict('{}', sentence1, sentence2)['score'] AS score FROM pairs ORDER BY id LIMIT 9",
            crate::support::golden("tiny-distilbert").display()
        ),
        format!(
            "SELECT p['label'] AS label, count(*) AS n FROM (SELECT predict('{}', sentence1, sentence2) AS p FROM pairs) \
             WHERE p['score'] > 0.9 GROUP BY 1 ORDER BY 1",
            model.display()
        ),
        format!("SELECT category, count(*) AS n FROM '{}' GROUP BY 1 ORDER BY 1", quickstart_pairs().display()),
    ] {
        let query = |more: &[&str]| {
            // The command's `max_length` applies to models on every machine.
            let arguments = ["query", "--table", &pairs, "--max-length", "16", "--format", "json", &sql];
            let arguments = [&arguments[..], more].concat();
            stdout_of(&mut job.couplet(&arguments))
        };
        assert_eq!(query(&["--cluster", &cluster.address()]), query(&[]), "{sql}");
    }
    // The sink and the runs are Delta tables, one of them partitioned.
    let address = cluster.address();
    for sql in [
        "SELECT predicted_label, count(*) AS n, round(avg(score), 4) AS mean FROM demo GROUP BY 1 ORDER BY 1",
        "SELECT id, a FROM demo WHERE a LIKE '%letter 7%' AND part = 1 ORDER BY id",
        "SELECT part, count(*) AS n FROM demo GROUP BY part ORDER BY part",
        "SELECT outcome, executors FROM runs",
    ] {
        let query = ["query", "--pipeline", "pipeline.toml", "--format", "json", sql];
        let here = stdout_of(&mut job.couplet(&query));
        let there = stdout_of(&mut job.couplet(&[&query[..], &["--cluster", &address]].concat()));
        assert_eq!(there, here, "{sql}");
    }
    column_mapped_table(&job);
    let sum = ["query", "--cluster", &address, "SELECT sum(id) AS n FROM 'table/'"];
    let output = job.couplet(&sum).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && message.contains("query it without --cluster"), "{message}");
}

#[test]
fn text_files_have_the_same_values_on_a_cluster_as_locally() {
    let cluster = Cluster::new(2, &[]);
    let folder = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| {
        let path = folder.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    // Columns in another order, a code with leading zeros, numbers beyond every numeric type, and values from folder
    // names.
    write("csv/day=2026-01-01/a.csv", "id,code,a\n1,007,\"x, y\"\n2,010,\n");
    write("csv/day=__HIVE_DEFAULT_PARTITION__/b.csv", "a,id,code\n\"two\nlines\",3,99999999999999999999\n");
    write("lines/a.jsonl", "{\"id\": 1, \"n\": 9007199254740993}\n{\"id\": 2, \"late\": {\"key\": [1, null]}}\n");
    let many: String = (0..20_000).map(|id| format!("{{\"id\": {id}, \"text\": \"line {id}\"}}\n")).collect();
    write("many.jsonl", &many);
    write("odd.csv", "id;a\n1;'it\\'s'\n2;NA\n");
    let tables = [
        r#"csv={ uri = "csv/", format = "csv" }"#,
        r#"lines={ uri = "lines/", format = "json" }"#,
        "many=many.jsonl",
        r#"odd={ uri = "odd.csv", delimiter = ";", quote = "'", escape = "\\", null = "NA", types = { id = "text" } }"#,
    ];
    let tables = tables.map(|table| ["--table", table]).concat();
    let query = |sql: &str, more: &[&str]| {
        let mut command = couplet();
        command.current_dir(folder.path()).args(["query", "--format", "json", sql]).args(&tables).args(more);
        command
    };
    let address = cluster.address();
    for sql in [
        "SELECT *, arrow_typeof(code) AS t FROM csv ORDER BY id",
        "SELECT id FROM csv WHERE day = '2026-01-01' ORDER BY id",
        "SELECT count(*) AS n FROM csv",
        "SELECT *, arrow_typeof(late) AS t FROM lines ORDER BY id",
        "SELECT count(*) AS n, count(DISTINCT text) AS texts, sum(id) AS ids FROM many",
        "SELECT text FROM many ORDER BY id DESC LIMIT 3",
        "SELECT *, arrow_typeof(id) AS t FROM odd ORDER BY id",
    ] {
        let here = stdout_of(&mut query(sql, &[]));
        assert_eq!(stdout_of(&mut query(sql, &["--cluster", &address])), here, "{sql}");
    }
    // A broken line gives the same error as on one machine.
    write("many.jsonl", &format!("{many}{{\"id\": \n"));
    let sql = "SELECT count(text) AS n FROM many";
    let message = stderr_of(&mut query(sql, &["--cluster", &address]), 2);
    assert!(message.contains("many.jsonl") && message.contains("20001"), "{message}");
}

#[test]
fn executors_reject_files_replaced_after_they_were_listed() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = quickstart_pairs();
    let lines = |rows: i64| (0..rows).map(|id| format!("{{\"id\": {id}}}\n")).collect::<String>();
    for (name, first) in [("t.parquet", std::fs::read(&pairs).unwrap()), ("t.jsonl", lines(9).into_bytes())] {
        let mut cluster = Cluster::new(0, &[]);
        let (file, address) = (folder.path().join(name), cluster.address());
        std::fs::write(&file, first).unwrap();
        let table = format!("t={}", file.display());
        let query = ["query", "--format", "csv", "--table", &table, "SELECT count(DISTINCT id) AS n FROM t"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_couplet"));
        command.args(query).args(["--cluster", &address]).env("NO_COLOR", "1").env_remove("RUST_LOG");
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The job is planned and waits for an executor.
        let began = Instant::now();
        while !list(&cluster, "jobs").iter().any(|job| job["status"].as_str() == Some("Running")) {
            assert!(began.elapsed() < Duration::from_secs(30), "{:?}", list(&cluster, "jobs"));
            std::thread::sleep(Duration::from_millis(50));
        }
        // A different modification time, and for the lines a different size.
        std::thread::sleep(Duration::from_secs(2));
        let newer = folder.path().join("newer");
        std::fs::write(&newer, if name == "t.jsonl" { lines(5).into_bytes() } else { std::fs::read(&pairs).unwrap() })
            .unwrap();
        std::fs::rename(&newer, &file).unwrap();
        cluster.add();
        let output = child.wait_with_output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_ne!(output.status.code(), Some(0), "{message}");
        assert!(message.contains("was replaced after the query was planned"), "{message}");
        let here = stdout_of(couplet().args(query));
        assert_eq!(stdout_of(couplet().args(query).args(["--cluster", &address])), here);
    }
}

#[test]
fn the_next_query_reloads_a_replaced_model() {
    let cluster = Cluster::new(1, &[]);
    let (job, model) = (job(9), tempfile::tempdir().unwrap());
    for file in crate::support::golden("tiny-bert").read_dir().unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), model.path().join(file.file_name())).unwrap();
    }
    let sql = format!("SELECT predict('{}', a, b)['label'] AS label FROM pairs ORDER BY id", model.path().display());
    let pairs = format!("pairs={}", job.path("pairs.csv").display());
    let query = |more: &[&str]| {
        let arguments = ["query", "--table", &pairs, "--format", "json", &sql];
        stdout_of(&mut job.couplet(&[&arguments[..], more].concat()))
    };
    let before = query(&["--cluster", &cluster.address()]);
    let config = model.path().join("config.json");
    let mut replaced: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    for label in replaced["id2label"].as_object_mut().unwrap().values_mut() {
        *label = format!("new {}", label.as_str().unwrap()).into();
    }
    replaced.as_object_mut().unwrap().remove("label2id");
    std::fs::write(&config, replaced.to_string()).unwrap();
    let after = query(&["--cluster", &cluster.address()]);
    assert_eq!(after, query(&[]));
    assert_ne!(after, before);
}

#[test]
fn the_scheduler_is_reached_without_the_http_proxy() {
    let cluster = Cluster::new(1, &[]);
    let job = job(9);
    // Nothing listens on that port.
    let [proxy] = free_ports();
    let mut plan = job.couplet(&["plan", "pipeline.toml", "--json", "--cluster", &cluster.address()]);
    plan.env("http_proxy", format!("http://127.0.0.1:{proxy}")).env_remove("no_proxy").env_remove("NO_PROXY");
    let plan: Value = serde_json::from_str(&stdout_of(&mut plan)).unwrap();
    assert_eq!(names(&plan["cluster"]), ["executor-0"]);
}

#[test]
fn an_interrupted_query_cancels_its_job() {
    let cluster = Cluster::new(0, &[]);
    let job = job(9);
    // Without an executor, the query waits.
    let mut command = Command::new(env!("CARGO_BIN_EXE_couplet"));
    let pairs = format!("pairs={}", job.path("pairs.csv").display());
    let query = ["query", "--table", &pairs, "SELECT count(*) FROM pairs", "--cluster", &cluster.address()];
    command.current_dir(job.path("")).args(query).env("TMPDIR", job.path(""));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_jobs(&cluster, true);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    wait_for_jobs(&cluster, false);
}

#[test]
fn ctrl_c_in_the_shell_cancels_the_job_of_the_statement() {
    let cluster = Cluster::new(0, &[]);
    let (job, folder) = (job(9), tempfile::tempdir().unwrap());
    let home = folder.path();
    let (address, pairs) = (cluster.address(), format!("pairs={}", job.path("pairs.csv").display()));
    // Without an executor, the statement waits.
    let steps = r#"[
        ["", "tables: pairs"],
        ["SELECT count(*) FROM pairs;\r", null],
        ["AWAIT", "sent"],
        ["\u0003", "interrupted"],
        ["exit\r", "END"]
    ]"#;
    let test = "ctrl_c_in_the_shell_cancels_the_job_of_the_statement";
    std::thread::scope(|scope| {
        let arguments = ["--table", &pairs, "--cluster", &address];
        let shell = scope.spawn(move || session(test, &arguments, home, steps));
        while open_jobs(&cluster) == 0 && !shell.is_finished() {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::fs::write(home.join("sent"), "").unwrap();
        if shell.join().unwrap().is_some() {
            assert!(!list(&cluster, "jobs").is_empty());
            wait_for_jobs(&cluster, false);
        }
    });
}

/// A job of this many texts with everything but the pipeline file in a bucket, under the prefix `name`.
fn job_in(bucket: &Bucket, rows: usize, name: &str) -> Job {
    let model = bucket.put_folder("model", &crate::support::golden("tiny-distilbert"));
    bucket.put("pairs.csv", pairs(0, rows));
    let at = |key: &str| format!("\"s3://{}/{key}\"", bucket.name);
    let (out, state) = (at(&format!("{name}/out")), at(&format!("{name}/state")));
    Job::new("")
        .change("\"pairs.csv\"", &at("pairs.csv"))
        .change(&format!("{:?}", crate::support::golden("tiny-distilbert")), &format!("{model:?}"))
        .change("uri = \"out/scores.parquet\"", &format!("uri = {out}\nformat = \"delta\""))
        .add(&format!("[run]\nwindow = 256\ntask_tokens = 4096\n[score]\nstore = {state}\ncheckpoint = \"1ms\""))
}

/// The environment variables that every part of a cluster needs to reach a bucket.
fn env_of(bucket: &Bucket) -> Vec<(&'static str, String)> {
    let mut env = bucket.server.env();
    env.push(("XDG_CACHE_HOME", bucket.cache.path().display().to_string()));
    env
}

/// Id, label and score of each published row.
fn published(job: &Job, cluster: &Cluster) -> Vec<[Value; 3]> {
    let sql = "SELECT * FROM predictions ORDER BY CAST(id AS INT)";
    let mut query = job.couplet(&["query", "--pipeline", "pipeline.toml", "--format", "json", sql]);
    let rows = stdout_of(query.envs(cluster.env.iter().cloned()));
    scores(&serde_json::from_str::<Vec<Value>>(&rows).unwrap())
}

fn scores(rows: &[Value]) -> Vec<[Value; 3]> {
    rows.iter().map(|row| ["id", "predicted_label", "score"].map(|key| row[key].clone())).collect()
}

#[test]
fn a_cluster_works_in_a_bucket() {
    let test = "a_cluster_works_in_a_bucket";
    let Some(bucket) = Bucket::new(test, "cluster") else { return };
    let cluster = Cluster::new(2, &env_of(&bucket));
    let job = job_in(&bucket, 3000, "night");
    assert_eq!(counts(&report(&job, &cluster)), [3000, 2000, 0, 1000, 0]);
    assert_eq!(published(&job, &cluster), scores(&expected(3000)));
    let logs: String = cluster.executors.iter().chain([&cluster.scheduler]).map(Process::log).collect();
    assert!(!logs.contains(crate::seaweed::SECRET_KEY), "{logs}");
}

/// Kills one process after another, each at another moment of a run; `job` makes the job of a round.
fn kill_each(mut cluster: Cluster, rounds: u64, job: impl Fn(u64) -> Job, right: impl Fn(&Job, &Cluster) -> bool) {
    for round in 0..rounds {
        let job = job(round);
        let mut child = start(&job, &cluster);
        std::thread::sleep(Duration::from_millis(300 + 173 * round % 4000));
        match round % 3 {
            0 => {
                let victim = usize::try_from(round / 3).unwrap() % cluster.executors.len();
                cluster.executors.remove(victim).kill();
                cluster.add();
            }
            1 => {
                let _ = child.kill();
            }
            _ => {
                cluster.scheduler.kill();
                cluster.scheduler = Cluster::scheduler(&cluster.port, &cluster.env);
            }
        }
        let ended = child.wait_with_output().unwrap();
        if !ended.status.success() {
            report(&job, &cluster);
        }
        assert!(right(&job, &cluster), "round {round}");
        println!("round {round}: the first run ended with {:?}", ended.status.code());
    }
}

/// Kills for several minutes; the rows of each run are compared with those of one machine.
#[test]
#[ignore = "long: cargo test --features cluster,otel -- --ignored random_kills_in_a_cluster"]
fn random_kills_in_a_cluster_give_the_right_rows() {
    let rows = 9000;
    let expected = expected(rows);
    kill_each(Cluster::new(3, &[]), 30, |_| job(rows), |job, _| rows_of(&job.output()) == expected);
}

/// Kills for several minutes, with all shared data in a bucket.
#[test]
#[ignore = "long: cargo test --features cluster,otel -- --ignored random_kills_in_a_cluster"]
fn random_kills_in_a_cluster_give_the_right_rows_in_a_bucket() {
    let test = "random_kills_in_a_cluster_give_the_right_rows_in_a_bucket";
    let Some(bucket) = Bucket::new(test, "kills") else { return };
    let rows = 9000;
    let expected = scores(&expected(rows));
    let cluster = Cluster::new(3, &env_of(&bucket));
    let job = |round: u64| job_in(&bucket, rows, &format!("night-{round}"));
    kill_each(cluster, 30, job, |job, cluster| published(job, cluster) == expected);
}
