//! Tables and models in buckets on a real S3 server: read like local ones, with equally good error messages.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde_json::Value;

use crate::proxy::{Fault, Kind, Rule};
use crate::seaweed::{ACCESS_KEY, Bucket, SECRET_KEY, block_on};
use crate::support::{
    Job, QUICKSTART, couplet, golden, quickstart_model, quickstart_pairs, root, rows_of, stderr_of, stdout_of,
};
use crate::tiny::Variant;

const PAIRS: &str = "id,a,b\n1,A man went home.,He was at home.\n2,No.,Yes.\n";

/// Runs `couplet query` on a table `t`, and checks that the query gives the same CSV with the table's URI in the SQL.
fn query(bucket: &Bucket, uri: &str, sql: &str) -> String {
    let listed = stdout_of(&mut bucket.couplet(&["query", "--format", "csv", sql, "--table", &format!("t={uri}")]));
    let by_place = sql.replace(" FROM t", &format!(" FROM '{uri}'"));
    assert_eq!(stdout_of(&mut bucket.couplet(&["query", "--format", "csv", &by_place])), listed, "{by_place}");
    listed
}

/// The error of `couplet query` for an unreadable table, without the secrets of the tests.
fn refusal(bucket: &Bucket, uri: &str) -> String {
    failure(bucket, uri, 2)
}

fn failure(bucket: &Bucket, uri: &str, code: i32) -> String {
    failure_of(&mut bucket.couplet(&["query", "SELECT * FROM t", "--table", &format!("t={uri}")]), code)
}

fn failure_of(command: &mut assert_cmd::Command, code: i32) -> String {
    let message = stderr_of(command, code);
    for secret in [ACCESS_KEY, SECRET_KEY, "Signature", "Credential="] {
        assert!(!message.contains(secret), "{secret} is in {message}");
    }
    let message: String = message.lines().filter(|line| !line.contains(" INFO ")).collect::<Vec<_>>().join("\n");
    let port = regex::Regex::new(r"127\.0\.0\.1:\d+").unwrap();
    port.replace_all(message.trim_end(), "SERVER").into_owned()
}

#[test]
fn every_format_is_read_from_a_bucket() {
    let Some(bucket) = Bucket::new("every_format_is_read_from_a_bucket", "formats") else { return };
    let folder = tempfile::tempdir().unwrap();
    let csv = bucket.put("rows.csv", "\u{feff}id,text\n1,\"é, x\"\n2,\n");
    let sql = "SELECT id, text FROM t ORDER BY id";
    let rows = "id,text\n1,\"é, x\"\n2,\n";
    assert_eq!(query(&bucket, &csv, sql), rows);
    let parquet = folder.path().join("rows.parquet");
    let table = format!("t={csv}");
    stdout_of(bucket.couplet(&["query", sql, "--table", &table, "-o"]).arg(&parquet));
    let parquet = bucket.put("a b/rows 100%.parquet", std::fs::read(parquet).unwrap());
    assert_eq!(query(&bucket, &parquet, sql), rows);
    let json = bucket.put("rows.ndjson", "{\"id\": 1, \"text\": \"é, x\"}\n{\"id\": 2}\n");
    assert_eq!(query(&bucket, &json, sql), rows);
    let tsv = bucket.put("rows.tsv", "id\ttext\n1\té, x\n2\t\n");
    assert_eq!(query(&bucket, &tsv.replace("s3://", "s3a://"), sql), rows);
}

