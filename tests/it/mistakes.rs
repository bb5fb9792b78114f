//! `couplet run` on pipelines that do not fit their data: exit code 2, a message that says what to write instead, and
//! no output.

use serde_json::Value;

use crate::support::{Job, stdout_of, write};

const PAIRS: &str = "id,a,b,n,score\n1,x,y,3,0.5\n2,p,q,4,0.5\n";

/// The message of the run, after a check that it wrote nothing.
fn refusal(job: &Job) -> String {
    let message = job.error(2);
    assert!(job.output_files().is_empty());
    message
}

fn with_sql(sql: &str) -> Job {
    Job::new(PAIRS).change("SELECT id, a, b FROM pairs", sql)
}

#[test]
fn a_missing_source_file_is_named_with_a_similar_one() {
    let job = Job::new(PAIRS).change("pairs.csv", "pair.csv");
    insta::assert_snapshot!(refusal(&job), @"error: table `pairs`: pair.csv does not exist; did you mean pairs.csv?");
}

#[test]
fn all_missing_files_are_listed_at_once() {
    let job = Job::new(PAIRS).change("pairs = \"pairs.csv\"", "pairs = \"no.csv\"\ngold = \"folder/none.parquet\"");
    insta::assert_snapshot!(refusal(&job), @r"
    error: table `pairs`: no.csv does not exist
    table `gold`: folder/none.parquet does not exist, nor does its folder folder
    ");
}

#[test]
fn all_missing_columns_are_listed_with_suggestions() {
    let job = Job::new(PAIRS)
        .change("id = \"id\"", "id = \"Id\"")
        .change("[\"a\", \"b\"]", "[\"aa\", \"sentence2\"]\nlabel = \"lable\"")
        .change("SELECT id, a, b", "SELECT id, a, b, n AS label");
    insta::assert_snapshot!(refusal(&job), @r"
    error: pipeline.toml: source.id names `Id`, which the source query does not return (it returns id, a, b, label); did you mean `id`?
    source.text names `aa`, which the source query does not return (it returns id, a, b, label); did you mean `a`?
    source.text names `sentence2`, which the source query does not return (it returns id, a, b, label)
    source.label names `lable`, which the source query does not return (it returns id, a, b, label); did you mean `label`?
    ");
}

#[test]
fn a_numeric_text_column_is_refused_and_a_cast_suggested() {
    let job = with_sql("SELECT id, a, n AS b FROM pairs");
    insta::assert_snapshot!(refusal(&job), @"error: pipeline.toml: source.text names `b`, which is Int64 and must be a string; write CAST(b AS VARCHAR) AS b in the query");
}

#[test]
fn duplicate_ids_are_refused_with_examples() {
    let job = Job::new("id,a,b\n1,x,y\n2,p,q\n1,r,s\n1,t,u\n2,v,w\n");
    let message = refusal(&job);
    // The examples are in no particular order.
    assert!(message.contains(r#""1" 3 times"#) && message.contains(r#""2" 2 times"#), "{message}");
    let job = Job::new("id,a,b\n1,x,y\n2,p,q\n1,r,s\n");
    insta::assert_snapshot!(refusal(&job), @r#"error: pipeline.toml: source.id (id) must be unique, but some values occur more than once: "1" 2 times; add a column that tells the rows apart, or SELECT DISTINCT"#);
}

#[test]
fn composite_ids_identify_rows() {
    let job = Job::new("id,a,b\n1,x,y\n1,p,q\n").change("id = \"id\"", "id = [\"id\", \"a\"]");
    assert_eq!(job.rows().len(), 2);
    write(&job.path("pairs.csv"), "id,a,b\n1,x,y\n1,x,q\n");
    std::fs::remove_file(job.output()).unwrap();
    insta::assert_snapshot!(refusal(&job), @r#"error: pipeline.toml: source.id (id, a) must be unique, but some values occur more than once: "1, x" 2 times; add a column that tells the rows apart, or SELECT DISTINCT"#);
}

#[test]
fn null_ids_are_refused() {
    let job = Job::new("id,a,b\n1,x,y\n,p,q\n");
    insta::assert_snapshot!(refusal(&job), @"error: pipeline.toml: source.id (id) must identify each row, but is NULL in 1 of 2 rows; filter them out in the source query, or name another column");
}

#[test]
fn output_columns_are_refused_in_the_source_in_any_case() {
    insta::assert_snapshot!(refusal(&with_sql("SELECT id, a, b, score FROM pairs")), @"error: pipeline.toml: the source query returns a column `score`, which couplet adds itself; rename it with AS");
    insta::assert_snapshot!(refusal(&with_sql("SELECT id, a, b, n AS \\\"Error\\\" FROM pairs")), @"error: pipeline.toml: the source query returns a column `Error`, which couplet adds itself; rename it with AS");
}

#[test]
fn duplicate_column_names_are_refused() {
    let sql = "SELECT p.id, p.a, q.b, p.n, q.n, p.n AS \\\"B\\\" FROM pairs p JOIN pairs q ON p.id = q.id";
    insta::assert_snapshot!(refusal(&with_sql(sql)), @r"
    error: pipeline.toml: the source query returns two columns named `n` and `n`; rename one of them with AS
    the source query returns two columns named `b` and `B`; rename one of them with AS
    ");
}

#[test]
fn positions_in_the_query_are_those_of_its_file() {
    // A line, and a column counted in characters after some two-byte ones.
    let several = "'''\nSELECT id, 'é' AS a,\n  'ééé' AS b, , FROM pairs'''";
    let job = Job::new(PAIRS).change("\"SELECT id, a, b FROM pairs\"", several);
    insta::assert_snapshot!(refusal(&job), @"error: pipeline.toml: the source query: Expected: an expression, found: , at Line: 8, Column: 15");
    let toml = std::fs::read_to_string(job.path("pipeline.toml")).unwrap();
    write(&job.path("pipeline.toml"), toml.replace('\n', "\r\n"));
    insta::assert_snapshot!(refusal(&job), @"error: pipeline.toml: the source query: Expected: an expression, found: , at Line: 8, Column: 15");
    let job = Job::new(PAIRS).change("sql = \"SELECT id, a, b FROM pairs\"", "file = \"pairs.sql\"");
    write(&job.path("pairs.sql"), "-- é\r\nSELECT id\r\n, , FROM pairs");
    insta::assert_snapshot!(refusal(&job), @"error: pipeline.toml: the source query in pairs.sql: Expected: an expression, found: , at Line: 3, Column: 3");
}

#[test]
fn mistakes_in_the_query_are_explained() {
    let explained = |sql: &str| refusal(&with_sql(sql));
    insta::assert_snapshot!(explained("SELEC id, a, b FROM pairs"), @"error: pipeline.toml: the source query: Expected: an SQL statement, found: SELEC at Line: 6, Column: 8");
    insta::assert_snapshot!(explained("SELECT id, a, b FROM pair"), @"error: pipeline.toml: the source query: there is no table `pair` (tables: pairs); did you mean `pairs`?");
    insta::assert_snapshot!(explained("SELECT idd, a, b FROM pairs"), @r"
    error: pipeline.toml: the source query: there is no column `idd` (columns: id, a, b, n, score); did you mean `id`?
    ");
    insta::assert_snapshot!(explained("SELECT id, a, b FROM pairs; SELECT 1"), @"error: pipeline.toml: the source query: it must be one SELECT: the SQL of a pipeline only reads; set the output under [sink]");
}

#[test]
fn a_source_query_must_be_read_only() {
    insta::assert_snapshot!(refusal(&with_sql("COPY pairs TO 'copy.csv'")), @"error: pipeline.toml: the source query: it must be one SELECT, not COPY: the SQL of a pipeline only reads; set the output under [sink]");
    insta::assert_snapshot!(refusal(&with_sql("CREATE TABLE t AS SELECT 1")), @"error: pipeline.toml: the source query: it must be one SELECT, not CREATE: the SQL of a pipeline only reads; set the output under [sink]");
}

#[test]
fn a_value_that_cannot_be_cast_fails_the_run() {
    let job = with_sql("SELECT id, a, b, CAST(a AS INT) AS c FROM pairs");
    insta::assert_snapshot!(job.error(1), @"error: pipeline.toml: the source query: Cast error: Cannot cast string '…' to value of Int32 type; the value is not shown, as it is one of a row: WHERE x IS NOT NULL AND TRY_CAST(x AS …) IS NULL finds it");
    let job = with_sql("SELECT id, a, b, CAST(a AS DECIMAL(5, 2)) AS c FROM pairs");
    let message = job.error(1);
    assert!(message.contains("the value is not shown") && !message.contains("'x'"), "{message}");
    assert!(job.output_files().is_empty());
}

fn with_sql_file(sql: &str) -> Job {
    let job = Job::new(PAIRS).change("sql = \"SELECT id, a, b FROM pairs\"", "file = \"sql/pairs.sql\"");
    write(&job.path("sql/pairs.sql"), sql);
    job
}

#[test]
fn a_sql_file_takes_variables() {
    let job = with_sql_file("SELECT id, a, b FROM pairs WHERE id = {id} -- and not '{{id}}'");
    job.run().args(["--var", "id=2"]).assert().success();
    let rows = crate::support::rows_of(&job.output());
    assert_eq!((rows.len(), rows[0]["id"].as_i64()), (1, Some(2)));
}

#[test]
fn a_sql_file_that_is_missing_is_named() {
    let job = with_sql_file("");
    std::fs::remove_file(job.path("sql/pairs.sql")).unwrap();
    insta::assert_snapshot!(refusal(&job), @"error: pipeline.toml: source.file: sql/pairs.sql does not exist");
}

#[test]
fn a_variable_of_a_sql_file_must_be_given() {
    insta::assert_snapshot!(refusal(&with_sql_file("SELECT id, a, b FROM pairs WHERE id = {id}")), @"error: sql/pairs.sql: variable `id` was not given");
}

#[test]
fn a_variable_that_nothing_uses_is_refused() {
    let job = with_sql_file("SELECT id, a, b FROM pairs WHERE id = {id}");
    let message = job.error_of(job.run().args(["--var", "id=1", "--var", "day=2"]), 2);
    insta::assert_snapshot!(message, @"error: --var day=… is used neither in pipeline.toml nor in sql/pairs.sql");
    let message = Job::new(PAIRS);
    let message = message.error_of(message.run().args(["--var", "day=2"]), 2);
    insta::assert_snapshot!(message, @r"
      × `--var day=…` is not used in the file
      help: the file uses no variables; leave the flag out

    couplet: 1 problem in pipeline.toml
    ");
}

#[test]
fn a_variable_without_a_value_is_refused() {
    let job = Job::new(PAIRS);
    let message = job.error_of(job.run().args(["--var", "day"]), 2);
    insta::assert_snapshot!(message, @r"
    error: invalid value 'day' for '--var <NAME=VALUE>': expected NAME=VALUE, such as date=2026-11-24

    For more information, try '--help'.
    ");
}

#[test]
fn a_pipeline_file_that_is_missing_is_named() {
    let job = Job::new(PAIRS);
    let message = job.error_of(&mut job.couplet(&["run", "pipelines.toml"]), 2);
    insta::assert_snapshot!(message, @"error: pipelines.toml does not exist; did you mean pipeline.toml?");
}

#[test]
fn a_model_that_is_missing_is_named() {
    let job = Job::new(PAIRS).change("tiny-distilbert", "tiny-distilbart");
    insta::assert_snapshot!(refusal(&job), @"error: model ROOT/tests/it/goldens/tiny-distilbart does not exist; expected a folder with config.json, tokenizer.json or vocab.txt, and model.safetensors or pytorch_model.bin; did you mean ROOT/tests/it/goldens/tiny-distilbert?");
}

#[test]
fn a_length_that_the_model_does_not_have_is_refused() {
    let job = Job::new(PAIRS).change("\n[sink]", "\nmax_length = 513\n[sink]");
    insta::assert_snapshot!(refusal(&job), @"error: max_length = 513 does not suit ROOT/tests/it/goldens/tiny-distilbert: it reads at most 512 tokens");
}

#[test]
fn an_output_that_is_a_folder_fails_the_run() {
    let job = Job::new(PAIRS);
    std::fs::create_dir_all(job.output()).unwrap();
    for command in ["plan", "run"] {
        let message = job.error_of(&mut job.couplet(&[command, "pipeline.toml"]), 2);
        insta::allow_duplicates!(
            insta::assert_snapshot!(message, @"error: pipeline.toml: sink.uri: out/scores.parquet is a folder, but a file is needed there; name another place, or remove the folder")
        );
    }
    assert_eq!(job.output_files(), ["scores.parquet"]);
}

#[test]
#[cfg(target_os = "linux")]
fn unwritable_outputs_are_found_before_scoring() {
    for (sink, name) in [
        ("uri = \"/proc/out/scores.parquet\"", "/proc/out/scores.parquet"),
        ("uri = \"/proc/out\"", "/proc/out"),
        ("uri = \"/proc/out\"\nformat = \"delta\"", "/proc/out"),
    ] {
        let job = Job::new(PAIRS).change("uri = \"out/scores.parquet\"", sink).add("[score]\nstore = \"state\"");
        let expected = format!("pipeline.toml: sink.uri: {name} cannot be written: no file can be created in /proc (");
        for command in ["plan", "run"] {
            let printed = job.error_of(&mut job.couplet(&[command, "pipeline.toml"]), 2);
            assert!(printed.contains(&expected) && printed.contains("; name another place"), "{printed}");
        }
        let runs: Value =
            serde_json::from_str(&stdout_of(&mut job.couplet(&["runs", "pipeline.toml", "--json"]))).unwrap();
        assert_eq!((&runs[0]["outcome"], &runs[0]["rows_scored"]), (&"failed".into(), &Value::Null), "{runs}");
    }
}

/// The message of `plan` and `run`, which must be the same, with the same exit code.
fn predicted_error(job: &Job) -> String {
    let message = job.error_of(&mut job.couplet(&["plan", "pipeline.toml"]), 2);
    assert_eq!(job.error(2), message);
    message
}

#[test]
fn a_plan_reports_the_places_that_a_run_refuses() {
    let with_sink = |sink: &str| {
        let job = Job::new(PAIRS).change("uri = \"out/scores.parquet\"", sink);
        write(&job.path("taken"), "years of work");
        job
    };
    for sink in ["uri = \"taken\"", "uri = \"taken\"\nformat = \"delta\""] {
        insta::allow_duplicates!(
            insta::assert_snapshot!(predicted_error(&with_sink(sink)), @"error: pipeline.toml: sink.uri: taken is a file, but a folder is needed there; name another place, or remove the file")
        );
    }
    let with = |lines: &str| with_sink("uri = \"out/scores.parquet\"").add(lines);
    insta::assert_snapshot!(predicted_error(&with("[run]\nspill = \"taken\"")), @"error: pipeline.toml: run.spill: taken is a file, but a folder is needed there; name another place, or remove the file");
    insta::assert_snapshot!(predicted_error(&with("[score]\nstore = \"taken\"")), @"error: pipeline.toml: score.store: taken is a file, but a folder is needed there; name another place, or remove the file");
    let job = with("[score]\nerrors = \"quarantine\"");
    std::fs::create_dir_all(job.path("out/scores_rejected.parquet")).unwrap();
    insta::assert_snapshot!(predicted_error(&job), @"error: pipeline.toml: sink.uri: out/scores_rejected.parquet is a folder, but a file is needed there; name another place, or remove the folder");
    let taken = std::fs::read_to_string(job.path("taken")).unwrap();
    assert_eq!(taken, "years of work");
}

#[cfg(unix)]
#[test]
fn an_invalid_spill_folder_is_named() {
    let job = Job::new(PAIRS);
    let message = |arguments: &[&str]| job.error_of(job.couplet(arguments).env("TMPDIR", job.path("pairs.csv")), 2);
    insta::assert_snapshot!(message(&["run", "pipeline.toml"]), @"error: pipeline.toml: run.spill (the system's TMPDIR, unless it is given): pairs.csv is a file, but a folder is needed there; name another place, or remove the file");
    assert_eq!(message(&["plan", "pipeline.toml"]), message(&["run", "pipeline.toml"]));
    insta::assert_snapshot!(message(&["query", "SELECT 1"]), @"error: run.spill (the system's TMPDIR, unless it is given): DIR/pairs.csv is a file, but a folder is needed there; name another place, or remove the file");
}

/// The sink is used last but checked first: an unwritable sink is not found only after hours of training.
#[test]
fn a_sink_is_checked_before_training() {
    let learn = "[finetune]\nsql = \"SELECT id, a, b, 'x' AS label FROM pairs\"\nid = \"id\"\ntext = [\"a\", \"b\"]\n\
                 task = \"classification\"\nmodel = \"base\"\noutput = \"models/task\"";
    let job = Job::new(PAIRS).add(learn);
    std::fs::create_dir_all(job.output()).unwrap();
    let message = predicted_error(&job);
    assert!(message.contains("sink.uri: out/scores.parquet is a folder"), "{message}");
    std::fs::remove_dir(job.output()).unwrap();
    write(&job.path("models/task/thesis.txt"), "years of work");
    write(&job.path("models/task.training"), "years of work");
    insta::assert_snapshot!(predicted_error(&job), @r"
    error: pipeline.toml: finetune.output: models/task is there and is not the folder of a model, which would replace it; name a folder that is not there yet
    error: pipeline.toml: finetune.output: models/task.training is a file, but a folder is needed there; name another place, or remove the file
    ");
}

#[test]
fn foreign_files_in_a_model_folder_are_found_before_training() {
    let learn = "[finetune]\nsql = \"SELECT id, a, b, 'x' AS label FROM pairs\"\nid = \"id\"\ntext = [\"a\", \"b\"]\n\
                 task = \"classification\"\nmodel = \"base\"\noutput = \"models/task\"";
    let job = Job::new(PAIRS).add(learn);
    for name in ["task/config.json", "task/notes.txt", "task.training/notes.txt", "task.last/config.json"] {
        write(&job.path("models").join(name), "{}");
    }
    std::fs::create_dir(job.path("models/task.last/onnx")).unwrap();
    insta::assert_snapshot!(predicted_error(&job), @r"
    error: pipeline.toml: finetune.output: models/task has `notes.txt`, which is no file of a model and would be lost; move it elsewhere, or name another folder
    error: pipeline.toml: finetune.output: models/task.training has `notes.txt`, which couplet did not write, and is where a training saves its state; move it elsewhere, or give the model another name
    error: pipeline.toml: finetune.output: models/task.last has `onnx`, which is no file of a model and would be lost; move it elsewhere, or name another folder
    ");
    assert!(job.path("models/task.training/notes.txt").exists());
}

#[cfg(unix)]
#[test]
fn conflicting_places_are_found_in_any_spelling() {
    let job = Job::new(PAIRS).change(&format!("{:?}", crate::support::golden("tiny-distilbert")), "\"models/pairs\"");
    std::fs::create_dir_all(job.path("models/pairs")).unwrap();
    std::os::unix::fs::symlink(job.path("models"), job.path("linked")).unwrap();
    let refused = |job: &Job| predicted_error(job).lines().next().unwrap().trim().to_owned();
    let job = job.change("uri = \"out/scores.parquet\"", "uri = \"SINK\"");
    let with_sink = |job: Job, sink: &str| job.change("SINK", sink);
    let job = with_sink(job, "linked/pairs");
    insta::assert_snapshot!(refused(&job), @"× the sink `linked/pairs` is the model `models/pairs`");
    let job = job.change("linked/pairs", "out/../models");
    insta::assert_snapshot!(refused(&job), @"× the sink `out/../models` contains the model `models/pairs`");
    let job = job.change("out/../models", "linked/pairs/run.parquet");
    insta::assert_snapshot!(refused(&job), @"× the sink `linked/pairs/run.parquet` is inside the model `models/pairs`");
    let job = job.change("linked/pairs/run.parquet", ".couplet/demo/scores");
    insta::assert_snapshot!(refused(&job), @"× the sink `.couplet/demo/scores` is inside the store `.couplet/demo`");
    let job = job.change(".couplet/demo/scores", "out/scores.parquet").add("[score]\nstore = \"linked/pairs/state\"");
    insta::assert_snapshot!(refused(&job), @"× the store `linked/pairs/state` is inside the model `models/pairs`");
}

#[test]
fn two_table_formats_do_not_share_a_folder() {
    let job = Job::new(PAIRS).change("uri = \"out/scores.parquet\"", "uri = \"out\"\nformat = \"delta\"");
    job.report();
    let job = job.change("\nformat = \"delta\"", "");
    insta::assert_snapshot!(predicted_error(&job), @r#"error: pipeline.toml: sink.uri: out is a Delta table, so it cannot have folders of runs; add format = "delta", or name another folder"#);
    let job = job.change("uri = \"out\"", "uri = \"runs\"");
    job.report();
    let job = job.change("uri = \"runs\"", "uri = \"runs\"\nformat = \"delta\"");
    insta::assert_snapshot!(predicted_error(&job), @r#"error: pipeline.toml: sink.uri: runs has folders of runs, so it cannot be a Delta table; remove format = "delta", or name another folder"#);
    assert!(!job.path("runs/_delta_log").exists());
}

#[test]
fn a_parameter_in_the_sql_of_a_pipeline_is_refused() {
    insta::assert_snapshot!(refusal(&with_sql("SELECT id, a, b FROM pairs WHERE id = $first")), @"error: pipeline.toml: the source query: the parameter `$first` has no value, and the SQL of a pipeline takes none; write {first} instead, and give it with --var first=VALUE");
    let message = refusal(&with_sql("SELECT id, a, b FROM pairs WHERE id = $1"));
    assert!(
        message.contains("the parameter `$1` has no value") && message.contains("write {name} instead"),
        "{message}"
    );
}

#[test]
fn a_run_without_any_score_gives_a_warning() {
    let job = Job::new("id,a,b\n1,,y\n2,,y\n");
    let message = crate::support::stderr_of(&mut job.run(), 0);
    let expected = "none of the 2 rows could be scored (2 with NULL text), so the output has no predictions";
    assert!(message.contains(expected), "{message}");
}
