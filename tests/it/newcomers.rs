//! Common mistakes of new users and couplet's messages: what is wrong, where, the value, what is allowed, and how to
//! fix it. Each message is a snapshot with local paths replaced by `DIR` and `ROOT`.

use std::io::{Read, Write};
use std::net::TcpListener;

use assert_cmd::Command;
use serde_json::json;

use crate::support::{Job, golden, rows_of, stderr_of, write};
use crate::tiny::Variant;

const PAIRS: &str = "id,a,b,label,n\n1,He sold it.,It was sold.,1,10\n2,She ran.,She slept.,0,20\n";

fn new_job() -> Job {
    Job::new(PAIRS)
}

/// A job whose model is a modified copy of a golden one, in the job's folder.
fn with_model(spoil: impl FnOnce(Variant) -> Variant) -> Job {
    let model = spoil(Variant::of("tiny-distilbert"));
    let job = new_job().change(&format!("{:?}", golden("tiny-distilbert")), "\"model\"");
    for entry in model.folder().read_dir().unwrap() {
        let entry = entry.unwrap();
        write(&job.path("model").join(entry.file_name()), std::fs::read(entry.path()).unwrap());
    }
    job
}

/// Compares the message of a command with the snapshot of this name.
#[track_caller]
fn says(name: &str, job: &Job, command: &mut Command, code: i32) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let message = without_ports(&job.error_of(command, code));
    settings.bind(|| insta::assert_snapshot!(format!("newcomers__{name}"), message));
    // No failed command leaves an output.
    assert!(!job.output().exists(), "{name}");
}

/// Replaces addresses of this machine by `SERVER`.
fn without_ports(text: &str) -> String {
    let mut parts = text.split("127.0.0.1:");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + "SERVER" + part.trim_start_matches(|char: char| char.is_ascii_digit()))
}

#[track_caller]
fn run_says(name: &str, job: &Job, code: i32) {
    says(name, job, &mut job.run(), code);
}

#[test]
fn paths() {
    let job = new_job();
    says("pipeline_path", &job, &mut job.couplet(&["run", "pipelin.toml"]), 2);
    says("pipeline_in_no_folder", &job, &mut job.couplet(&["run", "jobs/pipeline.toml"]), 2);
    says("pipeline_is_a_folder", &job, &mut job.couplet(&["run", "."]), 2);
    says("pipeline_is_data", &job, &mut job.couplet(&["run", "pairs.csv"]), 2);
    run_says("table_path", &job.change("pairs.csv", "pair.csv"), 2);
    run_says("sql_file_path", &new_job().change("sql = \"SELECT id, a, b FROM pairs\"", "file = \"pairs.sql\""), 2);
    run_says("model_path", &new_job().change("tiny-distilbert", "tiny-distilbart"), 2);
}

#[test]
fn columns_of_the_source() {
    run_says("wrong_column", &new_job().change("[\"a\", \"b\"]", "[\"a\", \"bb\"]"), 2);
    run_says("wrong_column_in_sql", &new_job().change("SELECT id, a, b", "SELECT id, a, c"), 2);
    run_says("text_of_numbers", &new_job().change("SELECT id, a, b", "SELECT id, n AS a, b"), 2);
    run_says("id_twice", &new_job().change("SELECT id, a, b", "SELECT 1 AS id, a, b"), 2);
    run_says("sql_typo", &new_job().change("SELECT id", "SELEC id"), 2);
    run_says("sql_unknown_function", &new_job().change("SELECT id, a", "SELECT id, lowr(a) AS a"), 2);
    run_says("sql_unknown_table", &new_job().change("FROM pairs", "FROM pars"), 2);
    let job = new_job();
    write(&job.path("pairs.csv"), PAIRS.replace(',', ";"));
    run_says("wrong_delimiter", &job, 2);
}

#[test]
fn labels_that_do_not_fit_the_task_are_explained() {
    let evaluate = |task: &str, label: &str| {
        let sql = format!("SELECT a AS sentence1, b AS sentence2, {label} AS label FROM pairs");
        new_job().add(&format!("[evaluate]\ntask = \"{task}\"\nsql = \"{sql}\"\noutput = \"out/evaluation\""))
    };
    run_says("label_of_text", &evaluate("mrpc", "a"), 2);
    run_says("label_of_text_for_a_value", &evaluate("stsb", "a"), 2);
    run_says("label_out_of_range", &evaluate("mrpc", "n"), 2);
}

#[test]
fn files_of_the_wrong_kind_are_explained() {
    let job = new_job().change("pairs.csv", "pairs.parquet");
    write(&job.path("pairs.parquet"), PAIRS);
    run_says("no_parquet", &job, 2);
    let job = new_job().change("\"pairs.csv\"", "\"pairs.txt\"");
    run_says("wrong_extension", &job, 2);
    let job = new_job();
    write(&job.path("pairs.csv"), "");
    run_says("empty_file", &job, 2);
}

/// An empty source is a night without new data: an empty table is published, and the report says so.
#[test]
fn an_empty_source_is_reported() {
    let job = Job::new("id,a,b\n");
    let message = stderr_of(&mut job.run(), 0);
    assert!(message.contains("the source has no rows"), "{message}");
    assert_eq!(rows_of(&job.output()).len(), 0);
}