#[test]
fn folders_patterns_and_partitions_are_read_from_a_bucket() {
    let Some(bucket) = Bucket::new("folders_patterns_and_partitions_are_read_from_a_bucket", "folders") else { return };
    let pairs = std::fs::read(quickstart_pairs()).unwrap();
    for key in ["p/dt=1/a.parquet", "p/dt=1/b.parquet", "p/dt=2/a.parquet", "p/dt=2/README.md", "q/a.parquet"] {
        bucket.put(key, &pairs);
    }
    for key in ["t/a1.csv", "t/a2.csv", "t/b1.csv", "tt/a3.csv"] {
        bucket.put(key, "x\n1\n");
    }
    for uri in ["s3://folders/p", "s3://folders/p/"] {
        let counted = query(&bucket, uri, "SELECT dt, count(*) AS n FROM t GROUP BY dt ORDER BY dt");
        assert_eq!(counted, "dt,n\n1,1050\n2,525\n", "{uri}");
    }
    let count = |uri: &str| query(&bucket, uri, "SELECT count(*) AS n FROM t").replace('\n', " ");
    assert_eq!(count("s3://folders/p/dt=1"), "n 1050 ");
    assert_eq!(count("s3://folders/t/a*.csv"), "n 2 ");
    assert_eq!(count("s3://folders/t/?1.csv"), "n 2 ");
    insta::assert_snapshot!(refusal(&bucket, "s3://folders/t/c*.csv"), @r"error: table `t`: no file matches s3://folders/t/c*.csv");
    insta::assert_snapshot!(refusal(&bucket, "s3://folders/*/a1.csv"), @r"error: table `t`: s3://folders/*/a1.csv: only the name of a file can be a pattern, and `*` stands for folders; name the folder s3://folders/ instead, whose folders of the form key=value are read as columns to filter by");
    insta::assert_snapshot!(refusal(&bucket, "s3://folders/t"), @r#"error: table `t`: folder s3://folders/t has no *.parquet file; it has a1.csv, which { uri = "…", format = "csv" } reads"#);
}

/// A compressed Arrow file in which the length of one column is set to 94 TB.
fn arrow_of_94_terabytes() -> Vec<u8> {
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1000));
    let rows = RecordBatch::try_from_iter([("n", numbers)]).unwrap();
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME)).unwrap();
    let mut writer = FileWriter::try_new_with_options(Vec::new(), &rows.schema(), options).unwrap();
    writer.write(&rows).unwrap();
    let mut bytes = writer.into_inner().unwrap();
    // The length precedes the frame, which begins with the magic number of LZ4.
    let length = [&8000_i64.to_le_bytes()[..], &[0x04, 0x22, 0x4D, 0x18]].concat();
    let at = bytes.windows(12).position(|window| window == length).unwrap();
    bytes[at..at + 8].copy_from_slice(&94_000_000_000_000_i64.to_le_bytes());
    bytes
}

