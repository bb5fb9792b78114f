//! An untrusted pipeline file: it reads, and writes only to its declared places; nothing in it executes code.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::support::{Job, rows_of, write};

const PAIRS: &str = "id,a,b,label\n1,He sold it.,It was sold.,1\n2,She ran.,She slept.,0\n";

/// Statements that are not queries: they write files, change tables or the session, or prepare and execute others.
const STATEMENTS: [&str; 17] = [
    "COPY pairs TO 'stolen.csv'",
    "COPY (SELECT * FROM pairs) TO 'stolen.parquet' STORED AS PARQUET",
    "CREATE EXTERNAL TABLE passwd STORED AS CSV LOCATION '/etc/passwd'",
    "CREATE TABLE t AS SELECT * FROM pairs",
    "CREATE VIEW v AS SELECT * FROM pairs",
    "CREATE FUNCTION f(INT) RETURNS INT RETURN $1 + 1",
    "CREATE SCHEMA s",
    "INSERT INTO pairs VALUES (3, 'x', 'y', 1)",
    "UPDATE pairs SET a = 'x'",
    "DELETE FROM pairs",
    "DROP TABLE pairs",
    "SET datafusion.execution.batch_size = 1",
    "PREPARE p AS SELECT * FROM pairs",
    "EXECUTE p",
    "START TRANSACTION",
    "SELECT id, a, b FROM pairs; COPY pairs TO 'stolen.csv'",
    "EXPLAIN ANALYZE SELECT id, a, b FROM pairs",
];

fn files(job: &Job) -> BTreeSet<PathBuf> {
    fn visit(folder: &std::path::Path, found: &mut BTreeSet<PathBuf>) {
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            // Records of runs, including the failed one, belong to couplet.
            if path.is_dir() && !path.ends_with(".couplet") {
                visit(&path, found);
            } else if path.is_file() {
                found.insert(path);
            }
        }
    }
    let mut found = BTreeSet::new();
    visit(&job.path(""), &mut found);
    found
}

#[test]
fn the_source_accepts_only_a_query() {
    for sql in STATEMENTS {
        let job = Job::new(PAIRS).change("SELECT id, a, b FROM pairs", sql);
        let before = files(&job);
        let message = job.error(2);
        assert!(message.contains("it must be one SELECT"), "{sql}: {message}");
        assert_eq!(files(&job), before, "{sql}");
    }
}

#[test]
fn training_and_evaluation_accept_only_a_query() {
    let model = crate::support::golden("tiny-distilbert");
    for sql in STATEMENTS {
        for (section, keys) in [
            ("evaluate", "output = \"out/evaluation\"".to_owned()),
            ("finetune", format!("task = \"mrpc\"\nmodel = {model:?}\noutput = \"out/model\"")),
            ("pretrain", format!("model = {model:?}\noutput = \"out/model\"")),
        ] {
            let job = Job::new(PAIRS).add(&format!("[{section}]\nsql = \"{sql}\"\n{keys}"));
            let before = files(&job);
            let message = job.error(2);
            assert!(message.contains("it must be one SELECT"), "[{section}] {sql}: {message}");
            assert_eq!(files(&job), before, "[{section}] {sql}");
        }
    }
    let sql = "SELECT a AS sentence1, b AS sentence2, label FROM pairs";
    let job = Job::new(PAIRS).add(&format!(
        "[finetune]\nsql = \"{sql}\"\nvalidation = \"COPY pairs TO 'stolen.csv'\"\ntask = \"mrpc\"\nmodel = {model:?}\noutput \
         = \"out/model\""
    ));
    let message = job.error(2);
    assert!(message.contains("it must be one SELECT"), "{message}");
}

/// SQL cannot read files by path, only the tables declared in the pipeline file.
#[test]
fn sql_reads_only_tables_that_are_named() {
    for sql in ["SELECT 1 AS id, a, b FROM 'pairs.csv'", "SELECT 1 AS id, a, b FROM \\\"pairs.csv\\\""] {
        let message = Job::new(PAIRS).change("SELECT id, a, b FROM pairs", sql).error(2);
        assert!(message.contains("there is no table"), "{message}");
    }
    let message = Job::new(PAIRS).change("FROM pairs", "FROM read_csv('pairs.csv')").error(2);
    assert!(message.contains("read_csv"), "{message}");
}

#[test]
fn a_command_line_query_writes_only_to_its_output() {
    let job = Job::new(PAIRS);
    let query = |sql: &str| job.error_of(&mut job.couplet(&["query", "--table", "pairs=pairs.csv", sql]), 2);
    let before = files(&job);
    for sql in ["COPY pairs TO 'stolen.csv'", "INSERT INTO pairs VALUES (3, 'x', 'y', 1)"] {
        assert!(query(sql).contains("a query only reads"), "{}", query(sql));
    }
    assert_eq!(files(&job), before);
}

#[test]
fn a_source_of_very_many_columns_is_refused() {
    let wide = |columns: usize| {
        let more: Vec<_> = (3..columns).map(|column| format!("1 AS c{column}")).collect();
        let sql = format!("SELECT id, a, b, {} FROM pairs", more.join(", "));
        Job::new(PAIRS).change("SELECT id, a, b FROM pairs", &sql)
    };
    assert_eq!(wide(1000).rows().len(), 2);
    let message = wide(1001).error(2);
    assert!(message.contains("1001 columns, and at most 1000 are allowed"), "{message}");
}

#[test]
fn a_text_of_more_than_a_mebibyte_is_not_scored() {
    let text = "a ".repeat(1 << 19);
    let job = Job::new(format!("id,a,b\n1,{text},x\n2,{text}a,x\n"));
    job.report();
    let rows = rows_of(&job.output());
    assert_eq!(rows[0]["error"], serde_json::Value::Null);
    assert!(rows[1]["error"].as_str().unwrap().contains("1048577 bytes"), "{}", rows[1]["error"]);
}

#[test]
fn texts_of_pipelines_and_sql_are_read_up_to_a_mebibyte() {
    let job = Job::new(PAIRS).change("sql = \"SELECT id, a, b FROM pairs\"", "file = \"pairs.sql\"");
    write(&job.path("pairs.sql"), format!("SELECT id, a, b FROM pairs -- {}", "x".repeat(1 << 20)));
    assert!(job.error(2).contains("more than 1048576 bytes"), "{}", job.error(2));
    write(&job.path("pairs.sql"), b"SELECT id, a, b \xff FROM pairs");
    assert!(job.error(2).contains("not text in UTF-8: see its byte 16"), "{}", job.error(2));
    // A device without an end.
    #[cfg(unix)]
    assert!(job.error_of(&mut job.couplet(&["run", "/dev/zero"]), 2).contains("not a regular file"));
}