#[test]
fn incomplete_models_are_explained() {
    for (name, spoil) in [
        ("model_without_tokenizer", (|model| model.without("tokenizer.json")) as fn(Variant) -> Variant),
        ("model_without_config", |model| model.without("config.json")),
        ("model_without_weights", |model| model.without("model.safetensors")),
        ("model_without_head", |model| model.without_tensor("classifier.weight")),
        ("model_of_another_family", |model| {
            model.with_config("model_type", json!("roberta")).with_config("architectures", json!(["RobertaModel"]))
        }),
    ] {
        run_says(name, &with_model(spoil), 2);
    }
}

#[test]
fn a_damaged_base_model_exits_with_2() {
    let job = with_model(|model| model.with_only("model.safetensors", 100)).add(
        "[finetune]\nsql = \"SELECT id, a, b, CASE WHEN n > 10 THEN 'yes' ELSE 'no' END AS label FROM pairs\"\n\
         validation = \"SELECT id, a, b, 'yes' AS label FROM pairs\"\ntext = [\"a\", \"b\"]\n\
         task = \"classification\"\nmodel = \"model\"\noutput = \"trained\"",
    );
    let message = job.error(2);
    assert!(
        message.contains("pipeline.toml: [finetune]: ") && message.contains("model/model.safetensors"),
        "{message}"
    );
}

#[test]
fn unsupported_hardware_is_explained() {
    if cfg!(not(feature = "cuda")) {
        run_says("gpu_in_a_cpu_build", &new_job().change("[sink]", "device = \"cuda:0\"\n[sink]"), 2);
    }
    run_says("f16_on_a_cpu", &new_job().change("[sink]", "device = \"cpu\"\nprecision = \"f16\"\n[sink]"), 2);
    run_says("length_beyond_the_model", &new_job().change("[sink]", "max_length = 513\n[sink]"), 2);
}

#[test]
fn keys_and_variables() {
    run_says("key_in_the_wrong_section", &new_job().add("[score]\nmax_length = 64"), 2);
    run_says("section_as_a_key", &new_job().change("id = \"id\"", "id = \"id\"\nrun = 4"), 2);
    run_says("unknown_variable", &new_job().change("FROM pairs", "FROM pairs WHERE dt = '{date}'"), 2);
    run_says("sink_is_the_source", &new_job().change("pairs.csv", "out/scores.parquet"), 2);
}

#[test]
fn the_command_line() {
    let job = new_job();
    says("stage_that_is_not_there", &job, job.run().args(["--only", "finetune"]), 2);
    says("stage_that_does_not_exist", &job, job.run().args(["--only", "scoring"]), 2);
    says("unknown_command", &job, &mut job.couplet(&["rnu", "pipeline.toml"]), 2);
    says("unknown_switch", &job, job.run().arg("--frehs"), 2);
    says(
        "query_unknown_table",
        &job,
        &mut job.couplet(&["query", "--pipeline", "pipeline.toml", "SELECT * FROM pair"]),
        2,
    );
    let before_the_run = ["query", "--pipeline", "pipeline.toml", "SELECT * FROM predictions"];
    says("query_before_the_run", &job, &mut job.couplet(&before_the_run), 2);
    let quotes = ["query", "--pipeline", "pipeline.toml", "SELECT * FROM pairs WHERE a = \"He sold it.\""];
    says("query_double_quotes", &job, &mut job.couplet(&quotes), 2);
}

#[test]
fn an_unwritable_place_is_explained() {
    // A file in place of the folder, because root ignores permissions.
    let job = new_job().change("out/scores.parquet", "pairs.csv/scores.parquet");
    run_says("sink_under_a_file", &job, 2);
    run_says("store_under_a_file", &new_job().add("[score]\nstore = \"pairs.csv/store\""), 2);
    run_says("spill_under_a_file", &new_job().add("[run]\nspill = \"pairs.csv/spill\""), 2);
}

/// A server that denies all access.
fn forbidding_server() -> String {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in server.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut request = [0; 8192];
                while matches!(stream.read(&mut request), Ok(bytes) if bytes > 0) {
                    let body = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>";
                    let length = body.len();
                    let answer = format!(
                        "HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\n\r\n{body}"
                    );
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[test]
fn a_bucket_without_read_or_write_access_is_explained() {
    let server = forbidding_server();
    let forbidden = |command: &mut Command| {
        command.env("AWS_ENDPOINT_URL", format!("http://{server}")).env("AWS_ALLOW_HTTP", "true");
        command.env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "secret").env("AWS_REGION", "us-east-1");
    };
    let run = |job: &Job| {
        let mut run = job.run();
        forbidden(&mut run);
        run
    };
    let job = new_job().change("\"pairs.csv\"", "\"s3://corpus/pairs.csv\"");
    says("bucket_that_may_not_be_read", &job, &mut run(&job), 2);
    let job = new_job().change("out/scores.parquet", "s3://predictions/scores.parquet");
    says("bucket_that_may_not_be_written", &job, &mut run(&job), 2);
    let job = new_job().add("[score]\nstore = \"s3://state/nightly\"");
    says("store_that_may_not_be_used", &job, &mut run(&job), 2);
    // Other commands get the same response.
    for arguments in [&["plan"][..], &["runs"], &["report", "-o", "page.html"], &["store", "gc"]] {
        let mut command = job.couplet(arguments);
        forbidden(command.arg("pipeline.toml"));
        let message = stderr_of(&mut command, 2);
        assert!(message.contains("the server refuses access (403 Forbidden, AccessDenied"), "{arguments:?}: {message}");
    }
}
