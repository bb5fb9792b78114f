//! `couplet run` on pipelines that do not suit their data: exit code 2, a message that says what to write instead, and
//! no output.

use serde_json::Value;

use crate::support::{Job, stdout_of, write};

const PAIRS: &str = "id,a,b,n,score\n1,x,y,3,0.5\n2,p,q,4,0.5\n";

/// What the run says, after checking that it wrote nothing.
fn refusal(job: &Job) -> String {
    let message = job.error(2);
    assert!(job.output_files().is_empty());
    message
}

fn with_sql(sql: &str) -> Job {
    Job::new(PAIRS).change("SELECT id, a, b FROM pairs", sql)
}

#[test]
fn a_source_file_that_is_missing_is_named_with_its_like() {
    let job = Job::new(PAIRS).change("pairs.csv", "pair.csv");
    insta::assert_snapshot!(refusal(&job), @"error: table `pairs`: pair.csv does not exist; did you mean pairs.csv?");
}

#[test]
fn all_missing_files_are_named_at_once() {
    let job = Job::new(PAIRS).change("pairs = \"pairs.csv\"", "pairs = \"no.csv\"\ngold = \"folder/none.parquet\"");
    insta::assert_snapshot!(refusal(&job), @r"
    error: table `pairs`: no.csv does not exist
    table `gold`: folder/none.parquet does not exist, nor does its folder folder
    ");
}

#[test]
fn columns_that_the_query_does_not_return_are_named_at_once_with_their_likes() {
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
fn a_text_column_of_numbers_is_refused_with_a_cast() {
    let job = with_sql("SELECT id, a, n AS b FROM pairs");
    insta::assert_snapshot!(refusal(&job), @"error: pipeline.toml: source.text names `b`, which is Int64 and must be a string; write CAST(b AS VARCHAR) AS b in the query");
}

#[test]
fn ids_that_come_twice_are_refused_with_examples() {
    let job = Job::new("id,a,b\n1,x,y\n2,p,q\n1,r,s\n1,t,u\n2,v,w\n");
    let message = refusal(&job);
    // The examples are in no particular order.
    assert!(message.contains(r#""1" 3 times"#) && message.contains(r#""2" 2 times"#), "{message}");
    let job = Job::new("id,a,b\n1,x,y\n2,p,q\n1,r,s\n");
    insta::assert_snapshot!(refusal(&job), @r#"error: pipeline.toml: source.id (id) must name each row once, but some values come more often: "1" 2 times; add a column that tells the rows apart, or SELECT DISTINCT"#);
}

#[test]
fn ids_of_several_columns_name_a_row_together() {
    let job = Job::new("id,a,b\n1,x,y\n1,p,q\n").change("id = \"id\"", "id = [\"id\", \"a\"]");
    assert_eq!(job.rows().len(), 2);
    write(&job.path("pairs.csv"), "id,a,b\n1,x,y\n1,x,q\n");
    std::fs::remove_file(job.output()).unwrap();
    insta::assert_snapshot!(refusal(&job), @r#"error: pipeline.toml: source.id (id, a) must name each row once, but some values come more often: "1, x" 2 times; add a column that tells the rows apart, or SELECT DISTINCT"#);
}

#[test]
fn null_ids_are_refused() {
    let job = Job::new("id,a,b\n1,x,y\n,p,q\n");
    insta::assert_snapshot!(refusal(&job), @"error: pipeline.toml: source.id (id) must name each row, but is NULL in 1 of 2 rows; filter them out in the source query, or name another column");
}

#[test]
fn columns_of_the_output_are_refused_in_the_source_in_any_case() {
    insta::assert_snapshot!(refusal(&with_sql("SELECT id, a, b, score FROM pairs")), @"error: pipeline.toml: the source query returns a column `score`, which couplet adds itself; rename it with AS");
    insta::assert_snapshot!(refusal(&with_sql("SELECT id, a, b, n AS \\\"Error\\\" FROM pairs")), @"error: pipeline.toml: the source query returns a column `Error`, which couplet adds itself; rename it with AS");
}

#[test]
fn two_columns_of_one_name_are_refused() {
    let sql = "SELECT p.id, p.a, q.b, p.n, q.n, p.n AS \\\"B\\\" FROM pairs p JOIN pairs q ON p.id = q.id";
    insta::assert_snapshot!(refusal(&with_sql(sql)), @r"
    error: pipeline.toml: the source query returns two columns named `n` and `n`; rename one of them with AS
    the source query returns two columns named `b` and `B`; rename one of them with AS
    ");
}

#[test]
fn places_in_the_query_are_those_of_the_file_that_has_it() {
    // A line, and a column in characters behind some of two bytes.
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
    insta::assert_snapshot!(explained("SELECT id, a, b FROM pairs; SELECT 1"), @"error: pipeline.toml: the source query: it must be one SELECT: the SQL of a pipeline only reads; what is written, and where, stands under [sink]");
}

#[test]
fn a_source_only_reads() {
    insta::assert_snapshot!(refusal(&with_sql("COPY pairs TO 'copy.csv'")), @"error: pipeline.toml: the source query: it must be one SELECT, not COPY: the SQL of a pipeline only reads; what is written, and where, stands under [sink]");
    insta::assert_snapshot!(refusal(&with_sql("CREATE TABLE t AS SELECT 1")), @"error: pipeline.toml: the source query: it must be one SELECT, not CREATE: the SQL of a pipeline only reads; what is written, and where, stands under [sink]");
}

#[test]
fn a_value_that_cannot_be_cast_fails_the_run() {
    let job = with_sql("SELECT id, a, b, CAST(a AS INT) AS c FROM pairs");
    insta::assert_snapshot!(job.error(1), @"error: pipeline.toml: the source query: Cast error: Cannot cast string 'x' to value of Int32 type");
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
      × `--var day=…` is used nowhere in the file
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
    insta::assert_snapshot!(job.error(1), @"error: cannot write out/scores.parquet: it is a folder");
    assert_eq!(job.output_files(), ["scores.parquet"]);
}

#[test]
#[cfg(target_os = "linux")]
fn an_output_that_cannot_be_written_is_found_before_anything_is_scored() {
    for (sink, name) in [
        ("uri = \"/proc/out/scores.parquet\"", "/proc/out/scores.parquet"),
        ("uri = \"/proc/out\"", "/proc/out"),
        ("uri = \"/proc/out\"\nformat = \"delta\"", "/proc/out"),
    ] {
        let job = Job::new(PAIRS).change("uri = \"out/scores.parquet\"", sink).add("[score]\nstore = \"state\"");
        let said = job.error(1);
        let expected = format!("error: cannot write {name}: no file can be made in /proc: ");
        assert!(said.contains(&expected), "{said}");
        let runs: Value =
            serde_json::from_str(&stdout_of(&mut job.couplet(&["runs", "pipeline.toml", "--json"]))).unwrap();
        assert_eq!((&runs[0]["outcome"], &runs[0]["rows_scored"]), (&"failed".into(), &Value::Null), "{runs}");
    }
}
