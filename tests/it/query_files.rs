//! Inputs and outputs of `couplet query`: table options, formats, the pipeline's source, stdin and stdout.

use assert_cmd::Command;
use serde_json::{Value, json};

use crate::support::{Job, stdout_of, write};

const PAIRS: &str = "id,a,b\n1,He sold it.,It was sold.\n2,,x\n";

/// `couplet query` in the folder of a job.
fn query(job: &Job, arguments: &[&str]) -> Command {
    let mut command = job.couplet(&["query"]);
    command.args(arguments);
    command
}

fn csv(job: &Job, arguments: &[&str]) -> String {
    stdout_of(query(job, arguments).args(["--format", "csv"]))
}

fn refusal(job: &Job, arguments: &[&str]) -> String {
    job.error_of(&mut query(job, arguments), 2)
}

#[test]
fn a_table_takes_the_options_of_a_pipeline() {
    let job = Job::new(PAIRS);
    write(&job.path("odd.txt"), "1;x \"y;NA\n2;z;b\n");
    let table = r#"t={ uri = "odd.txt", format = "csv", delimiter = ";", header = false, quote = false, null = "NA" }"#;
    let sql = "SELECT column_2, column_3 IS NULL AS none FROM t ORDER BY column_1";
    assert_eq!(csv(&job, &["--table", table, sql]), "column_2,none\n\"x \"\"y\",true\nz,false\n");
    let wrong = |table: &str| refusal(&job, &["--table", table, "SELECT 1"]);
    insta::assert_snapshot!(wrong(r#"t={ uri = "odd.txt", format = "csv", delimeter = ";" }"#), @r#"error: --table t={ uri = "odd.txt", format = "csv", delimeter = ";" }: unknown key `delimeter` in [tables.t]; did you mean `delimiter`?"#);
    insta::assert_snapshot!(wrong(r#"t={ format = "csv" }"#), @r#"error: --table t={ format = "csv" }: `tables.t` has no `uri`; add `uri = "pairs.parquet"`"#);
    insta::assert_snapshot!(wrong("my-t={}"), @r#"error: --table my-t={}: "my-t" cannot be the name of a table; write for example `my_t`"#);
    assert!(wrong("t={ uri = \"odd.txt\"").starts_with("error: --table t={ uri = \"odd.txt\": "));
}

#[test]
fn a_table_with_another_delimiter_gets_a_hint() {
    let job = Job::new(PAIRS);
    write(&job.path("semi.csv"), "id;a\n1;x\n");
    write(&job.path("tab.csv"), "id\ta\n1\tx\n");
    insta::assert_snapshot!(refusal(&job, &["SELECT id FROM 'semi.csv'"]), @r#"error: SQL: there is no column `id` (columns: id;a); is ';' its delimiter? Write --table 'NAME={ uri = "…", delimiter = ";" }'"#);
    assert!(refusal(&job, &["SELECT id FROM 'tab.csv'"]).ends_with(r#"delimiter = "\t" }'"#));
    write(&job.path("twice.csv"), "id,a,id\n1,x,2\n");
    let message = job.error_of(&mut query(&job, &["SELECT id FROM 'twice.csv'"]), 2);
    assert!(message.contains("fields 1 and 3 of the first line are both named \"id\"; rename one"), "{message}");
    let table = "t={ uri = \"twice.csv\", header = false }";
    assert_eq!(csv(&job, &["-t", table, "SELECT column_3 FROM t LIMIT 1 OFFSET 1"]), "column_3\n2\n");
}

#[test]
fn json_has_all_columns_and_json_lines_can_be_read_back() {
    let job = Job::new(PAIRS);
    let sql = "SELECT id, a FROM 'pairs.csv' ORDER BY id";
    let rows = json!([{"id": 1, "a": "He sold it."}, {"id": 2, "a": null}]);
    let array = stdout_of(query(&job, &[sql]).args(["--format", "json"]));
    assert_eq!(serde_json::from_str::<Value>(&array).unwrap(), rows);
    for name in ["rows.jsonl", "rows.ndjson", "rows.tsv", "rows.csv"] {
        stdout_of(&mut query(&job, &[sql, "-o", name]));
        let again = stdout_of(query(&job, &[&format!("SELECT id, a FROM '{name}'")]).args(["--format", "json"]));
        assert_eq!(serde_json::from_str::<Value>(&again).unwrap(), rows, "{name}");
    }
    let lines = std::fs::read_to_string(job.path("rows.jsonl")).unwrap();
    assert_eq!(lines, "{\"id\":1,\"a\":\"He sold it.\"}\n{\"id\":2,\"a\":null}\n");
    assert_eq!(stdout_of(query(&job, &[sql]).args(["--format", "ndjson"])), lines);
    assert!(std::fs::read_to_string(job.path("rows.tsv")).unwrap().starts_with("id\ta\n"));
    write(&job.path("rows.json"), array);
    let message = job.error_of(&mut query(&job, &["SELECT id FROM 'rows.json'"]), 2);
    assert!(message.contains("`jq -c '.[]' FILE > FILE.jsonl`"), "{message}");
}

#[test]
fn a_result_does_not_replace_its_input() {
    let job = Job::new(PAIRS);
    write(&job.path("parts/a.csv"), PAIRS);
    std::os::unix::fs::symlink(job.path("pairs.csv"), job.path("link.csv")).unwrap();
    let absolute = job.path("pairs.csv").display().to_string();
    let one = "SELECT id FROM t WHERE id = 1";
    for output in ["pairs.csv", "./parts/../pairs.csv", "link.csv", &absolute] {
        let message = refusal(&job, &["-t", "t=pairs.csv", one, "-o", output]);
        assert!(message.contains("the query reads ") && message.ends_with("name another file"), "{message}");
    }
    for from in ["'pairs.csv'", "(SELECT * FROM 'link.csv')", "'*.csv'"] {
        refusal(&job, &[&format!("SELECT id FROM {from}"), "-o", "pairs.csv"]);
    }
    let sql = "SELECT id FROM 'parts/' WHERE id IN (SELECT id FROM 'pairs.csv')";
    let parts = "t={ uri = \"parts/\", format = \"csv\" }";
    refusal(&job, &["-t", parts, &sql.replace("'parts/'", "t"), "-o", "pairs.csv"]);
    refusal(&job, &["-t", parts, one, "-o", "parts/b.csv"]);
    assert_eq!(std::fs::read_to_string(job.path("pairs.csv")).unwrap(), PAIRS);
    // A file that the query does not read may be replaced, including one beside the files of a table's folder.
    stdout_of(&mut query(&job, &["-t", parts, one, "-o", "parts/b.parquet"]));
    stdout_of(&mut query(&job, &["-t", "t=pairs.csv", "-t", "u=parts/a.csv", one, "-o", "parts/a.csv"]));
    assert_eq!(std::fs::read_to_string(job.path("parts/a.csv")).unwrap(), "id\n1\n");
}

#[test]
fn a_dash_is_stdin_or_stdout() {
    let job = Job::new(PAIRS);
    assert_eq!(csv(&job, &["SELECT 1 AS x", "-o", "-"]), "x\n1\n");
    let text = "SELECT 1 AS x;\n\\o -\nSELECT 2 AS x;";
    assert_eq!(stdout_of(query(&job, &["-f", "-", "--format", "csv"]).write_stdin(text)), "x\n1\nx\n2\n");
    assert!(!job.path("-").exists());
}

#[test]
fn from_alone_selects_all() {
    let job = Job::new(PAIRS);
    assert_eq!(csv(&job, &["FROM 'pairs.csv'"]), csv(&job, &["SELECT * FROM 'pairs.csv'"]));
    assert!(refusal(&job, &["FROM 'pairs.csv' WHERE id = 1"]).ends_with("begin with SELECT * FROM"));
    assert_eq!(csv(&job, &["SELECT count(*) AS n FROM (FROM 'pairs.csv')"]), "n\n2\n");
    let job = job.change("SELECT id, a, b FROM pairs", "FROM pairs");
    assert_eq!(job.report()["rows"]["read"], 2);
}

#[test]
fn errors_in_an_sql_file_have_its_line() {
    let job = Job::new(PAIRS);
    let message = |text: &str| {
        write(&job.path("q.sql"), text);
        refusal(&job, &["-t", "t=pairs.csv", "-f", "q.sql", "--format", "csv"])
    };
    insta::assert_snapshot!(message("-- first\nSELECT id,\n  nope\nFROM t;\n"), @"error: q.sql, line 3: there is no column `nope` (columns: id, a, b)");
    insta::assert_snapshot!(message("CREATE VIEW v AS SELECT 1 AS x;\n\nSELECT 1\nFROM u;\n"), @"error: q.sql, line 4: there is no table `u` (tables: t, v)");
    insta::assert_snapshot!(message("CREATE VIEW v AS SELECT 1 AS x;\nSELECT lowr(a) FROM t;\n"), @"error: q.sql, line 2: there is no function `lowr`; did you mean `lower`?");
    insta::assert_snapshot!(message("SELECT nope FROM t"), @"error: q.sql: there is no column `nope` (columns: id, a, b)");
}

#[test]
fn unknown_names_are_explained() {
    let job = Job::new(PAIRS);
    let message = |sql: &str| refusal(&job, &["-t", "t=pairs.csv", sql]);
    insta::assert_snapshot!(message("SELECT predct('m', a) FROM t"), @"error: SQL: there is no function `predct`; did you mean `predict`?");
    insta::assert_snapshot!(message("SELECT qqqq(a) FROM t"), @r"error: SQL: there is no function `qqqq`; \df in the shell, `couplet query`, lists them all");
    insta::assert_snapshot!(message("SELECT * FROM generate_serie(1, 3)"), @"error: SQL: there is no table function `generate_serie`; did you mean `generate_series`?");
    assert!(message("SELECT id FROM t WHERE a = 'it's'").ends_with("as in 'it''s', also in the value of a --var"));
    insta::assert_snapshot!(message("SELECT id FROM t WHERE a = \"yes\""), @"error: SQL: there is no column `yes` (columns: id, a, b); a string literal needs single quotation marks: 'yes'");
    insta::assert_snapshot!(message("SELECT * FROM '~/x.csv'"), @"error: SQL: table `~/x.csv`: ~/x.csv does not exist; only a shell expands ~, and not within quotation marks: write the full path");
    insta::assert_snapshot!(message("SELECT * FROM '$HOME/x.csv'"), @"error: SQL: table `$HOME/x.csv`: $HOME/x.csv does not exist; only a shell expands $HOME, and not within quotation marks: write the full path");
}

#[test]
fn a_source_takes_variables_and_cannot_read_its_own_output() {
    let reads = |sql: &str| Job::new(PAIRS).change("SELECT id, a, b FROM pairs", sql).error(2);
    insta::assert_snapshot!(reads("SELECT id, a, b FROM predictions"), @"error: pipeline.toml: the source query: `predictions` is the output of this pipeline, which its source cannot read; name another table, or score earlier results in a separate pipeline that has them under [tables]");
    assert!(reads("SELECT id, a, b FROM demo").contains("`demo` is the output of this pipeline"));
    insta::assert_snapshot!(reads("SELECT id, a, b FROM pairs WHERE a = $day"), @"error: pipeline.toml: the source query: the parameter `$day` has no value, and the SQL of a pipeline takes none; write {day} instead, and give it with --var day=VALUE");
    let job = Job::new(PAIRS).change("[tables]\npairs = \"pairs.csv\"\n", "");
    let message = job.error(2);
    assert!(
        message.ends_with("and no tables are defined: name it under [tables], as in pairs = \"pairs.parquet\""),
        "{message}"
    );
}

#[test]
fn quarantined_rows_are_a_table() {
    let job = Job::new(PAIRS).add("[score]\nerrors = \"quarantine\"");
    job.report();
    let sql = "SELECT id FROM rejected";
    assert_eq!(csv(&job, &["-p", "pipeline.toml", sql]), "id\n2\n");
}

#[test]
fn a_version_that_does_not_exist_names_the_newest() {
    let job = Job::new(PAIRS).change("out/scores.parquet\"", "out/scores\"\nformat = \"delta\"");
    job.report();
    let message = refusal(&job, &["-t", "d=out/scores@7", "SELECT 1 FROM d"]);
    assert!(message.contains(": there is no version 7; the newest is "), "{message}");
}

#[test]
fn runs_are_valid_json() {
    let job = Job::new(PAIRS);
    job.report();
    let runs: Value = serde_json::from_str(&stdout_of(&mut job.couplet(&["runs", "pipeline.toml", "--json"]))).unwrap();
    assert!(runs[0]["sources"][0]["bytes"].is_u64(), "{runs:#}");
    assert_eq!(runs[0].get("message"), Some(&Value::Null));
}
