//! Other programs (DuckDB, Polars, pyarrow, delta-rs) read the same rows from the output of a run as couplet.
//!
//! They are installed from PyPI into the target folder; without Python 3 or a network the tests are skipped.

use std::process::Command;

use serde_json::Value;

use crate::support::{Job, QUICKSTART, couplet, root, skip, stdout_of};
use crate::venv;

const PACKAGES: [&str; 2] = ["duckdb==2.0.0", "pyarrow==26.0.1"];

fn first_row(sql: &str) -> Value {
    let mut query = couplet();
    query.args(["query", "--format", "json", sql, "--pipeline"]).arg(&QUICKSTART.pipeline);
    let mut rows: Vec<Value> = serde_json::from_str(&stdout_of(&mut query)).unwrap();
    rows.swap_remove(0)
}

#[test]
fn duckdb_and_pyarrow_read_the_output_of_a_run() {
    let python = match venv::program("readers-venv", &PACKAGES, "python") {
        Ok(python) => python,
        Err(why) => return skip("duckdb_and_pyarrow_read_the_output_of_a_run", &why),
    };
    let output = Command::new(python).arg(root().join("tests/it/readers.py")).arg(&QUICKSTART.output).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let report: Value = serde_json::from_str(&QUICKSTART.stdout).unwrap();
    let ours = first_row(
        "SELECT count(*) AS rows, sum(CAST(score AS DOUBLE)) AS sum_of_score, \
         count(*) FILTER (WHERE error IS NULL) AS null_errors, \
         count(*) FILTER (WHERE predicted_label = 'paraphrase' AND probabilities[2] > 0.5) AS paraphrases, \
         max(CASE WHEN id = 'q0001' THEN sentence1 END) AS first FROM predictions",
    );
    for reader in ["duckdb", "pyarrow"] {
        let theirs = &found[reader];
        for name in ["rows", "null_errors", "paraphrases", "first"] {
            assert_eq!(theirs[name], ours[name], "{name} by {reader}");
        }
        let sum = |value: &Value| value["sum_of_score"].as_f64().unwrap();
        assert!((sum(theirs) - sum(&ours)).abs() < 1e-9, "{theirs}");
        let metadata = &theirs["metadata"];
        assert_eq!(metadata["couplet.model"], report["model"]["fingerprint"], "{reader}");
        assert_eq!(metadata["couplet.pipeline"], "quickstart", "{reader}");
        assert_eq!(metadata["couplet.version"], env!("CARGO_PKG_VERSION"), "{reader}");
        assert_eq!(metadata["couplet.max_length"], "128", "{reader}");
    }
    assert_eq!(found["duckdb"]["metadata"], found["pyarrow"]["metadata"]);
    insta::assert_snapshot!(columns(&found["duckdb"]), @r"
    category VARCHAR
    error VARCHAR
    id VARCHAR
    label VARCHAR
    model VARCHAR
    predicted_label VARCHAR
    probabilities FLOAT[]
    raw_probabilities FLOAT[]
    score FLOAT
    sentence1 VARCHAR
    sentence2 VARCHAR
    truncated BOOLEAN
    ");
    insta::assert_snapshot!(columns(&found["pyarrow"]), @r"
    category string
    error string
    id string
    label string
    model string
    predicted_label string
    probabilities list<item: float not null>
    raw_probabilities list<item: float not null>
    score float
    sentence1 string
    sentence2 string
    truncated bool
    ");
}

fn columns(found: &Value) -> String {
    let columns = found["columns"].as_object().unwrap().iter();
    columns.map(|(name, kind)| format!("{name} {}", kind.as_str().unwrap())).collect::<Vec<_>>().join("\n")
}

#[test]
fn other_programs_read_delta_tables_and_folders_of_runs() {
    let packages = ["deltalake==1.6.6", "duckdb==2.0.0", "polars==2.1.0", "pyarrow==26.0.1"];
    let python = match venv::program("table-readers-venv", &packages, "python") {
        Ok(python) => python,
        Err(why) => return skip("other_programs_read_delta_tables_and_folders_of_runs", &why),
    };
    let sink = "uri = \"out/scores.parquet\"";
    let delta = Job::over_quickstart_pairs().change(sink, "uri = \"out\"\nformat = \"delta\"\nmode = \"append\"");
    let runs = Job::over_quickstart_pairs().change(sink, "uri = \"out\"");
    let commits = ["1", "2"].map(|key| {
        let report = stdout_of(delta.run().args(["--json", "--run-key", key]));
        serde_json::from_str::<Value>(&report).unwrap()["run"].clone()
    });
    runs.report();
    runs.report();
    let script = root().join("tests/it/table_readers.py");
    let output = Command::new(python).arg(script).args([delta.path("out"), runs.path("out")]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["version"], 1);
    assert_eq!(answer["commits"], Value::from(vec![commits[1].clone(), commits[0].clone()]));
    let sql = "SELECT count(*) AS rows, count(DISTINCT id) AS ids, round(sum(CAST(score AS DOUBLE)), 6) AS sum_of_score \
               FROM predictions";
    let ours = |job: &Job| {
        let mut query = job.couplet(&["query", "--pipeline", "pipeline.toml", "--format", "json", sql]);
        serde_json::from_str::<Value>(&stdout_of(&mut query)).unwrap()[0].clone()
    };
    let (of_delta, of_runs) = (ours(&delta), ours(&runs));
    assert_eq!((&of_delta["rows"], &of_runs["rows"]), (&Value::from(1050), &Value::from(525)));
    for (reader, found) in answer["found"].as_object().unwrap() {
        let expected = if ["delta-rs", "polars", "duckdb"].contains(&reader.as_str()) { &of_delta } else { &of_runs };
        assert_eq!(found, expected, "{reader}");
    }
}