#[test]
fn missing_and_broken_objects_are_named_like_local_files() {
    let Some(bucket) = Bucket::new("missing_and_broken_objects_are_named_like_local_files", "broken") else {
        return;
    };
    bucket.put("data/pairs.csv", PAIRS);
    insta::assert_snapshot!(refusal(&bucket, "s3://broken/data/pair.csv"), @r"error: table `t`: s3://broken/data/pair.csv does not exist; did you mean s3://broken/data/pairs.csv?");
    insta::assert_snapshot!(refusal(&bucket, "s3://broken/date/pairs.csv"), @r"error: table `t`: s3://broken/date/pairs.csv does not exist, nor does its folder s3://broken/date");
    insta::assert_snapshot!(refusal(&bucket, "s3://broke/data/pairs.csv"), @r"error: table `t`: s3://broke/data/pairs.csv: there is no bucket `broke`");
    insta::assert_snapshot!(refusal(&bucket, "s3://broke/data/"), @r"error: table `t`: s3://broke/data/: there is no bucket `broke`");
    let pairs = std::fs::read(quickstart_pairs()).unwrap();
    let cut = bucket.put("cut.parquet", &pairs[..pairs.len() / 2]);
    insta::assert_snapshot!(failure(&bucket, &cut, 2), @r"error: table `t`: s3://broken/cut.parquet: not a whole Parquet file (16499 bytes): Parquet error: Invalid Parquet file. Corrupt footer; was it cut off while it was written or copied?");
    let empty = bucket.put("empty.parquet", "");
    insta::assert_snapshot!(failure(&bucket, &empty, 2), @r"error: table `t`: s3://broken/empty.parquet is empty; was it cut off while it was written or copied?");
    let lengths = bucket.put("lengths.arrow", arrow_of_94_terabytes());
    let message = failure(&bucket, &lengths, 2);
    let expected = "s3://broken/lengths.arrow: neither a complete Arrow file nor a complete Arrow stream: ";
    assert!(message.contains(expected) && message.contains(" would become 94000000000000"), "{message}");
    let ragged = bucket.put("ragged.csv", "a,b\n1,2\n3\n");
    insta::assert_snapshot!(failure(&bucket, &ragged, 2), @r#"error: table `t`: s3://broken/ragged.csv:3: 1 field where the first line has 2; is a quotation mark (") unbalanced? { uri = "…", quote = false } reads them as text"#);
}

#[test]
fn missing_settings_are_named_without_secrets() {
    let Some(bucket) = Bucket::new("missing_settings_are_named_without_secrets", "environment") else { return };
    let uri = bucket.put("pairs.csv", PAIRS);
    let table = format!("t={uri}");
    let arguments = ["query", "SELECT 1", "--table", &table];
    let with = |name: &str, value: &str| {
        let mut command = bucket.couplet(&arguments);
        failure_of(command.env(name, value), 2)
    };
    insta::assert_snapshot!(with("AWS_SECRET_ACCESS_KEY", "wrong"), @r"error: table `t`: s3://environment/pairs.csv: the server refuses access (403 Forbidden): AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are wrong, or they do not allow this");
    insta::assert_snapshot!(with("AWS_ACCESS_KEY_ID", "AKIDNOBODY"), @r"error: table `t`: s3://environment/pairs.csv: the server refuses access (403 Forbidden): AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are wrong, or they do not allow this");
    insta::assert_snapshot!(with("AWS_ALLOW_HTTP", "false"), @r"error: table `t`: s3://environment/pairs.csv: the endpoint http://SERVER has no TLS; set AWS_ALLOW_HTTP=true to allow unencrypted requests");
    insta::assert_snapshot!(with("AWS_ENDPOINT_URL", "localhost"), @r#"error: table `t`: s3://environment/pairs.csv: the endpoint in the environment is not a URL such as https://host:port"#);
    // Values on which object_store would panic.
    insta::assert_snapshot!(with("AWS_ENDPOINT_URL", "localhost:9000"), @r"error: table `t`: s3://environment/pairs.csv: the endpoint in the environment is not a URL such as https://host:port");
    insta::assert_snapshot!(with("AWS_ENDPOINT_URL", "https://localhost:9000 "), @r"error: table `t`: s3://environment/pairs.csv: the endpoint https://localhost:9000 is not a URL such as https://host:port");
    insta::assert_snapshot!(with("AWS_ACCESS_KEY_ID", "AKID\n"), @r"error: table `t`: s3://environment/pairs.csv: AWS_ACCESS_KEY_ID has a space, the end of a line or another character that no request can hold");
    insta::assert_snapshot!(with("AWS_REGION", "x y"), @r"error: table `t`: s3://environment/pairs.csv: AWS_REGION has a space, the end of a line or another character that no request can hold");
    insta::assert_snapshot!(with("AWS_REGION", ""), @r"error: table `t`: s3://environment/pairs.csv: AWS_REGION is set and empty; give it a value, or unset it");
    let mut command = bucket.couplet(&arguments);
    insta::assert_snapshot!(failure_of(command.env_remove("AWS_SECRET_ACCESS_KEY"), 2), @r"error: table `t`: s3://environment/pairs.csv: AWS_SECRET_ACCESS_KEY is not set; set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY");
    // Without credentials in the environment, the instance metadata service is tried, which a laptop does not have.
    let mut command = bucket.couplet(&arguments);
    command.env_remove("AWS_SECRET_ACCESS_KEY").env_remove("AWS_ACCESS_KEY_ID");
    command.env("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9");
    insta::assert_snapshot!(failure_of(&mut command, 2), @r#"error: table `t`: s3://environment/pairs.csv: no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_SESSION_TOKEN for a session; profiles in ~/.aws are not read: `eval "$(aws configure export-credentials --format env)"` sets the variables"#);
}

#[test]
fn an_unreachable_or_failing_server_ends_the_command() {
    let test = "an_unreachable_or_failing_server_ends_the_command";
    let Some(bucket) = Bucket::new(test, "failing") else { return };
    bucket.put("pairs.csv", PAIRS);
    let arguments = ["query", "SELECT 1", "--table", "t=s3://failing/pairs.csv"];
    let proxy = bucket.proxy(1);
    proxy.fail(Rule::new(Fault::Status(503)));
    let began = Instant::now();
    insta::assert_snapshot!(failure_of(&mut bucket.couplet_at(&proxy.endpoint(), &arguments), 1), @r"error: table `t`: s3://failing/pairs.csv: the server at http://SERVER failed, even after 10 retries (503 Service Unavailable)");
    assert!(began.elapsed() < Duration::from_secs(300), "{:?}", began.elapsed());
    assert_eq!(proxy.faults(Fault::Status(503)), 11);
    let endpoint = proxy.endpoint();
    drop(proxy);
    insta::assert_snapshot!(failure_of(&mut bucket.couplet_at(&endpoint, &arguments), 1), @r"error: table `t`: s3://failing/pairs.csv: the server at http://SERVER cannot be reached, even after 10 retries (Connection refused (os error 111)); check the network and the endpoint");
}

#[test]
fn a_table_is_read_despite_transient_faults() {
    let Some(bucket) = Bucket::new("a_table_is_read_despite_transient_faults", "passing") else { return };
    bucket.put("pairs.parquet", std::fs::read(quickstart_pairs()).unwrap());
    let proxy = bucket.proxy(5);
    for fault in [Fault::Status(500), Fault::Status(503), Fault::Status(429), Fault::TruncatedBody] {
        proxy.fail(Rule::new(fault).on(&[Kind::Get]).times(1));
    }
    proxy.fail(Rule::new(Fault::Reset).times(1));
    let mut command = bucket.couplet_at(
        &proxy.endpoint(),
        &["query", "--format", "csv", "SELECT count(sentence1) AS n FROM t", "--table", "t=s3://passing/pairs.parquet"],
    );
    assert_eq!(stdout_of(&mut command), "n\n525\n");
    let faults = [Fault::Status(500), Fault::Status(503), Fault::Status(429), Fault::TruncatedBody, Fault::Reset];
    assert_eq!(faults.map(|fault| proxy.faults(fault)), [1; 5]);
}

#[test]
fn a_server_failing_during_a_query_is_named() {
    let test = "a_server_failing_during_a_query_is_named";
    let Some(bucket) = Bucket::new(test, "middle") else { return };
    bucket.put("pairs.parquet", std::fs::read(quickstart_pairs()).unwrap());
    let proxy = bucket.proxy(1);
    let sql = "SELECT sentence1 FROM t";
    let query = |format: &str| {
        bucket.couplet_at(
            &proxy.endpoint(),
            &["query", "--format", format, sql, "--table", "t=s3://middle/pairs.parquet"],
        )
    };
    assert!(stdout_of(&mut query("csv")).lines().count() > 525);
    let gets = proxy.requests(Kind::Get);
    proxy.fail(Rule::new(Fault::Status(500)).on(&[Kind::Get]).after(gets - 1));
    let message = failure_of(&mut query("csv"), 1);
    insta::assert_snapshot!(message, @"error: GET http://SERVER/middle/pairs.parquet: the server at http://SERVER failed, even after 10 retries (500 Internal Server Error, InternalError: We encountered an internal error. Please try again)");
    assert_eq!(proxy.faults(Fault::Status(500)), 11);
}

/// The models in the cache of a bucket's commands.
fn cached(bucket: &Bucket) -> Vec<PathBuf> {
    let Ok(models) = bucket.cache.path().join("couplet/models").read_dir() else { return Vec::new() };
    models.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
}

#[test]
fn a_model_in_a_bucket_is_downloaded_once_per_version() {
    let Some(bucket) = Bucket::new("a_model_in_a_bucket_is_downloaded_once_per_version", "models") else {
        return;
    };
    let uri = bucket.put_folder("m/tiny", &golden("tiny-distilbert"));
    bucket.put("m/tiny/notes.md", "not needed");
    bucket.put("m/tiny/pytorch_model.bin", "not needed either");
    let proxy = bucket.proxy(1);
    let show = || stdout_of(&mut bucket.couplet_at(&proxy.endpoint(), &["model", "show", &uri]));
    let local = stdout_of(couplet().args(["model", "show"]).arg(golden("tiny-distilbert")));
    let shown = show();
    assert_eq!(shown.lines().next(), Some("s3://models/m/tiny"));
    assert_eq!(shown.lines().skip(1).collect::<Vec<_>>(), local.lines().skip(1).collect::<Vec<_>>());
    let files = proxy.requests(Kind::Get);
    assert_eq!(files, 4, "{:?}", proxy.log());

    // The second time, through another command: the cached model is used.
    assert_eq!(show(), shown);
    let pair = ["A man went home.", "He was at home."];
    let mut predict = bucket.couplet_at(&proxy.endpoint(), &["predict", "--json", "--model", &uri, pair[0], pair[1]]);
    let predicted: Value = serde_json::from_str(&stdout_of(&mut predict)).unwrap();
    let sql = format!("SELECT predict('{uri}', '{}', '{}')['score'] AS score", pair[0], pair[1]);
    let mut query = bucket.couplet_at(&proxy.endpoint(), &["query", "--format", "json", &sql]);
    let rows: Value = serde_json::from_str(&stdout_of(&mut query)).unwrap();
    let difference = rows[0]["score"].as_f64().unwrap() - predicted["score"].as_f64().unwrap();
    assert!(difference.abs() < 1e-6, "{rows}, {predicted}");
    assert_eq!((proxy.requests(Kind::Get), cached(&bucket).len()), (files, 1));

    // A truncated file is downloaded again.
    let weights = cached(&bucket)[0].join("model.safetensors");
    std::fs::write(&weights, &std::fs::read(&weights).unwrap()[..100]).unwrap();
    assert_eq!(show(), shown);
    assert_eq!((proxy.requests(Kind::Get), cached(&bucket).len()), (2 * files, 1));

    // Another version in the bucket is another model.
    let other = Variant::of("tiny-distilbert")
        .with_outputs(3)
        .with_config("id2label", serde_json::json!({"0": "a", "1": "b", "2": "c"}));
    bucket.put_folder("m/tiny", other.folder());
    assert!(show().contains("a, b, c"), "{}", show());
    assert_eq!((proxy.requests(Kind::Get), cached(&bucket).len()), (3 * files, 2));
}

#[test]
fn a_model_is_downloaded_once_despite_faults() {
    let test = "a_model_is_downloaded_once_despite_faults";
    let Some(bucket) = Bucket::new(test, "models-faults") else { return };
    let uri = bucket.put_folder("m", &golden("tiny-bert-bin"));
    let proxy = bucket.proxy(3);
    proxy.fail(Rule::new(Fault::TruncatedBody).path("pytorch_model.bin").times(1));
    proxy.fail(Rule::new(Fault::Status(503)).path("pytorch_model.bin").times(1));
    let endpoint = proxy.endpoint();
    let shown: Vec<String> = std::thread::scope(|scope| {
        let show = || stdout_of(&mut bucket.couplet_at(&endpoint, &["model", "show", &uri]));
        let shows: Vec<_> = (0..4).map(|_| scope.spawn(show)).collect();
        shows.into_iter().map(|show| show.join().unwrap()).collect()
    });
    assert!(shown.iter().all(|text| *text == shown[0]));
    let downloads =
        proxy.log().into_iter().filter(|(kind, path, _)| *kind == Kind::Get && path.ends_with("config.json"));
    assert_eq!((downloads.count(), cached(&bucket).len()), (1, 1), "{:?}", proxy.log());
    assert_eq!((proxy.faults(Fault::TruncatedBody), proxy.faults(Fault::Status(503))), (1, 1));
}

#[test]
fn a_model_that_cannot_be_used_is_named_by_its_uri() {
    let Some(bucket) = Bucket::new("a_model_that_cannot_be_used_is_named_by_its_uri", "models-broken") else { return };
    let show = |uri: &str| failure_of(&mut bucket.couplet(&["model", "show", uri]), 2);
    insta::assert_snapshot!(show("s3://models-broken/none"), @r"error: model s3://models-broken/none: does not exist; expected a folder with config.json, tokenizer.json or vocab.txt, and model.safetensors or pytorch_model.bin");
    insta::assert_snapshot!(show("s3://no-such-bucket/none"), @r"error: model s3://no-such-bucket/none: there is no bucket `no-such-bucket`");
    insta::assert_snapshot!(show("s4://models-broken/none"), @r"error: model s4://models-broken/none: couplet cannot read `s4://`; allowed: a local path, s3://BUCKET/KEY, gs://BUCKET/KEY, az://CONTAINER/KEY, abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/KEY, hf://ORG/NAME[@REVISION][/FOLDER]");
    bucket.put("text/README.md", "x");
    insta::assert_snapshot!(show("s3://models-broken/text"), @r"error: model s3://models-broken/text: has no file of a model, such as config.json or model.safetensors");
    let variant = Variant::of("tiny-distilbert").without("model.safetensors");
    let uri = bucket.put_folder("m", variant.folder());
    insta::assert_snapshot!(show(&uri), @r"error: model folder s3://models-broken/m has no weights: model.safetensors, model.safetensors.index.json or pytorch_model.bin; a model and its tokenizer are written into one folder by `save_pretrained` of transformers");
    let variant = Variant::of("tiny-distilbert").with_config("architectures", serde_json::json!(["T5"]));
    let uri = bucket.put_folder("t5", variant.folder());
    insta::assert_snapshot!(show(&uri), @r#"error: s3://models-broken/t5/config.json: key `architectures`: expected ["DistilBertForSequenceClassification"], found ["T5"]"#);
    let mut query = bucket.couplet(&["query", &format!("SELECT predict('{uri}', 'a')")]);
    insta::assert_snapshot!(failure_of(&mut query, 2), @r#"error: SQL: s3://models-broken/t5/config.json: key `architectures`: expected ["DistilBertForSequenceClassification"], found ["T5"]"#);
}

#[test]
fn the_quickstart_gives_the_same_rows_from_a_bucket() {
    let test = "the_quickstart_gives_the_same_rows_from_a_bucket";
    let Some(bucket) = Bucket::new(test, "quickstart") else { return };
    let toml = std::fs::read_to_string(root().join("pipelines/quickstart/pipeline.toml")).unwrap();
    let pairs = bucket.put("in/pairs.parquet", std::fs::read(quickstart_pairs()).unwrap());
    let model = bucket.put_folder("models/quickstart", &quickstart_model());
    let toml = toml.replace("\"pairs.parquet\"", &format!("{pairs:?}")).replace("\"model\"", &format!("{model:?}"));
    let job = Job::new("");
    let pipeline = job.path("remote.toml");
    std::fs::write(&pipeline, toml.replace("../../out/", "out/")).unwrap();
    let mut run = bucket.couplet(&["run", "--json"]);
    let report: Value = serde_json::from_str(&stdout_of(run.arg(&pipeline))).unwrap();
    let same: Value = serde_json::from_str(&QUICKSTART.stdout).unwrap();
    assert_eq!(report["model"]["fingerprint"], same["model"]["fingerprint"]);
    assert_eq!(report["model"]["uri"], Value::String(model));
    assert_eq!(rows_of(&job.path("out/quickstart.parquet")), rows_of(&QUICKSTART.output));
    // The object of the table is only read.
    let listed = block_on(bucket.client.head(&Path::from("in/pairs.parquet"))).unwrap();
    assert_eq!(listed.size, quickstart_pairs().metadata().unwrap().len());
}

#[test]
fn a_job_of_tables_in_a_bucket_fails_before_it_writes() {
    let Some(bucket) = Bucket::new("a_job_of_tables_in_a_bucket_fails_before_it_writes", "jobs") else { return };
    let uri = bucket.put("pairs.csv", PAIRS.to_owned() + "3,x\n");
    let job = Job::new("").change("\"pairs.csv\"", &format!("{uri:?}"));
    let mut run = job.run();
    insta::assert_snapshot!(failure_of(run.envs(bucket.server.env()), 2), @r#"error: table `pairs`: s3://jobs/pairs.csv:4: 2 fields where the first line has 3; is a quotation mark (") unbalanced? { uri = "…", quote = false } reads them as text"#);
    assert!(job.output_files().is_empty());
}

#[test]
fn unusable_credentials_are_reported_with_their_variables() {
    let folder = tempfile::tempdir().unwrap();
    let message = |uri: &str, variables: &[(&str, &str)]| {
        let mut command = couplet();
        command.current_dir(folder.path()).args(["query", "SELECT 1", "--table", &format!("t={uri}")]);
        for name in ["GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"] {
            command.env_remove(name);
        }
        failure_of(command.envs(variables.iter().copied()), 2)
    };
    insta::assert_snapshot!(message("az://container/pairs.csv", &[]), @"error: table `t`: az://container/pairs.csv: the storage account is not known; set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY");
    let key = [("AZURE_STORAGE_ACCOUNT_NAME", "account"), ("AZURE_STORAGE_ACCOUNT_KEY", "no base64!")];
    insta::assert_snapshot!(message("az://container/pairs.csv", &key), @"error: table `t`: az://container/pairs.csv: the credentials of the environment cannot be used (they do not have the format of the service); check AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY");
    let file = |name| [("GOOGLE_APPLICATION_CREDENTIALS", name)];
    insta::assert_snapshot!(message("gs://bucket/pairs.csv", &file("none.json")), @"error: table `t`: gs://bucket/pairs.csv: the credentials of the environment cannot be used (No such file or directory (os error 2)); check GOOGLE_APPLICATION_CREDENTIALS");
    std::fs::write(folder.path().join("key.json"), r#"{"type": "hunter2"}"#).unwrap();
    insta::assert_snapshot!(message("gs://bucket/pairs.csv", &file("key.json")), @"error: table `t`: gs://bucket/pairs.csv: the credentials of the environment cannot be used (they do not have the format of the service); check GOOGLE_APPLICATION_CREDENTIALS");
}
